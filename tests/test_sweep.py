"""Tables of runs: designed, trained once whatever happens, and measured after cooldowns."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sovit.cli import main
from sovit.errors import ConfigError
from sovit.laws.runs import RunTable, is_done
from sovit.laws.sweep import Run, grid, ladder, run_of, star, with_learning_rates

ROOT = Path(__file__).parents[1]
CENTRE = Run(
    width=32, depth=2, mlp_dim=64, num_heads=2, patch_size=2, image_size=(8, 8), recipe="digits",
    settings=("warmup_steps=2",), learning_rate=3e-3, batch_size=32, horizons=(10, 20), cooldown=0.2, seed=0,
)  # fmt: skip


@given(st.integers(1, 40), st.integers(1, 8), st.floats(0.05, 0.95), st.sampled_from([1, 8, 16]))
def test_a_ladder_goes_down_in_about_equal_ratios(steps: int, count: int, ratio: float, multiple: int) -> None:
    largest = steps * multiple
    if steps <= count:
        with pytest.raises(ConfigError, match=f"no {count} sizes below {largest}"):
            ladder(largest, count=count, ratio=ratio, multiple=multiple)
        return
    try:
        sizes = ladder(largest, count=count, ratio=ratio, multiple=multiple)
    except ConfigError:
        assert largest * ratio**count < multiple  # so steep that it leaves the ground
        return
    assert len(sizes) == count
    assert list(sizes) == sorted(set(sizes))
    assert all(0 < size < largest and size % multiple == 0 for size in sizes)
    assert all(abs(size - largest * ratio ** (count - k)) <= multiple * count for k, size in enumerate(sizes))


def test_a_ladder_of_the_papers_steps() -> None:
    assert ladder(1024, count=3, ratio=0.8, multiple=64) == (512, 640, 832)
    for ratio in (0.0, 1.0):
        with pytest.raises(ConfigError, match="the ratio is"):
            ladder(64, count=2, ratio=ratio, multiple=8)


def test_a_star_changes_one_dimension_at_a_time() -> None:
    runs = star(CENTRE, widths=(16,), depths=(1, 2), mlp_dims=(32, 48), head_dim=16)
    shapes = [(run.width, run.depth, run.mlp_dim, run.num_heads) for run in runs]
    assert shapes == [(16, 2, 64, 1), (32, 1, 64, 2), (32, 2, 64, 2), (32, 2, 32, 2), (32, 2, 48, 2)]
    assert len(star(CENTRE, widths=(16,), depths=(1,), mlp_dims=(32,), head_dim=16, with_centre=True)) == 4
    with pytest.raises(ConfigError, match="width 20 is no multiple of head_dim 16"):
        star(CENTRE, widths=(20,), depths=(), mlp_dims=(), head_dim=16)


def test_a_grid_has_all_combinations_and_some_get_other_rates() -> None:
    runs = grid(CENTRE, widths=(16, 32), depths=(1, 2, 3), mlp_dims=(32, 64), head_dim=16)
    assert len(runs) == len({run.name for run in runs}) == 12
    more = with_learning_rates(runs, (0.5, 1.0, 2.0), every=5)
    assert [round(run.learning_rate / 3e-3, 6) for run in more[12:]] == [0.5, 2.0] * 3
    assert {(run.width, run.depth) for run in more[12:]} <= {(run.width, run.depth) for run in runs}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizons": ()}, "the horizons are"),
        ({"horizons": (20, 10)}, "rising numbers"),
        ({"cooldown": 1.0}, "the cooldown is 1.0"),
        ({"num_heads": 5}, "does not divide"),
        ({"learning_rate": float("nan")}, "the learning rate is nan"),
        ({"learning_rate": -1.0}, "the learning rate is -1.0"),
        ({"batch_size": 0}, "batch size 0 and seed 0"),
        ({"seed": -1}, "batch size 32 and seed -1"),
        ({"settings": ("width=8",)}, "--set width=8 is what the sweep itself says"),
    ],
)
def test_a_run_that_cannot_be_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CENTRE, **change)


def test_cooldowns_begin_where_a_trunk_can_save() -> None:
    assert replace(CENTRE, horizons=(500, 1000, 2000)).starts == (400, 800, 1600)
    with pytest.raises(ConfigError, match="multiples of one number"):
        replace(CENTRE, horizons=(501, 1003, 2000))


def test_a_table_keeps_what_it_lists(tmp_path: Path) -> None:
    table = RunTable(tmp_path / "new" / "runs.jsonl", tmp_path / "runs")
    runs = star(CENTRE, widths=(16,), depths=(1,), mlp_dims=(32,), head_dim=16)
    assert table.add(runs[:2]) == 2
    assert table.add(runs) == 1
    content = table.path.read_bytes()
    assert table.add(runs) == 0
    assert table.path.read_bytes() == content
    assert list(table.runs().values()) == list(runs)
    assert RunTable.at(table.path).folder == table.path.with_suffix("")
    assert RunTable.at(tmp_path / "table").folder == tmp_path / "table.runs"
    row = table.rows()[runs[0].name] | {"depth": 7}
    with pytest.raises(ConfigError, match="it was edited"):
        run_of(row, "here")
    for broken in ("{", "[]", "{}", '"run"'):
        table.path.write_text(broken + "\n")
        with pytest.raises(ConfigError, match=r"line 1 is no (run|JSON)"):
            table.rows()
    table.path.unlink()
    with pytest.raises(ConfigError, match="`sovit shape sweep` writes a table"):
        table.rows()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "0"], "widths: 0 sizes that are multiples of 16: both must be at least 1"),
        (["--multiple", "0"], "the centre's MLP size 128 is no multiple of --multiple 0"),
        (["--other-rates", "0.5,2", "--every", "0"], "it must be 1 or more"),
        (["--seeds", ","], "--seeds is ',', it must be numbers"),
        (["--steps", "501,777"], "multiples of one number"),
        (["--centre", "64,4"], "WIDTH,DEPTH,MLP"),
        (["--widths", "a,b"], "must be numbers"),
        (["--widths", ""], "--widths is '', it must be numbers"),
        (["--widths", ","], "--widths is ',', it must be numbers"),
        (["--depths", "1,,2"], "--depths is '1,,2', it must be numbers"),
        (["--sizes", "9"], "widths: there are no 9 sizes below 64"),
        (["--design", "grid", "--with-centre", ""], "--with-centre is the star's"),
        (["--sizes", "1000000000"], "there are no 1000000000 sizes below 64"),
        (
            ["--widths", "16", "--depths", "1", "--mlp-dims", "32", "--sizes", "2"],
            "--sizes and --ratio make",
        ),
        (["--widths", "64"], "--widths has 64: it must be a multiple of 16, and below the centre's 64"),
        (["--design", "grid", "--widths", "80"], "and at most the centre's 64"),
        (["--mlp-dims", "33"], "--mlp-dims has 33: it must be a multiple of 8"),
        (["--centre", "64,8,129"], "the centre's MLP size 129 is no multiple of --multiple 8"),
        (["--seeds", "0,0"], "--seeds is '0,0': it names a number twice"),
        (["--other-rates", "1,2"], "--other-rates 1 is the design's own rate"),
        (["--recipe", "nonsense"], "no recipe is called 'nonsense'"),
        (["--set", "foo=1"], "no field is called 'foo'"),
        (["--set", "warmup_steps=9"], "give it --set warmup_steps=N, at most 8, or longer --steps"),
    ],
)
def test_a_design_that_cannot_be_is_wrong_usage(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {
        "--design": "star", "--centre": "64,8,128", "--sizes": "2", "--head-dim": "16", "--recipe": "digits",
        "--patch-size": "2", "--image-size": "8", "--batch-size": "32", "--steps": "10,20",
        "--learning-rate": "0.003",
    }  # fmt: skip
    plain |= {"--set": "warmup_steps=2"}
    given = plain | dict(zip(words[::2], words[1::2], strict=True))
    line = [word for name, value in given.items() for word in ([name] if name == "--with-centre" else [name, value])]
    assert main(["shape", "sweep", *line, "-o", str(tmp_path / "runs.jsonl")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs.jsonl").exists()


def test_a_table_that_cannot_be_trained_is_refused_before_any_run(tmp_path: Path) -> None:
    for change, message in (
        ({"recipe": "nonsense"}, "no recipe is called 'nonsense'"),
        ({"settings": ("foo=1",)}, "no field is called 'foo'"),
        ({"settings": ("warmup_steps=9",)}, "warms up for 9 steps and first cools down at 8"),
    ):
        table = RunTable.at(tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl")
        table.add([replace(CENTRE, **change)])
        done = shape("run", str(table.path), "--data", "digits")
        assert (done.returncode, message in " ".join(done.stderr.split())) == (2, True), done.stderr


def shape(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sovit", "shape", *words], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=600, **more,
    )  # fmt: skip


def designed(folder: Path) -> RunTable:
    done = shape(
        "sweep", "--design", "star", "--centre", "32,2,64", "--widths", "16", "--depths", "1", "--mlp-dims", "32",
        "--head-dim", "16", "--recipe", "digits", "--patch-size", "2", "--image-size", "8", "--batch-size", "32",
        "--steps", "10,20", "--learning-rate", "0.003", "--set", "warmup_steps=2", "-o", str(folder / "runs.jsonl"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return RunTable(folder / "runs.jsonl", folder / "runs")


def points(table: RunTable) -> dict[str, list[dict[str, float]]]:
    return {name: row["points"] for name, row in table.rows().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunTable:
    """A sweep that was never stopped."""
    table = designed(tmp_path_factory.mktemp("whole"))
    done = shape("run", str(table.path), "--data", "digits", "--jobs", "2", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"table": str(table.path), "runs": 3, "done": 3, "trained_now": 3}
    return table


def test_a_sweep_is_trained_once_and_measured_at_every_horizon(whole: RunTable) -> None:
    assert [[point["steps"] for point in found] for found in points(whole).values()] == [[10, 20]] * 3
    for run, found in zip(whole.runs().values(), points(whole).values(), strict=True):
        assert [point["images"] for point in found] == [320, 640]
        assert found[1]["forward_flops"] == 2 * found[0]["forward_flops"] > 640 * run.width * run.mlp_dim
        assert all(0 < point["error"] < 1 for point in found)
    before = whole.path.read_bytes()
    again = shape("run", str(whole.path), "--data", "digits", "--json")
    assert json.loads(again.stdout)["trained_now"] == 0
    assert whole.path.read_bytes() == before


def test_a_cooldown_off_the_trunk_is_a_run_of_its_own_length(whole: RunTable, tmp_path: Path) -> None:
    from train.data.load import load_dataset
    from train.loop import train
    from train.settings import recipe

    name, run = next(iter(whole.runs().items()))
    settings = [
        *run.settings, f"width={run.width}", f"depth={run.depth}", f"mlp_dim={run.mlp_dim}",
        f"num_heads={run.num_heads}", "batch_size=32", "schedule=rsqrt", "cooldown_steps=2", "steps=10", "threads=1",
    ]  # fmt: skip
    sets = load_dataset("digits", "train"), load_dataset("digits", "test")
    result = train(recipe("digits", settings), *sets, tmp_path, console=Console(quiet=True))
    assert points(whole)[name][0]["error"] == 1 - result.evaluation.top1
    assert points(whole)[name][0]["loss"] == result.final_loss


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_was_stopped_goes_on_to_the_same_points(number: int, whole: RunTable, tmp_path: Path) -> None:
    table = designed(tmp_path)
    words = [sys.executable, "-m", "sovit", "shape", "run", str(table.path), "--data", "digits", "--threads", "1"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    limit = time.monotonic() + 300
    while not list(table.folder.glob("*/trunk/log.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(number)
    out, _ = process.communicate(timeout=300)
    assert psutil.wait_procs(children, timeout=120)[1] == []
    if number == signal.SIGTERM:
        assert process.returncode == 0
        assert "the same command goes on from there" in out
    done = shape("run", str(table.path), "--data", "digits", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert points(table) == points(whole)


def test_what_is_no_table_stays_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, tmp_path, Path("/")):
        with pytest.raises(ConfigError, match="is a folder or a device, and no file that a table could be"):
            RunTable.at(place)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_result_that_is_none_is_told_and_not_put_into_the_table(tmp_path: Path) -> None:
    table = RunTable.at(tmp_path / "runs.jsonl")
    table.add([CENTRE])
    (table.folder / CENTRE.name).mkdir(parents=True)
    result = table.folder / CENTRE.name / "result.json"
    whole = {
        "data": "digits (train)", "train_images": 1, "test_images": 1, "classes": 10, "pool": "gap", "warmup_steps": 1,
        "points": [{"steps": 1, "images": 1, "forward_flops": 1.0, "error": 0.5, "loss": 1.0}],
    }  # fmt: skip
    before = table.path.read_bytes()
    for broken in ([1], "x", 5, whole | {"points": 5}, whole | {"points": []}, whole | {"run": "zzz"}):
        result.write_text(json.dumps(broken))
        with pytest.raises(ConfigError, match="Delete the file, and the run is trained again"):
            table.collect()
        assert table.path.read_bytes() == before
    result.write_text(json.dumps(whole))
    assert not is_done(table.rows()[CENTRE.name])
    assert table.collect()[CENTRE.name]["points"] == whole["points"]
    assert all(map(is_done, table.rows().values()))


def test_a_table_is_of_one_data_set_and_a_run_is_started_once(whole: RunTable, tmp_path: Path) -> None:
    table = RunTable(tmp_path / "runs.jsonl", tmp_path / "runs")
    table.path.write_bytes(whole.path.read_bytes())
    rows = table.rows()
    first, second, _ = rows
    del rows[second]["points"]
    rows[first]["data"] = "others (train)"
    table.path.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    done = shape("run", str(table.path), "--data", "digits", "--threads", "1")
    assert done.returncode == 2
    assert "has runs on others (train), and --data is digits (train)" in " ".join(done.stderr.split())
    rows[first]["data"] = "digits (train)"
    table.path.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    done = shape("run", str(table.path), "--data", "digits", "--threads", "1", "--only", second, second, "--json")
    assert (done.returncode, json.loads(done.stdout)["trained_now"]) == (0, 1)
    assert points(table) == points(whole)


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    table = designed(tmp_path)
    first, *others = table.runs()
    (table.folder / first).mkdir(parents=True)
    (table.folder / first / "trunk").write_text("in the way")
    done = shape("run", str(table.path), "--data", "digits", "--threads", "1", "--jobs", "2")
    assert done.returncode == 1
    assert f"1 of 3 runs failed: {first}" in " ".join(done.stderr.split())
    assert [name for name, row in table.rows().items() if "points" in row] == others
    for words, message in (
        (("--jobs", "0"), "--jobs is 0"),
        (("--only", "nothing"), "has no run nothing"),
        (("--ray", "127.0.0.1:1", "--jobs", "2"), "--jobs is how many run on this machine"),
    ):
        done = shape("run", str(table.path), "--data", "digits", *words)
        assert done.returncode == 2
        assert message in done.stderr


def test_a_cluster_that_does_not_answer_is_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        done = shape("run", str(designed(tmp_path).path), "--data", "digits", "--ray", address)
    assert done.returncode == 2
    assert f"--ray {address}: no cluster could be joined there" in " ".join(done.stderr.split())


def test_ray_trains_the_same_table_and_a_worker_may_be_killed(whole: RunTable, tmp_path: Path) -> None:
    from train.cluster import LOCAL, run_on_ray

    table = RunTable(tmp_path / "runs.jsonl", tmp_path / "runs")
    table.add(list(whole.runs().values()))
    killed: list[int] = []

    def kill_one() -> None:
        """The worker that holds the lock of a run that has begun."""
        limit = time.monotonic() + 300
        while not killed and time.monotonic() < limit:
            if any(path.stat().st_size for path in table.folder.glob("*/trunk/log.jsonl")):
                for process in psutil.process_iter():
                    with suppress(psutil.Error):
                        if "ray::" in " ".join(process.cmdline()) and any(
                            file.path.startswith(str(table.folder)) for file in process.open_files()
                        ):
                            process.kill()
                            killed.append(process.pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill_one)
    thread.start()
    run_on_ray(
        table, list(table.runs().values()), "digits", address=LOCAL, threads=1, jobs=1, console=Console(quiet=True)
    )
    thread.join()
    assert killed
    assert points(table) == points(whole)
