"""The run's log for TensorBoard: `tensorboard --logdir OUT/tensorboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sovit.errors import MissingDependency


def kind_of(entry: dict[str, Any]) -> str:
    """What an entry of the log is about: `train`, `test`, or a probe's name."""
    return entry.get("probe") or ("test" if "top1" in entry else "train")


def must_have_tensorboard() -> None:
    """Raises `MissingDependency` where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            "tensorboard=true needs TensorBoard: pip install 'sovit[tensorboard]', or leave it out."
        ) from error


class Board:
    """Writes the numbers of log entries as scalars."""

    def __init__(self, folder: Path, step: int) -> None:
        """Go on after `step`: what is there beyond it no longer counts."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, entry: dict[str, Any]) -> None:
        """Each number under its entry's kind."""
        for name, value in entry.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{kind_of(entry)}/{name}", value, entry["step"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
