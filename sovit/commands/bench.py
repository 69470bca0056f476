"""The options of `sovit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from sovit.artifact import Precision
from sovit.commands.parser import command, in_checkout, with_json


def add_commands(commands: Any) -> None:
    """Declare its benchmarks."""
    bench = command(commands, "bench", lambda _: None, "measure")
    benches = bench.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    for add in (
        _add_latency,
        _add_load,
        _add_scenario,
        _add_costing,
        _add_comparing,
    ):
        add(benches)


def _add_latency(benches: Any) -> None:
    latency = benches.add_parser("latency", help="latency of artifacts and variants", allow_abbrev=False)
    latency.set_defaults(run=in_checkout("benchmarks.latency.command", "latency"))
    latency.add_argument("targets", metavar="ARTIFACT|VARIANT", nargs="+", help="a variant gets random weights")
    latency.add_argument(
        "--image-size", nargs="+", default=["224"], help="pixels of the variants, N or YxX (default: 224)"
    )
    latency.add_argument(
        "--precision", nargs="+", choices=get_args(Precision), default=["fp32"], help="of the variants (default: fp32)"
    )
    latency.add_argument("--images", type=Path, help="folder of photographs, for quantised precisions")
    latency.add_argument("--batch", type=int, nargs="+", default=[1], help="batch sizes (default: 1)")
    latency.add_argument(
        "--runtime",
        nargs="+",
        default=["auto"],
        help="engines, torch, torch-compile, or all (default: the best engine here)",
    )
    latency.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    latency.add_argument("--rounds", type=int, default=30, help="least timed runs in each process (default: 30)")
    latency.add_argument(
        "--seconds", type=float, default=5.0, help="least time of the timed runs in each process (default: 5)"
    )
    latency.add_argument("--processes", type=int, default=3, help="fresh processes for each row (default: 3)")
    latency.add_argument("--quick", action="store_true", help="10 timed runs in one process; the result says so")
    latency.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep exported variants there, and take from there what is there"
    )
    latency.add_argument("--out", type=Path, metavar="FILE", help="write rows and conditions as JSON there")
    with_json(latency)


def _add_load(benches: Any) -> None:
    load = benches.add_parser("load", help="HTTP load on a running service", allow_abbrev=False)
    load.set_defaults(run=in_checkout("benchmarks.load.command", "load"))
    load.add_argument("url", metavar="URL", help="a running service, such as http://127.0.0.1:3000")
    load.add_argument("--images", type=Path, nargs="+", help="photographs: JPEG files, or folders of them")
    load.add_argument("--rate", type=float, help="open loop: so many requests a second on average, Poisson arrivals")
    load.add_argument("--concurrency", type=int, help="closed loop: so many clients, one request each under way")
    load.add_argument("--slo-ms", type=float, help="search the highest rate whose latency keeps this limit")
    load.add_argument("--percentile", type=float, help="of the latency that must keep it (default: 99)")
    load.add_argument("--success", type=float, help="share of requests that must be answered (default: 0.999)")
    load.add_argument("--seconds", type=float, default=10.0, help="of a run, or least of a step (default: %(default)g)")
    load.add_argument(
        "--warmup-seconds", type=float, default=3.0, help="before each, counted apart (default: %(default)g)"
    )
    load.add_argument("--limit-ms", type=float, help="answers within it are goodput (default: 1000)")
    load.add_argument("--path", choices=["/embed", "/classify"], default="/embed", help="(default: %(default)s)")
    load.add_argument("--model", metavar="NAME", help="which of the service's models (default: its first)")
    load.add_argument("--key-file", type=Path, metavar="FILE", help="file that holds the service's API key")
    load.add_argument("--seed", type=int, default=0, help="of the arrivals (default: %(default)d)")
    load.add_argument("--out", type=Path, metavar="FILE", help="write the result and its conditions as JSON there")
    with_json(load)


def _add_scenario(benches: Any) -> None:
    scenario = benches.add_parser("scenario", help="one artifact under a load generator's scenario", allow_abbrev=False)
    scenario.set_defaults(run=in_checkout("benchmarks.scenarios.command", "scenario"))
    scenario.add_argument("scenario", choices=["single-stream", "offline", "server"])
    scenario.add_argument("artifact", metavar="ARTIFACT")
    scenario.add_argument("--rate", type=float, default=0.0, help="images a second that arrive; of offline, a guess")
    scenario.add_argument("--limit-ms", type=float, default=1000.0, help="latency limit (default: %(default)g)")
    scenario.add_argument("--percentile", type=float, default=99.0, help="that must keep it (default: %(default)g)")
    scenario.add_argument("--seconds", type=float, default=10.0, help="least length of the run (default: %(default)g)")
    scenario.add_argument("--max-batch", type=int, help="most images in one run (default: as tuned, or 8)")
    scenario.add_argument("--runtime", default="auto", help="engine to run it in (default: the best one here)")
    scenario.add_argument("--threads", type=int, help="CPU threads (default: as tuned, or all cores)")
    scenario.add_argument("--seed", type=int, default=0, help="of the arrivals (default: %(default)d)")
    scenario.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON there")
    with_json(scenario)


def _add_costing(benches: Any) -> None:
    costing = benches.add_parser("cost", help="what a million images cost, from results of latency", allow_abbrev=False)
    costing.set_defaults(run=in_checkout("benchmarks.cost.command", "cost"))
    costing.add_argument("results", metavar="RESULT", nargs="+", type=Path, help="files that latency --out wrote")
    costing.add_argument(
        "--prices",
        type=Path,
        metavar="FILE",
        help="your prices, before the published ones (benchmarks/cost/prices.json)",
    )
    costing.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="NAME=USD_PER_HOUR",
        help="price of a machine, such as 'AMD EPYC=0.10'",
    )
    costing.add_argument("--out", type=Path, metavar="FILE", help="write the report there: .html, .md or .json")
    with_json(costing)


def _add_comparing(benches: Any) -> None:
    comparing = benches.add_parser(
        "compare", help="what changed between two results of latency, beyond noise", allow_abbrev=False
    )
    comparing.set_defaults(run=in_checkout("benchmarks.latency.compare_command", "compare"))
    comparing.add_argument("a", metavar="A", type=Path, help="the result before")
    comparing.add_argument("b", metavar="B", type=Path, help="the result after")
    with_json(comparing)
