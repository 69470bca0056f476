"""Options in: what may be asked of /classify and /embed, and the form of the reply that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sovit.errors import BadRequest, NotAcceptable
from sovit.jsonio import explain
from sovit.predict import DEFAULT_TOP_K

Encoding = Literal["json", "base64", "npy", "arrow"]
DType = Literal["float32", "float16"]

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
ARROW: Final = "application/vnd.apache.arrow.stream"
MEDIA_TYPES: Final[dict[Encoding, str]] = {"json": JSON, "base64": JSON, "npy": NPY, "arrow": ARROW}
_ACCEPTED: Final[dict[str, Encoding]] = {
    "": "json", "*/*": "json", "application/*": "json", JSON: "json", NPY: "npy", ARROW: "arrow",
}  # fmt: skip


def _number(value: object) -> object:
    # Python takes a flag for 0 or 1, and 1_0 for ten.
    if isinstance(value, bool) or (isinstance(value, str) and not value.lstrip("+-").isdecimal()):
        raise ValueError("must be a whole number")
    return value


class Options(BaseModel):
    """Options that both endpoints take."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Name of the model to use; the served one when left out.")
    on_error: Literal["request", "item"] = Field(
        "request",
        description="What one bad image does: fail the whole request, or only its own item in `results`.",
    )
    dtype: DType = Field("float32", description="Precision of the numbers in the reply.")


class ClassifyOptions(Options):
    """Options of /classify."""

    top_k: Annotated[int, BeforeValidator(_number)] = Field(
        DEFAULT_TOP_K, ge=1, le=10_000, description="How many classes to return, best first (json and arrow)."
    )
    encoding: Encoding | None = Field(
        None,
        description="Form of the reply: the best classes as JSON or as an Arrow stream; the scores of all classes as "
        "base64 of little-endian numbers, or as one .npy file [B, L].",
    )


class EmbedOptions(Options):
    """Options of /embed."""

    normalize: bool = Field(True, description="Divide the embedding by its length.")
    encoding: Encoding | None = Field(
        None,
        description="Form of the embeddings: numbers in JSON, base64 of little-endian numbers, one .npy file [B, D], "
        "or an Arrow stream.",
    )


AnyOptions = TypeVar("AnyOptions", ClassifyOptions, EmbedOptions)


def parse_options(kind: type[AnyOptions], query: Sequence[tuple[str, str]], body: Mapping[str, Any]) -> AnyOptions:
    """Merge options of the query string and of the body. One given twice, or unknown, is a `BadRequest`."""
    if not body and not query:
        return kind()
    merged = dict(body)
    for name, value in query:
        if name in merged:
            raise BadRequest("an option is given twice.")
        merged[name] = value
    # Before each of thousands of unknown ones costs an error of its own.
    if unknown := next((name for name in merged if name not in kind.model_fields), None):
        raise BadRequest(clip(f"{unknown[:40]}: unknown field (known: {', '.join(kind.model_fields)})") + ".")
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise BadRequest(f"{clip(explain(error, tuple(kind.model_fields)))}.") from error


def accepted_encoding(accept: str) -> Encoding:
    """The form of reply that an Accept header asks for: what it prefers of what there is. Raises `NotAcceptable`."""
    best: tuple[float, Encoding] | None = None
    for part in accept.split(","):
        media_type, _, parameters = part.partition(";")
        if (encoding := _ACCEPTED.get(media_type.strip().lower())) is None:
            continue
        weight = _weight(parameters.lower())
        if weight > 0 and (best is None or weight > best[0]):
            best = weight, encoding
    if best is None:
        raise NotAcceptable(f"replies come as {JSON}, {NPY} or {ARROW}.")
    return best[1]


def _weight(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def clip(text: str) -> str:
    """A field name comes from the client: keep a reply short and free of control characters whatever it was."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])
