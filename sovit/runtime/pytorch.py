"""PyTorch on a checkpoint: the fp32 reference every other runtime is measured against."""

from __future__ import annotations

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
        return self._run((image.float() * self.scale_C + self.shift_C).permute(0, 3, 1, 2))

    def forward_patches(self, patches_BNP: Tensor, mask_BN: Tensor, grid_B2: Tensor) -> tuple[Tensor, ...]:
        """The same for NaFlex: uint8 patches, where they are, and the rows and columns of each image."""
        channels = patches_BNP.unflatten(-1, (-1, 3))  # type: ignore[no-untyped-call]
        normalised_BNP = (channels.float() * self.scale_C + self.shift_C).flatten(2)
        return self._run(Patches(normalised_BNP, mask_BN, grid_B2))

    def _run(self, image: Tensor | Patches) -> tuple[Tensor, ...]:
        out = self.model(image)
        return tuple(getattr(out, name) for name in self.output_names)


class TorchRuntime:
    """A model in eager PyTorch on the CPU, float32."""

    name = "torch"
    precision = "fp32"

    def __init__(self, model: ViT, preprocess: Preprocess, *, tokens: bool = False) -> None:
        self.graph = Graph(model, preprocess, tokens=tokens).eval()
        self._patch_size = preprocess.patch_size

    @torch.inference_mode()
    def run(self, image_BYXC: Images) -> dict[str, NDArray[np.float32]]:
        """See `Runtime.run`."""
        if self._patch_size is not None:
            batch = to_patches(image_BYXC, self._patch_size)
            outputs = self.graph.forward_patches(*(torch.from_numpy(array) for array in batch))
        else:
            # Arrays made by Pillow are read-only, which torch cannot express.
            outputs = self.graph(torch.from_numpy(np.array(image_BYXC)))
        return {name: tensor.numpy() for name, tensor in zip(self.graph.output_names, outputs, strict=True)}

    def close(self) -> None:
        """See `Runtime.close`."""
        del self.graph
