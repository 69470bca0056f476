"""The peers answer what we answer, and the table says who wins."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console, Group

from benchmarks.peers.__main__ import tables
from benchmarks.peers.race import ENGINES, FLOORS, OURS, PEERS, Contest, Turn, command_of, contestants, race
from benchmarks.peers.result import Raced, in_markdown, read_raced
from benchmarks.peers.server import require_near, require_same, started
from sovit.artifact import Artifact
from sovit.errors import ConfigError, ServiceError
from sovit.jsonio import write_json
from sovit.predict import load_artifact
from sovit.process import free_port
from tests.conftest import jpeg
from tests.test_compare import CONDITIONS


@pytest.fixture
def contest(exported: Artifact, tmp_path: Path) -> Contest:
    images = [tmp_path / f"{index}.jpg" for index in range(2)]
    for index, path in enumerate(images):
        path.write_bytes(jpeg((200, 30 * index, 90)))
    return Contest(
        artifact=exported.folder,
        checkpoint=exported.folder.parent / "checkpoint",
        images=images,
        seconds=0.1,
        options=("--runtime", "onnxruntime", "--threads", "1"),
    )


def expected(contest: Contest) -> NDArray[np.float32]:
    embedding_D: NDArray[np.float32] = load_artifact(contest.artifact, threads=1).embed(contest.images[:1])[0]
    return embedding_D


@pytest.mark.parametrize("name", [OURS, *PEERS])
def test_every_server_starts_and_answers_the_same_embedding(contest: Contest, name: str) -> None:
    port = free_port()
    with started(command_of(name, contest)(port), f"http://127.0.0.1:{port}/embed", contest.images[0].read_bytes()) as (
        process,
        answer,
    ):
        require_same(name, answer, expected(contest))
        assert process.is_running()
    assert not process.is_running()


def test_another_embedding_is_no_number() -> None:
    with pytest.raises(ServiceError, match=r"mosec and the artifact in ONNX Runtime disagree: cosine 0\.0"):
        require_near("mosec", np.array([1, 0], np.float32), np.array([0, 1], np.float32))
    with pytest.raises(ServiceError, match="cosine nan"):
        require_near("mosec", np.array([np.nan, 0], np.float32), np.array([0, 1], np.float32))
    with pytest.raises(ServiceError, match=r"\(3,\) in place of an embedding \(2,\)"):
        require_near("mosec", np.zeros(3, np.float32), np.array([0, 1], np.float32))
    with pytest.raises(ServiceError, match=r"in place of an \.npy file"):
        require_same("mosec", b'{"embedding": []}', np.array([0, 1], np.float32))


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    write_json(path, {"pass": 1})
    with pytest.raises(UnicodeEncodeError):
        write_json(path, {"pass": "\ud800"})  # fails in the middle, as a full disk would
    assert path.read_text(encoding="utf-8") == '{\n  "pass": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_server_that_does_not_start_says_why(contest: Contest, tmp_path: Path) -> None:
    broken = command_of("FastAPI", replace(contest, artifact=tmp_path))(free_port())
    said = r"(?s)fastapi_server did not start: .*manifest.json is missing"
    with pytest.raises(ServiceError, match=said), started(broken, "http://127.0.0.1:9/embed", b""):
        pass


def test_all_take_turns_in_an_order_that_moves_on(contest: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers as doubles, engines as real processes: each has one turn of every load in every round."""
    order: list[str] = []

    def server_turns(name: str, *_: object) -> list[Turn]:
        order.append(name)
        return [turn(1, 10), turn(16, 20)]

    monkeypatch.setattr("benchmarks.peers.race._server_turns", server_turns)
    told: list[str] = []
    kept: list[int] = []
    taken = race(
        replace(contest, checkpoint=None), 2, told.append, lambda taken: kept.append(len(taken.turns["OpenVINO"]))
    )
    found = taken.turns
    assert (taken.failed, taken.complete) == ({}, True)
    assert kept == [2, 4], "a round that was held is safe before the next"
    assert list(found) == contestants(replace(contest, checkpoint=None))
    assert [*found] == [OURS, *PEERS, *FLOORS, "ONNX Runtime", "OpenVINO"]
    servers = [OURS, *PEERS, *FLOORS]
    assert order == [*servers, *servers[1:], OURS]
    for name in ("ONNX Runtime", "OpenVINO"):
        assert [one.load for one in found[name]] == [1, 8, 1, 8]
        assert all(one.images_per_second > 0 and one.cpu_ms > 0 and one.memory_mb > 10 for one in found[name])
    assert len(told) == 16


