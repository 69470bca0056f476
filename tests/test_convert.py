"""Foreign checkpoints, imported: the same numbers as their own code, in every layout they come in."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import sovit
from benchmarks.studies.commands import run_sovit
from benchmarks.studies.foreign import write_big_vision, write_timm, write_transformers
from export.reference import reference_images
from export.to_onnx import export_onnx, from_checkpoint
from sovit.checkpoint import read_config
from sovit.config import Pool, ViTConfig, variant_config
from sovit.convert.foreign import ImportOptions
from sovit.convert.importer import import_checkpoint
from sovit.convert.timm import ARCHITECTURES, _model
from sovit.cost import cost
from sovit.errors import CheckpointMismatch, ConfigError
from sovit.labels import imagenet_1k
from sovit.model import ViT
from sovit.parity import relative_error
from sovit.predict import load_checkpoint
from sovit.preprocess import Preprocess
from tests.conftest import random_model
from tests.golden_models import (
    BIG_VISION,
    FOLDERS,
    GOLDEN,
    Arrays,
    expected,
    load,
    naflex_npz,
    npz,
    per_layer,
    run,
    stacked,
)

TIMM = GOLDEN / "timm" / "vit_so150m_patch16_reg4_gap_256"
SIGLIP = GOLDEN / "transformers" / "siglip"
NAFLEX = GOLDEN / "transformers" / "siglip2_naflex"


def converted(source: Path, tmp_path: Path, **options: Any) -> ViT:
    import_checkpoint(source, tmp_path / "out", ImportOptions(**options))
    return sovit.load_model(tmp_path / "out")


def check(model: ViT, io: Arrays) -> None:
    out = run(model, io)
    wanted = expected(io, model.head is not None)
    assert wanted
    for name, values in wanted.items():
        assert relative_error(getattr(out, name).numpy(), values) < 1e-5, name


def saved(arrays: Arrays, path: Path) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def edited(source: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy of a folder with fields of its config changed; None removes one."""
    folder = Path(shutil.copytree(source, tmp_path / "edited"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


# --- the same numbers ---


@pytest.mark.parametrize("name", BIG_VISION)
def test_big_vision(name: str, tmp_path: Path) -> None:
    model = converted(GOLDEN / "big_vision" / f"{name}.weights.npz", tmp_path)
    io = load(GOLDEN / "big_vision" / f"{name}.io.npz")
    if name == "siglip_two_towers":
        pre_logits = run(model, io).pre_logits.numpy()
        assert relative_error(pre_logits / np.linalg.norm(pre_logits, axis=1, keepdims=True), io["zimg"]) < 1e-5
    else:
        check(model, io)


@pytest.mark.parametrize("name", FOLDERS)
def test_timm_and_transformers(name: str, tmp_path: Path) -> None:
    check(converted(GOLDEN / name, tmp_path), load(GOLDEN / name / "io.npz"))


def test_there_are_as_many_reference_cases_as_we_think() -> None:
    assert len(FOLDERS) == 12


@pytest.mark.parametrize(
    ("name", "size", "millions", "gmacs"),
    [
        ("vit_base_patch16", 224, 86.57, 17.6),
        ("vit_large_patch16", 384, 304.72, 191.2),
        ("vit_so150m_patch16_reg4_gap", 256, 134.13, 36.8),
        ("vit_so150m2_patch16_reg1_gap", 256, 136.06, 37.0),
        ("vit_so400m_patch14_siglip_gap", 378, 414.14, 333.5),
    ],
)
def test_architectures_have_the_published_size(name: str, size: int, millions: float, gmacs: float) -> None:
    """timm's results tables, for 1,000 classes."""
    found = cost(_model(ARCHITECTURES[name], (size, size), 1000, ImportOptions()))
    assert found.parameters / 1e6 == pytest.approx(millions, abs=0.006)
    assert found.flops / 2e9 == pytest.approx(gmacs, rel=5e-3)


@pytest.mark.parametrize("name", BIG_VISION)
@pytest.mark.parametrize("prefix", ["params/", ""])
@pytest.mark.parametrize("layout", [per_layer, stacked])
@pytest.mark.parametrize("tower", [False, True])
def test_every_layout_of_an_npz_gives_the_same_model(
    name: str, prefix: str, layout: Any, tower: bool, tmp_path: Path
) -> None:
    arrays = {key.removeprefix("params/"): value for key, value in npz(name).items()}
    arrays = layout(per_layer(arrays))
    if tower and not any(key.startswith("img/") for key in arrays):
        arrays = {f"img/{key}": value for key, value in arrays.items()}
    path = saved({f"{prefix}{key}": value for key, value in arrays.items()}, tmp_path / "other.npz")
    # In an image tower a head is a projection, unless it is said to be a classifier's.
    projects = tower and "img/head/kernel" in arrays
    model = converted(path, tmp_path, num_classes=7 if projects else None)
    import_checkpoint(GOLDEN / "big_vision" / f"{name}.weights.npz", tmp_path / "reference")
    for key, value in sovit.load_model(tmp_path / "reference").state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_the_names_of_the_first_vit_files(tmp_path: Path) -> None:
    """Modules of a block numbered together, and the class token's position inside the position embedding."""
    arrays = per_layer(npz("encoder_tok"))
    position = np.full((1, 1, 64), 0.25, np.float32)
    renamed: Arrays = {}
    for key, value in arrays.items():
        new = key.replace("LayerNorm_1/", "LayerNorm_2/").replace("MlpBlock_0", "MlpBlock_3")
        renamed[new.replace("Attention_0", "Attention_1")] = value
    renamed["cls"] = arrays["cls"] - position
    renamed["Transformer/posembed_input/pos_embedding"] = np.concatenate(
        [position, renamed.pop("pos_embedding")], axis=1
    )
    model = converted(saved(renamed, tmp_path / "old.npz"), tmp_path)
    check(model, load(GOLDEN / "big_vision" / "encoder_tok.io.npz"))


def test_a_map_head_beside_the_blocks(tmp_path: Path) -> None:
    arrays = {key.replace("MAPHead_0/", ""): value for key, value in npz("classifier_map").items()}
    model = converted(saved(arrays, tmp_path / "old.npz"), tmp_path)
    check(model, load(GOLDEN / "big_vision" / "classifier_map.io.npz"))


def test_naflex_of_big_vision(tmp_path: Path) -> None:
    arrays = naflex_npz(load_file(NAFLEX / "model.safetensors"))
    assert arrays["params/img/pos_embedding"].shape == (4, 4, 64)
    model = converted(saved(arrays, tmp_path / "naflex.npz"), tmp_path)
    check(model, load(NAFLEX / "io.npz"))
    assert read_config(tmp_path / "out").preprocess.resize == "naflex"


def test_bfloat16_arrays_stay_bfloat16(tmp_path: Path) -> None:
    arrays = npz("classifier_map")
    halved = {key: torch.from_numpy(value).bfloat16() for key, value in arrays.items()}
    raw = {key: value.view(torch.int16).numpy().view("V2") for key, value in halved.items()}
    import_checkpoint(saved(raw, tmp_path / "bf16.npz"), tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    floats = saved({key: value.float().numpy() for key, value in halved.items()}, tmp_path / "f32.npz")
    import_checkpoint(floats, tmp_path / "f32")
    model, wanted = sovit.load_model(tmp_path / "out"), sovit.load_model(tmp_path / "f32")
    assert next(model.parameters()).dtype == torch.float32
    for key, value in wanted.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_an_image_towers_projection_is_no_classifier(tmp_path: Path) -> None:
    arrays = {key.replace("params/", "params/img/"): value for key, value in npz("classifier_map").items()}
    path = saved(arrays, tmp_path / "x.npz")
    with pytest.raises(CheckpointMismatch, match="which projects the image to the text's space"):
        converted(path, tmp_path)
    assert converted(path, tmp_path, drop_head=True).head is None


def test_the_state_of_a_training_run_is_left_out_and_told(tmp_path: Path) -> None:
    state = {"opt/0/mu": np.zeros(3, np.float32), "chrono/step": np.array(7)}
    path = saved(npz("classifier_map") | state, tmp_path / "x.npz")
    check(converted(path, tmp_path), load(GOLDEN / "big_vision" / "classifier_map.io.npz"))
    assert "state of the training run" in import_checkpoint(path, tmp_path / "out").notes[0]


def test_arrays_in_another_byte_order_or_without_suffix(tmp_path: Path) -> None:
    import io
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in npz("classifier_map").items():
            buffer = io.BytesIO()
            np.save(buffer, value.astype(">f4"))
            archive.writestr(key, buffer.getvalue())
    check(converted(tmp_path / "x.npz", tmp_path), load(GOLDEN / "big_vision" / "classifier_map.io.npz"))


def test_a_scan_with_one_layer_less_in_one_array_is_refused(tmp_path: Path) -> None:
    arrays = npz("classifier_gap_scan")
    key = "params/Transformer/encoderblock/LayerNorm_1/scale"
    arrays[key] = arrays[key][:2]
    with pytest.raises(CheckpointMismatch, match=r"LayerNorm_1/scale with shape \[2, 64\], this model needs \[3, 64\]"):
        converted(saved(arrays, tmp_path / "x.npz"), tmp_path)


@pytest.mark.parametrize("prefix", ["", "vision_model.vision_model."])
def test_transformers_without_the_wrapper_and_with_two(prefix: str, tmp_path: Path) -> None:
    folder = edited(SIGLIP, tmp_path)
    tensors = load_file(SIGLIP / "model.safetensors")
    renamed = {key.replace("vision_model.", prefix): value for key, value in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    check(converted(folder, tmp_path), load(SIGLIP / "io.npz"))


def test_shards(tmp_path: Path) -> None:
    folder = edited(SIGLIP, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {key: f"model-0000{index % 2 + 1}-of-00002.safetensors" for index, key in enumerate(tensors)}
    for name in set(shards.values()):
        save_file({key: tensors[key].clone() for key in shards if shards[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    check(converted(folder, tmp_path), load(SIGLIP / "io.npz"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointMismatch, match=r"model-00002-of-00002\.safetensors is missing"):
        converted(folder, tmp_path)


def test_one_safetensors_file_beside_its_config(tmp_path: Path) -> None:
    folder = edited(TIMM, tmp_path)
    (folder / "model.safetensors").rename(folder / "finetuned.safetensors")
    check(converted(folder / "finetuned.safetensors", tmp_path), load(TIMM / "io.npz"))


def test_defaults_a_config_leaves_out(tmp_path: Path) -> None:
    """Hub configs name only what differs from the class's defaults."""
    config = json.loads((SIGLIP / "config.json").read_text())
    keep = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "image_size", "patch_size")
    vision = {name: config["vision_config"][name] for name in keep}
    folder = edited(SIGLIP, tmp_path, vision_config=vision)
    check(converted(folder, tmp_path), load(SIGLIP / "io.npz"))
    model = read_config(tmp_path / "out").model
    assert (model.gelu, model.layer_norm_eps, model.pool) == ("tanh", 1e-6, "map")


@pytest.mark.parametrize(
    ("folder", "wrong"),
    [("transformers/siglip", {"gelu": "erf"}), ("timm/vit_so400m_patch14_siglip_224", {"gelu": "tanh"})],
)
def test_the_wrong_gelu_would_be_told_apart(folder: str, wrong: dict[str, Any], tmp_path: Path) -> None:
    from dataclasses import replace

    model = converted(GOLDEN / folder, tmp_path)
    other = ViT(replace(model.config, **wrong)).eval()
    other.load_state_dict(model.state_dict())
    with pytest.raises(AssertionError, match="pre_logits"):
        check(other, load(GOLDEN / folder / "io.npz"))


# --- nothing is lost ---


@pytest.mark.parametrize("source", [GOLDEN / "big_vision" / "siglip_two_towers.weights.npz", SIGLIP, NAFLEX])
def test_the_text_tower_is_kept_bit_for_bit(source: Path, tmp_path: Path) -> None:
    import_checkpoint(source, tmp_path / "out")
    if source.suffix == ".npz":
        theirs = {key: torch.from_numpy(value) for key, value in npz("siglip_two_towers").items()}
        image = {key for key in theirs if key.startswith("params/img/")}
        assert {"params/t", "params/b"} < theirs.keys() - image
    else:
        theirs = load_file(source / "model.safetensors")
        image = {key for key in theirs if key.startswith("vision_model.")}
        assert {"logit_scale", "logit_bias"} < theirs.keys() - image
    kept = load_file(tmp_path / "out" / "text.safetensors")
    assert kept.keys() == theirs.keys() - image
    for key, value in kept.items():
        assert torch.equal(value, theirs[key]), key
    config = json.loads((tmp_path / "out" / "text_config.json").read_text())
    assert config["layout"] == ("big_vision" if source.suffix == ".npz" else "transformers")
    assert config["vocab_size"] == (50 if source.suffix == ".npz" else 60)


def test_logits_per_image_follow_from_what_is_kept(tmp_path: Path) -> None:
    model = converted(SIGLIP, tmp_path)
    io = load(SIGLIP / "io.npz")
    text = load_file(tmp_path / "out" / "text.safetensors")
    image = load_checkpoint(tmp_path / "out")
    pre_logits = run(model, io).pre_logits.numpy()
    image_embeds = pre_logits / np.linalg.norm(pre_logits, axis=1, keepdims=True)
    logits = image_embeds @ io["text_embeds"].T * np.exp(text["logit_scale"].numpy()) + text["logit_bias"].numpy()
    assert relative_error(logits, io["logits_per_image"]) < 1e-5
    assert image.spec.model.num_classes == 0


def test_tokenizer_files_come_along(tmp_path: Path) -> None:
    folder = edited(SIGLIP, tmp_path)
    for name in ("tokenizer.json", "spiece.model", "tokenizer_config.json"):
        (folder / name).write_bytes(name.encode())
    import_checkpoint(folder, tmp_path / "out")
    for name in ("tokenizer.json", "spiece.model", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == name.encode()


def test_a_checkpoint_says_where_it_comes_from(tmp_path: Path) -> None:
    import_checkpoint(TIMM, tmp_path / "out")
    provenance = read_config(tmp_path / "out").provenance
    assert provenance == {"source": TIMM.name, "layout": "timm", "image_size": [32, 32]}


# --- preprocessing and labels travel ---


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, Preprocess(image_size=(32, 32), resize="crop", crop_fraction=0.95)),
        ({"crop_mode": "squash", "crop_pct": 1.0}, Preprocess(image_size=(32, 32), resize="squash")),
        ({"crop_mode": "border"}, Preprocess(image_size=(32, 32), resize="border", crop_fraction=0.95)),
        (
            {"interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1], "crop_pct": 1.0},
            Preprocess(image_size=(32, 32), resize="crop", interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)),
        ),
    ],
)
def test_timm_preprocessing(changes: dict[str, Any], wanted: Preprocess, tmp_path: Path) -> None:
    cfg = json.loads((TIMM / "config.json").read_text())["pretrained_cfg"] | changes
    found = import_checkpoint(edited(TIMM, tmp_path, pretrained_cfg=cfg), tmp_path / "out")
    assert read_config(tmp_path / "out").preprocess == wanted
    assert not found.notes


def test_timm_defaults_are_taken_and_told(tmp_path: Path) -> None:
    folder = edited(TIMM, tmp_path, pretrained_cfg={"input_size": [3, 32, 32]})
    found = import_checkpoint(folder, tmp_path / "out")
    assert read_config(tmp_path / "out").preprocess == Preprocess(
        image_size=(32, 32), resize="crop", crop_fraction=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    (note,) = found.notes
    assert note.startswith("the source says nothing about part of the preprocessing; taken by default: interpolation")
    assert "crop-fraction 0.875, mean (0.485," in note


def test_a_pooling_that_timm_ignores_is_told(tmp_path: Path) -> None:
    folder = edited(TIMM, tmp_path, global_pool="map")
    check(converted(folder, tmp_path), load(TIMM / "io.npz"))
    assert "'map' is not what timm builds for this name, 'avg'" in import_checkpoint(folder, tmp_path / "out").notes[0]
    assert not import_checkpoint(TIMM, tmp_path / "out").notes


def test_layer_scale_of_zero_is_none(tmp_path: Path) -> None:
    arguments = json.loads((TIMM / "config.json").read_text())["model_args"] | {"init_values": 0}
    check(converted(edited(TIMM, tmp_path, model_args=arguments), tmp_path), load(TIMM / "io.npz"))


def test_a_config_of_one_level(tmp_path: Path) -> None:
    config = json.loads((TIMM / "config.json").read_text())
    folder = edited(TIMM, tmp_path, pretrained_cfg=None, **config["pretrained_cfg"])
    check(converted(folder, tmp_path), load(TIMM / "io.npz"))
    assert read_config(tmp_path / "out").preprocess.crop_fraction == 0.95


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_transformers_preprocessing(file: str, tmp_path: Path) -> None:
    folder = edited(SIGLIP, tmp_path)
    config = json.loads((folder / "preprocessor_config.json").read_text()) | {
        "resample": 2, "image_mean": [0.1, 0.2, 0.3],
    }  # fmt: skip
    (folder / "preprocessor_config.json").unlink()
    (folder / file).write_text(json.dumps({"image_processor": config} if file.startswith("processor") else config))
    import_checkpoint(folder, tmp_path / "out")
    assert read_config(tmp_path / "out").preprocess == Preprocess(
        image_size=(32, 32), resize="squash", interpolation="bilinear", mean=(0.1, 0.2, 0.3)
    )


def test_naflex_preprocessing(tmp_path: Path) -> None:
    folder = edited(NAFLEX, tmp_path)
    found = import_checkpoint(folder, tmp_path / "a")
    assert "taken by default: resize naflex, interpolation bilinear" in found.notes[0]
    wanted = Preprocess(image_size=(32, 32), resize="naflex", interpolation="bilinear", patch_size=8, max_patches=256)
    assert read_config(tmp_path / "a").preprocess == wanted
    (folder / "preprocessor_config.json").write_text(json.dumps({"patch_size": 8, "max_num_patches": 20}))
    assert not import_checkpoint(folder, tmp_path / "b").notes
    assert read_config(tmp_path / "b").preprocess.max_patches == 20


def test_big_vision_has_none_and_the_choice_is_told(tmp_path: Path) -> None:
    source = GOLDEN / "big_vision" / "classifier_map.weights.npz"
    found = import_checkpoint(source, tmp_path / "out")
    assert "taken by default: resize crop, interpolation bilinear, crop-fraction 0.875" in found.notes[0]
    assert read_config(tmp_path / "out").preprocess == Preprocess(
        image_size=(32, 32), resize="crop", crop_fraction=0.875, interpolation="bilinear"
    )
    options = ImportOptions(resize="squash", interpolation="bicubic", score="sigmoid")
    found = import_checkpoint(source, tmp_path / "out", options)
    assert found.notes[0].endswith("taken by default: mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)")
    config = read_config(tmp_path / "out")
    assert config.preprocess == Preprocess(image_size=(32, 32))
    assert config.score == "sigmoid"


def test_labels(tmp_path: Path) -> None:
    names = [f"kind {index}" for index in range(13)]
    for written in (names, {str(index): name for index, name in enumerate(names)}):
        folder = edited(TIMM, tmp_path, label_names=written)
        import_checkpoint(folder, tmp_path / "out")
        assert read_config(tmp_path / "out").labels == tuple(names)
        shutil.rmtree(folder)
    import_checkpoint(TIMM, tmp_path / "out")
    assert read_config(tmp_path / "out").labels[12] == "class 12"
    import_checkpoint(TIMM, tmp_path / "out", ImportOptions(labels=tuple("abcdefghijklm")))
    assert read_config(tmp_path / "out").labels == tuple("abcdefghijklm")
    with pytest.raises(ConfigError, match="2 labels do not fit a head of 13 classes"):
        import_checkpoint(TIMM, tmp_path / "out", ImportOptions(labels=("a", "b")))
    folder = edited(TIMM, tmp_path, label_names=["same"] * 13)
    with pytest.raises(CheckpointMismatch, match="1 different names for 13 classes; give --labels FILE"):
        import_checkpoint(folder, tmp_path / "out")


def test_a_thousand_classes_are_imagenets(tmp_path: Path) -> None:
    folder = edited(TIMM, tmp_path, num_classes=1000)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {**tensors, "head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}, folder / "model.safetensors"
    )
    found = import_checkpoint(folder, tmp_path / "out")
    labels = read_config(tmp_path / "out").labels
    assert labels[:2] == ("tench", "goldfish")
    assert labels == tuple(imagenet_1k().values())
    assert "ImageNet-1k" in found.notes[0]


def test_labels_of_a_transformers_classifier(tmp_path: Path) -> None:
    import_checkpoint(GOLDEN / "written" / "siglip_classifier", tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert config.labels == ("ant", "bee", "cat", "dog", "eel")
    assert config.model.pool == "gap"


@pytest.mark.parametrize(
    ("changes", "score"),
    [({}, "softmax"), ({"problem_type": "multi_label_classification"}, "sigmoid"),
     ({"problem_type": "single_label_classification"}, "softmax"), ({"architectures": None}, "softmax")],
)  # fmt: skip
def test_a_transformers_classifier_scores_as_its_pipeline_does(
    changes: dict[str, Any], score: str, tmp_path: Path
) -> None:
    folder = edited(GOLDEN / "written" / "siglip_classifier", tmp_path, **changes)
    check(converted(folder, tmp_path), load(GOLDEN / "written" / "siglip_classifier" / "io.npz"))
    assert read_config(tmp_path / "out").score == score


def test_one_logit_is_a_sigmoids(tmp_path: Path) -> None:
    folder = edited(GOLDEN / "written" / "siglip_classifier", tmp_path, id2label={"0": "hot dog"})
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: tensors[name][:1].clone() for name in ("classifier.weight", "classifier.bias")}
    save_file(tensors, folder / "model.safetensors")
    import_checkpoint(folder, tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert (config.labels, config.score) == (("hot dog",), "sigmoid")


# --- the head ---


def test_the_head_is_dropped_only_on_demand(tmp_path: Path) -> None:
    classifier = GOLDEN / "written" / "siglip_classifier"
    for source in (TIMM, GOLDEN / "big_vision" / "classifier_map.weights.npz", classifier):
        model = converted(source, tmp_path, drop_head=True)
        assert model.head is None
        assert read_config(tmp_path / "out").labels == ()
    assert run(model, load(classifier / "io.npz")).logits is None


def test_a_head_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    for source, key, found, wanted in (
        (TIMM, "head.weight", [13, 64], [10, 64]),
        (GOLDEN / "big_vision" / "classifier_map.weights.npz", "params/head/kernel", [64, 7], [64, 10]),
        (GOLDEN / "written" / "siglip_classifier", "classifier.weight", [5, 32], [10, 32]),
    ):
        with pytest.raises(CheckpointMismatch) as caught:
            converted(source, tmp_path, num_classes=10)
        assert f"{key} with shape {found}, this model needs {wanted}" in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointMismatch, match=r"head.weight with shape \[13, 64\], this model needs \[9, 64\]"):
        converted(edited(TIMM, tmp_path, num_classes=9), tmp_path)


def test_num_classes_corrects_a_config_that_is_wrong(tmp_path: Path) -> None:
    folder = edited(TIMM, tmp_path, num_classes=0)
    with pytest.raises(CheckpointMismatch, match=r"unexpected key head"):
        converted(folder, tmp_path)
    check(converted(folder, tmp_path, num_classes=13), load(TIMM / "io.npz"))


def test_a_new_head_starts_at_zero(tmp_path: Path) -> None:
    for source, drop in ((SIGLIP, False), (TIMM, True)):
        found = import_checkpoint(source, tmp_path / "out", ImportOptions(num_classes=4, drop_head=drop))
        model = sovit.load_model(tmp_path / "out")
        assert model.head is not None
        assert model.head.weight.shape == (4, 64)
        assert not model.head.weight.any()
        assert "must be trained" in found.notes[-1]
    with pytest.raises(ConfigError, match="num_classes is 0"):
        ImportOptions(num_classes=0)


def test_num_classes_does_not_hide_a_head_that_is_missing(tmp_path: Path) -> None:
    folder = edited(TIMM, tmp_path)
    tensors = load_file(TIMM / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith("head.")}, folder / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match=r"lacks the key head.weight \[13, 64\]"):
        converted(folder, tmp_path, num_classes=13)
    model = converted(folder, tmp_path, num_classes=13, drop_head=True)
    assert model.head is not None


# --- another resolution ---


def test_another_size_resamples_by_the_sources_rule(tmp_path: Path) -> None:
    golden = load(GOLDEN / "big_vision" / "posemb_resample.npz")
    arrays = npz("classifier_map")
    arrays["params/pos_embedding"] = golden["old"]
    path = saved(arrays, tmp_path / "x.npz")
    model = converted(path, tmp_path, image_size=(56, 56))
    assert relative_error(model.pos_embed.detach().numpy(), golden["new"]) < 1e-6
    config = read_config(tmp_path / "out")
    assert (config.model.image_size, config.preprocess.image_size) == ((56, 56), (56, 56))

    golden = load(GOLDEN / "written" / "posemb_resample.npz")
    for rule in ("timm", "transformers", "naflex"):
        folder = Path(shutil.copytree(TIMM, tmp_path / rule))
        tensors = load_file(folder / "model.safetensors")
        pos = torch.from_numpy(np.tile(golden["old"], (1, 1, 8)))
        tensors["pos_embed"] = torch.cat([torch.zeros(1, 4, 64), pos], dim=1)
        save_file(tensors, folder / "model.safetensors")
        given = {} if rule == "timm" else {"position_resampling": rule}
        rows, columns = golden["new_grid"].tolist()
        model = converted(folder, tmp_path, image_size=(rows * 8, columns * 8), **given)
        found = model.pos_embed.detach().numpy()
        assert relative_error(found, np.tile(golden[rule], (1, 1, 8))) < 1e-6, rule
        assert read_config(tmp_path / "out").model.position_resampling == rule


def test_a_half_precision_file_is_resampled_in_float32_as_transformers_does(tmp_path: Path) -> None:
    folder = edited(SIGLIP, tmp_path)
    halves = {key: value.half() for key, value in load_file(SIGLIP / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors")
    size = (48, 48)
    half = converted(folder, tmp_path, image_size=size)
    save_file({key: value.float() for key, value in halves.items()}, folder / "model.safetensors")
    full = converted(folder, tmp_path, image_size=size)
    assert torch.equal(half.pos_embed, full.pos_embed)


def test_a_naflex_model_at_one_size_takes_no_patches(tmp_path: Path) -> None:
    import_checkpoint(NAFLEX, tmp_path / "out")
    io = load(NAFLEX / "io.npz")
    check(sovit.load_model(tmp_path / "out"), io)
    with pytest.raises(ConfigError, match="takes images of one size"):
        run(sovit.load_model(tmp_path / "out", image_size=(64, 64)), io)


def test_converting_to_a_size_or_loading_at_it_is_the_same(tmp_path: Path) -> None:
    import_checkpoint(SIGLIP, tmp_path / "a")
    import_checkpoint(SIGLIP, tmp_path / "b", ImportOptions(image_size=(40, 24)))
    a, b = sovit.load_model(tmp_path / "a", image_size=(40, 24)), sovit.load_model(tmp_path / "b")
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key


def test_384_px_at_patch_14_is_a_grid_of_27(tmp_path: Path) -> None:
    """The public file's size: its last 6 pixels are dropped, and nothing is resampled."""
    folder = edited(TIMM, tmp_path)
    model = converted(folder, tmp_path, image_size=(38, 38))
    assert model.config.grid == (4, 4)
    original = converted(TIMM, tmp_path / "same")
    assert torch.equal(model.pos_embed, original.pos_embed)


def test_naflex_at_one_size_is_an_ordinary_model(tmp_path: Path) -> None:
    import_checkpoint(NAFLEX, tmp_path / "out", ImportOptions(image_size=(32, 32)))
    config = read_config(tmp_path / "out")
    assert config.preprocess == Preprocess(image_size=(32, 32), resize="squash", interpolation="bilinear")
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    fixed = load_checkpoint(tmp_path / "out").embed([image])
    import_checkpoint(edited(NAFLEX, tmp_path), tmp_path / "free")
    path = tmp_path / "free" / "config.json"
    data = json.loads(path.read_text())
    data["preprocess"]["max_patches"] = 16
    path.write_text(json.dumps(data))
    np.testing.assert_allclose(load_checkpoint(tmp_path / "free").embed([image]), fixed, atol=1e-5)


def test_naflex_is_exported_at_a_size_that_is_asked_for(tmp_path: Path) -> None:
    import_checkpoint(NAFLEX, tmp_path / "out")
    with pytest.raises(ConfigError, match="give --image-size 32x32"):
        from_checkpoint(tmp_path / "out", "naflex")
    spec = from_checkpoint(tmp_path / "out", "naflex", (32, 48)).spec
    assert (spec.preprocess.resize, spec.model.image_size) == ("squash", (32, 48))


@pytest.mark.parametrize(
    "name",
    ["timm/vit_so150m2_patch16_reg1_gap_256", "timm/vit_so400m_patch14_siglip_224", "timm/vit_base_patch16_224",
     "written/vit_base_patch14_reg4_dinov2", "written/vit_so150m_patch16_reg4_map_256", "transformers/siglip"],
)  # fmt: skip
def test_what_was_imported_can_be_exported(name: str, tmp_path: Path) -> None:
    import_checkpoint(GOLDEN / name, tmp_path / "checkpoint")
    source = from_checkpoint(tmp_path / "checkpoint", "imported")
    artifact = export_onnx(source, tmp_path / "artifact", reference_images(source.spec.preprocess, None))
    assert artifact.manifest.parity[0].relative_error < 1e-5


# --- any shape, and the full size ---

SHAPES = st.fixed_dictionaries(
    {
        "num_heads": st.integers(1, 3), "depth": st.integers(1, 3), "mlp_dim": st.integers(1, 40),
        "patch_size": st.integers(1, 5), "num_classes": st.sampled_from([0, 1, 5]),
        "gelu": st.sampled_from(["erf", "tanh"]),
    }
)  # fmt: skip


def shaped(shape: dict[str, Any], head_dim: int, **traits: Any) -> ViT:
    size = 3 * shape["patch_size"]
    config = ViTConfig(width=head_dim * shape["num_heads"], image_size=(size, size), **shape | traits)
    return random_model(config)


def same_after_import(model: ViT, write: Any, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source.npz"
        write(model, source)
        found = converted(source, Path(temporary), **options)
        wanted = model.state_dict()
        assert found.state_dict().keys() == wanted.keys()
        for key, value in found.state_dict().items():
            assert torch.equal(value, wanted[key]), key
        assert (found.config.gelu, found.config.pool) == (model.config.gelu, model.config.pool)


@pytest.mark.parametrize("head_dim", [1, 8, 55, 72])
@given(shape=SHAPES, pool=st.sampled_from(["map", "gap", "tok"]))
def test_any_shape_of_big_vision(head_dim: int, shape: dict[str, Any], pool: Pool) -> None:
    same_after_import(shaped(shape | {"gelu": "tanh"}, head_dim, pool=pool), write_big_vision)


@pytest.mark.parametrize("head_dim", [1, 8, 55, 72])
@given(
    shape=SHAPES, pool=st.sampled_from(["map", "gap", "tok"]), registers=st.integers(0, 3), fc_norm=st.booleans(),
    qkv_bias=st.booleans(), layer_scale=st.booleans(),
)  # fmt: skip
def test_any_shape_of_timm(head_dim: int, shape: dict[str, Any], **traits: Any) -> None:
    model = shaped(shape, head_dim, **traits)
    same_after_import(model, lambda model, path: write_timm(model, path, "vit_so400m_patch14_siglip_224"))


@pytest.mark.parametrize("head_dim", [1, 8, 55, 72])
@given(shape=SHAPES)
def test_any_shape_of_transformers(head_dim: int, shape: dict[str, Any]) -> None:
    same_after_import(shaped(shape | {"num_classes": 0}, head_dim), write_transformers)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["npz", "timm", "transformers"])
def test_so400m_in_full_size_needs_less_than_two_and_a_half_times_its_weights(layout: str, tmp_path: Path) -> None:
    """The time is measured by benchmarks/studies/convert.py: no test depends on it."""
    model = ViT(variant_config("So400m/14"))
    source = tmp_path / "source.npz"
    if layout == "timm":
        size = write_timm(model, source, "vit_so400m_patch14_siglip_224")
    else:
        size = (write_big_vision if layout == "npz" else write_transformers)(model, source)
    assert size > 1.7e9
    assert run_sovit("convert", str(source), "--to", str(tmp_path / "out"))["peak_rss_bytes"] < 2.5 * size
