"""The `sovit` command. Heavy packages are imported inside the command that needs them.

A handler returns a `Result`; standard output carries nothing else, so that `--json` can be piped. Progress and errors
go to standard error. Exit status: 0 done, 1 it failed, 2 wrong usage or bad input.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from sovit import __version__
from sovit.errors import EXIT_FAILED, EXIT_USAGE, ConfigError, SoViTError

if TYPE_CHECKING:
    from sovit.client import Client
    from sovit.predict import Predictor

EXIT_INTERRUPTED: Final = 130
_EXTRA_OF: Final = {
    "torch": "convert",
    "sklearn": "train",
    "onnx": "export",
    "ml_dtypes": "export",
    "bentoml": "serving",
    "orjson": "serving",
    "onnxruntime": "cpu",
    "openvino": "cpu",
    "psutil": "bench",
    "mlperf_loadgen": "bench",
    "huggingface_hub": "convert",
}


@dataclass(frozen=True)
class Result:
    """What a command found: `data` for `--json`, `text` (a string or anything rich can print) for people."""

    data: Any
    text: Any
    exit_code: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        result: Result | None = arguments.run(arguments)
        if result is None:
            return 0
        _print(result, as_json=getattr(arguments, "json", False))
        return result.exit_code
    except SoViTError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        return _fail(f"{error.name} is not installed: pip install 'sovit[{extra}]'.", EXIT_USAGE)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; nothing to say, and nobody to say it to
        return EXIT_FAILED
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.", EXIT_FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted.", EXIT_INTERRUPTED)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    from sovit.artifact import OPSETS, OUTPUTS, Precision
    from sovit.config import PositionResampling
    from sovit.preprocess import Interpolation, ResizeRule
    from sovit.runtime.profile import Goal
    from sovit.runtime.tensorrt.options import add_compile_options
    from sovit.spec import Score

    parser = argparse.ArgumentParser(
        prog="sovit", description="Train, export and serve shape-optimised vision transformers.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"sovit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], Result | None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    def with_json(added: argparse.ArgumentParser) -> None:
        added.add_argument("--json", action="store_true", help="print the result as JSON")

    info = command("info", _info, "what a variant, checkpoint or artifact is and costs")
    info.add_argument("target", metavar="VARIANT|FOLDER", help="such as So400m/14, or a checkpoint or artifact folder")
    info.add_argument("--image-size", help="pixels, N or YxX (default: 224, or the folder's own)")
    info.add_argument("--num-classes", type=int, help="size of the head (default: none, or the folder's own)")
    with_json(info)

    convert = command("convert", _by_name("sovit.convert.command", "convert"), "import a public checkpoint, exactly")
    convert.add_argument(
        "source",
        metavar="SOURCE",
        help="a big_vision .npz, a timm or transformers folder, a .safetensors file beside its config.json, or "
        "hf:OWNER/NAME[@REVISION]",
    )
    convert.add_argument("--to", required=True, type=Path, metavar="CHECKPOINT", help="folder to write")
    convert.add_argument("--image-size", help="pixels, N or YxX: resamples the position embedding (default: as it is)")
    convert.add_argument(
        "--resample",
        choices=get_args(PositionResampling),
        help="whose rule resamples the position embedding (default: the source's own)",
    )
    convert.add_argument("--drop-head", action="store_true", help="leave the classification head out")
    convert.add_argument("--num-classes", type=int, help="size the head must have; without one, a new head of zeros")
    convert.add_argument("--labels", metavar="FILE|imagenet-1k", help="names of the classes, one a line")
    convert.add_argument("--score", choices=get_args(Score), help="what makes scores of logits")
    convert.add_argument(
        "--resize",
        choices=[rule for rule in get_args(ResizeRule) if rule != "naflex"],
        help="resize rule (default: the source's)",
    )
    convert.add_argument("--crop-fraction", type=float, help="part of the resized image that is kept")
    convert.add_argument("--interpolation", choices=get_args(Interpolation), help="resize filter")
    with_json(convert)

    train = command("train", _in_checkout("train.command", "train"), "train a recipe into a checkpoint")
    train.add_argument("recipe", metavar="RECIPE", help="such as digits")
    train.add_argument("--data", required=True, help="digits, or a folder with train/CLASS/IMAGE and test/CLASS/IMAGE")
    train.add_argument("--out", required=True, type=Path, help="folder for checkpoint/ and log.jsonl")
    train.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the recipe")
    with_json(train)

    evaluate = command("evaluate", _in_checkout("train.command", "evaluate"), "accuracy on labelled images")
    evaluate.add_argument("target", metavar="CHECKPOINT|ARTIFACT|URL")
    evaluate.add_argument("--data", required=True, help="digits, or a folder with CLASS/IMAGE or test/CLASS/IMAGE")
    evaluate.add_argument(
        "--probe",
        choices=["fewshot", "knn", "linear"],
        help="fit a probe on the embeddings of train/CLASS/IMAGE and score that (default: the model's own head)",
    )
    with_json(evaluate)

    export = command("export", _in_checkout("export.command", "export"), "compile a checkpoint into an artifact")
    export.add_argument(
        "source", metavar="CHECKPOINT|VARIANT", help="a variant gets random weights, to measure its cost"
    )
    export.add_argument(
        "--to", choices=["onnx", "tensorrt"], default="onnx", help="tensorrt: export, and compile on this machine"
    )
    export.add_argument("--precision", choices=get_args(Precision), default="fp32", help="products, and the rest")
    export.add_argument("--image-size", help="pixels, N or YxX (default: the checkpoint's own; 224 for a variant)")
    export.add_argument("--num-classes", type=int, help="size of a variant's head (default: none)")
    export.add_argument("--reference", type=Path, metavar="IMAGES", help="folder of real images for the parity check")
    export.add_argument("--calibrate", type=Path, metavar="IMAGES", help="folder of real images, for int8 and fp8")
    export.add_argument("--batch", metavar="MIN:OPT:MAX", help="batch sizes the artifact is for (default: 1:8:64)")
    export.add_argument(
        "--outputs", nargs="+", choices=OUTPUTS, help="of the graph (default: pre_logits, and logits with a head)"
    )
    export.add_argument("--opset", type=int, default=OPSETS[-1], help="of ONNX (the only one: %(default)s)")
    add_compile_options(export, batch=False)
    export.add_argument("--name", help="the model's name in replies (default: the artifact folder's)")
    export.add_argument("--out", required=True, type=Path, metavar="ARTIFACT")
    with_json(export)

    check = command("check", _check, "verify an artifact's hashes and run its parity check here")
    check.add_argument("artifact", metavar="ARTIFACT")
    check.add_argument("--runtime", default="auto", help="which engine to check (default: the best one here)")
    with_json(check)

    compiling = command(
        "compile",
        _by_name("sovit.runtime.tensorrt.command", "compile_artifact"),
        "compile an artifact with TensorRT for this machine's GPU",
    )
    compiling.add_argument("artifact", metavar="ARTIFACT")
    add_compile_options(compiling)
    with_json(compiling)

    tune = command("tune", _by_name("sovit.runtime.tuning.command", "tune_artifact"), "find the best settings here")
    tune.add_argument("artifact", metavar="ARTIFACT")
    tune.add_argument("--runtime", nargs="+", help="engines to try (default: all that can take the artifact here)")
    tune.add_argument("--max-batch", type=int, default=32, help="largest batch to try (default: %(default)s)")
    tune.add_argument("--rounds", type=int, default=7, help="timed turns of each setting (default: %(default)s)")
    with_json(tune)

    def with_images(added: argparse.ArgumentParser) -> None:
        target = added.add_argument("target", metavar="ARTIFACT|URL", help="not with --url")
        images = added.add_argument("images", metavar="IMAGE", nargs="+", default=[])
        target.required = images.required = False  # with --url the first may be an image, and the only one
        added.add_argument("--url", help="a running service: all other arguments are images")
        added.add_argument("--model", metavar="NAME", help="which of the service's models (default: its first)")
        added.add_argument("--key-file", type=Path, metavar="FILE", help="file that holds the service's API key")

    classify = command("classify", _classify, "classify images")
    with_images(classify)
    classify.add_argument("--top-k", type=int, default=5)
    classify.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON there")
    with_json(classify)

    embed = command("embed", _embed, "embed images")
    with_images(embed)
    embed.add_argument("--no-normalize", action="store_true", help="leave the vectors at their own length")
    embed.add_argument("--out", type=Path, metavar="FILE", help="write float32 [B, D] as .npy; a failed image is NaN")
    with_json(embed)

    serve = command("serve", _in_checkout("serving.command", "serve"), "serve artifacts over HTTP")
    serve.add_argument(
        "artifacts",
        nargs="+",
        metavar="ARTIFACT|NAME=ARTIFACT",
        help="a folder, or bentoml:TAG; the first is the default",
    )
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 3000)")
    serve.add_argument("--runtime", help="engine to run the artifact in")
    serve.add_argument(
        "--tuned-for", choices=get_args(Goal), help="which of the settings that tune found (default: latency)"
    )
    serve.add_argument("--lanes", type=int, help="batches that run side by side (default: as tuned, or 1)")
    serve.add_argument("--threads", type=int, help="CPU threads of one lane (default: as tuned, or the cores)")
    serve.add_argument("--max-batch", type=int, help="most images in one run (default: as tuned, or 8)")
    serve.add_argument("--max-queue", type=int, help="most images of all requests under way")
    serve.add_argument("--max-images", type=int, help="most images in one request")
    serve.add_argument("--max-body-bytes", type=int, help="largest request body")
    serve.add_argument("--max-queue-bytes", type=int, help="most bytes of all bodies under way")
    serve.add_argument("--timeout-seconds", type=float, help="time a request may take")
    serve.add_argument("--decode-threads", type=int, help="threads that decode images (default: the cores and one)")
    serve.add_argument("--max-pixels", type=int, help="largest image, by its header (default: 50,000,000)")
    serve.add_argument("--keys", metavar="FILE", help="JSON file of clients' keys; without it everybody may ask")
    serve.add_argument("--operations-port", type=int, help="answer probes, metrics and drain there and nowhere else")
    serve.add_argument("--operations-host", help="address of the operations port (default: 127.0.0.1)")
    serve.add_argument("--trace-endpoint", metavar="URL", help="OTLP collector to send traces to over HTTP")
    serve.add_argument("--trace-ratio", type=float, help="share of the traces that begin here (default: 1)")
    serve.add_argument("--log-requests", action="store_true", help="log every request as a line of JSON")
    serve.add_argument("--no-page", action="store_true", help="leave out the page at /")
    serve.add_argument(
        "--reduced-scale", action="store_true", help="decode large JPEGs at 1/2 to 1/8, still twice the model's size"
    )

    bench = command("bench", lambda _: None, "measure")
    benches = bench.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    latency = benches.add_parser("latency", help="latency of artifacts and variants", allow_abbrev=False)
    latency.set_defaults(run=_in_checkout("benchmarks.latency.command", "latency"))
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

    load = benches.add_parser("load", help="HTTP load on a running service", allow_abbrev=False)
    load.set_defaults(run=_in_checkout("benchmarks.load.command", "load"))
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

    scenario = benches.add_parser("scenario", help="one artifact under a load generator's scenario", allow_abbrev=False)
    scenario.set_defaults(run=_in_checkout("benchmarks.scenarios.command", "scenario"))
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

    costing = benches.add_parser("cost", help="what a million images cost, from results of latency", allow_abbrev=False)
    costing.set_defaults(run=_in_checkout("benchmarks.cost.command", "cost"))
    costing.add_argument("results", metavar="RESULT", nargs="+", type=Path, help="files that latency --out wrote")
    costing.add_argument(
        "--prices", type=Path, metavar="FILE", help="your prices, before the published ones (benchmarks/prices.json)"
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

    comparing = benches.add_parser(
        "compare", help="what changed between two results of latency, beyond noise", allow_abbrev=False
    )
    comparing.set_defaults(run=_in_checkout("benchmarks.latency.compare_command", "compare"))
    comparing.add_argument("a", metavar="A", type=Path, help="the result before")
    comparing.add_argument("b", metavar="B", type=Path, help="the result after")
    with_json(comparing)

    demo = command("demo", _in_checkout("train.demo", "demo"), "the whole road on real scans of digits")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"))
    return parser


def checkout() -> Path:
    """The checkout beside the imported package, put first on the path. Raises `ConfigError` where there is none."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "bentofile.yaml").is_file():
        raise ConfigError(
            "this command needs sovit's checkout (train/, export/, serving/, benchmarks/), and the installed package "
            "is not in one: clone the repository and run `pip install -e .` there."
        )
    if str(root) not in sys.path[:1]:
        sys.path.insert(0, str(root))
    return root


