"""An address to listen on, checked before anything is started for it."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

from sovit.errors import ConfigError, ServiceError

DEFAULT_HOST: Final = "127.0.0.1"


def free_address(host: str, port: int) -> tuple[str, int]:
    """The address, with localhost as a number. Raises `ConfigError` for what is none, `ServiceError` if taken."""
    host = DEFAULT_HOST if host == "localhost" else host
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError as error:
        raise ConfigError(f"--host {host!r} is no IP address such as 127.0.0.1 or 0.0.0.0.") from error
    if not 1 <= port <= 65_535:
        raise ConfigError(f"--port {port} is not in 1..65535.")
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(f"cannot listen on {host} port {port}: {error.strerror}.") from error
    return host, port
