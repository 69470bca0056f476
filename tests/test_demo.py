from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from train.demo import picture
from train.stages import StageFailed, run_sovit


def test_a_picture_shows_its_pixels() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 0] = image[1, 0] = image[2, 1] = image[3, 2] = 255
    assert picture(image, color=False).plain.split("\n") == ["█   ", " ▀▄"]
    colored = picture(image, color=True)
    assert colored.plain.count("▀") == 8
    assert str(colored.spans[0].style) == "rgb(255,255,255) on rgb(255,255,255)"


def test_a_stage_that_fails_stops_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StageFailed, match="ended with status 2"):
        run_sovit(Console(), "check", "nowhere")


def test_a_stage_ends_when_we_are_ended(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, threading, time\n"
        "from rich.console import Console\n"
        "from train.signals import StopNow, ending_at_once\n"
        "from train import stages\n"
        "class Popen(stages.subprocess.Popen):\n"
        "    def __init__(self, words, **more):\n"
        "        super().__init__([sys.executable, '-c', 'import time; time.sleep(600)'], **more)\n"
        "        print(self.pid, flush=True)\n"
        "        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "stages.subprocess.Popen = Popen\n"
        "try:\n"
        "    with ending_at_once():\n"
        "        stages.run_sovit(Console(stderr=True), 'info', 'S/16')\n"
        "except StopNow:\n"
        "    print('ended')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    process, said = done.stdout.split()
    assert said == "ended"
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)


@pytest.mark.slow
def test_the_whole_demo_twice(tmp_path: Path) -> None:
    from train.demo import demo

    for _ in range(2):
        demo(argparse.Namespace(out=tmp_path / "demo"))
    assert (tmp_path / "demo" / "artifact" / "manifest.json").is_file()