def _by_name(module: str, function: str) -> Callable[[argparse.Namespace], Result | None]:
    """A handler whose module is imported when it runs."""

    def run(arguments: argparse.Namespace) -> Result | None:
        handler: Callable[[argparse.Namespace], Result | None] = getattr(importlib.import_module(module), function)
        return handler(arguments)

    return run


def _in_checkout(module: str, function: str) -> Callable[[argparse.Namespace], Result | None]:
    """A handler in one of the checkout's packages: the core must not import them."""

    def run(arguments: argparse.Namespace) -> Result | None:
        checkout()
        return _by_name(module, function)(arguments)

    return run


def _info(arguments: argparse.Namespace) -> Result:
    from dataclasses import replace

    from sovit.artifact import is_artifact, open_artifact
    from sovit.checkpoint import is_checkpoint, read_config
    from sovit.config import parse_image_size, variant_config
    from sovit.cost import cost
    from sovit.spec import ModelSpec

    folder = Path(arguments.target)
    spec: ModelSpec | None = None
    data: dict[str, Any] = {"target": arguments.target}
    if is_artifact(folder):
        manifest = open_artifact(folder).manifest
        spec = manifest
        data |= {"kind": "artifact", "name": manifest.name, "precision": manifest.precision, "opset": manifest.opset}
    elif is_checkpoint(folder):
        spec = read_config(folder)
        data |= {"kind": "checkpoint"}
    elif folder.is_dir():
        raise ConfigError(f"{folder} is neither a checkpoint (no config.json) nor an artifact (no manifest.json).")
    else:
        data |= {"kind": "variant"}
    model = spec.model if spec else variant_config(arguments.target)
    if arguments.image_size:
        model = replace(model, image_size=parse_image_size(arguments.image_size))
    if arguments.num_classes is not None:
        model = replace(model, num_classes=arguments.num_classes)
    found = cost(model)
    data |= {"model": asdict(model), "cost": asdict(found)}
    rows = [(name, value) for name, value in data.items() if isinstance(value, (str, int)) and name != "target"] + [
        ("width, depth", f"{model.width}, {model.depth}"),
        ("mlp_dim, num_heads", f"{model.mlp_dim}, {model.num_heads} (head_dim {model.head_dim})"),
        ("patch, image", f"{model.patch_size} px, {model.image_size[0]} x {model.image_size[1]} px"),
        ("pooling, position", f"{model.pool}, {model.position_embedding}"),
        *([("with", model.traits)] if model.traits else []),
        *([("images", spec.preprocess.summary)] if spec else []),
        ("classes", f"{model.num_classes or 'no head'}"),
        ("parameters", f"{found.parameters:,} ({found.parameters / 1e6:.1f} M)"),
        ("tokens", f"{found.tokens:,}"),
        ("FLOPs per image", f"{found.flops / 1e9:,.1f} GFLOPs ({found.flops / 2e9:,.1f} GMACs) by formula"),
        ("weights", f"{found.weight_bytes / 1e6:,.1f} MB in fp32"),
        ("activations", f"{found.activation_bytes / 1e6:,.1f} MB at most at batch 1 in fp32"),
    ]
    return Result(data, aligned(arguments.target, rows))


