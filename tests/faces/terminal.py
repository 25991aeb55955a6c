"""Commands as a face: a small platform for each test, and ``micro`` with ``-o json`` against it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from micro_ray.cli.exits import exit_code
from micro_ray.errors import MicroError, from_dict
from micro_ray.registry import Instance, Node
from micro_ray.registry.memory import MemoryRegistry
from micro_ray.router.derive import Router
from micro_ray.settings import Bootstrap
from micro_ray.wire import router as router_face
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.server import Server
from tests.faces import zygote
from tests.faces.rows import lacks
from tests.fixtures.terminal import environment

__all__ = ["Shell", "Zygote", "platform_of", "zygote_process"]

#: Seconds between looks at what a command has said.
POLL = 0.005
#: Commands that run at a time, beside those that go on.
AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Zygote:
    """Where commands are forked."""

    path: str


@contextmanager
def zygote_process() -> Iterator[Zygote]:
    """The process that forks, ended with the block."""
    with tempfile.TemporaryDirectory(prefix="zy-") as folder:
        path = f"{folder}/z.sock"
        process = subprocess.Popen(
            [sys.executable, "-m", zygote.__name__, path], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield Zygote(path=path)
        finally:
            process.kill()
            process.communicate()


class Shell:
    """Commands against one platform. ``-o json`` is before each."""

    def __init__(self, zygote: Zygote, environ: Mapping[str, str], folder: Path) -> None:
        self._zygote = zygote
        self._environ = dict(environ)
        self._folder = folder
        self._room = asyncio.Semaphore(AT_ONCE)

    async def value(self, *args: str, stdin: bytes = b"") -> Any:
        """The JSON that a command prints, None when it prints nothing. Raises the error that it
        tells of."""
        async with self._room, self._started(args, stdin) as command:
            code = await command.ended()
            _raise(code, command.said(2))
            out = command.said(1)
            return json.loads(out) if out else None

    async def bytes(self, *args: str) -> bytes:
        """What a command prints, as it is."""
        async with self._started(args, b"") as command:
            _raise(await command.ended(), command.said(2))
            return command.said(1)

    async def lines(
        self, *args: str, begins: bytes = b"", stdin: bytes = b""
    ) -> AsyncIterator[Any]:
        """The lines of JSON of a command that goes on; it is interrupted when this is left. With
        ``begins``, None comes first, once its standard error begins so."""
        async with self._started(args, stdin, piped=True) as command:
            if begins:
                ending = asyncio.ensure_future(command.ended())
                while not ending.done() and not command.said(2).startswith(begins):
                    await asyncio.wait([ending], timeout=POLL)
                ending.cancel()
                await asyncio.gather(ending, return_exceptions=True)
                if command.said(2).startswith(begins):
                    yield None
            while line := await command.line():
                yield json.loads(line)
            _raise(await command.ended(), command.said(2))

    @asynccontextmanager
    async def _started(
        self, args: tuple[str, ...], stdin: bytes, *, piped: bool = False
    ) -> AsyncIterator[_Command]:
        for arg in args:
            if "\0" in arg:
                lacks("no argument of a process has a NUL")
            try:
                os.fsencode(arg)
            except UnicodeEncodeError:
                lacks("no argument of a process has a lone surrogate")
        async with _command(self._zygote.path, piped) as command:
            os.write(command.streams[0], stdin) if len(stdin) < 4096 else _fill(command, stdin)
            os.lseek(command.streams[0], 0, os.SEEK_SET)
            request = {
                "args": ["-o", "json", *args],
                "environ": self._environ,
                "folder": str(self._folder),
            }
            await command.begin(json.dumps(request).encode() + b"\n")
            yield command


def _fill(command: _Command, stdin: bytes) -> None:
    left = memoryview(stdin)
    while left:
        left = left[os.write(command.streams[0], left) :]


def _raise(code: int, said: bytes) -> None:
    """What a command said of its failure, as the error it was; its exit code must agree."""
    if code == 0:
        return
    told = json.loads(said.splitlines()[-1])
    error: MicroError = from_dict(told)
    if error.id == "cli":
        assert code in (1, 2), (code, told)
    else:
        assert code == exit_code(error), (code, told)
    raise error


class _Command:
    """A process of a command: its streams are files, but for an output that is ``piped``."""

    def __init__(self, line: socket.socket, streams: list[int], out: int | None) -> None:
        self.streams = streams
        self.pid = 0
        self.code: int | None = None
        self._line = line
        self._out_end = out
        self._told: asyncio.StreamReader | None = None
        self._out: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.transport: asyncio.BaseTransport | None = None

    async def begin(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        socket.send_fds(self._line, [request[:1]], self.streams)
        self._told, self.writer = await asyncio.open_unix_connection(sock=self._line)
        self.writer.write(request[1:])
        await self.writer.drain()
        if self._out_end is not None:
            os.close(self.streams[1])
            self.streams[1] = -1
            self._out = asyncio.StreamReader(limit=2**24)
            self.transport, _ = await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(self._out),  # type: ignore[arg-type]
                os.fdopen(self._out_end, "rb"),
            )
        self.pid = int(await self._told.readline())

    async def line(self) -> bytes:
        assert self._out is not None
        return await self._out.readline()

    async def ended(self) -> int:
        """The exit code."""
        assert self._told is not None
        if self.code is None:
            self.code = int(await self._told.readline())
        return self.code

    def said(self, stream: int) -> bytes:
        """What is in the file of a stream."""
        size = os.fstat(self.streams[stream]).st_size
        return os.pread(self.streams[stream], size, 0)


@asynccontextmanager
async def _command(path: str, piped: bool) -> AsyncIterator[_Command]:
    """Interrupted, as by Ctrl-C, when it is left before its end."""
    streams = [os.memfd_create(name) for name in ("in", "out", "err")]
    out = None
    if piped:
        os.close(streams[1])
        out, streams[1] = os.pipe()
    line = socket.socket(socket.AF_UNIX)
    line.connect(path)
    command = _Command(line, streams, out)
    try:
        yield command
    finally:
        if command.pid and command.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(command.pid, signal.SIGINT)
        if command.transport is not None:
            command.transport.close()
        if command.writer is not None:
            command.writer.close()
        else:
            line.close()
        for stream in streams:
            if stream >= 0:
                os.close(stream)


@asynccontextmanager
async def platform_of(
    service: str, endpoints: Endpoints, folder: Path, zygote: Zygote
) -> AsyncIterator[Shell]:
    """A platform of one service: its face, and the router that commands ask for it."""
    registry = MemoryRegistry()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(registry.close)
        server = await stack.enter_async_context(Server(endpoints.handler, name=service))
        address = await server.listen(f"unix:{folder}/{service}.sock")
        node = Node(id=f"{service}-0", addresses=(address,))
        await registry.register(Instance(service=service, node=node), ttl=3600)
        router = await stack.enter_async_context(Router(registry))
        face = router_face.endpoints(router)
        routes = await stack.enter_async_context(Server(face.handler, name="router"))
        boot = Bootstrap(
            registry=(f"unix:{folder}/none.sock",),
            routers=(await routes.listen(f"unix:{folder}/router.sock"),),
            namespace="micro",
            host="",
            run=folder,
        )
        yield Shell(zygote, environment(boot, folder), folder)
