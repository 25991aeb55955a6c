"""What a door's listener adds to uvicorn's protocols: bounds, answers in the platform's own form
and in one write, and a leave that loses no request.

uvicorn bounds neither the size of a head nor the time it may take, nor what a client may hold
unread; it knows half of what HTTP asks of a server that is offered another protocol. Each of these
costs a connection here, never the door.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from micro_ray.settings import Api as ApiSettings

__all__ = ["HttpProtocol", "State", "WebSocketProtocol", "protocols"]

#: Requests that a client may send before it has the answer to the first.
MAX_PIPELINED = 64
#: Seconds that an idle connection may still bring a request when the listener leaves, and seconds
#: between looks whether one has come.
LAST_REQUEST, LOOK = 1.0, 0.05
#: Seconds that a refused client's bytes are still taken.
LINGER = 1.0
#: Seconds between looks whether a client that is held back is still there; the name by which an
#: application finds :meth:`_Watching.gone` among the extensions of its scope.
LOOK_GONE, GONE = 0.5, "micro.gone"
#: Bytes of a write that may wait for another.
TOGETHER = 16 * 2**10
#: Headers, and tokens of ``connection``, that offer another protocol.
_UPGRADE = (b"upgrade", b"http2-settings")

_encode = msgspec.json.Encoder().encode


class State(ServerState):
    """What the connections of a listener share; ``leaving`` once it takes no more."""

    leaving = False


class _Refusal(Exception):
    """Stops the parser: this request is not taken. The arguments are its status and detail."""


class _Together:
    """A transport whose first small write in a turn of the loop waits for the second: head and body
    of an answer leave in one system call. What nothing follows leaves when the turn ends, so that a
    stream's head does not wait for its first event.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held = b""
        self._flushing = False
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        held = self._held
        if held:
            self._held = b""
            if len(data) <= TOGETHER:
                data = b"".join((held, data))
            else:
                self._transport.write(held)
        elif len(data) <= TOGETHER:
            self._held = bytes(data)  # what may be changed is not ours to hold
            if not self._flushing:
                self._flushing = True
                self._loop.call_soon(self._turn_ends)
            return
        self._transport.write(data)

    def _turn_ends(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self.is_closing():
            self._transport.write(held)

    def get_write_buffer_size(self) -> int:
        return len(self._held) + int(self._transport.get_write_buffer_size())

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()


class _Watching(asyncio.Protocol):
    """Sees clients that are there no more, and those that take nothing of what is written."""

    settings: ApiSettings
    transport: Any
    loop: asyncio.AbstractEventLoop
    _lost = False
    _stall: asyncio.TimerHandle | None = None
    _unsent = 0

    def reading(self) -> bool:
        """Whether what the client sends is being read."""
        raise NotImplementedError

    async def gone(self) -> None:
        """Return when the client has left. An application cannot learn that by receiving while it
        holds the client back: nothing is read then, and so the end is not, either."""
        while not self._lost:
            if not self.reading() and _hung_up(self.transport):
                self.transport.abort()
                return
            await asyncio.sleep(LOOK_GONE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._forget()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget()

    def _watch(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(self.settings.stall_timeout, self._look)

    def _look(self) -> None:
        if self.transport.get_write_buffer_size() >= self._unsent:
            self.transport.abort()
        else:
            self._watch()

    def _forget(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


class WebSocketProtocol(_Watching, WebSocketsSansIOProtocol):
    """uvicorn's, watching its client."""

    def reading(self) -> bool:
        return not self.read_paused

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            extensions: Any = self.scope["extensions"]
            extensions[GONE] = self.gone

    def keepalive_timeout(self) -> None:
        """The answer to a ping may be among what is held back."""
        if self.read_paused and not _hung_up(self.transport):
            self.pong_timer = self.pending_ping_payload = None
            self.schedule_ping()
        else:
            super().keepalive_timeout()


class HttpProtocol(_Watching, HttpToolsProtocol):
    """uvicorn's, bounded.

    A head has ``header_timeout`` seconds and ``max_headers`` bytes. So has what is left of a body
    once its request is answered, and what comes beside the body's own bytes (trailers, the
    extensions of chunks). What cannot be read is answered after the requests before it.
    """

    server_state: State

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._late: asyncio.TimerHandle | None = None
        self._head_done = False
        self._chunk = 0  # bytes of the piece being parsed
        self._begun = 0  # bytes of the piece in which the head began
        self._head = 0  # bytes of the head's further pieces
        self._beside = 0  # bytes since the body's last own byte
        self._refusal: tuple[int, str] | None = None
        self._leaving = False
        self._active: RequestResponseCycle | None = None  # the one being answered
        self._extensions: dict[str, Any] = {GONE: self.gone}

    # -- arriving --------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        together: Any = _Together(transport)
        super().connection_made(together)
        if len(self.connections) > self.settings.max_connections:
            self._refuse(503, f"{self.settings.max_connections} connections are open here")
        else:
            self._arm()
            if self.server_state.leaving:  # accepted before, made only now
                self.shutdown()

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
        self._chunk = size = len(data)
        if not self._head_done:
            self._head += size
        else:
            self._beside += size
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offset:
            self._upgrade(data[offset.args[0] :])
        except httptools.HttpParserError as error:
            reason = error.__context__
            if isinstance(reason, _Refusal):
                self._refuse(*reason.args)
            else:
                self._refuse(400, f"this is no HTTP request: {error}")
        else:
            self._after()

    def _after(self) -> None:
        """What may still come is bounded, too."""
        settings, cycle = self.settings, self.cycle
        if not self._head_done:
            if self._head - self._begun > settings.max_headers:
                self._refuse(431, f"head over {settings.max_headers} bytes")
            elif self._late is None:
                self._arm()
        elif cycle.response_complete:
            if self._late is None:
                self._arm()  # neither a request nor silence: blank lines, or a body nobody takes
        elif self._beside > settings.max_headers and cycle.more_body:
            self._refuse(431, f"over {settings.max_headers} bytes beside the body")

    def reading(self) -> bool:
        return not self.flow.read_paused

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = self._extensions
        self._head_done = False
        self._head = self._begun = self._chunk

    def on_headers_complete(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self._head_done = True
        self._beside = 0
        if self._head > self.settings.max_headers:
            self._weigh()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _Refusal(429, f"over {MAX_PIPELINED} requests before the first is answered")
        if self.parser.get_method() == b"CONNECT":
            raise _Refusal(405, "CONNECT is not served")
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            if not self.pipeline:
                self._active = self.cycle
            self.headers = []  # trailers are no headers: they stay out of the scope's list
            if self._leaving:
                self.cycle.keep_alive = False

    def _weigh(self) -> None:
        """The pieces hold more than the head may: see how much of it is head."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.settings.max_headers:
            raise _Refusal(431, f"head over {self.settings.max_headers} bytes")

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        super().on_body(body)

    def _should_upgrade(self) -> bool:
        """While it parses: every offer is set aside, until :meth:`_upgrade` has the whole head."""
        return True

    def _upgrade(self, rest: bytes) -> None:
        """Take the one protocol that is served; else go on as if none had been offered. The parser
        would take the body of such a request for the other protocol, and lose it."""
        if self._get_upgrade() == b"websocket":
            if self.cycle is not None and not self.cycle.response_complete:
                self._refuse(400, "a WebSocket cannot begin before earlier requests are answered")
            elif self._leaving:
                self._refuse(503, "this door is being stopped")
            else:
                self.handle_websocket_upgrade()
            return
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [t.strip() for t in value.lower().split(b",")]
                value = b", ".join(t for t in tokens if t not in _UPGRADE)
            if name not in _UPGRADE and value:
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def on_response_complete(self) -> None:
        following = self._active = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if following is not None or self.transport.is_closing():
            return
        if self._refusal is not None:
            self._say()
        elif self.cycle.more_body:
            self._arm()
        elif self._leaving:
            self._leave_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self._cut()
        super().connection_lost(exc)

    # -- refusing --------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(self.settings.header_timeout, self._too_late)

    def _too_late(self) -> None:
        self._late = None
        if self.cycle is not None and self.cycle.response_complete and self._head_done:
            self.transport.close()  # the rest of an answered request: there is nothing more to say
        else:
            seconds = self.settings.header_timeout
            self._refuse(408, f"the head of a request did not arrive within {seconds:g} s")

    def _refuse(self, code: int, detail: str) -> None:
        """Answer with an error and close, once the requests before are answered."""
        if self.transport.is_closing() or self._refusal is not None:
            return
        self._refusal = (code, detail)
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._say()
        elif self.pipeline:
            if cycle.more_body:
                self.pipeline.popleft()  # the one that is refused; on_response_complete says it
        elif cycle.more_body:
            if cycle.response_started:
                self.transport.abort()
            else:
                self._say()

    def _say(self) -> None:
        """Send the refusal, then take no notice of what the client still sends, but do take it: a
        socket closed over unread bytes would be reset, and the answer lost."""
        assert self._refusal is not None
        self.transport.write(_answer(*self._refusal))
        self._cut()
        self.transport.write_eof()
        self._unset_keepalive_if_required()
        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(LINGER, self.transport.abort)

    def _cut(self) -> None:
        """The application's client is gone from here on. uvicorn says so to the newest request
        only, which is not the one being answered where several were sent at once."""
        for cycle in (self._active, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    # -- leaving ---------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Finish what is under way, take one last request if it is on its way already, close."""
        self._leaving = True
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._leave_soon()
        elif not cycle.response_started:
            cycle.keep_alive = False

    def _leave_soon(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(LAST_REQUEST, self._leave)

    def _leave(self) -> None:
        self.timeout_keep_alive_task = None
        cycle = self.cycle
        idle = cycle is None or cycle.response_complete
        if not idle or self.transport.is_closing():
            return
        begun = self._head and not self._head_done
        if begun or _has_more(self.transport):
            self.timeout_keep_alive_task = self.loop.call_later(LOOK, self._leave)
        else:
            self.transport.close()

    def give_up(self) -> None:
        """The time to finish is over."""
        cycle = self._active
        if cycle is not None and not cycle.response_complete and not cycle.response_started:
            self.transport.write(_answer(502, "the door was stopped before the answer came"))
            self._cut()
            self.transport.close()
        else:
            self.transport.abort()


def _answer(code: int, detail: str) -> bytes:
    status = HTTPStatus(code).phrase
    body = _encode({"id": "api", "code": code, "detail": detail, "status": status})
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"x-request-id: %b\r\nconnection: close\r\n\r\n%b"
        % (code, status.encode(), len(body), os.urandom(16).hex().encode(), body)
    )


def _has_more(transport: Any) -> bool:
    """Whether the kernel holds bytes of the client that were not read."""
    found = transport.get_extra_info("socket")
    try:
        with socket.socket(fileno=os.dup(found.fileno())) as peek:
            return bool(peek.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def _hung_up(transport: Any) -> bool:
    """Whether the client has closed, seen past what it sent before and nobody has read."""
    poll = select.poll()
    try:
        poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return True


def protocols(settings: ApiSettings) -> tuple[type[HttpProtocol], type[WebSocketProtocol]]:
    """The two protocols of a listener with these settings."""
    bound: Mapping[str, Any] = {"settings": settings}
    return (
        type("BoundHttpProtocol", (HttpProtocol,), dict(bound)),
        type("BoundWebSocketProtocol", (WebSocketProtocol,), dict(bound)),
    )
