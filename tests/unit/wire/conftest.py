"""Servers and callers over real sockets, on uvloop (as actors and services run) and on asyncio's
own loop (as a caller's program may); and the proof that a test leaves nothing open."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import uvloop

from micro_ray.wire.endpoints import Endpoints
from tests.fixtures.wait import eventually
from tests.unit.wire.line import Line, sockets
from tests.unit.wire.served import Served, serving

HERE = Path(__file__).parent
#: Suites that speak over sockets and do not start from a signature: these run on both loops.
BOTH = (
    "test_calls.py", "test_cancel.py", "test_close.py", "test_credit.py", "test_deadlines.py",
    "test_drain.py", "test_handlers.py", "test_handshake.py", "test_keepalive.py", "test_lost.py",
    "test_many.py", "test_memory.py", "test_bounds.py", "test_identity.py",
)  # fmt: skip


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.path.name in BOTH:
        loops["asyncio"] = asyncio.new_event_loop
    return loops


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A signal does not wake an idle uvloop, so that a thread must end what hangs."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.timeout(60, method="thread"))


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """No task and no socket outlives a test."""
    before, mine = len(sockets()), asyncio.current_task()
    running = asyncio.all_tasks()
    yield

    def left() -> bool:
        tasks = asyncio.all_tasks() - running - {mine, asyncio.current_task()}
        assert not tasks, tasks
        assert len(sockets()) <= before, sockets()
        return True

    await eventually(left, within=3)


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: the name of a Unix socket must be short.
    with TemporaryDirectory(prefix="wi-") as name:
        yield Path(name)


@pytest.fixture
async def line(folder: Path) -> AsyncIterator[Line]:
    async with AsyncExitStack() as stack:
        yield Line(folder, stack)


@pytest.fixture(params=["unix", "tcp", "tcp6"])
async def any_line(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Line]:
    if request.param == "tcp6":
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError as error:
            pytest.skip(f"this machine has no IPv6: {error}")
    async with AsyncExitStack() as stack:
        yield Line(folder, stack, request.param)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A service without endpoints yet."""
    endpoints = Endpoints("test")
    async with serving(endpoints) as peer:
        yield Served(endpoints, peer)
