"""The exception tree. Every error carries the HTTP status and the exit code it becomes at the border.

A message is one sentence that names the thing and, where there is one, the way out. Messages may reach clients, so
they hold nothing of the payload, of the server's paths or of a decoder's own text unless the error is raised outside
the request path.
"""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_USAGE = 2


class SoViTError(Exception):
    """Base of every error raised on purpose."""

    status: int = 500
    title: str = "Internal error"
    exit_code: int = EXIT_FAILED


class ConfigError(SoViTError):
    """A setting, field or shape that makes no sense, in a file, on the command line or in a request."""

    status = 400
    title = "Invalid setting"
    exit_code = EXIT_USAGE


class BadRequest(SoViTError):
    """A malformed request: bad JSON, multipart or base64, no image, an unknown field."""

    status = 400
    title = "Malformed request"
    exit_code = EXIT_USAGE


class Unauthorized(SoViTError):
    """A request without a key, or with one that is not in the key file."""

    status = 401
    title = "Unauthorized"


class Forbidden(SoViTError):
    """A request whose key, or whose way in, does not give the right to what it asks for."""

    status = 403
    title = "Forbidden"


class TooLarge(SoViTError):
    """A body, a part or an image count over its limit."""

    status = 413
    title = "Request too large"
    exit_code = EXIT_USAGE


class UrlTooLong(SoViTError):
    """A query with more fields than any request of ours."""

    status = 414
    title = "URL too long"
    exit_code = EXIT_USAGE


class HeadersTooLarge(SoViTError):
    """A header with more in it than any request of ours."""

    status = 431
    title = "Headers too large"
    exit_code = EXIT_USAGE


class UnsupportedImage(SoViTError):
    """Bytes that are none of the image formats we take."""

    status = 415
    title = "Unsupported image format"
    exit_code = EXIT_USAGE


class InvalidImage(SoViTError):
    """An image of a known format that cannot be decoded, or is over a pixel or frame limit."""

    status = 422
    title = "Invalid image"
    exit_code = EXIT_USAGE


class UnsupportedMediaType(SoViTError):
    """A request content type that no input form of ours has."""

    status = 415
    title = "Unsupported content type"
    exit_code = EXIT_USAGE


class NotAcceptable(SoViTError):
    """No reply encoding of ours is among those the client accepts."""

    status = 406
    title = "Not acceptable"
    exit_code = EXIT_USAGE


class Refused(SoViTError):
    """A request that was not let in. `retry_after` is in whole seconds, `reason` one of few words for the metrics."""

    reason = "other"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Refused):
    """The service has all the work it can promise to finish."""

    status = 429
    title = "Queue full"
    reason = "queue"


class RateLimited(Refused):
    """A key has used up what it may ask for."""

    status = 429
    title = "Too many requests"
    reason = "key"


class NotReady(Refused):
    """The service has not warmed up, or is not well."""

    status = 503
    title = "Not ready"
    reason = "not ready"


class Draining(NotReady):
    """The service finishes what it has accepted, and takes no more."""

    title = "Draining"
    reason = "draining"


class DeadlineExceeded(SoViTError):
    """The request's time ran out before its result was there."""

    status = 504
    title = "Deadline exceeded"


class CheckpointMismatch(SoViTError):
    """A checkpoint folder that is incomplete or does not fit its own config."""

    exit_code = EXIT_USAGE


class ArtifactMismatch(SoViTError):
    """An artifact folder with a missing, edited or truncated file, or of a schema we do not know."""

    exit_code = EXIT_USAGE


class PlanMismatch(SoViTError):
    """No compiled plan for this artifact on this machine, or one of another GPU, TensorRT or artifact."""

    exit_code = EXIT_USAGE


class ParityError(SoViTError):
    """Outputs further from the fp32 reference than the tolerance table allows."""


class RuntimeFailure(SoViTError):
    """The inference runtime failed on an input it should have taken."""

    title = "Inference failed"


class ServiceError(SoViTError):
    """A service could not be started or reached, or answered with something unexpected."""


class MissingDependency(SoViTError):
    """An optional package is needed and not installed; the message names the extra that brings it."""

    exit_code = EXIT_USAGE
