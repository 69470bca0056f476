"""Several runs in one group of processes: torchrun ... tests/two_processes.py OUT=SETTING,SETTING ..."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from tests.test_resume import SETTINGS
from train.data.load import load_dataset
from train.loop import train
from train.settings import recipe
from train.world import joined


def main() -> None:
    with joined(group=True):
        for job in sys.argv[1:]:
            out, _, settings = job.partition("=")
            config = recipe("digits", [*SETTINGS, *settings.split(",")])
            train_set, test_set = load_dataset("digits", "train"), load_dataset("digits", "test")
            train(config, train_set, test_set, Path(out), console=Console(stderr=True))


if __name__ == "__main__":
    main()
