"""The options of `sovit shape recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sovit.commands.parser import by_name, command, with_json
from sovit.laws.advice.options import PRECISIONS, Options
from sovit.laws.sweep import MULTIPLE

_DEFAULTS: Final = Options()


def add_recommend(steps: Any) -> None:
    """Declare it."""
    recommend = command(
        steps, "recommend", by_name("sovit.laws.advice.command", "recommend_shape"), "the best shape for a budget"
    )
    recommend.add_argument("law", metavar="LAW|paper", help="what `sovit shape fit` wrote, or the paper's exponents")
    recommend.add_argument(
        "--train-flops", type=float, required=True, metavar="F", help="of the whole training, forward and backward"
    )
    recommend.add_argument(
        "--lifetime-images", type=float, metavar="N",
        help="the same F pays for a forward pass of each of these, too",
    )  # fmt: skip
    recommend.add_argument("--max-params", type=float, metavar="N", help="parameters at most")
    recommend.add_argument(
        "--max-memory", type=float, metavar="BYTES", help="weights and a batch's activations at most, in float32"
    )
    recommend.add_argument(
        "--max-latency-ms", type=float, metavar="L", help="median time of a batch at most, measured on this machine"
    )
    recommend.add_argument("--batch", type=int, help=f"images in a batch (default: {_DEFAULTS.batch})")
    recommend.add_argument(
        "--device", type=Path, metavar="FILE", help="this machine's latencies; what is missing is measured into it"
    )
    recommend.add_argument(
        "--precision", choices=PRECISIONS, help=f"of what is measured (default: {_DEFAULTS.precision})"
    )
    recommend.add_argument(
        "--measure", type=int, metavar="N", help=f"shapes at most, a few seconds each (default: {_DEFAULTS.measure})"
    )
    recommend.add_argument(
        "--measure-known",
        action="store_true",
        default=None,
        help="So400m, L, H and g as well: minutes, and gigabytes of memory",
    )
    recommend.add_argument(
        "--margin", type=float, help=f"how far beyond the runs' sizes, times (default: {_DEFAULTS.margin})"
    )
    recommend.add_argument(
        "--multiple", type=int, help=f"MLP sizes are multiples of it (default: the runs'; of `paper` {MULTIPLE})"
    )
    recommend.add_argument("--anchor", help="of `paper`: x0, So150m or So400m, which is scaled (default: So400m)")
    recommend.add_argument(
        "--anchor-flops", type=float, metavar="F", help="of `paper`: what the anchor's training took, as --train-flops"
    )
    with_json(recommend)