def _check(arguments: argparse.Namespace) -> Result:
    from sovit.artifact import open_artifact
    from sovit.parity import measure_parity
    from sovit.runtime.open import open_runtime

    artifact = open_artifact(arguments.artifact)
    images, reference = artifact.reference()
    runtime = open_runtime(artifact, arguments.runtime)
    parity = measure_parity(runtime, images, reference).require()
    rows = [
        ("files", f"{len(artifact.manifest.files)} with the right hashes"),
        ("runtime", f"{parity.runtime} {parity.precision}"),
        ("relative error", f"{parity.relative_error:.2e}"),
        ("cosine", f"{parity.cosine:.7f}"),
    ]
    if parity.top1_agreement is not None:
        rows.append(("top-1 agreement", f"{parity.top1_agreement:.1%} of {parity.images} images"))
    return Result({"artifact": str(artifact.folder), "parity": asdict(parity)}, aligned(f"{artifact.folder}: ok", rows))


def _classify(arguments: argparse.Namespace) -> Result:
    from rich.table import Table

    if arguments.top_k < 1:
        raise ConfigError(f"--top-k is {arguments.top_k}, it must be at least 1.")
    top_k = arguments.top_k
    found, failed = _each(
        arguments,
        lambda predictor, image: predictor.classify([image], top_k)[0],
        lambda client, images: client.classify_each(images, top_k),
    )
    results = [
        {"image": image, **({"error": str(value)} if isinstance(value, SoViTError) else asdict(value))}
        for image, value in found
    ]
    if arguments.out:
        arguments.out.write_text(json.dumps({"results": results}, indent=2) + "\n", encoding="utf-8")
    table = Table("image", "class", "score")
    for image, value in found:
        if isinstance(value, SoViTError):
            table.add_row(_cell(image), _cell(value, "red"), "")
        else:
            for rank, prediction in enumerate(value.predictions):
                table.add_row(_cell("" if rank else image), _cell(prediction.label), f"{prediction.score:.4f}")
    return Result({"results": results}, table, EXIT_FAILED if failed else 0)


