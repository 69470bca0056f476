from __future__ import annotations

import argparse
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


@pytest.mark.slow
def test_the_whole_demo_twice(tmp_path: Path) -> None:
    from train.demo import demo

    for _ in range(2):
        demo(argparse.Namespace(out=tmp_path / "demo"))
    assert (tmp_path / "demo" / "artifact" / "manifest.json").is_file()
