"""The client against a real service: every kind of image, its results, and the errors of bad ones."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import sovit
from sovit.artifact import Artifact
from sovit.client import Client, ModelInfo
from sovit.errors import BadRequest, ConfigError, InvalidImage, SoViTError, Unauthorized, UnsupportedImage
from sovit.predict import Predictor
from sovit.process import free_port, serving, sovit_serve
from tests.conftest import jpeg, png
from tests.standing_in import CLIENTS, KEY, MANY, keyed_service, noise


@pytest.fixture(params=CLIENTS)
def connect(request: pytest.FixtureRequest) -> Any:
    """Either client."""
    return request.param


@pytest.fixture(scope="module")
def url(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with keyed_service(exported, tmp_path_factory.mktemp("service")) as url:
        yield url


@pytest.fixture(scope="module")
def predictor(exported: Artifact) -> Predictor:
    return sovit.load_artifact(exported.folder)


@pytest.fixture
def client(url: str, connect: Callable[..., Any]) -> Iterator[Any]:
    with connect(url, api_key=KEY, batch_size=MANY) as client:
        yield client


def truncated_png() -> bytes:
    return png(noise(0, 64, 64, 3))[:-500]


def sideways() -> Image.Image:
    """A photograph that its EXIF data turn upright, opened and not read yet."""
    image = Image.fromarray(noise(0, 20, 30, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)
    return Image.open(io.BytesIO(buffer.getvalue()))


def test_every_kind_of_image_gives_what_a_predictor_gives(client: Any, predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    images: list[Any] = [
        str(tmp_path / "photo.jpg"), tmp_path / "photo.jpg", jpeg((1, 2, 3)), png(noise(1, 9, 9, 3)), sideways(),
        Image.fromarray(noise(2, 20, 30, 4)), Image.fromarray(noise(3, 20, 30)), Image.new("P", (7, 8), 3),
        noise(4, 24, 24, 3), noise(5, 40, 17), noise(6, 30, 20, 3)[::2, ::-1],
    ]  # fmt: skip
    for normalize in (True, False):
        embeddings = client.embed(images, normalize=normalize)
        assert (embeddings.shape, embeddings.dtype) == ((len(images), 32), np.float32)
        np.testing.assert_allclose(embeddings, predictor.embed(images, normalize), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(client.classify(images, top_k=2), predictor.classify(images, top_k=2), strict=True):
        assert [one.label for one in ours.predictions] == [one.label for one in theirs.predictions]
        np.testing.assert_allclose(
            [one.score for one in ours.predictions], [one.score for one in theirs.predictions], rtol=1e-4
        )


def test_embeddings_are_the_very_floats_of_the_service(client: Any, url: str) -> None:
    image = jpeg()
    headers = {"authorization": f"Bearer {KEY}", "content-type": "image/jpeg", "accept": "application/x-npy"}
    reply = httpx.post(f"{url}/embed", content=image, headers=headers)
    assert client.embed([image]).tobytes() == np.load(io.BytesIO(reply.content)).tobytes()


def test_many_images_keep_their_order(url: str, connect: Callable[..., Any], predictor: Predictor) -> None:
    images = [noise(seed, 16, 16, 3) for seed in range(100)]
    with connect(url, api_key=KEY, batch_size=3, concurrency=5) as client:
        np.testing.assert_allclose(client.embed(images), predictor.embed(images), rtol=1e-3, atol=1e-5)
        assert len(list(client.classify_each(iter(images)))) == 100


def test_a_request_with_too_many_images_is_halved(url: str, connect: Callable[..., Any], predictor: Predictor) -> None:
    images = [noise(seed, 16, 16, 3) for seed in range(19)]
    with connect(url, api_key=KEY, batch_size=16) as client:
        np.testing.assert_allclose(client.embed(images), predictor.embed(images), rtol=1e-3, atol=1e-5)


def test_bad_images_have_their_own_errors_in_their_places(client: Any, tmp_path: Path) -> None:
    images: list[Any] = [
        jpeg(), b"text", jpeg(), truncated_png(), b"", tmp_path / "none.jpg", "a\0b", jpeg(),
        noise(0, 5, 5, 2), noise(0, 5, 5).astype(np.float32), None, Image.open(io.BytesIO(truncated_png())), jpeg(),
    ]  # fmt: skip
    found = list(client.embed_each(images))
    good = [index for index, one in enumerate(found) if isinstance(one, np.ndarray)]
    assert good == [0, 2, 7, 12]
    assert len({found[index].tobytes() for index in good}) == 1
    kinds = [type(one) for one in found if isinstance(one, SoViTError)]
    assert kinds == [UnsupportedImage, *[InvalidImage] * 8]
    for index, words in (
        (1, "no image"), (3, "truncated"), (4, "empty"), (5, "none.jpg cannot be read: No such file"),
        (6, "cannot be read: embedded null"), (8, "not uint8 with shape [5, 5, 2]"), (9, "not float32"),
        (10, "not NoneType"), (11, "PngImageFile cannot be read"),
    ):  # fmt: skip
        assert words in str(found[index])
        assert str(found[index]).endswith(".")
    with pytest.raises(UnsupportedImage, match=r"answered 415: image 9: .* \(request \w{32}\)\.$"):
        client.classify([*[jpeg()] * 9, b"text", *[jpeg()] * 9, b""])
    with pytest.raises(InvalidImage, match=r"^image 5: .*none.jpg cannot be read: No such file or directory\.$"):
        client.classify([*[jpeg()] * 5, tmp_path / "none.jpg"])


def test_what_is_served(client: Any) -> None:
    (model,) = client.models()
    assert isinstance(model, ModelInfo)
    assert (model.name, model.precision, model.image_size, model.dim) == ("tiny", "fp32", (16, 16), 32)
    assert (model.labels, model.ready) == (("ant", "bee", "cat"), True)
    assert client.labels() == ["ant", "bee", "cat"]
    assert client.ready()


def test_no_images_are_no_request(client: Any) -> None:
    assert client.classify([]) == []
    assert client.embed([]).shape == (0, 32)
    assert list(client.embed_each(iter(()))) == []


def test_the_model_is_chosen_by_its_name(url: str, connect: Callable[..., Any]) -> None:
    with connect(url, api_key=KEY, model="tiny") as client:
        assert client.embed([jpeg()]).shape == (1, 32)
    with connect(url, api_key=KEY, model="huge") as client:
        with pytest.raises(BadRequest, match=r"answered 400: .*tiny \(request \w{32}\)\.$"):
            client.embed([jpeg()])
        with pytest.raises(ConfigError, match="no model 'huge' is served; there is tiny"):
            client.labels()


def test_a_missing_key_is_said_once_for_all(url: str, connect: Callable[..., Any]) -> None:
    with connect(url) as client:
        with pytest.raises(Unauthorized, match="answered 401: this service needs a key"):
            next(client.classify_each([jpeg()] * 100))
        with pytest.raises(Unauthorized):
            client.models()
        assert client.ready()


@pytest.mark.parametrize(
    "images", ["photo.jpg", Path("photo.jpg"), b"abc", Image.new("L", (1, 1)), io.BytesIO(b"a"), noise(0, 4, 4, 3), 5]
)
def test_one_image_is_no_list(connect: Callable[..., Any], images: Any) -> None:
    with connect("http://127.0.0.1:9") as client:
        for call in (client.classify, client.embed):
            with pytest.raises(ConfigError, match="pass a list of images"):
                call(images)


def test_a_batch_in_one_array_is_a_list(client: Any) -> None:
    assert client.embed(noise(0, 5, 16, 16, 3)).shape == (5, 32)


def test_without_torch(url: str) -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nimport numpy as np\nfrom sovit.client import Client\n"
        f"with Client({url!r}, api_key={KEY!r}) as client:\n"
        "    print(client.embed([np.zeros((9, 9, 3), np.uint8)] * 3).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "(3, 32)\n", done.stderr


def test_a_key_that_may_ask_once_at_a_time_gets_all_its_answers(exported: Artifact, tmp_path: Path) -> None:
    """Four requests at a time, of which the service takes one: the others wait their turn."""
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps([{"name": "a", "sha256": sha256(b"secret").hexdigest(), "max_in_flight": 1}]))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = sovit_serve(exported.folder, port, "--keys", str(keys))
    with serving(command, url, tmp_path / "log"), Client(url, api_key="secret", batch_size=1) as client:
        assert client.embed([jpeg()] * 12).shape == (12, 32)
