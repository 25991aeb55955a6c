"""Endpoints over WebSocket: each frame of the client is a message, each answer a frame.

A unary endpoint is called once per frame. An endpoint that takes one request and streams takes it
from the query string, or else from the first frame. An error is the last frame, as JSON, and the
close code is 1011 (1008 for the client's own mistakes, 1009 for what is too large).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from micro_ray.api.body import query_fields
from micro_ray.api.paths import Target
from micro_ray.errors import MicroError, TooLarge
from micro_ray.network import Stream

if TYPE_CHECKING:
    from micro_ray.api.app import Api

__all__ = ["serve_websocket"]

_encode = msgspec.json.Encoder().encode


async def serve_websocket(api: Api, scope: Any, receive: Any, send: Any) -> None:
    """Serve one WebSocket until either side ends it."""
    headers: Mapping[bytes, bytes] = dict(scope["headers"])
    _, metadata = api.metadata(headers)
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    try:
        target = api.paths.resolve("POST", scope["path"], scope.get("raw_path") or b"")
        if target.stream:
            await _streaming(api, scope, receive, send, target, metadata)
        else:
            await _calls(api, receive, send, target, metadata)
        await _close(send, 1000)
    except _GoneError:
        return
    except MicroError as error:
        with contextlib.suppress(RuntimeError, OSError):
            await _message(send, _encode(error.to_dict()), binary=False)
            code = 1009 if isinstance(error, TooLarge) else 1008 if error.code < 500 else 1011
            await _close(send, code)


class _GoneError(Exception):
    """The client has closed."""


async def _calls(
    api: Api, receive: Any, send: Any, target: Target, metadata: dict[str, str]
) -> None:
    binary = target.response.get("contentEncoding") == "binary"
    while True:
        body = await _frame(receive)
        answer = await api.network.call(
            target.service,
            target.endpoint,
            body,
            namespace=api.namespace,
            timeout=api.settings.timeout,
            metadata=metadata,
        )
        await _message(send, answer, binary=binary)


async def _streaming(
    api: Api, scope: Any, receive: Any, send: Any, target: Target, metadata: dict[str, str]
) -> None:
    stream = await api.network.open(
        target.service, target.endpoint, namespace=api.namespace, metadata=metadata
    )
    binary = target.response.get("contentEncoding") == "binary"
    query = scope["query_string"]
    async with stream:
        if query:
            await stream.send(_encode(query_fields(query, target)))
        if target.stream == "server":
            if not query:
                await stream.send(await _frame(receive))
            await stream.end()
        sender = asyncio.create_task(_feed(stream, receive))
        answers = asyncio.create_task(_pour(stream, send, binary))
        try:
            await asyncio.wait({sender, answers}, return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                await sender
            await answers
        finally:
            for task in (sender, answers):
                task.cancel()
            await asyncio.gather(sender, answers, return_exceptions=True)


async def _feed(stream: Stream, receive: Any) -> None:
    while True:
        await stream.send(await _frame(receive))


async def _pour(stream: Stream, send: Any, binary: bool) -> None:
    while (message := await stream.receive()) is not None:
        await _message(send, message, binary=binary)


async def _frame(receive: Any) -> bytes:
    message = await receive()
    if message["type"] == "websocket.disconnect":
        raise _GoneError
    if message.get("bytes") is not None:
        return bytes(message["bytes"])
    return str(message.get("text") or "").encode()


async def _message(send: Any, body: bytes, *, binary: bool) -> None:
    if not binary:
        with contextlib.suppress(UnicodeDecodeError):
            await send({"type": "websocket.send", "text": body.decode()})
            return
    await send({"type": "websocket.send", "bytes": body})


async def _close(send: Any, code: int) -> None:
    await send({"type": "websocket.close", "code": code})
