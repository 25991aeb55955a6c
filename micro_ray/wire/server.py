"""The serving side of frames: listens, runs one task per call, drains."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence

from micro_ray.certs import Identity
from micro_ray.errors import (
    Cancelled,
    InternalError,
    MicroError,
    Timeout,
)
from micro_ray.network import Call, Refused
from micro_ray.wire.address import Address, parse
from micro_ray.wire.binding import BACKLOG, bind_tcp, bind_unix
from micro_ray.wire.channel import Channel
from micro_ray.wire.connection import Connection
from micro_ray.wire.entrance import Entrance
from micro_ray.wire.identity import PeerCertificate, Secured, peer_certificate, shows_none
from micro_ray.wire.protocol import (
    BARE,
    END,
    Head,
    Hello,
    Kind,
    Limits,
    ProtocolError,
    decode_error,
    decode_request,
    encode_error,
    encode_frame,
    never_opened,
)

__all__ = ["Handler", "Incoming", "Server"]

log = logging.getLogger(__name__)

#: Connections open at once.
MAX_CONNECTIONS = 10_000
#: Seconds that a closing server waits for handlers that were cancelled, and for its connections.
CLOSING = 3.0


class Incoming(Channel):
    """One call being served."""

    __slots__ = ("begun", "broken", "expired", "head", "task")

    connection: ServerConnection

    def __init__(
        self, connection: ServerConnection, stream: int, deadline: float | None, head: Head
    ) -> None:
        super().__init__(connection, stream, deadline)
        self.head = head
        self.task: asyncio.Task[None] | None = None
        #: Whether the handler has begun, whether the call was ended from outside of it, and
        #: whether that was the deadline.
        self.begun = False
        self.broken = False
        self.expired = False

    @property
    def call(self) -> Call:
        """The head of the call; ``timeout`` is what remains of it."""
        head = self.head
        left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        return Call(
            service=head.service,
            endpoint=head.endpoint,
            timeout=left,
            content=head.content,
            metadata=head.metadata,
        )

    @property
    def peer(self) -> str:
        """The address of the caller, "" over a Unix socket."""
        return self.connection.peer_name

    @property
    def peer_identity(self) -> Identity | None:
        """Who the caller has proved to be; None over a Unix socket and without TLS."""
        return self.connection.peer_identity

    @property
    def proved(self) -> str:
        """Who that is, as :class:`~micro_ray.context.Context` has it."""
        identity = self.connection.peer_identity
        if identity is not None:
            return identity.uri
        return "" if self.connection.peer_name else "unix"

    def end_by(self, error: MicroError) -> None:
        """End the call from outside of its handler, which is cancelled: the caller is told the
        error. One that has ended stays as it is."""
        self.connection.end_by(self, error)

    async def reply(self, message: bytes) -> None:
        """Send the only, or last, message and end the answer."""
        await self._send(message, END)


Handler = Callable[[Incoming], Awaitable[None]]


class ServerConnection(Connection[Incoming]):
    def __init__(self, server: Server) -> None:
        super().__init__(server.limits)
        self.server = server
        self.last = 0
        self.draining = False
        self.peer_name = ""
        self.peer_identity: Identity | None = None
        self._leaver: asyncio.TimerHandle | None = None

    def _secure(self, peer: PeerCertificate) -> None:
        """A peer is asked to go when its certificate ends (with a new one it may come again), and
        cut off one lifetime later."""
        self.peer_identity = peer.identity
        self._leaver = self.loop.call_later(peer.left, self._expire, peer.life)

    def _expire(self, life: float) -> None:
        self.goaway()
        self._leaver = self.loop.call_later(life, self._overdue)

    def _overdue(self) -> None:
        self.abort(ProtocolError("the caller's certificate has ended long ago"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple) and name:
            self.peer_name = str(Address(host=name[0], port=name[1]))
        if transport.get_extra_info("ssl_object") is not None:
            identity = self.server.identity
            try:
                if not (identity and identity.optional and shows_none(transport)):
                    self._secure(peer_certificate(transport))
            except Refused as error:
                self.abort(ProtocolError(error.detail))
                return
        most = self.server.max_connections
        if len(self.server.connections) >= most:
            self.abort(ProtocolError(f"{most} connections are open here; no more are taken"))
        else:
            self.server.connections.add(self)

    def greeted(self, hello: Hello) -> None:
        self.say_hello()
        if self.server.draining:
            self.goaway()

    def on_request(self, flags: int, stream: int, payload: bytes) -> None:
        if stream <= self.last or not stream & 1:
            raise ProtocolError(f"REQUEST on stream {stream}; odd and growing ids only")
        self.last = stream
        try:
            head, body = decode_request(payload, self.limits.max_header)
        except MicroError as error:
            self._tell(stream, error)
            return
        refusal = self._refusal()
        if refusal is not None:
            self._tell(stream, refusal)
            return
        deadline = None
        if head.timeout_ms > 0:
            deadline = time.monotonic() + head.timeout_ms / 1000
        incoming = Incoming(self, stream, deadline, head)
        try:
            incoming.feed(flags, body)
        except MicroError as error:
            incoming.discard()
            self._tell(stream, error)
            return
        self.streams[stream] = incoming
        self.server.started()
        if deadline is not None:
            self.watch_deadline(deadline)
        incoming.task = self.loop.create_task(self._run(incoming))

    def _refusal(self) -> Refused | None:
        """Why a new stream is not taken; nothing of it has been executed."""
        if self.draining:
            return Refused("wire", "this node is going away", 0.0)
        if len(self.streams) >= self.limits.max_streams:
            return Refused("wire", f"{self.limits.max_streams} calls on one connection", 0.1)
        if self.buffered > self.limits.max_buffered:
            return Refused(
                "wire", f"over {self.limits.max_buffered} bytes unread on this connection", 0.1
            )
        return None

    def _tell(self, stream: int, error: MicroError) -> None:
        try:
            frame = encode_error(stream, error, self.peer_frame)
        except Exception as raised:  # a handler's error may have anything in its fields
            log.exception("an error of %s cannot be sent", type(error).__name__)
            why = f"{type(error).__name__}, which cannot be sent ({type(raised).__name__})"
            frame = encode_error(stream, InternalError("wire", why), self.peer_frame)
        self.write(frame)

    async def _run(self, incoming: Incoming) -> None:
        if incoming.broken:
            return
        incoming.begun = True
        error: MicroError | None = None
        try:
            await self.server.handler(incoming)
        except MicroError as raised:
            error = raised
        except asyncio.CancelledError:
            if incoming.expired:
                error = Timeout(incoming.head.service, "the deadline passed while it was served")
            elif incoming.error is None:
                error = Cancelled(incoming.head.service, "the service gave the call up")
        except Exception as raised:
            log.exception("%s raised", incoming.head.endpoint)
            error = InternalError(incoming.head.service, _said(raised))
        except BaseException as raised:  # SystemExit of a handler must not end the server silently
            log.error("%s raised %s", incoming.head.endpoint, _said(raised))
            error = InternalError(incoming.head.service, _said(raised))
        self._finish(incoming, error)

    def _finish(self, incoming: Incoming, error: MicroError | None) -> None:
        if self.streams.pop(incoming.stream, None) is None:
            return
        if incoming.inbox or incoming.parts is not None:
            incoming.discard()
        if incoming.error is None and not incoming.local_done and not self.is_lost:
            if error is not None:
                self._tell(incoming.stream, error)
            else:
                self.write(encode_frame(Kind.DATA, END | BARE, incoming.stream))
        incoming.local_done = incoming.remote_done = True
        if incoming.waiter is not None or incoming.send_waiter is not None:
            # A task that the handler has left behind.
            incoming.fail(Cancelled("wire", "the call has ended"))
        self.server.ended()
        if self.is_lost and not self.streams:
            self.server.leaving.discard(self)

    def on_data(self, flags: int, stream: int, payload: bytes) -> None:
        incoming = self.streams.get(stream)
        if incoming is None:
            self._ended(stream, "DATA")
            return
        if incoming.remote_done:
            raise ProtocolError(f"DATA after END on stream {stream}")
        try:
            incoming.feed(flags, payload)
        except MicroError as error:
            self._break(incoming, error, tell=True)

    def on_error(self, stream: int, payload: bytes) -> None:
        if stream:
            raise ProtocolError(f"ERROR on stream {stream}; a client ends a call by CANCEL")
        log.info("connection closed by the caller: %s", decode_error(payload).detail)
        self.shut()

    def on_cancel(self, stream: int) -> None:
        incoming = self.streams.get(stream)
        if incoming is None:
            self._ended(stream, "CANCEL")
        else:
            self._break(incoming, Cancelled("wire", "the caller gave the call up"), tell=False)

    def on_window(self, stream: int, credit: int) -> None:
        incoming = self.streams.get(stream)
        if incoming is None:
            self._ended(stream, "WINDOW")
        else:
            incoming.grant(credit)

    def _ended(self, stream: int, what: str) -> None:
        """Pass over a frame for a call that has ended. Raises ProtocolError for a stream that was
        never opened."""
        if stream > self.last or not stream & 1:
            raise never_opened(what, stream)

    def deadline_of(self, item: Incoming) -> float | None:
        return None if item.broken else item.deadline

    def on_deadline(self, stream: int) -> None:
        incoming = self.streams[stream]
        incoming.expired = True
        self._break(
            incoming,
            Timeout(incoming.head.service, "the deadline passed while it was served"),
            tell=True,
        )

    def end_by(self, incoming: Incoming, error: MicroError) -> None:
        """End a call that is under way, if it still is."""
        if self.streams.get(incoming.stream) is incoming:
            self._break(incoming, error, tell=True)

    def _break(self, incoming: Incoming, error: MicroError, *, tell: bool) -> None:
        """End a call from outside its handler, once. The caller is told at once; the call counts
        as in flight until its handler has ended."""
        if incoming.broken:
            return  # its handler has been cancelled already, and may be tidying up
        incoming.broken = True
        if tell and not incoming.local_done and incoming.error is None:
            self._tell(incoming.stream, error)
        incoming.fail(error)
        self.cancel(incoming)

    def cancel(self, incoming: Incoming) -> None:
        """Cancel a handler. One that has not begun will not: to cancel a task before its first step
        is to leave out what it does at its end."""
        if incoming.begun:
            assert incoming.task is not None
            incoming.task.cancel()
        else:
            incoming.broken = True
            self._finish(incoming, Refused("wire", "this node is closing", 0.0))

    def give_up(self, channel: Channel, error: MicroError) -> None:
        self._tell(channel.stream, error)
        channel.fail(error)

    def on_lost(self) -> None:
        if self._leaver is not None:
            self._leaver.cancel()
        self.server.connections.discard(self)
        self.server.changed.set()
        if self.streams:
            self.server.leaving.add(self)
        for incoming in list(self.streams.values()):
            self._break(incoming, Cancelled("wire", "the caller has gone"), tell=False)

    def goaway(self) -> None:
        """Take no new call. A peer that has not said HELLO yet is told after it."""
        if self.has_greeted and not self.draining:
            self.draining = True
            self.write(encode_frame(Kind.GOAWAY, 0, self.last))


def _said(raised: BaseException) -> str:
    """An exception in a line, also one that cannot say what it is."""
    try:
        text = str(raised)
    except Exception:
        text = "it cannot say what"
    return f"{type(raised).__name__}: {text}"


class Server:
    """Serves calls on any number of addresses; an ``async with`` that closes what it opened."""

    def __init__(
        self,
        handler: Handler,
        *,
        limits: Limits | None = None,
        name: str = "",
        max_connections: int = MAX_CONNECTIONS,
        identity: Secured | None = None,
    ) -> None:
        #: With it TCP is TLS, where it covers the address, and callers must prove who they are;
        #: Unix sockets stay as they are.
        self.identity = identity
        self.handler = handler
        self.limits = limits or Limits()
        self.name = name
        self.max_connections = max_connections
        self.in_flight = 0
        self.draining = False
        self.connections: set[ServerConnection] = set()
        #: Connections that are lost, with handlers that have not ended yet.
        self.leaving: set[ServerConnection] = set()
        self.changed = asyncio.Event()
        self._listeners: list[asyncio.Server] = []
        self._paths: list[tuple[str, int]] = []
        self._entrances: list[Entrance] = []

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def listen(self, address: str) -> str:
        """Listen on an address (``tcp:host:0`` takes a free port) and give the bound one.

        With an identity TCP takes only callers with a certificate of the same authority. A Unix
        socket is made with mode 0600; the file of a process that is gone is replaced. Raises
        Conflict when somebody listens there, Unavailable when the address cannot be bound.
        """
        where = parse(address)
        loop = asyncio.get_running_loop()
        if where.path:
            listener = await loop.create_unix_server(
                lambda: ServerConnection(self), sock=bind_unix(where.path), backlog=BACKLOG
            )
            self._paths.append((where.path, os.stat(where.path).st_ino))
            self._listeners.append(listener)
            return str(where)
        bound = bind_tcp(where)
        if self.identity is None or not self.identity.covers(where):
            self._listeners.append(
                await loop.create_server(
                    lambda: ServerConnection(self), sock=bound, backlog=BACKLOG
                )
            )
        else:
            bound.listen(BACKLOG)
            made = functools.partial(ServerConnection, self)
            self._entrances.append(
                Entrance(self.identity, bound, made, timeout=self.limits.handshake)
            )
        host, port = bound.getsockname()[:2]
        return str(Address(host=host, port=port))

    def started(self) -> None:
        self.in_flight += 1

    def ended(self) -> None:
        self.in_flight -= 1
        if self.draining:
            self.changed.set()

    async def drain(self, timeout: float) -> bool:
        """Take no new call (callers are told, and what they sent meanwhile is refused as not
        executed) and wait until those in flight have ended and the callers have left. True when
        that happened within ``timeout`` seconds."""
        self.draining = True
        self._stop_listening()
        for connection in list(self.connections):
            connection.goaway()
        try:
            async with asyncio.timeout(timeout):
                while self.in_flight or self.connections:
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return not self.in_flight
        return True

    async def close(self) -> None:
        """Close everything now; calls in flight are cancelled. A handler that does not end for it
        is left behind after a few seconds."""
        self.draining = True
        self._stop_listening()
        await asyncio.gather(*(entrance.close() for entrance in self._entrances))
        every = [*self.connections, *self.leaving]
        for connection in every:
            connection.shut()
        calls = [(c, incoming) for c in every for incoming in c.streams.values()]
        tasks = [incoming.task for _, incoming in calls if incoming.task is not None]
        for connection, incoming in calls:
            connection.cancel(incoming)
        waits = [*tasks, *(connection.lost for connection in every)]
        if not waits:
            return
        _, left = await asyncio.wait(waits, timeout=CLOSING)
        if left:
            log.error("%s closed with %d handlers or connections left", self.name, len(left))

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for entrance in self._entrances:
            entrance.stop()
        for path, inode in self._paths:
            # Only our own file: another process may have taken the name meanwhile.
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        self._paths.clear()

    @property
    def peers(self) -> Sequence[str]:
        return [connection.peer_name for connection in self.connections]
