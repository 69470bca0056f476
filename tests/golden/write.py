"""Write `written/`: what timm's and transformers' own code computes where the other references say nothing.

    pip install timm==1.0.31 torchvision transformers==5.24.0
    python tests/golden/write.py

Tiny models with random weights, every parameter perturbed, in the hub's layout: timm with registers and MAP head, with
a class token and registers that have no position (DINOv2), with a class token and average pooling; transformers'
classifier, and its vision model saved alone; and the position embedding of a rectangular grid by each library's rule.
The tests never need these packages: they read what this script wrote.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

OUT = Path(__file__).parent / "written"
SIDE = 24
TIMM = {
    "vit_so150m_patch16_reg4_map_256": {},
    "vit_base_patch14_reg4_dinov2": {},
    "vit_small_patch16_224": {"global_pool": "avg"},
}


def perturb(model: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def write_timm(name: str, changes: dict[str, str]) -> None:
    from timm.models import create_model

    arguments = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, **changes}
    model = perturb(create_model(name, num_classes=5, **arguments))
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        tokens = model.forward_features(images)
        pre_logits, logits = model.forward_head(tokens, pre_logits=True), model(images)
    folder = OUT / name
    folder.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    cfg = {"input_size": [3, SIDE, SIDE], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash",
           "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
    config = {"architecture": name, "num_classes": 5, "model_args": arguments, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    np.savez(folder / "io.npz", images_nchw=images, tokens=tokens, pre_logits=pre_logits, logits=logits)


def write_transformers() -> None:
    from transformers import SiglipConfig, SiglipForImageClassification, SiglipVisionConfig, SiglipVisionModel

    vision = {"hidden_size": 32, "intermediate_size": 86, "num_hidden_layers": 2, "num_attention_heads": 4,
              "image_size": SIDE, "patch_size": 8}  # fmt: skip
    images = torch.randn(2, 3, SIDE, SIDE)
    names = {index: name for index, name in enumerate(("ant", "bee", "cat", "dog", "eel"))}
    classifier = perturb(SiglipForImageClassification(SiglipConfig(vision_config=vision, id2label=names)))
    alone = perturb(SiglipVisionModel(SiglipVisionConfig(**vision)))
    for name, model in (("siglip_classifier", classifier), ("siglip_vision_alone", alone)):
        model.save_pretrained(OUT / name)
    with torch.no_grad():
        np.savez(OUT / "siglip_classifier" / "io.npz", images_nchw=images, logits=classifier(images).logits)
        found = alone(images)
    np.savez(
        OUT / "siglip_vision_alone" / "io.npz",
        images_nchw=images, tokens=found.last_hidden_state, pre_logits=found.pooler_output,
    )  # fmt: skip


def write_positions() -> None:
    from timm.layers import resample_abs_pos_embed
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings
    from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

    old, new, width = 4, (6, 3), 8
    table = torch.randn(1, old * old, width)
    shape = {"hidden_size": width, "num_attention_heads": 2, "patch_size": 8}
    siglip = SiglipVisionEmbeddings(SiglipVisionConfig(**shape, image_size=8 * old))
    siglip.position_embedding.weight.data = table[0]
    naflex = Siglip2VisionEmbeddings.resize_positional_embeddings(
        table[0].reshape(old, old, width), torch.tensor([new]), max_length=new[0] * new[1]
    )
    with torch.no_grad():
        filler = torch.zeros(1, new[0] * new[1], width)
        rules = {
            "timm": resample_abs_pos_embed(table, list(new), [old, old], num_prefix_tokens=0),
            "transformers": siglip.interpolate_pos_encoding(filler, 8 * new[0], 8 * new[1]),
            "naflex": naflex,
        }
    np.savez(OUT / "posemb_resample.npz", old=table, new_grid=new, **rules)


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    torch.manual_seed(0)
    for name, changes in TIMM.items():
        write_timm(name, changes)
    write_transformers()
    write_positions()


if __name__ == "__main__":
    main()
