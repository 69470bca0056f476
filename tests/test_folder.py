from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sovit.errors import ConfigError
from sovit.folder import replace_folder

MARKED = ("thing", lambda folder: ("marker", "data") if (folder / "marker").is_file() else None)


def write(folder: Path, text: str) -> None:
    (folder / "marker").write_text(text)
    (folder / "data").write_text(text)


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "deep" / "a", *MARKED) as aside:
        write(aside, "1")
        assert not (tmp_path / "deep" / "a").exists()
    assert (tmp_path / "deep" / "a" / "data").read_text() == "1"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a"]


def test_an_older_one_is_replaced(tmp_path: Path) -> None:
    for text in ("1", "2"):
        with replace_folder(tmp_path / "a", *MARKED) as aside:
            write(aside, text)
    assert (tmp_path / "a" / "data").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_error_leaves_the_older_one(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "a", *MARKED) as aside:
        write(aside, "1")
    with pytest.raises(RuntimeError, match="disk"), replace_folder(tmp_path / "a", *MARKED) as aside:
        write(aside, "2")
        raise RuntimeError("disk")
    assert (tmp_path / "a" / "data").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_somebody_elses_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is no thing of sovit"), replace_folder(tmp_path / "thesis", *MARKED):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is no thing of sovit"), replace_folder(tmp_path / "file", *MARKED):
        pass
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"


WRITER = """
import sys
from pathlib import Path
from sovit.folder import replace_folder
number = 0
while True:
    number += 1
    with replace_folder(Path(sys.argv[1]), "thing", lambda _: ["marker", "data"]) as aside:
        (aside / "marker").write_text(str(number) * 20_000)
        (aside / "data").write_text(str(number) * 20_000)
    print(number, flush=True)
"""


def test_kill_9_at_any_moment_leaves_a_complete_folder(tmp_path: Path) -> None:
    target = tmp_path / "a"
    for attempt in range(8):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        marker = (target / "marker").read_text()
        assert marker == (target / "data").read_text()
        assert marker


def test_a_file_that_is_not_its_own_is_never_lost(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "a", *MARKED) as aside:
        write(aside, "1")
    (tmp_path / "a" / "NOTES.md").write_text("years of work")
    with (
        pytest.raises(ConfigError, match=r"also holds NOTES\.md, which would be lost"),
        replace_folder(tmp_path / "a", *MARKED),
    ):
        pass
    assert (tmp_path / "a" / "NOTES.md").read_text() == "years of work"


def test_a_link_is_followed(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "a", *MARKED) as aside:
        write(aside, "1")
    (tmp_path / "current").symlink_to(tmp_path / "a")
    with replace_folder(tmp_path / "current", *MARKED) as aside:
        write(aside, "2")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "a" / "data").read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "current"]


def test_files_can_be_read_as_the_umask_says(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "a", *MARKED) as aside:
        write(aside, "1")
        (aside / "data").chmod(0o600)
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a" / "data").stat().st_mode == (tmp_path / "plain").stat().st_mode
