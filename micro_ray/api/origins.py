"""Which pages of a browser may call: CORS, and what CORS leaves open.

A browser sends a request of any page to any address, this machine's loopback included, and only
keeps the answer from the page. So what comes from a page of another origin is refused unless
``cors_origins`` names that origin; an endpoint that itself binds GET is taken to be a read and may
be linked to from anywhere. Programs send neither ``Origin`` nor ``Sec-Fetch-Site``. Browsers leave
both out of a GET to what is neither HTTPS nor this machine: who is known by a cookie alone must
come with one of them.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Mapping, Sequence

from micro_ray.errors import Forbidden

__all__ = ["Origins"]

Headers = list[tuple[bytes, bytes]]

_ALLOWED_HEADERS = (
    b"authorization, content-type, timeout, traceparent, tracestate, baggage, x-request-id"
)
_EXPOSED_HEADERS = b"x-request-id, retry-after"
_OWN_SITE = (b"none", b"same-origin")


class Origins:
    """The origins of ``settings.api.cors_origins``; "*" is any."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._any = "*" in allowed
        self._allowed = frozenset(origin.encode("latin-1", "replace") for origin in allowed)

    def check(self, headers: Mapping[bytes, bytes], *, cookie: bool = False) -> None:
        """Raises Forbidden for a request of a page that may not call; with a ``cookie`` only the
        door's own pages and those of origins that are named may."""
        if self._any and not cookie:
            return
        origin = headers.get(b"origin")
        if origin is None:
            site = headers.get(b"sec-fetch-site")
            if site in _OWN_SITE or (site is None and not cookie):
                return
            if site is None:
                why = "a cookie does not say whose page calls: send Authorization, or an Origin"
                raise Forbidden("api", why)
            shown = "another site"
        else:
            here = headers.get(b"host", b"").lower()
            if origin in self._allowed or (here and here == origin.partition(b"://")[2].lower()):
                return
            shown = origin.decode("latin-1")[:200]
        raise Forbidden(
            "api", f"a page of {shown} may not call; the setting api.cors_origins names who may"
        )

    def check_host(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises Forbidden for a host of a name that is nobody's here. Where nobody is asked who he
        is, a page could make its own name lead to this machine, and then call as the door's own."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        name = name.rstrip(".")
        if "." not in name or name.endswith(".localhost") or self._any:
            return
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return
        if any(origin.partition(b"://")[2] == host.encode() for origin in self._allowed):
            return
        raise Forbidden(
            "api", f"this door has no name {name[:200]!r}: add its origin to api.cors_origins"
        )

    def headers(self, headers: Mapping[bytes, bytes]) -> Headers:
        """What an answer says of CORS."""
        if not self._allowed:
            return []
        if self._any:
            allowed = [(b"access-control-allow-origin", b"*")]
        else:
            origin = headers.get(b"origin", b"")
            if origin not in self._allowed:
                return [(b"vary", b"origin")]
            allowed = [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
        return [*allowed, (b"access-control-expose-headers", _EXPOSED_HEADERS)]

    def preflight(self, headers: Mapping[bytes, bytes], methods: bytes) -> Headers:
        """What the answer to an OPTIONS request says of CORS."""
        lines = self.headers(headers)
        if lines and lines[0][0] == b"access-control-allow-origin":
            lines += [
                (b"access-control-allow-methods", methods),
                (b"access-control-allow-headers", _ALLOWED_HEADERS),
                (b"access-control-max-age", b"600"),
            ]
        return lines
