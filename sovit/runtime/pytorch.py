"""PyTorch on a checkpoint: in fp32 on the CPU the reference every other runtime is measured against."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sovit.model import Patches, ViT
from sovit.preprocess import Images, Preprocess, to_patches


class Graph(nn.Module):
    """The whole graph of an artifact as a torch module: uint8 [B, Y, X, C] in, named outputs in a fixed order."""

    scale_C: Tensor
    shift_C: Tensor

    def __init__(self, model: ViT, preprocess: Preprocess, *, tokens: bool = False) -> None:
        super().__init__()
        self.model = model
        self.tokens = tokens
        # One multiply and one add per value: (v / 255 - mean) / std.
        std = torch.tensor(preprocess.std, dtype=torch.float64)
        mean = torch.tensor(preprocess.mean, dtype=torch.float64)
        self.register_buffer("scale_C", (1 / (255 * std)).float())
        self.register_buffer("shift_C", (-mean / std).float())

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what `forward` returns."""
        logits = ("logits",) if self.model.head is not None else ()
        return ("pre_logits", *logits, *(("tokens",) if self.tokens else ()))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """`pre_logits` [B, D] and, with a head, `logits` [B, L]."""
        normalised = (image.float() * self.scale_C + self.shift_C).permute(0, 3, 1, 2)
        return self._run(normalised.to(self._dtype))

    def forward_patches(self, patches_BNP: Tensor, mask_BN: Tensor, grid_B2: Tensor) -> tuple[Tensor, ...]:
        """The same for NaFlex: uint8 patches, where they are, and the rows and columns of each image."""
        channels = patches_BNP.unflatten(-1, (-1, 3))  # type: ignore[no-untyped-call]
        normalised_BNP = (channels.float() * self.scale_C + self.shift_C).flatten(2)
        return self._run(Patches(normalised_BNP.to(self._dtype), mask_BN, grid_B2))

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.patch_embed.weight.dtype

    def _run(self, image: Tensor | Patches) -> tuple[Tensor, ...]:
        out = self.model(image)
        return tuple(getattr(out, name) for name in self.output_names)


DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchRuntime:
    """A model in eager PyTorch, on the CPU in float32 unless told otherwise.

    Another `precision` is that of the weights and of everything between the normalised pixels and the outputs, without
    fp32 islands: what PyTorch makes of `model.to(dtype)`. It changes the model that was passed.
    """

    def __init__(
        self,
        model: ViT,
        preprocess: Preprocess,
        *,
        tokens: bool = False,
        device: str = "cpu",
        precision: str = "fp32",
    ) -> None:
        self.name = "torch" if device == "cpu" else f"torch-{device}"
        self.precision = precision
        self.graph = Graph(model.to(DTYPES[precision]), preprocess, tokens=tokens).eval().to(device)
        self._device = torch.device(device)
        self._patch_size = preprocess.patch_size

    @torch.inference_mode()
    def run(self, image_BYXC: Images) -> dict[str, NDArray[np.float32]]:
        """See `Runtime.run`."""
        if self._patch_size is not None:
            batch = to_patches(image_BYXC, self._patch_size)
            outputs = self.graph.forward_patches(*(torch.from_numpy(array).to(self._device) for array in batch))
        else:
            # Arrays made by Pillow are read-only, which torch cannot express.
            outputs = self.graph(torch.from_numpy(np.array(image_BYXC)).to(self._device))
        return {
            name: tensor.float().cpu().numpy() for name, tensor in zip(self.graph.output_names, outputs, strict=True)
        }

    def close(self) -> None:
        """See `Runtime.close`."""
        del self.graph
