"""What does not fit is refused by name, before anything is written; a wrong file is never unpickled."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sovit.cli import main
from sovit.convert.importer import import_checkpoint
from sovit.errors import CheckpointMismatch, ConfigError, SoViTError
from tests.golden_models import GOLDEN, npz

TIMM = GOLDEN / "timm" / "vit_so150m_patch16_reg4_gap_256"
SIGLIP = GOLDEN / "transformers" / "siglip"
CLASSIFIER = GOLDEN / "written" / "siglip_classifier"
MAP_NPZ = GOLDEN / "big_vision" / "classifier_map.weights.npz"


class Bomb:
    """Unpickling this leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def copied(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "source"))


def config_changed(folder: Path, change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def refused(source: Path, tmp_path: Path, kind: type[SoViTError] = CheckpointMismatch) -> str:
    with pytest.raises(kind) as caught:
        import_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(caught.value)


@pytest.mark.parametrize("folder", [TIMM, SIGLIP])
def test_every_key_of_a_folder_is_needed_and_no_other(folder: Path, tmp_path: Path) -> None:
    source = copied(folder, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    for key in ("blocks.1.norm1.bias", "pos_embed", "head.bias") if folder == TIMM else (
        "vision_model.encoder.layers.2.self_attn.k_proj.bias", "vision_model.head.probe",
    ):  # fmt: skip
        save_file({name: tensor for name, tensor in tensors.items() if name != key}, source / "model.safetensors")
        assert f"model.safetensors lacks the key {key} {list(tensors[key].shape)}" in refused(source, tmp_path)
        save_file({**tensors, key: tensors[key][..., :-1].contiguous()}, source / "model.safetensors")
        shape = [*tensors[key].shape[:-1], tensors[key].shape[-1] - 1]
        message = refused(source, tmp_path)
        assert f"{key} with shape {shape}, this model needs {list(tensors[key].shape)}" in message
    save_file({**tensors, "blocks.9.norm1.weight": torch.zeros(3)}, source / "model.safetensors")
    assert "unexpected key blocks.9.norm1.weight [3]" in refused(source, tmp_path)


def test_every_key_of_an_npz_is_needed_and_no_other(tmp_path: Path) -> None:
    arrays = npz("classifier_map")
    path = tmp_path / "x.npz"
    for key in arrays:
        np.savez(path, **{name: array for name, array in arrays.items() if name != key})  # type: ignore[arg-type]
        if key == "params/MAPHead_0/probe":  # what tells the pooling; then the rest of the head is left over
            assert "unexpected key params/MAPHead_0/" in refused(path, tmp_path)
        elif key == "params/embedding/kernel":  # what tells that it is a ViT at all
            assert "has no key embedding/kernel" in refused(path, tmp_path)
        elif key == "params/pos_embedding":  # what tells the image size
            assert "has no position embedding" in refused(path, tmp_path)
        elif key == "params/head/kernel":  # what tells the classes; then its bias is left over
            assert "unexpected key params/head/bias" in refused(path, tmp_path)
        else:
            assert f"the key {key}" in refused(path, tmp_path)
    np.savez(path, **arrays, extra=np.zeros(2, np.float32))  # type: ignore[arg-type]
    assert "unexpected key extra [2]" in refused(path, tmp_path)


def test_more_than_one_problem_is_counted(tmp_path: Path) -> None:
    source = copied(TIMM, tmp_path)
    tensors = load_file(TIMM / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "norm1" not in name}, source / "model.safetensors")
    assert "(and 5 more keys do not fit)" in refused(source, tmp_path)


@given(st.integers(0, 1_000_000))
def test_a_truncated_file_is_refused(cut: int) -> None:
    import tempfile

    for source, name in ((TIMM / "model.safetensors", "model.safetensors"), (MAP_NPZ, "x.npz")):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            content = source.read_bytes()
            (folder / name).write_bytes(content[: cut % len(content)])
            shutil.copyfile(TIMM / "config.json", folder / "config.json")
            with pytest.raises(CheckpointMismatch, match=f"{name} is truncated"):
                import_checkpoint(folder / name, folder / "out")


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compressed") / "x.npz"
    np.savez_compressed(path, **{key: np.round(array, 1) for key, array in npz("classifier_map").items()})  # type: ignore[arg-type]
    return path


@given(st.integers(0, 1_000_000), st.integers(0, 255), st.booleans())
def test_a_damaged_npz_is_an_error_of_ours_or_no_error(compressed: Path, place: int, byte: int, packed: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        content = bytearray((compressed if packed else MAP_NPZ).read_bytes())
        content[place % len(content)] = byte
        path = Path(temporary) / "x.npz"
        path.write_bytes(content)
        try:
            import_checkpoint(path, Path(temporary) / "out")
        except CheckpointMismatch as error:
            assert "x.npz" in str(error)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, content in (("x.npz", b"text"), ("x.npz", b""), ("x.safetensors", b"{}"), ("x.txt", b"text")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / "config.json").write_text((TIMM / "config.json").read_text())
        message = refused(tmp_path / name, tmp_path)
        assert "truncated" in message or "no .npz and no .safetensors" in message


def test_a_lie_about_an_arrays_length_costs_no_memory(tmp_path: Path) -> None:
    """The header of one array claims a terabyte."""
    import io
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 38,)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("embedding/kernel.npy", header.getvalue() + bytes(64))
    assert "embedding/kernel is not as long as its header says" in refused(tmp_path / "x.npz", tmp_path)


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    folder = tmp_path / "pickles"
    folder.mkdir()
    (folder / "config.json").write_text((SIGLIP / "config.json").read_text())
    for name in ("pytorch_model.bin", "model.pt", "model.pth"):
        (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
        assert "pickled weights" in refused(folder / name, tmp_path)
        assert "pickled weights" in refused(folder, tmp_path)
    torch.save({"w": torch.zeros(1), "bomb": Bomb(trace)}, folder / "model.pt")
    assert "pickled weights" in refused(folder / "model.pt", tmp_path)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(trace)))  # a pickle under another name
    assert "no safetensors file" in refused(folder, tmp_path)
    arrays = dict(npz("classifier_map"))
    arrays["params/extra"] = np.array([Bomb(trace)], dtype=object)
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    assert "params/extra is a pickled object; sovit never unpickles" in refused(tmp_path / "x.npz", tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize("dtype", [np.longdouble, np.complex64, np.dtype("V3")])
def test_arrays_of_no_kind_we_know_are_refused(dtype: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **npz("classifier_map"), extra=np.zeros(2, dtype))  # type: ignore[arg-type]
    assert "extra holds" in refused(tmp_path / "x.npz", tmp_path)


def test_an_encrypted_npz_is_refused(tmp_path: Path) -> None:
    content = bytearray(MAP_NPZ.read_bytes())
    content[6] |= 1  # the flag in the first member's header, and below in the central directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.npz").write_bytes(content)
    assert "truncated, damaged or no npz file" in refused(tmp_path / "x.npz", tmp_path)


def test_the_text_tower_is_checked_as_well(tmp_path: Path) -> None:
    source = copied(SIGLIP, tmp_path)
    tensors = load_file(SIGLIP / "model.safetensors")
    key = "text_model.encoder.layers.1.mlp.fc1.bias"
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, source / "model.safetensors")
    assert f"lacks the key {key} [172]" in refused(source, tmp_path)
    save_file({**tensors, "text_model.garbage": torch.zeros(2)}, source / "model.safetensors")
    assert "unexpected key text_model.garbage [2]" in refused(source, tmp_path)
    arrays = npz("siglip_two_towers")
    key = "params/txt/Encoder_0/encoderblock/LayerNorm_0/bias"
    np.savez(tmp_path / "x.npz", **{name: array for name, array in arrays.items() if name != key})  # type: ignore[arg-type]
    assert f"lacks the key {key} [2, 64]" in refused(tmp_path / "x.npz", tmp_path)
    np.savez(tmp_path / "x.npz", **arrays, **{"params/txt/extra": np.zeros(2, np.float32)})  # type: ignore[arg-type]
    assert "unexpected key params/txt/extra [2]" in refused(tmp_path / "x.npz", tmp_path)


