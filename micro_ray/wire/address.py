"""Wire addresses: ``unix:/path/to.sock`` and ``tcp:host:port``."""

from __future__ import annotations

from dataclasses import dataclass

from micro_ray.errors import BadRequest

__all__ = ["Address", "parse"]

#: Longest path of a Unix socket on Linux.
MAX_PATH = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Exactly one of ``path`` and ``host`` is set."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"tcp:{self.host}:{self.port}"


def parse(text: str) -> Address:
    """Raises BadRequest that says what an address looks like."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest.startswith("/") and "\0" not in rest:
        if len(rest.encode()) > MAX_PATH:
            raise BadRequest("wire", f"socket path over {MAX_PATH} bytes: {rest}")
        return Address(path=rest)
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host and port.isascii() and port.isdigit() and int(port) < 65536:
        return Address(host=host.strip("[]"), port=int(port))
    raise BadRequest("wire", f"not an address: {text!r} (unix:/path or tcp:host:port)")
