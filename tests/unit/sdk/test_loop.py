"""A loop in a thread of its own: what is run on it, and how it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from micro_ray.errors import BadRequest, Cancelled, Timeout
from micro_ray.sdk.loop import Loop
from tests.fixtures.wait import PROMPT


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop("test")
    yield loop
    loop.close()


async def give(value: object) -> object:
    await asyncio.sleep(0)
    return value


async def throw(error: BaseException) -> None:
    raise error


def test_values_and_errors(loop: Loop) -> None:
    assert loop.run(give(3)) == 3
    for error in (LookupError("x"), TimeoutError("of the work"), Timeout("a", "b")):
        with pytest.raises(type(error), match=str(error)):
            loop.run(throw(error), 5)


def test_too_late(loop: Loop) -> None:
    """What was not done in time is ended."""
    ended = threading.Event()

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(Timeout, match=r"test: not done within 0\.05 s"):
        loop.run(long(), 0.05)
    assert ended.wait(5)
    assert loop.run(give(1)) == 1


def test_closing_runs_the_last_thing(loop: Loop) -> None:
    told: list[str] = []

    async def last() -> None:
        told.append(threading.current_thread().name)

    loop.close(last)
    loop.close(last)
    assert told == ["test"]
    with pytest.raises(BadRequest, match="it has been closed"):
        loop.run(give(1))


def test_closing_ends_what_runs(loop: Loop) -> None:
    outcome: list[BaseException] = []
    begun = threading.Event()

    async def long() -> None:
        begun.set()
        await asyncio.sleep(60)

    def wait() -> None:
        try:
            loop.run(long())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert begun.wait(5)
    loop.close()
    thread.join(5)
    assert isinstance(outcome[0], Cancelled)


def test_a_last_thing_that_hangs(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end comes all the same."""
    monkeypatch.setattr("micro_ray.sdk.loop.CLOSE", 0.1)
    begun = time.monotonic()
    loop.close(lambda: asyncio.sleep(60))
    assert time.monotonic() - begun < PROMPT
    assert not loop._thread.is_alive()


def test_generators_are_closed(loop: Loop) -> None:
    """Also those that nobody has finished."""
    closed = threading.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.set()

    left = numbers()

    async def first() -> int:
        return await anext(left)

    assert loop.run(first()) == 1
    loop.close()
    assert closed.is_set()
