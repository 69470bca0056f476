"""What makes, describes and checks models: info, convert, train, evaluate, export, check, compile, tune."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from sovit.artifact import OPSETS, OUTPUTS, Precision
from sovit.commands.parser import by_name, command, folder, in_checkout, not_empty, with_json
from sovit.commands.result import Result, aligned
from sovit.config import PositionResampling
from sovit.errors import ConfigError
from sovit.preprocess import Interpolation, ResizeRule
from sovit.runtime.tensorrt.options import add_compile_options, add_library_options
from sovit.spec import Score


def add_commands(commands: Any) -> None:
    """Declare them."""
    for add in (
        _add_info,
        _add_convert,
        _add_train,
        _add_evaluate,
        _add_export,
        _add_check,
        _add_compiling,
        _add_tune,
    ):
        add(commands)


def _add_info(commands: Any) -> None:
    info = command(commands, "info", _info, "what a variant, checkpoint or artifact is and costs")
    info.add_argument("target", metavar="VARIANT|FOLDER", help="such as So400m/14, or a checkpoint or artifact folder")
    info.add_argument("--image-size", help="pixels, N or YxX (default: 224, or the folder's own)")
    info.add_argument("--num-classes", type=int, help="size of the head (default: none, or the folder's own)")
    with_json(info)


def _add_convert(commands: Any) -> None:
    convert = command(
        commands, "convert", by_name("sovit.convert.command", "convert"), "import a public checkpoint, exactly"
    )
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


def _add_train(commands: Any) -> None:
    train = command(commands, "train", in_checkout("train.command", "train"), "train a recipe into a checkpoint")
    train.add_argument("recipe", metavar="RECIPE", help="digits, cifar10, imagenet1k-s16, ...: train/recipes.py")
    train.add_argument(
        "--data", required=True, help="digits, hf:NAME, or a folder: train/CLASS/IMAGE, Parquet or tar; and a test set"
    )
    train.add_argument("--out", required=True, type=folder, help="folder of the run; one that was stopped goes on")
    train.add_argument("--restart", action="store_true", help="forget the run that --out holds")
    train.add_argument(
        "--branch", type=Path, metavar="STATE", help="begin from a state of another run, as RUN/state/step-000001000"
    )
    train.add_argument(
        "--export", choices=get_args(Precision), metavar="PRECISION", help="then export, and evaluate the artifact"
    )
    train.add_argument(
        "--serve", nargs="?", const=3000, type=int, metavar="PORT", help="then serve the artifact (fp32 by default)"
    )
    train.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the recipe")
    with_json(train)


def _add_evaluate(commands: Any) -> None:
    evaluate = command(
        commands, "evaluate", in_checkout("train.evaluate_command", "evaluate"), "accuracy on labelled images"
    )
    evaluate.add_argument("target", metavar="CHECKPOINT|ARTIFACT|URL")
    evaluate.add_argument(
        "--data", required=True, help="digits, hf:NAME, or a folder: CLASS/IMAGE, test/CLASS/IMAGE, Parquet or tar"
    )
    evaluate.add_argument(
        "--probe",
        choices=["fewshot", "knn", "linear"],
        help="fit a probe on the embeddings of train/CLASS/IMAGE and score that (default: the model's own head)",
    )
    evaluate.add_argument(
        "--against",
        type=not_empty,
        metavar="CHECKPOINT|ARTIFACT|URL",
        help="how many images does this model put into the same class?",
    )
    with_json(evaluate)


def _add_export(commands: Any) -> None:
    export = command(
        commands, "export", in_checkout("export.command", "export"), "compile a checkpoint into an artifact"
    )
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


def _add_check(commands: Any) -> None:
    check = command(commands, "check", _check, "verify an artifact's hashes and run its parity check here")
    check.add_argument("artifact", metavar="ARTIFACT")
    check.add_argument("--runtime", default="auto", help="which engine to check (default: the best one here)")
    with_json(check)


def _add_compiling(commands: Any) -> None:
    compiling = command(
        commands,
        "compile",
        by_name("sovit.runtime.tensorrt.command", "compile_artifact"),
        "compile an artifact with TensorRT for this machine's GPU, or for RTX GPUs elsewhere",
    )
    compiling.add_argument("artifact", metavar="ARTIFACT")
    add_library_options(compiling)
    add_compile_options(compiling)
    with_json(compiling)


def _add_tune(commands: Any) -> None:
    tune = command(
        commands, "tune", by_name("sovit.runtime.tuning.command", "tune_artifact"), "find the best settings here"
    )
    tune.add_argument("artifact", metavar="ARTIFACT")
    tune.add_argument("--runtime", nargs="+", help="engines to try (default: all that can take the artifact here)")
    tune.add_argument("--max-batch", type=int, default=32, help="largest batch to try (default: %(default)s)")
    tune.add_argument("--rounds", type=int, default=7, help="timed turns of each setting (default: %(default)s)")
    with_json(tune)


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
