"""Requests to an ASGI application within this process. Unlike httpx's transport this one ends an
answer that goes on for ever: the client leaves once it has waited long enough."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

__all__ = ["ask"]

#: Seconds within which an application must come to its end once its client has left.
LEFT = 15.0


async def ask(
    app: Any, method: str, url: str, headers: Mapping[str, str], body: bytes, within: float
) -> httpx.Response:
    """The answer, or what there was of it after ``within`` seconds: of one that has not begun by
    then, 200 without anything."""
    parts = urlsplit(url)
    lines = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": unquote(parts.path, errors="replace"),
        "raw_path": parts.path.encode(),
        "query_string": parts.query.encode(),
        "headers": [(b"host", b"door"), (b"content-length", b"%d" % len(body)), *lines],
        "client": ("127.0.0.1", 1),
    }
    left, sent = asyncio.Event(), False
    begun: dict[str, Any] = {"status": 200, "headers": []}
    taken: list[bytes] = []

    async def receive() -> Mapping[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            begun.update(message)
        else:
            taken.append(message.get("body", b""))

    served = asyncio.ensure_future(app(scope, receive, send))
    try:
        await asyncio.wait((served,), timeout=within)
        left.set()
        async with asyncio.timeout(LEFT):
            await served
    finally:
        served.cancel()
    answer = httpx.Response(
        begun["status"],
        headers=begun["headers"],
        content=b"".join(taken),
        request=httpx.Request(method, url),
    )
    answer.elapsed = timedelta()
    return answer
