from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sovit
from sovit.checkpoint import load_model, read_config, save_checkpoint
from sovit.errors import CheckpointMismatch, ConfigError
from tests.conftest import random_model, tiny_spec


def test_a_saved_model_comes_back_bit_for_bit(checkpoint: Path) -> None:
    model, loaded = random_model(tiny_spec().model), sovit.load_model(checkpoint)
    for (name, ours), (_, theirs) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    image = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        # Weights are equal; their memory is aligned otherwise, which may change the last bit of a product.
        torch.testing.assert_close(model(image).logits, loaded(image).logits, rtol=1e-5, atol=1e-6)
    assert not loaded.training


def test_the_config_travels_with_the_weights(checkpoint: Path) -> None:
    config = read_config(checkpoint)
    assert (config.model, config.labels, config.score) == (tiny_spec().model, ("ant", "bee", "cat"), "softmax")
    assert config.provenance == {"weights": "random"}


def test_sincos2d_is_no_weight(tmp_path: Path) -> None:
    spec = tiny_spec(position_embedding="sincos2d")
    model = random_model(spec.model)
    save_checkpoint(tmp_path / "c", model, spec, {})
    assert "pos_embed" not in load_file(tmp_path / "c" / "model.safetensors")
    image = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(load_model(tmp_path / "c")(image).logits, model(image).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("position", ["learn", "sincos2d"])
def test_another_image_size(tmp_path: Path, position: str) -> None:
    spec = tiny_spec(position_embedding=position)
    save_checkpoint(tmp_path / "c", random_model(spec.model), spec, {})
    model = load_model(tmp_path / "c", image_size=(24, 32))
    assert model.pos_embed.shape == (1, 6 * 8, 32)
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 24, 32)).logits.isfinite().all()


def test_a_missing_file_is_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointMismatch, match=r"model\.safetensors is missing"):
        load_model(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        load_model(checkpoint)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_a_truncated_file_is_named(checkpoint: Path, keep: int) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointMismatch, match=r"model\.safetensors is truncated"):
        load_model(checkpoint)


def test_keys_and_shapes_are_checked_by_name(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "extra": torch.zeros(2)}, path)
    with pytest.raises(CheckpointMismatch, match=r"unexpected key extra \[2\]"):
        load_model(checkpoint)
    save_file({name: tensor for name, tensor in tensors.items() if name != "norm.bias"}, path)
    with pytest.raises(CheckpointMismatch, match=r"lacks the key norm\.bias \[32\]"):
        load_model(checkpoint)
    save_file({**tensors, "head.weight": torch.zeros(5, 32)}, path)
    with pytest.raises(CheckpointMismatch, match=r"head\.weight has shape \[5, 32\], the config asks for \[3, 32\]"):
        load_model(checkpoint)


def test_another_schema_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "schema_version": 99}))
    with pytest.raises(CheckpointMismatch, match="schema_version 99"):
        read_config(checkpoint)
    path.write_text("[]")
    with pytest.raises(CheckpointMismatch, match="schema_version None"):
        read_config(checkpoint)
    path.write_text("{not json")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read as JSON"):
        read_config(checkpoint)


def test_weights_are_mapped_not_read(checkpoint: Path) -> None:
    path = (checkpoint / "model.safetensors").resolve()
    model = sovit.load_model(checkpoint)
    spans = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(path))
    ]
    assert spans
    for name, parameter in model.named_parameters():
        assert any(begin <= parameter.data_ptr() < end for begin, end in spans), name


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(ConfigError, match="is no checkpoint of sovit's"):
        save_checkpoint(tmp_path, random_model(tiny_spec().model), tiny_spec(), {})
    with pytest.raises(CheckpointMismatch, match="is a foreign checkpoint: import it with `sovit convert"):
        load_model(tmp_path)