def _embed(arguments: argparse.Namespace) -> Result:
    import numpy as np
    from rich.table import Table

    normalize = not arguments.no_normalize
    found, failed = _each(
        arguments,
        lambda predictor, image: predictor.embed([image], normalize)[0],
        lambda client, images: client.embed_each(images, normalize),
    )
    vectors = [value for _, value in found if not isinstance(value, SoViTError)]
    if arguments.out and vectors:
        gap = np.full_like(vectors[0], np.nan)
        rows = [gap if isinstance(value, SoViTError) else value for _, value in found]
        with arguments.out.open("wb") as stream:
            np.save(stream, np.stack(rows))
    table = Table("image", "dim", "length", "first values")
    for image, value in found:
        if isinstance(value, SoViTError):
            table.add_row(_cell(image), "", "", _cell(value, "red"))
        else:
            first = " ".join(f"{x:+.4f}" for x in value[:4])
            table.add_row(_cell(image), str(len(value)), f"{np.linalg.norm(value):.4f}", first)
    results = [
        {"image": image, **({"error": str(value)} if isinstance(value, SoViTError) else {"embedding": value.tolist()})}
        for image, value in found
    ]
    return Result({"results": results}, table, EXIT_FAILED if failed else 0)


def _each(
    arguments: argparse.Namespace,
    local: Callable[[Predictor, str], Any],
    remote: Callable[[Client, list[str]], Iterable[Any]],
) -> tuple[list[tuple[str, Any]], bool]:
    """Each image with its result or its own error, from an artifact or a service. True if any failed."""
    words = [word for word in (arguments.target, *arguments.images) if word is not None]
    target = arguments.url if arguments.url is not None or not words else words.pop(0)
    if not words:
        raise ConfigError("give at least one image: ARTIFACT|URL IMAGE..., or --url URL IMAGE...")
    if arguments.url is None and not target.lower().startswith(("http://", "https://")):
        if arguments.model is not None or arguments.key_file is not None:
            raise ConfigError("--model and --key-file are for a service; give its --url.")
        values = _from_artifact(target, words, local)
    else:
        from sovit.client import Client

        key = "" if arguments.key_file is None else read_key(arguments.key_file)
        with Client(target, api_key=key, model=arguments.model or "") as client:
            values = list(remote(client, words))
    return list(zip(words, values, strict=True)), any(isinstance(value, SoViTError) for value in values)


