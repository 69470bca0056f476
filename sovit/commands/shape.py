"""The options of `sovit shape`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from sovit.commands.parser import by_name, command, in_checkout, with_json
from sovit.commands.shape_recommend import add_recommend
from sovit.laws.sweep import EVERY, MULTIPLE, SIZES, STAR_RATIO, DesignKind


def add_commands(commands: Any) -> None:
    """Declare it."""
    shape = command(commands, "shape", lambda _: None, "the right shape for a budget: sweep, fit, recommend")
    steps = shape.add_subparsers(title="steps", required=True, metavar="STEP")
    for add in (_add_sweep, _add_run, _add_fit, add_recommend):
        add(steps)


def _add_sweep(steps: Any) -> None:
    sweep = command(steps, "sweep", in_checkout("train.design_command", "sweep"), "write a table of runs")
    sweep.add_argument("--design", choices=get_args(DesignKind), required=True, help="around a centre, or combinations")
    sweep.add_argument(
        "--centre", required=True, metavar="WIDTH,DEPTH,MLP", help="the largest shape; the others are smaller"
    )
    sweep.add_argument("--sizes", type=int, help=f"of each dimension, below the centre (default: {SIZES})")
    sweep.add_argument("--ratio", type=float, help=f"from one size to the next (default: {STAR_RATIO})")
    for name in ("widths", "depths", "mlp-dims"):
        sweep.add_argument(f"--{name}", metavar="N,N,...", help="these sizes instead")
    sweep.add_argument("--with-centre", action="store_true", help="train the star's centre too")
    sweep.add_argument("--head-dim", type=int, default=64, help="widths are multiples of it (default: 64)")
    sweep.add_argument(
        "--multiple", type=int, default=MULTIPLE, help="MLP sizes are multiples of it (default: %(default)s)"
    )
    sweep.add_argument("--recipe", required=True, help="how each is trained, such as cifar10")
    sweep.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the recipe")
    sweep.add_argument("--patch-size", type=int, required=True, help="pixels")
    sweep.add_argument("--image-size", required=True, help="pixels, N or YxX")
    sweep.add_argument("--batch-size", type=int, required=True)
    sweep.add_argument("--steps", required=True, metavar="N,N,...", help="measure after so many, each cooled down")
    sweep.add_argument("--cooldown", type=float, default=0.2, help="the last part of each (default: %(default)s)")
    sweep.add_argument("--learning-rate", type=float, required=True, help="of the centre")
    sweep.add_argument(
        "--other-rates", metavar="FACTOR,FACTOR", help="train some shapes at these times the rate as well"
    )
    sweep.add_argument("--every", type=int, help=f"which: every so many (default: {EVERY})")
    sweep.add_argument("--seeds", default="0", metavar="N,N,...", help="train every shape with each (default: 0)")
    sweep.add_argument("-o", "--out", type=Path, required=True, metavar="RUNS", help="the table; what it lists stays")
    with_json(sweep)


def _add_run(steps: Any) -> None:
    run = command(steps, "run", in_checkout("train.sweep_command", "run"), "train the runs of a table")
    run.add_argument("table", type=Path, metavar="RUNS")
    run.add_argument("--data", required=True, help="as for `sovit train`")
    run.add_argument("--out", type=Path, help="folder of the runs (default: RUNS without its ending)")
    run.add_argument("--jobs", type=int, help="how many at a time (default: 1)")
    run.add_argument("--threads", type=int, help="of each (default: the cores shared out)")
    run.add_argument("--only", nargs="+", metavar="RUN", help="these alone")
    run.add_argument("--ray", metavar="ADDRESS", help="on a Ray cluster: its address, auto, or local")
    with_json(run)


def _add_fit(steps: Any) -> None:
    fit = command(steps, "fit", by_name("sovit.laws.fit_command", "fit_table"), "fit the law to what the runs gave")
    fit.add_argument("table", type=Path, metavar="RUNS")
    fit.add_argument("-o", "--out", type=Path, required=True, metavar="LAW", help="the law, as JSON")
    fit.add_argument(
        "--method", choices=["relative", "huber"], default="relative",
        help="least relative error, or a Huber loss of the log error (default: relative)",
    )  # fmt: skip
    fit.add_argument("--delta", type=float, help="where the Huber loss becomes linear (default: 0.001)")
    fit.add_argument("--starts", type=int, default=200, help="of the search (default: 200)")
    fit.add_argument("--replicates", type=int, default=1_000, help="of the bootstrap (default: 1,000)")
    fit.add_argument("--seed", type=int, default=0, help="of starts and replicates (default: 0)")
    fit.add_argument("--report", type=Path, metavar="FILE", help="write a page with plots there, as HTML")
    with_json(fit)
