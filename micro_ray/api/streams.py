"""Streaming endpoints over plain HTTP: answers as newline-delimited JSON or server-sent events,
requests as newline-delimited JSON, neither ever held whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from micro_ray.api.body import build, query_fields, read_body
from micro_ray.api.paths import Target
from micro_ray.errors import BadRequest, Cancelled, MicroError, TooLarge
from micro_ray.network import Stream

if TYPE_CHECKING:
    from micro_ray.api.app import Api

__all__ = ["serve_stream"]

#: Seconds of silence after which a comment keeps a server-sent event stream alive.
HEARTBEAT = 15.0

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
) -> None:
    """Serve one streaming call; the client's leaving cancels it."""
    takes_stream = target.stream in ("client", "bidi")
    first = b""
    if not takes_stream:
        body = b""
        if scope["method"] not in ("GET", "HEAD", "DELETE"):
            body = await read_body(receive, api.settings.max_body, api.settings.timeout)
        content = headers.get(b"content-type", b"").decode("latin-1")
        first, _ = build(scope["method"], target, scope["query_string"], content, body)
    stream = await api.network.open(
        target.service, target.endpoint, namespace=api.namespace, metadata=metadata
    )
    events = b"text/event-stream" in headers.get(b"accept", b"")
    out = _Answer(api, send, target, headers, request_id, events=events)
    async with stream:
        if takes_stream:
            feed = _feed(stream, receive, target, scope["query_string"], api.settings.max_body)
        else:
            await stream.send(first)
            await stream.end()
            feed = _until_gone(receive)
        sender = asyncio.create_task(feed)
        answers = asyncio.create_task(out.pour(stream))
        try:
            # The one that fails first says why; answers that end are the end of the call.
            done, _ = await asyncio.wait({sender, answers}, return_when=asyncio.FIRST_COMPLETED)
            if sender in done and answers not in done:
                await sender
                await answers
            else:
                await answers
        except MicroError as error:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            if not out.started or isinstance(error, Cancelled):
                raise
            await out.fail(error)
        finally:
            for task in (sender, answers):
                task.cancel()
            await asyncio.gather(sender, answers, return_exceptions=True)


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
        events: bool,
    ) -> None:
        self.started = False
        self._api = api
        self._send = send
        self._headers = headers
        self._request_id = request_id
        self._events = events
        self._raw = target.response.get("contentEncoding") == "binary"
        self._single = target.stream == "client"

    async def pour(self, stream: Stream) -> None:
        while True:
            message: bytes | None
            try:
                async with asyncio.timeout(HEARTBEAT if self._events else None):
                    message = await stream.receive()
            except TimeoutError:
                await self._chunk(b": still here\n\n")
                continue
            if message is None:
                break
            await self._chunk(self._framed(message))
        if not self.started:
            await self._chunk(b"")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _framed(self, message: bytes) -> bytes:
        if self._events:
            lines = message.split(b"\n")
            return b"".join(b"data: %b\n" % line for line in lines) + b"\n"
        return message if self._raw else message + b"\n"

    async def _chunk(self, data: bytes) -> None:
        if not self.started:
            self.started = True
            media = b"application/x-ndjson"
            if self._events:
                media = b"text/event-stream"
            elif self._raw:
                media = b"application/octet-stream"
            elif self._single:
                media = b"application/json"
            await self._send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [
                        (b"content-type", media),
                        (b"cache-control", b"no-store"),
                        (b"x-request-id", self._request_id),
                        *self._api.cors(self._headers),
                    ],
                }
            )
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def fail(self, error: MicroError) -> None:
        """An error after the answer has begun: as an event, or as a last line."""
        form = _encode(error.to_dict())
        if self._events:
            form = b"event: error\ndata: %b\n\n" % form
        elif not self._raw:
            form = b'{"error":%b}\n' % form
        else:
            # Bytes have no place for an error: break the response off, so that the client knows.
            raise error
        await self._send({"type": "http.response.body", "body": form, "more_body": False})


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise Cancelled("api", "the client went away")


async def _feed(stream: Stream, receive: Any, target: Target, query: bytes, limit: int) -> None:
    """The request's body as messages: lines of JSON, or pieces as they come for bytes. Fields of
    the query are a first message of their own."""
    if query:
        await stream.send(_encode(query_fields(query, target)))
    raw = target.request.get("contentEncoding") == "binary"
    pieces = _pieces(receive)
    async with contextlib.aclosing(pieces if raw else _lines(pieces, limit)) as messages:
        async for message in messages:
            await stream.send(message)
    await stream.end()


async def _pieces(receive: Any) -> AsyncGenerator[bytes, None]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("api", "the client went away")
        more = message.get("more_body", False)
        if message.get("body"):
            yield message["body"]


async def _lines(pieces: AsyncGenerator[bytes, None], limit: int) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > limit:
            raise TooLarge("api", f"line over {limit} bytes")
    if rest.strip():
        if rest[:1] not in b'{["-0123456789tfn ':
            raise BadRequest("api", "the body is not newline-delimited JSON")
        yield rest