def _from_artifact(folder: str, images: list[str], call: Callable[[Predictor, str], Any]) -> list[Any]:
    from sovit.errors import InvalidImage, UnsupportedImage
    from sovit.predict import load_artifact

    values: list[Any] = []
    with closing(load_artifact(folder)) as predictor:
        for image in images:
            try:
                values.append(call(predictor, image))
            except (InvalidImage, UnsupportedImage) as error:
                values.append(error)
    return values


def read_key(path: Path) -> str:
    """The key in a file of its own, which keeps it off the command line and so out of the list of processes."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a key: {getattr(error, 'strerror', error)}.") from error
    if not key:
        raise ConfigError(f"{path} holds no key.")
    return key


def _cell(value: object, style: str = "") -> Any:
    """A table cell that shows every character as it is, brackets included, and loses none."""
    from rich.text import Text

    # What a terminal would act upon is shown as a question mark.
    shown = "".join(character if character.isprintable() else "?" for character in str(value))
    return Text(shown, style=style, overflow="fold")


def aligned(title: str, rows: Sequence[tuple[str, Any]]) -> str:
    """A title and, below it, names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _print(result: Result, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.data, indent=2, default=str))
    elif isinstance(result.text, str):
        print(result.text)
    else:
        from rich.console import Console

        Console(highlight=False).print(result.text)
    sys.stdout.flush()


def _fail(message: str, exit_code: int) -> int:
    print(f"sovit: {message}", file=sys.stderr)
    return exit_code
