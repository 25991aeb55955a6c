"""Wire addresses: ``unix:/path/to.sock``, ``tcp:host:port`` and ``tcp:[ipv6]:port``."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass

from micro_ray.errors import BadRequest

__all__ = ["MAX_PATH", "Address", "parse"]

#: Longest path of a Unix socket on Linux.
MAX_PATH = 107

_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Exactly one of ``path`` and ``host`` is set. ``host`` is a name, an IPv4 or an IPv6 address,
    the last without brackets."""

    path: str = ""
    host: str = ""
    port: int = 0

    @property
    def is_local(self) -> bool:
        """Whether it leads to this machine only."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return (
            f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"
        )


def parse(text: str) -> Address:
    """Raises BadRequest that says what an address looks like."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest.startswith("/") and "\0" not in rest:
        try:
            size = len(os.fsencode(rest))
        except UnicodeEncodeError:
            raise BadRequest("wire", f"socket path {rest[:200]!r} is not text") from None
        if size > MAX_PATH:
            raise BadRequest("wire", f"socket path over {MAX_PATH} bytes: {rest[:200]}")
        return Address(path=rest)
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and re.fullmatch("[0-9]{1,5}", port) and int(port) < 65536:
        if host.startswith("[") and host.endswith("]") and _is_ipv6(host[1:-1]):
            return Address(host=host[1:-1], port=int(port))
        if len(host) <= 253 and _HOST.fullmatch(host):
            return Address(host=host, port=int(port))
    raise BadRequest(
        "wire",
        f"not an address: {text[:200]!r} (unix:/path, tcp:host:port or tcp:[ipv6]:port)",
    )


def _is_ipv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return False
    return True
