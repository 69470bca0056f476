"""`sovit demo`: the whole road on real scans of handwritten digits, each stage by the command anyone would type.

Train, export, check, serve, ask over HTTP, evaluate, measure. Everything lands in one folder, and whatever was started
is stopped again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from sovit.checkpoint import read_config
from sovit.client import Client
from sovit.errors import ServiceError, SoViTError
from sovit.predict import Classification
from sovit.process import free_port, serving, sovit_serve
from train.data.dataset import Dataset
from train.data.load import load_dataset
from train.stages import run_sovit, save_images, show

GOAL: Final = 0.97
GALLERY: Final = 120
SHOWN: Final = 6
NEIGHBOURS: Final = 3
LARGER: Final = "S/2"


class DemoFailed(SoViTError):
    """A stage of the demo did not do what it promises."""


def demo(arguments: argparse.Namespace) -> None:
    """Run every stage. Raises `DemoFailed` when one fails or the accuracy is below `GOAL`."""
    console = Console()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    _stage(console, "1. Train a small SoViT on 1,437 scans of digits (360 more are held out)")
    run_sovit(console, "train", "digits", "--data", "digits", "--out", str(out), "--restart")
    provenance = read_config(out / "checkpoint").provenance

    _stage(console, "2. Export it to ONNX, with the parity check against fp32 PyTorch")
    dataset = load_dataset("digits", "test")
    gallery = Dataset(dataset.name, dataset.images[:GALLERY], dataset.targets[:GALLERY], dataset.classes)
    paths = save_images(gallery, out / "images", GALLERY)
    artifact = out / "artifact"
    run_sovit(
        console, "export", str(out / "checkpoint"), "--to", "onnx", "--precision", "fp32",
        "--reference", str(out / "images"), "--name", "digits", "--out", str(artifact),
    )  # fmt: skip
    run_sovit(console, "check", str(artifact))

    _stage(console, "3. Serve it with BentoML and send real HTTP requests")
    _ask_service(console, artifact, out / "serve.log", paths, dataset)

    _stage(console, "4. Evaluate the artifact on the held-out digits")
    evaluation = json.loads(run_sovit(console, "evaluate", str(artifact), "--data", "digits", "--json", capture=True))
    console.print(f"top-1 {evaluation['top1']:.2%} of {evaluation['images']} images")

    _stage(console, f"5. Compare its latency with a larger ViT of the same patch size, {LARGER}")
    latency = out / "latency.json"
    run_sovit(
        console, "bench", "latency", str(artifact), LARGER, "--image-size", "8", "--quick", "--out", str(latency)
    )  # fmt: skip

    console.print(
        f"\n[bold]Done in {time.monotonic() - began:.0f} s.[/] Training took {provenance['seconds']:.1f} s; "
        f"the artifact gets {evaluation['top1']:.2%} of the held-out digits right. Everything is in {out}/. Next:"
    )
    # Commands are to be copied: a line each, however narrow the terminal is.
    console.print(
        f"  .venv/bin/sovit serve {artifact}\n"
        f"  curl -F images=@{paths[0]} 'http://127.0.0.1:3000/classify?top_k=3'\n"
        "or open http://127.0.0.1:3000 in a browser.",
        soft_wrap=True,
    )
    if evaluation["top1"] < GOAL:
        raise DemoFailed(
            f"the artifact's accuracy {evaluation['top1']:.2%} is below the {GOAL:.0%} this demo promises."
        )


def _stage(console: Console, title: str) -> None:
    console.print(f"\n[bold]{title}[/]")


def _pixels(dataset: Dataset, index: int) -> NDArray[np.uint8]:
    image = dataset.images[index]
    assert isinstance(image, np.ndarray)
    return image


def _ask_service(console: Console, artifact: Path, log: Path, paths: list[Path], dataset: Dataset) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    show(console, "serve", str(artifact), "--port", str(port))
    with serving(sovit_serve(artifact, port), url, log) as seconds, Client(url) as client:
        console.print(f"{url}/readyz answered 200 after {seconds:.1f} s")
        classified = client.classify(paths[:SHOWN], top_k=1)
        embeddings = np.concatenate([client.embed(paths[start : start + 30]) for start in range(0, len(paths), 30)])
    if len(classified) != SHOWN or len(embeddings) != len(paths):
        raise ServiceError("the service sent back fewer results than it was sent images.")
    console.print(_table(console, classified, embeddings, dataset))
    console.print("The service has stopped.")


def _table(
    console: Console, classified: list[Classification], embeddings: NDArray[np.float32], dataset: Dataset
) -> Table:
    table = Table("image", "is a", "/classify says", f"nearest of {GALLERY} by /embed, and cosine", show_lines=True)
    cosines = embeddings @ embeddings.T
    for index, classification in enumerate(classified):
        best = classification.predictions[0]
        truth = dataset.classes[dataset.targets[index]]
        nearest = [int(other) for other in np.argsort(-cosines[index]) if other != index][:NEIGHBOURS]
        pictures = Table.grid(padding=(0, 3))
        pictures.add_row(*(picture(_pixels(dataset, other), console.is_terminal) for other in nearest))
        pictures.add_row(
            *(f"{dataset.classes[dataset.targets[other]]}  {cosines[index, other]:.2f}" for other in nearest)
        )
        verdict = f"[{'green' if best.label == truth else 'red'}]{best.label}[/], score {best.score:.2f}"
        table.add_row(picture(_pixels(dataset, index), console.is_terminal), truth, verdict, pictures)
    return table


def picture(image_YXC: NDArray[np.uint8], color: bool) -> Any:
    """An image as text, two pixels to a character: grey levels where there is colour, else ink or no ink."""
    from rich.text import Text

    text = Text(no_wrap=True)
    grey_YX = image_YXC.mean(axis=2).astype(int)
    for upper, lower in zip(grey_YX[0::2], grey_YX[1::2], strict=True):
        for top, bottom in zip(upper, lower, strict=True):
            if color:
                text.append("▀", style=f"rgb({top},{top},{top}) on rgb({bottom},{bottom},{bottom})")
            else:
                text.append(" ▄▀█"[2 * (top > 100) + (bottom > 100)])
        text.append("\n")
    text.rstrip()
    return text
