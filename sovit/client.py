"""Talk to a running service: the same calls as a `Predictor`, over HTTP."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sovit.decode import ImageSource
from sovit.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidImage,
    ServiceError,
    SoViTError,
    TooLarge,
    UnsupportedImage,
)
from sovit.predict import DEFAULT_TOP_K, Classification, Prediction

_ERRORS: Final[dict[int, type[SoViTError]]] = {
    kind.status: kind for kind in (TooLarge, UnsupportedImage, InvalidImage, DeadlineExceeded)
}


class Client:
    """A connection to one service. Use it as a context manager, or call `close`."""

    def __init__(self, url: str, *, timeout_seconds: float = 60.0) -> None:
        self.url = url.rstrip("/")
        # No proxy from the environment: what is asked for is the service itself.
        try:
            self._http = httpx.Client(base_url=self.url, timeout=timeout_seconds, trust_env=False)
        except httpx.InvalidURL as error:
            raise ConfigError(f"{url!r} is no URL: {error}.") from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def classify(self, images: Sequence[ImageSource], top_k: int = DEFAULT_TOP_K) -> list[Classification]:
        """The `top_k` classes of each image."""
        reply = self._post("/classify", images, {"top_k": top_k})
        try:
            return [
                Classification(tuple(Prediction(**prediction) for prediction in result["predictions"]))
                for result in reply["results"]
            ]
        except (KeyError, TypeError) as error:
            raise ServiceError(f"{self.url} answered in a form that is not sovit's.") from error

    def embed(self, images: Sequence[ImageSource], normalize: bool = True) -> NDArray[np.float32]:
        """Embeddings, float32 [B, D]."""
        reply = self._post("/embed", images, {"normalize": normalize})
        try:
            return np.array([result["embedding"] for result in reply["results"]], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise ServiceError(f"{self.url} answered in a form that is not sovit's.") from error

    def labels(self) -> list[str]:
        """The labels of the served model's classes."""
        try:
            return list(self._reply(self._http.build_request("GET", "/models"))["models"][0]["labels"])
        except (KeyError, IndexError, TypeError) as error:
            raise ServiceError(f"{self.url} answered in a form that is not sovit's.") from error

    def ready(self) -> bool:
        """Whether /readyz answers 200 now. A service that is starting may accept the connection and not answer."""
        try:
            return self._http.get("/readyz", timeout=2.0).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _post(self, path: str, images: Sequence[ImageSource], options: dict[str, Any]) -> Any:
        files = [("images", (str(index), _content(image))) for index, image in enumerate(images)]
        return self._reply(self._http.build_request("POST", path, files=files, params=options))

    def _reply(self, request: httpx.Request) -> Any:
        try:
            response = self._http.send(request)
        except httpx.HTTPError as error:
            raise ServiceError(f"{self.url} cannot be reached: {error or type(error).__name__}.") from error
        try:
            reply = response.json()
        except ValueError as error:
            raise ServiceError(f"{self.url} answered {response.status_code} with something that is no JSON.") from error
        if response.status_code != httpx.codes.OK:
            detail = reply.get("detail") if isinstance(reply, dict) else None
            kind = _ERRORS.get(response.status_code, ServiceError)
            raise kind(f"{self.url} answered {response.status_code}: {detail}")
        return reply


def _content(image: ImageSource) -> bytes:
    """The bytes to send: files and bytes as they are, pixels as PNG, which loses nothing."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise InvalidImage(f"{image} cannot be read: {error.strerror}.") from error
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, "PNG")
    return buffer.getvalue()
