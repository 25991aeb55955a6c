"""Endpoints over WebSocket: each frame of the client is a message, each answer a frame.

A unary endpoint is called once per frame, one after the other. An endpoint that takes one request
and streams takes it from path and query, or else from the first frame. For one that takes a stream,
fields of path and query are the first message, and an empty text frame says that no more will come.

What cannot be served is refused before the handshake, with its HTTP status. A later error is the
last frame, as JSON, and the close code is 1011 (1008 for the client's own mistakes, 1009 for what
is too large). The client's leaving cancels what is being served.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from micro_ray.api.body import OCTETS, ClientGone, build, client_gone, field_metadata, merged
from micro_ray.api.paths import Target
from micro_ray.api.visitors import Visitor, counted
from micro_ray.auth.stays import Stay
from micro_ray.errors import BadRequest, InternalError, MethodNotAllowed, MicroError, TooLarge
from micro_ray.limits.gate import Admission
from micro_ray.network import Stream

if TYPE_CHECKING:
    from micro_ray.api.app import Api

__all__ = ["serve_websocket"]

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode


async def serve_websocket(api: Api, scope: Any, receive: Any, send: Any) -> None:
    """Serve one WebSocket until either side ends it."""
    headers: Mapping[bytes, bytes] = dict(scope["headers"])
    request_id, metadata = api.metadata(headers)
    place, code = (api.visitors.nobody.namespace, "api"), 101
    await receive()  # websocket.connect
    try:
        visitor, target = _admit(api, scope, headers)
        metadata |= api.along(visitor, target, scope, headers)
        timeout = api.given_timeout(headers)
        socket = _Socket(api, scope, receive, send, visitor, target, headers, metadata, timeout)
        place = counted(visitor, target.service), target.service
        with api.visitors.stay(visitor, target.resource) as stay:
            admission = api.limited(visitor, target) or await api.obtain(visitor, target)
            code = await _serve(api, socket, send, target, stay, admission, request_id)
    except MicroError as error:
        await _refuse(api, error, scope, request_id, send, headers)
        code = error.code
    finally:
        api.metrics.count(*place, code, None)


async def _serve(
    api: Api,
    socket: _Socket,
    send: Any,
    target: Target,
    stay: Stay,
    admission: Admission,
    request_id: bytes,
) -> int:
    """Accept, and serve until the end: what goes wrong is told within. Gives the code to count."""
    code = 101
    if not target.stream:
        admission.release()  # each frame is a request of its own
    api.metrics.in_flight += 1
    try:
        await send({"type": "websocket.accept", "headers": [(b"x-request-id", request_id)]})
        await (socket.stream(stay) if target.stream else socket.calls(stay))
        await _close(send, 1000)
    except ClientGone:
        pass
    except MicroError as error:
        code = error.code
        await _fail(send, error)
    except OSError:
        pass  # the server's word for a client that has gone
    except Exception:
        code = 500
        log.exception("websocket %s failed in the door", request_id.decode())
        shown = f"the door failed; its log has {request_id.decode()}"
        await _fail(send, InternalError("api", shown))
    finally:
        admission.release()
        api.metrics.in_flight -= 1
    return code


def _admit(api: Api, scope: Any, headers: Mapping[bytes, bytes]) -> tuple[Visitor, Target]:
    """A handshake is a GET; a path that is bound for POST only is meant all the same."""
    try:
        return api.admit(scope, "GET", headers)
    except MethodNotAllowed:
        return api.admit(scope, "POST", headers)


class _Socket:
    """One accepted WebSocket and its endpoint. Raises BadRequest for bad fields in the query."""

    def __init__(
        self,
        api: Api,
        scope: Any,
        receive: Any,
        send: Any,
        visitor: Visitor,
        target: Target,
        headers: Mapping[bytes, bytes],
        metadata: dict[str, str],
        timeout: float | None,
    ) -> None:
        self._api = api
        self._headers = headers
        self._visitor = visitor
        self._receive = receive
        self._send = send
        self._target = target
        self._scope = scope
        self._query = scope["query_string"]
        self._timeout = timeout
        self._metadata = metadata
        self._content = OCTETS if target.raw_in else "application/json"
        self._fields: bytes | None = None
        if self._query or target.fields:
            if target.raw_in:
                metadata |= field_metadata(target, self._query)
            else:
                self._fields = _encode(merged(target, self._query, {}))

    async def calls(self, stay: Stay) -> None:
        """A call per frame, until the client goes or may no more."""
        frames: asyncio.Queue[bytes] = asyncio.Queue(1)
        await self._first_of(self._call_each(frames), self._read_ahead(frames), stay.ended())

    async def _read_ahead(self, frames: asyncio.Queue[bytes]) -> None:
        """Hold the next frame while a call is under way: so its client's leaving is seen."""
        while True:
            await frames.put(await self._frame() or b"")

    async def _call_each(self, frames: asyncio.Queue[bytes]) -> None:
        api, target = self._api, self._target
        longest = api.settings.timeout
        while True:
            body, content = build("POST", target, self._query, {}, await frames.get())
            visitor = self._visitor
            admission = api.limited(visitor, target) or await api.obtain(visitor, target)
            try:
                answer = await api.network.call(
                    target.service,
                    target.endpoint,
                    body,
                    namespace=self._visitor.namespace,
                    timeout=min(self._timeout or longest, longest),
                    content=content,
                    metadata=self._along(),
                )
            finally:
                admission.release()
            await self._answer(answer)

    async def stream(self, stay: Stay) -> None:
        """One call, until its answer ends or the client may no more."""
        await self._first_of(self._stream(), stay.ended())

    async def _stream(self) -> None:
        target = self._target
        first = self._fields
        if first is None and target.stream == "server":
            first = await self._frame() or b""
        opened = await self._api.network.open(
            target.service,
            target.endpoint,
            namespace=self._visitor.namespace,
            timeout=self._timeout,
            content=self._content,
            metadata=self._along(),
        )
        async with opened as stream:
            await self._first_of(self._pour(stream), self._feed(stream, first))

    def _along(self) -> dict[str, str]:
        """What goes on with a call that is made now: the pass is good for minutes, the socket may
        be open for longer."""
        api, visitor, target = self._api, self._visitor, self._target
        return self._metadata | api.along(visitor, target, self._scope, self._headers)

    async def _feed(self, stream: Stream, first: bytes | None) -> None:
        """Ends by an error only: at the latest the client's leaving."""
        takes_stream = self._target.stream != "server"
        open_ = first is None or await _sent(stream, first)
        while takes_stream:
            frame = await self._frame()
            if frame is None:
                break
            open_ = open_ and await _sent(stream, frame)
        if open_:
            await stream.end()
        await self._frame()
        said = "said that no more will come" if takes_stream else "has had its one request"
        raise BadRequest("api", f"a frame too many: {self._target.endpoint} {said}")

    async def _first_of(self, *work: Coroutine[Any, Any, None]) -> None:
        """Run until one is done, has failed, or the client is gone; none is left."""
        tasks = [asyncio.create_task(one) for one in (*work, client_gone(self._scope))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    await task
                    break
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pour(self, stream: Stream) -> None:
        while (message := await stream.receive()) is not None:
            await self._answer(message)

    async def _frame(self) -> bytes | None:
        """The next frame of the client, None for an empty text."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise ClientGone("api", "the client has closed")
        if message.get("bytes") is not None:
            return bytes(message["bytes"])
        text: str = message.get("text") or ""
        return text.encode() if text else None

    async def _answer(self, body: bytes) -> None:
        if not self._target.raw_out:
            with contextlib.suppress(UnicodeDecodeError):
                await self._send({"type": "websocket.send", "text": body.decode()})
                return
        await self._send({"type": "websocket.send", "bytes": body})


async def _sent(stream: Stream, message: bytes) -> bool:
    """False when the call has ended: its error comes behind the answers that came before."""
    try:
        await stream.send(message)
    except TooLarge:
        raise
    except MicroError:
        return False
    return True


async def _refuse(
    api: Api,
    error: MicroError,
    scope: Any,
    request_id: bytes,
    send: Any,
    headers: Mapping[bytes, bytes],
) -> None:
    """The error in place of the handshake, where the server can say it."""
    if "websocket.http.response" in scope.get("extensions", {}):
        prefix = "websocket.http.response."
        await api.send_error(error, scope, request_id, send, headers, prefix)
    else:
        await _close(send, 1008)


async def _fail(send: Any, error: MicroError) -> None:
    with contextlib.suppress(RuntimeError, OSError):
        await send({"type": "websocket.send", "text": _encode(error.to_dict()).decode()})
        code = 1009 if isinstance(error, TooLarge) else 1008 if error.code < 500 else 1011
        await _close(send, code, error.status)


async def _close(send: Any, code: int, reason: str = "") -> None:
    await send({"type": "websocket.close", "code": code, "reason": reason})
