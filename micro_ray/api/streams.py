"""Streaming endpoints over plain HTTP: answers as newline-delimited JSON or server-sent events,
requests as newline-delimited JSON; bytes in pieces as they come. Neither is ever held whole.

The fields of path and query are the request of an endpoint that takes one, together with the body;
they are the first message for one that takes a stream. An error before the first answer is the
whole answer, with its status; a later one is an event ``error``, or a last line ``{"error": ...}``.
Bytes have no place for it: the response is broken off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from micro_ray.api.body import (
    JSON,
    OCTETS,
    ClientGone,
    build,
    client_gone,
    field_metadata,
    kind_of,
    merged,
    read_body,
)
from micro_ray.api.paths import Target
from micro_ray.auth.stays import Stay
from micro_ray.errors import BadRequest, InternalError, MicroError, TooLarge, UnsupportedMedia
from micro_ray.network import Stream

if TYPE_CHECKING:
    from micro_ray.api.app import Api

__all__ = ["serve_stream"]

log = logging.getLogger(__name__)

#: Content types whose lines are messages; curl's own default for ``-d`` and ``-T`` among them.
LINES = (
    JSON,
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonlines",
    "application/x-www-form-urlencoded",
    OCTETS,
)

_encode = msgspec.json.Encoder().encode


async def serve_stream(
    api: Api,
    scope: Any,
    receive: Any,
    send: Any,
    target: Target,
    headers: Mapping[bytes, bytes],
    metadata: dict[str, str],
    request_id: bytes,
    stay: Stay,
) -> int:
    """Serve one streaming call; the client's leaving cancels it, and it ends when his ``stay`` is
    over. Gives the code to count."""
    if scope["http_version"] == "1.0":
        raise BadRequest("api", f"{target.endpoint} streams, which takes HTTP/1.1")
    query, method = scope["query_string"], scope["method"]
    if target.raw_in and (query or target.fields):
        metadata |= field_metadata(target, query)
    first: list[bytes] = []
    takes_stream = target.stream in ("client", "bidi")
    if takes_stream:
        content = _content(target, headers)
        if not target.raw_in and (query or target.fields):
            first.append(_encode(merged(target, query, {})))
    else:
        settings = api.settings
        body = await read_body(receive, method, headers, settings.max_body, settings.timeout)
        body, content = build(method, target, query, headers, body)
        if content != JSON and not target.raw_in:
            raise UnsupportedMedia("api", f"{target.endpoint} streams; send {JSON}")
        first.append(body)
    stream = await api.network.open(
        target.service,
        target.endpoint,
        namespace=metadata["micro-namespace"],
        timeout=api.given_timeout(headers),
        content=content,
        metadata=metadata,
    )
    answer = _Answer(api, send, target, headers, request_id, only_head=method == "HEAD")
    more = _messages(receive, target, api.settings.max_body) if takes_stream else None
    async with stream:
        feed = _feed(stream, receive, first, more)
        return await _both_ways(stream, answer, feed, client_gone(scope), stay.ended())


def _content(target: Target, headers: Mapping[bytes, bytes]) -> str:
    kind = kind_of(headers)
    if target.raw_in:
        return kind if b"content-type" in headers else OCTETS
    if kind not in LINES:
        raise UnsupportedMedia(
            "api", f"content type {kind!r}; send newline-delimited JSON as application/x-ndjson"
        )
    return JSON


async def _both_ways(stream: Stream, answer: _Answer, *others: Coroutine[Any, Any, None]) -> int:
    """Pour until the answer ends, or one of the others, which do so by an error only."""
    pouring = asyncio.create_task(answer.pour(stream))
    tasks = [pouring, *map(asyncio.create_task, others)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                await task
                break
    except ClientGone:
        raise
    except Exception as raised:
        pouring.cancel()
        stream.cancel()  # a client that takes nothing may keep the error waiting, not the service
        await asyncio.gather(pouring, return_exceptions=True)
        if not answer.started:
            raise
        if isinstance(raised, MicroError):
            error = raised
        else:
            log.exception("a stream failed in the door")
            error = InternalError("api", "the door failed; its log says how")
        await answer.fail(error)
        return error.code
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return 200


class _Answer:
    """The response: nothing is sent before the first message or error, so that an early error has
    its status."""

    def __init__(
        self,
        api: Api,
        send: Any,
        target: Target,
        headers: Mapping[bytes, bytes],
        request_id: bytes,
        *,
        only_head: bool,
    ) -> None:
        self.started = False
        self._send = send
        self._only_head = only_head
        self._heartbeat = api.settings.heartbeat
        self._raw = target.raw_out
        self._single = target.stream == "client"
        # Bytes are no text: they cannot be events.
        self._events = not self._raw and b"text/event-stream" in headers.get(b"accept", b"")
        media = b"application/x-ndjson"
        if self._events:
            media = b"text/event-stream"
        elif self._raw:
            media = OCTETS.encode()
        elif self._single:
            media = JSON.encode()
        self._headers = [
            (b"content-type", media),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", request_id),
            *api.origins.headers(headers),
        ]

    async def pour(self, stream: Stream) -> None:
        """Send the messages as they come. To a HEAD request, what the first one decides."""
        beat = self._heartbeat if self._events else None
        while True:
            try:
                async with asyncio.timeout(beat):
                    message = await stream.receive()
            except TimeoutError:
                await self._chunk(b": still here\n\n")
                continue
            if message is None:
                break
            await self._chunk(self._framed(message))
            if self._only_head:
                break
        if not self.started:
            await self._chunk(b"")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _framed(self, message: bytes) -> bytes:
        if self._raw:
            return message
        if self._events:
            lines = message.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            return b"".join(b"data: %b\n" % line for line in lines) + b"\n"
        if self._single:
            return message
        # A line break in JSON is white space.
        return (message.replace(b"\n", b" ") if b"\n" in message else message) + b"\n"

    async def _chunk(self, data: bytes) -> None:
        if not self.started:
            self.started = True
            head = {"type": "http.response.start", "status": 200, "headers": self._headers}
            await self._send(head)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def fail(self, error: MicroError) -> None:
        """An error after the answer has begun. A response of bytes is left without its end: the
        server closes the connection, and the client knows that something is missing."""
        form = _encode(error.to_dict())
        if self._events:
            form = b"event: error\ndata: %b\n\n" % form
        elif not self._raw:
            form = b'{"error":%b}\n' % form
        else:
            return
        await self._send({"type": "http.response.body", "body": form, "more_body": False})


async def _feed(
    stream: Stream, receive: Any, first: list[bytes], more: AsyncGenerator[bytes, None] | None
) -> None:
    """Send what the client sends, then wait until it goes. Raises ClientGone at the latest."""
    if await _sent(stream, first, more):
        await stream.end()
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone("api", "the client went away")


async def _sent(
    stream: Stream, first: list[bytes], more: AsyncGenerator[bytes, None] | None
) -> bool:
    """False when the call has ended meanwhile: its error, if any, comes from the other direction,
    behind the answers that came before."""
    for message in first:
        if not await _send(stream, message):
            return False
    if more is not None:
        async with contextlib.aclosing(more):
            async for message in more:
                if not await _send(stream, message):
                    return False
    return True


async def _send(stream: Stream, message: bytes) -> bool:
    try:
        await stream.send(message)
    except TooLarge:
        raise
    except MicroError:
        return False
    return True


def _messages(receive: Any, target: Target, limit: int) -> AsyncGenerator[bytes, None]:
    return _pieces(receive) if target.raw_in else _lines(_pieces(receive), limit)


async def _pieces(receive: Any) -> AsyncGenerator[bytes, None]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("api", "the client went away")
        more = message.get("more_body", False)
        if message.get("body"):
            yield message["body"]


async def _lines(pieces: AsyncGenerator[bytes, None], limit: int) -> AsyncGenerator[bytes, None]:
    """The lines that are not blank; none over ``limit`` bytes is gathered."""
    begun: list[bytes] = []
    size = 0
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            *ended, rest = piece.split(b"\n")
            for line in ended:
                if size + len(line) > limit:
                    raise TooLarge("api", f"line over {limit} bytes")
                whole = b"".join((*begun, line))
                begun, size = [], 0
                if whole.strip():
                    yield whole
            begun.append(rest)
            size += len(rest)
            if size > limit:
                raise TooLarge("api", f"line over {limit} bytes")
    whole = b"".join(begun)
    if whole.strip():
        yield whole
