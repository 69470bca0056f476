"""The command line as a user meets it: output, exit status, one sentence for each refusal."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sovit.artifact import Artifact
from sovit.cli import main
from tests.conftest import jpeg

COMMANDS = ("info", "convert", "train", "evaluate", "export", "check", "classify", "embed", "serve", "bench", "demo")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code, out, errors = run(capsys, *words)
    assert not out
    assert errors.startswith("sovit: ")
    assert errors.count("\n") == 1
    return code, errors


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "[red]photo.jpg"  # markup in a name is a name
    path.write_bytes(jpeg())
    return path


def test_info_of_a_variant(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", "So400m/14", "--image-size", "224")
    assert code == 0
    for fact in ("427,680,704", "220.4 GFLOPs", "tokens", "256", "1,710.7 MB", "10.0 MB"):
        assert fact in out


def test_info_as_json(capsys: pytest.CaptureFixture[str], checkpoint: Path, exported: Artifact) -> None:
    for target, kind in (("mu/16", "variant"), (checkpoint, "checkpoint"), (exported.folder, "artifact")):
        data = json.loads(run(capsys, "info", str(target), "--json")[1])
        assert data["kind"] == kind
        assert data["cost"]["parameters"] > 0
    assert data["model"]["num_classes"] == 3


def test_check(capsys: pytest.CaptureFixture[str], exported: Artifact) -> None:
    code, out, _ = run(capsys, "check", str(exported.folder))
    assert code == 0
    assert "2 with the right hashes" in out
    assert json.loads(run(capsys, "check", str(exported.folder), "--json")[1])["parity"]["top1_agreement"] == 1.0


def test_check_fails_when_the_numbers_are_off(
    capsys: pytest.CaptureFixture[str], exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sovit.runtime.ort import OnnxRuntime

    honest = OnnxRuntime.run
    monkeypatch.setattr(OnnxRuntime, "run", lambda self, x: {n: v * 1.001 for n, v in honest(self, x).items()})
    code, errors = refused(capsys, "check", str(exported.folder))
    assert code == 1
    assert "relative error 1.00e-03" in errors


def test_classify_and_embed(
    capsys: pytest.CaptureFixture[str], exported: Artifact, photo: Path, tmp_path: Path
) -> None:
    artifact = str(exported.folder)
    code, out, _ = run(capsys, "classify", artifact, str(photo), "--top-k", "2", "--json")
    assert code == 0
    assert len(json.loads(out)["results"][0]["predictions"]) == 2
    assert run(capsys, "classify", artifact, str(photo))[0] == 0
    assert run(capsys, "embed", artifact, str(photo), str(photo), "--out", str(tmp_path / "e.npy"))[0] == 0
    array = np.load(tmp_path / "e.npy")
    assert (array.shape, array.dtype) == ((2, 32), np.float32)
    np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, rtol=1e-6)


def test_a_bad_image_does_not_lose_the_others(
    capsys: pytest.CaptureFixture[str], exported: Artifact, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"text")
    words = [str(exported.folder), str(photo), str(tmp_path / "bad.jpg"), str(tmp_path / "none.jpg"), str(photo)]
    code, out, _ = run(capsys, "classify", *words, "--json")
    assert code == 1
    assert ["predictions" in result for result in json.loads(out)["results"]] == [True, False, False, True]
    code, out, _ = run(capsys, "embed", *words, "--out", str(tmp_path / "e.npy"))
    assert code == 1
    assert "photo.jpg" in out.replace("\n", "")
    assert np.isnan(np.load(tmp_path / "e.npy")).all(axis=1).tolist() == [False, True, True, False]


def test_evaluate_a_folder(capsys: pytest.CaptureFixture[str], exported: Artifact, tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(jpeg())
    code, out, _ = run(capsys, "evaluate", str(exported.folder), "--data", str(tmp_path), "--json")
    assert code == 0
    found = json.loads(out)
    assert found["images"] == 2
    assert found["top5"] == 1.0
    assert found["top1"] in (0.0, 0.5)  # the same picture twice, under two names
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.jpg").write_bytes(jpeg())
    code, errors = refused(capsys, "evaluate", str(exported.folder), "--data", str(tmp_path))
    assert code == 2
    assert "does not know: dog" in errors


def test_export_of_a_variant_checks_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    words = ["export", "mu/16", "--image-size", "32x48", "--num-classes", "5", "--out", str(out)]
    code, text, _ = run(capsys, *words)
    assert code == 0
    assert "top-1 agreement 100.0%" in text
    assert run(capsys, "check", str(out))[0] == 0
    data = json.loads(run(capsys, "info", str(out), "--json")[1])
    assert (data["model"]["image_size"], data["model"]["num_classes"]) == ([32, 48], 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "So400/14"], "did you mean So400m"),
        (["info", "So400m/14", "--image-size", "big"], "image size 'big'"),
        (["info", "/"], "neither a checkpoint"),
        (["check", "nowhere"], "is no artifact: manifest.json is missing"),
        (["classify", "nowhere", "x.jpg"], "is no artifact"),
        (["classify"], "give at least one image: ARTIFACT|URL IMAGE..., or --url URL IMAGE..."),
        (["embed", "nowhere"], "give at least one image"),
        (["classify", "--url", "http://127.0.0.1:9"], "give at least one image"),
        (["classify", "--url", "nowhere", "x.jpg"], "'nowhere' is no URL of a service such as http://127.0.0.1:3000"),
        (["embed", "nowhere", "x.jpg", "--model", "digits"], "--model and --key-file are for a service"),
        (["embed", "--url", "http://127.0.0.1:9", "x.jpg", "--key-file", "/nowhere"], "/nowhere cannot be read as a"),
        (["embed", "http://127.0.0.1:9", "x.jpg", "--key-file", "/dev/null"], "/dev/null holds no key"),
        (["evaluate", "nowhere", "--data", "digits"], "no checkpoint folder, no artifact folder and no http"),
        (["evaluate", "nowhere", "--data", "numbers"], "no data set is called 'numbers'"),
        (["train", "digit", "--data", "digits", "--out", "x"], "no recipe is called 'digit'"),
        (["train", "digits", "--data", "digits", "--out", "x", "--set", "step=1"], "did you mean steps"),
        (["export", "nowhere", "--out", "x"], "no variant is called 'nowhere'"),
        (["bench", "latency", "mu/16", "--batch", "0"], "--batch 0"),
        (["serve", "a=nowhere", "--lanes", "-1"], "lanes is -1"),
        (["export", "S/16", "--opset", "17", "--out", "x"], "--opset 17 cannot be written; known is 23"),
        (["export", "S/16", "--precision", "fp32", "--calibrate", "x", "--out", "x"], "means nothing to fp32"),
        (["export", "S/16", "--outputs", "logits", "--out", "x"], "there can be no logits"),
        (["export", "S/16", "--batch", "1:2", "--out", "x"], "is not MIN:OPT:MAX"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, errors = refused(capsys, *words)
    assert code == 2
    assert message in errors


@pytest.mark.parametrize("words", [[], ["fly"], ["info"], ["info", "mu/16", "--colour"], ["check", "a", "b"]])
def test_wrong_usage_is_status_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "usage: sovit" in capsys.readouterr().out


def test_a_damaged_artifact_is_named(capsys: pytest.CaptureFixture[str], exported: Artifact, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported.folder, tmp_path / "a"))
    (folder / "reference.npz").write_bytes(b"")
    for words in (["check"], ["info"], ["classify", "x.jpg"], ["evaluate", "--data", "digits"], ["bench"]):
        command, rest = words[0], words[1:]
        target = [command, "latency", str(folder)] if command == "bench" else [command, str(folder), *rest]
        code, errors = refused(capsys, *target)
        assert code == 2
        assert "reference.npz has 0 bytes" in errors


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "reference.npz")

    monkeypatch.setattr(np, "savez", full)
    code, errors = refused(capsys, "export", str(checkpoint), "--out", str(tmp_path / "artifact"))
    assert code == 1
    assert "No space left on device" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_sigterm_unwinds_a_command_so_that_no_scratch_folder_stays(tmp_path: Path) -> None:
    """A command that is ended while it holds a temporary folder, as an export is for most of its time."""
    program = """
import sys, tempfile, time
import sovit.cli

def hold(arguments):
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        print(folder, flush=True)
        time.sleep(60)

class Parser:
    def parse_args(self, argv):
        return type("Arguments", (), {"run": staticmethod(hold)})

sovit.cli.build_parser = Parser
sys.exit(sovit.cli.main([]))
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert Path(process.stdout.readline().strip()).parent == tmp_path
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    process.stdout.close()
    assert list(tmp_path.iterdir()) == []
