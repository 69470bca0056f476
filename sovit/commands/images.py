"""One-off predictions of an artifact or a running service: classify and embed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sovit.commands.parser import command, with_json
from sovit.commands.result import Result, cell
from sovit.errors import EXIT_FAILED, ConfigError, SoViTError

if TYPE_CHECKING:
    from sovit.client import Client
    from sovit.predict import Predictor


def add_commands(commands: Any) -> None:
    """Declare them."""

    def with_images(added: argparse.ArgumentParser) -> None:
        target = added.add_argument("target", metavar="ARTIFACT|URL", help="not with --url")
        images = added.add_argument("images", metavar="IMAGE", nargs="+", default=[])
        target.required = images.required = False  # with --url the first may be an image, and the only one
        added.add_argument("--url", help="a running service: all other arguments are images")
        added.add_argument("--model", metavar="NAME", help="which of the service's models (default: its first)")
        added.add_argument("--key-file", type=Path, metavar="FILE", help="file that holds the service's API key")

    classify = command(commands, "classify", _classify, "classify images")
    with_images(classify)
    classify.add_argument("--top-k", type=int, default=5)
    classify.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON there")
    with_json(classify)

    embed = command(commands, "embed", _embed, "embed images")
    with_images(embed)
    embed.add_argument("--no-normalize", action="store_true", help="leave the vectors at their own length")
    embed.add_argument("--out", type=Path, metavar="FILE", help="write float32 [B, D] as .npy; a failed image is NaN")
    with_json(embed)


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
            table.add_row(cell(image), cell(value, "red"), "")
        else:
            for rank, prediction in enumerate(value.predictions):
                table.add_row(cell("" if rank else image), cell(prediction.label), f"{prediction.score:.4f}")
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
            table.add_row(cell(image), "", "", cell(value, "red"))
        else:
            first = " ".join(f"{x:+.4f}" for x in value[:4])
            table.add_row(cell(image), str(len(value)), f"{np.linalg.norm(value):.4f}", first)
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