def test_pytorch_embeds_the_same_in_process(contest: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.race.contestants", lambda _: ["PyTorch, eager"])
    found = race(contest, 1, lambda _: None)
    assert [one.load for one in found.turns["PyTorch, eager"]] == [1, 8]


def test_who_fails_leaves_and_the_others_go_on(contest: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def server_turns(name: str, *_: object) -> list[Turn]:
        calls.append(name)
        if name == "mosec":
            raise ServiceError("it did not start.")
        if len(calls) == 5:
            raise KeyboardInterrupt
        return [turn(1, 10), turn(16, 20)]

    monkeypatch.setattr("benchmarks.peers.race._server_turns", server_turns)
    monkeypatch.setattr("benchmarks.peers.race.contestants", lambda _: [OURS, "mosec", "LitServe"])
    taken = race(contest, 9, lambda _: None)
    assert calls == [OURS, "mosec", "LitServe", "LitServe", OURS]
    assert (taken.failed, taken.complete) == ({"mosec": "it did not start."}, False)
    assert {name: len(turns) for name, turns in taken.turns.items()} == {OURS: 2, "mosec": 0, "LitServe": 4}


def turn(load: int, rate: float, bare: float | None = None) -> Turn:
    return Turn(
        load=load, images_per_second=rate, cpu_ms=2.5, p50_ms=5, p99_ms=9, memory_mb=100, in_process_cpu_ms=bare
    )


def test_the_table_names_the_winner_even_where_it_is_not_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {OURS: (60, 61, 62), "FastAPI": (61, 62, 63), "mosec": (70, 71, 72), "LitServe": (40, 40, 41)}
    turns = {name: [turn(load, rate, 2.0) for load in (1, 16) for rate in found] for name, found in rates.items()}
    turns |= {name: [turn(load, 900.0) for load in (1, 16)] for name in FLOORS}
    turns |= {name: [turn(batch, 80.0) for batch in (1, 8)] for name in ENGINES}
    raced = Raced(
        target="Ti/16",
        conditions=CONDITIONS,
        serve_options="",
        seconds=1,
        images=["a.jpg"],
        turns=turns | {"torch.compile": []},
        failed={"torch.compile": "there is no compiler."},
        complete=True,
    )
    Console(width=120).print(Group(*tables(raced)))
    lines = capsys.readouterr().out.splitlines()
    first = lines.index(next(line for line in lines if line.startswith("Servers, 16 clients")))
    places = {
        name: line.split()[0] for line in lines[first : first + 8] for name in rates if f" {name} " in f" {line} "
    }
    assert places == {"mosec": "1", OURS: "2\u20133", "FastAPI": "2\u20133", "LitServe": "4"}
    assert "0.50" in next(line for line in lines if "mosec" in line), "2.5 CPU-ms, of which 2 are the model's"
    few = replace(raced, turns={name: found[:4] for name, found in turns.items()})
    assert {one.rank for one in few.place_of([*rates], 16)} == {(1, 4)}, "two rounds tell nobody apart"
    write_json(tmp_path / "peers.json", raced.to_json())
    assert read_raced(tmp_path / "peers.json") == raced
    shown = in_markdown(raced).splitlines()
    assert [line.split(" | ")[1] for line in shown if line.startswith("| ")][1:6] == [
        "---", "mosec", "FastAPI", OURS, "LitServe",
    ]  # fmt: skip
    assert "Medians of 3 rounds" in shown[0]
    assert shown[-1] == "Read with care: torch.compile left after 0 rounds: there is no compiler."
    for changed, words in (
        ({"complete": False}, "is an incomplete run"),
        ({"turns": {name: [asdict(one) for one in found[:1]] for name, found in turns.items()}}, "lacks turns"),
        ({"turns": {}}, "lacks turns"),
        ({"seconds": "long"}, "seconds: Input should be"),
        ({"turns": {OURS: [{"load": 1}]}}, "images_per_second: missing"),
    ):
        write_json(tmp_path / "broken.json", raced.to_json() | changed)
        with pytest.raises(ConfigError, match=words):
            read_raced(tmp_path / "broken.json")


def test_a_file_that_is_no_race_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"benchmark": "latency"})
    with pytest.raises(ConfigError, match=r"is no result of `python -m benchmarks\.peers`"):
        read_raced(tmp_path / "a.json")
