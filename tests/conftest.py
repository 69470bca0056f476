"""What many tests share: a tiny model with random weights as a checkpoint and as an artifact, and real photographs."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from sovit.artifact import Artifact
from sovit.checkpoint import save_checkpoint
from sovit.config import ViTConfig
from sovit.model import ViT
from sovit.preprocess import Preprocess
from sovit.spec import ModelSpec

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.browser import OpenPage
    from tests.deployment import Bento

# A shell that runs the tests in its background lets them ignore Ctrl-C, and some send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The machine is shared: a slow example is no failure.
settings.register_profile("sovit", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("sovit")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def tiny_spec(**changes: object) -> ModelSpec:
    fields = {
        "width": 32, "depth": 2, "mlp_dim": 48, "num_heads": 2, "patch_size": 4, "image_size": (16, 16),
        "num_classes": 3,
    } | changes  # fmt: skip
    model = ViTConfig(**fields)  # type: ignore[arg-type]
    labels = tuple(("ant", "bee", "cat", "dog")[index] for index in range(model.num_classes))
    return ModelSpec(model=model, preprocess=Preprocess(image_size=model.image_size), labels=labels)


def random_model(config: ViTConfig, seed: int = 0) -> ViT:
    """Every parameter perturbed, so that no bias is zero and no two rows are alike."""
    torch.manual_seed(seed)
    model = ViT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def jpeg(color: tuple[int, int, int] = (200, 30, 90), size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def png(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True, scope="session")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What somebody tuned or compiled on this machine has no part in the tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder of the tiny model."""
    spec = tiny_spec()
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, random_model(spec.model), spec, {"weights": "random"})
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ViT, ModelSpec]:
    """A small model of digits, trained for a few seconds."""
    from rich.console import Console

    from sovit.checkpoint import load_model, read_config
    from train.data.load import load_dataset
    from train.loop import train
    from train.settings import recipe

    out = tmp_path_factory.mktemp("trained")
    config = recipe("digits", ["steps=300", "warmup_steps=30", "batch_size=48"])
    train_set, test_set = load_dataset("digits", "train"), load_dataset("digits", "test")
    found = train(config, train_set, test_set, out, console=Console(quiet=True))
    return load_model(found.checkpoint), read_config(found.checkpoint)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact of the tiny model, exported once. Tests that change files work on a copy."""
    from export.reference import reference_images
    from export.to_onnx import export_onnx, from_checkpoint

    spec = tiny_spec()
    root = tmp_path_factory.mktemp("exported")
    save_checkpoint(root / "checkpoint", random_model(spec.model), spec, {"weights": "random"})
    images = reference_images(spec.preprocess, None)
    return export_onnx(from_checkpoint(root / "checkpoint", "tiny"), root / "artifact", images)


@pytest.fixture
def client(exported: Artifact) -> Iterator[TestClient]:
    """The application with a fake runtime."""
    from tests.served import running

    with running(exported) as client:
        yield client


@pytest.fixture(scope="session")
def bentos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bento]:
    """The Bento of each variant, built once."""
    from tests.deployment import build_bentos

    return build_bentos(tmp_path_factory.mktemp("bentoml"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for the tests of one file."""
    from tests.browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def page_url(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service whose page is looked at, for the tests of one file."""
    from tests.browser import service

    with service(exported, tmp_path_factory.mktemp("page")) as address:
        yield address


@pytest.fixture
def open_page(browser: Browser, page_url: str) -> Iterator[OpenPage]:
    """Opens the page, and looks for trouble when the test is over."""
    from tests.browser import opening

    with opening(browser, page_url) as open_one:
        yield open_one