def test_a_classifiers_unused_head_is_ignored_by_name_only(tmp_path: Path) -> None:
    source = copied(GOLDEN / "written" / "siglip_classifier", tmp_path)
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, "vision_model.head.nonsense": torch.zeros(2)}, source / "model.safetensors")
    assert "unexpected key vision_model.head.nonsense [2]" in refused(source, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    source = copied(TIMM, tmp_path)
    tensors = load_file(TIMM / "model.safetensors")
    tensors["blocks.1.norm2.bias"][3] = value
    save_file(tensors, source / "model.safetensors")
    assert "blocks.1.norm2.bias holds values that are not finite" in refused(source, tmp_path)


def test_files_in_an_older_checkpoint_are_not_lost(tmp_path: Path) -> None:
    import_checkpoint(TIMM, tmp_path / "out")
    (tmp_path / "out" / "NOTES.md").write_text("years of work")
    with pytest.raises(ConfigError, match=r"also holds NOTES\.md, which would be lost"):
        import_checkpoint(SIGLIP, tmp_path / "out")
    source = tmp_path / "linked"
    source.mkdir()
    (source / "config.json").write_text((TIMM / "config.json").read_text())
    (tmp_path / "out" / "NOTES.md").unlink()
    shutil.copyfile(TIMM / "model.safetensors", tmp_path / "out" / "model.safetensors")
    (source / "model.safetensors").symlink_to(tmp_path / "out" / "model.safetensors")
    with pytest.raises(ConfigError, match="holds the source, and would be replaced"):
        import_checkpoint(source, tmp_path / "out")


def test_scalars_of_the_loss_are_checked(tmp_path: Path) -> None:
    arrays = npz("siglip_two_towers")
    np.savez(tmp_path / "x.npz", **arrays | {"params/t": np.zeros(7, np.float32)})  # type: ignore[arg-type]
    assert "params/t with shape [7], this model needs [1]" in refused(tmp_path / "x.npz", tmp_path)
    np.savez(tmp_path / "x.npz", **{k: v for k, v in arrays.items() if k != "params/b"})  # type: ignore[arg-type]
    assert "lacks the key params/b [1]" in refused(tmp_path / "x.npz", tmp_path)


def test_a_pipe_in_place_of_a_source_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    assert "is neither a file nor a folder" in refused(tmp_path / "x.npz", tmp_path)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    source = copied(TIMM, tmp_path)
    tensors = load_file(TIMM / "model.safetensors")
    tensors["blocks.0.mlp.fc1.weight"] = tensors["blocks.0.mlp.fc1.weight"].to(torch.int8)
    save_file(tensors, source / "model.safetensors")
    assert "blocks.0.mlp.fc1.weight is int8; weights must be" in refused(source, tmp_path)


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        (TIMM, lambda c: c.update(architecture="resnet50"), "resnet50 is no architecture that sovit can compute"),
        (TIMM, lambda c: c.update(architecture="vit_so150m_patch16_reg4_gapp_256"), "vit_so150m_patch16_reg4_gap,"),
        (TIMM, lambda c: c["model_args"].update(qk_norm=True), "model_args: qk_norm: unknown field"),
        (TIMM, lambda c: c["model_args"].update(global_pool="prr"), "global_pool"),
        (TIMM, lambda c: c["model_args"].update(global_pool="token"), "has no class token"),
        (TIMM, lambda c: c["model_args"].update(in_chans=1), "in_chans 1, sovit takes RGB"),
        (TIMM, lambda c: c["model_args"].update(img_size="big"), "img_size 'big'"),
        (TIMM, lambda c: c["model_args"].update(mlp_ratio=-1), "mlp_ratio -1"),
        (TIMM, lambda c: c["model_args"].update(embed_dim="wide"), "embed_dim"),
        (TIMM, lambda c: c["pretrained_cfg"].update(crop_mode="random"), "crop_mode"),
        (TIMM, lambda c: c["pretrained_cfg"].update(mean=[0.5]), "mean"),
        (TIMM, lambda c: c.update(num_classes="many"), "num_classes"),
        (TIMM, lambda c: c.update(pretrained_cfg=[1]), "pretrained_cfg"),
        (TIMM, lambda c: c.update(model_args=[1]), "model_args is no object"),
        (TIMM, lambda c: c["model_args"].update(depth=10**9), "depth is 1000000000"),
        (TIMM, lambda c: c.update(label_names=["\ud800", *map(str, range(12))]), "class 0 is empty or has control"),
        (TIMM, lambda c: c.update(label_names=["", *map(str, range(12))]), "class 0 is empty or has control"),
        (TIMM, lambda c: c.update(label_names={"99": "x"}), "label_names names class '99'"),
        (SIGLIP, lambda c: c.update(text_config="x"), "text_config"),
        (SIGLIP, lambda c: c.update(architectures=3), "architectures is no list of names"),
        (SIGLIP, lambda c: c.update(architectures=["SiglipForImageClassification"]), "lack the classifier.weight"),
        (SIGLIP, lambda c: c["vision_config"].update(qk_norm=True), "vision_config: qk_norm: unknown field"),
        (CLASSIFIER, lambda c: c.update(problem_type="regression"), "problem_type is 'regression'"),
        (CLASSIFIER, lambda c: c.update(id2label={str(i): "x" for i in range(5)}), "two classes are called 'x'"),
        (CLASSIFIER, lambda c: c.update(id2label={"7": "x"}), "id2label does not name the classes 0 to N-1"),
        (SIGLIP, lambda c: c.update(model_type="clip"), "model_type is 'clip', sovit imports siglip,"),
        (SIGLIP, lambda c: c["vision_config"].update(hidden_act="relu"), "hidden_act is 'relu'"),
        (SIGLIP, lambda c: c["vision_config"].update(num_channels=4), "num_channels"),
        (SIGLIP, lambda c: c["vision_config"].update(patch_size=[8, 8]), "patch_size"),
        (SIGLIP, lambda c: c["vision_config"].update(image_size=64), "size is [32, 32], the model takes images of [64"),
        (SIGLIP, lambda c: c.update(vision_config="x"), "config.json"),
        (SIGLIP, lambda c: [c.pop(k) for k in list(c)], "names neither an architecture of timm nor a model_type"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_is_named(source: Path, change: Any, message: str, tmp_path: Path) -> None:
    folder = copied(source, tmp_path)
    config_changed(folder, change)
    assert message in refused(folder, tmp_path, SoViTError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_center_crop": True}, "do_center_crop"),
        (
            {"image_processor_type": "ViTImageProcessor"},
            "image_processor_type is ViTImageProcessor, sovit knows",
        ),
        ({"crop_pct": 0.9}, "crop_pct: unknown field"),
        ({"size": None}, "size is [224, 224], the model takes images of [32, 32]"),
        ({"image_std": [float("nan")] * 3}, "std"),
        ({"resample": 9}, "resample is 9"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ({"size": {"height": 16, "width": 16}}, "size is [16, 16]"),
        ({"size": {"shortest_edge": 32}}, "size"),
        ({"image_mean": "grey"}, "image_mean"),
    ],
)
def test_an_image_processor_that_does_not_fit_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = copied(SIGLIP, tmp_path)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in refused(folder, tmp_path, SoViTError)


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    folder = copied(TIMM, tmp_path)
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read as JSON" in refused(folder, tmp_path, ConfigError)
    (folder / "config.json").write_text("[]")
    assert "is no JSON object" in refused(folder, tmp_path)
    (folder / "config.json").unlink()
    assert "has no config.json" in refused(folder, tmp_path)


def test_shards_outside_their_folder_are_refused(tmp_path: Path) -> None:
    folder = copied(SIGLIP, tmp_path)
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    assert "lists a shard outside its folder" in refused(folder, tmp_path)
    for text in ("{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        assert "has no weight_map" in refused(folder, tmp_path)


def test_a_source_inside_the_folder_it_would_replace_is_kept(tmp_path: Path) -> None:
    import_checkpoint(TIMM, tmp_path / "out")
    inside = Path(shutil.copyfile(MAP_NPZ, tmp_path / "out" / "source.npz"))
    with pytest.raises(ConfigError, match=r"also holds source\.npz, which would be lost"):
        import_checkpoint(inside, tmp_path / "out")
    assert inside.read_bytes() == MAP_NPZ.read_bytes()


def test_a_config_with_a_schema_version_does_not_make_a_folder_ours(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.json").write_text('{"schema_version": 3}')
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is no checkpoint of sovit's"):
        import_checkpoint(TIMM, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"


def test_no_folder_but_our_own_is_ever_replaced(tmp_path: Path) -> None:
    source, other = copied(TIMM, tmp_path), Path(shutil.copytree(SIGLIP, tmp_path / "other"))
    with pytest.raises(ConfigError, match="is no checkpoint of sovit's"):
        import_checkpoint(source, source)
    with pytest.raises(ConfigError, match="is no checkpoint of sovit's"):
        import_checkpoint(source, other)
    assert (other / "model.safetensors").stat().st_size == (SIGLIP / "model.safetensors").stat().st_size
    import_checkpoint(source, tmp_path / "out")
    import_checkpoint(other, tmp_path / "out")
    with pytest.raises(ConfigError, match="is a checkpoint of sovit's already"):
        import_checkpoint(tmp_path / "out", tmp_path / "again")


def test_no_square_of_positions(tmp_path: Path) -> None:
    arrays = npz("classifier_map")
    arrays["params/pos_embedding"] = arrays["params/pos_embedding"][:, :15]
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    assert "the 15 positions of pos_embedding are no square grid" in refused(tmp_path / "x.npz", tmp_path)


def test_a_tower_without_positions_asks_for_its_size(tmp_path: Path) -> None:
    from sovit.convert.foreign import ImportOptions

    arrays = npz("classifier_map")
    del arrays["params/pos_embedding"]
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    assert "give --image-size" in refused(tmp_path / "x.npz", tmp_path)
    found = import_checkpoint(tmp_path / "x.npz", tmp_path / "out", ImportOptions(image_size=(32, 32)))
    assert found.spec.model.position_embedding == "sincos2d"


# --- the command ---


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(MAP_NPZ), "--to", str(out), "--image-size", "40x48", "--score", "sigmoid"]) == 0
    captured = capsys.readouterr()
    assert "says nothing about part of the preprocessing" in captured.err
    assert "crop 0.875 to 40 x 48 px, bilinear" in captured.out
    assert main(["convert", str(SIGLIP), "--to", str(out), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["layout"], data["text_tensors"], data["model"]["width"]) == ("transformers", 40, 64)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist; a source is"),
        ([str(TIMM), "--num-classes", "9"], "head.weight with shape [13, 64], this model needs [9, 64]"),
        ([str(TIMM), "--num-classes", "0"], "num_classes is 0"),
        ([str(TIMM), "--image-size", "huge"], "image size 'huge'"),
        ([str(TIMM), "--image-size", "4"], "smaller than one patch"),
        ([str(TIMM), "--labels", "nowhere.txt"], "the labels in nowhere.txt cannot be read"),
        ([str(TIMM), "--labels", "imagenet-1k"], "1000 labels do not fit a head of 13 classes"),
        ([str(TIMM), "--crop-fraction", "2"], "crop_fraction is 2.0"),
        ([str(TIMM), "--image-size", "100000"], "over the limit of 16,384 pixels a side"),
        ([str(TIMM), "--image-size", ""], "image size ''"),
        ([str(TIMM), "--labels", ""], "the labels in  cannot be read"),
        ([str(TIMM), "--drop-head", "--num-classes", "999999999999"], "num_classes is 999999999999"),
        ([str(TIMM), "--crop-fraction", "1e-9"], "crop_fraction is 1e-09"),
        (["hf:onlyname"], "is no hub id"),
        (["hf:../../etc"], "is no hub id"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *words, "--to", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("sovit: ")
    assert errors.count("\n") == 1


def test_a_foreign_folder_elsewhere_says_how_to_import_it(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["evaluate", str(TIMM), "--data", "digits"],
        ["info", str(TIMM)],
        ["export", str(TIMM), "--out", "x"],
    ):
        assert main(words) == 2
        assert "import it with `sovit convert" in capsys.readouterr().err
