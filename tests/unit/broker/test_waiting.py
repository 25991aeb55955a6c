"""What waits for readers: exact figures."""

from __future__ import annotations

import asyncio

import pytest

from micro_ray.broker import Limits, Message
from micro_ray.broker.waiting import OVERHEAD, Queue, Spaces
from micro_ray.errors import TooManyRequests, Unavailable


def spaces(**limits: int) -> Spaces:
    return Spaces(Limits(**limits))


def fill(queue: Queue, *bodies: bytes) -> None:
    for body in bodies:
        queue.put(Message(topic="a", body=body))


async def rest(queue: Queue) -> list[tuple[bytes, int]]:
    found = []
    while len(queue):
        message = await queue.take()
        found.append((message.body, message.dropped))
    return found


async def test_the_oldest_goes_and_the_next_tells() -> None:
    queue = spaces(waiting=3).enter("n")
    fill(queue, *(b"%d" % n for n in range(5)))
    assert await rest(queue) == [(b"2", 2), (b"3", 0), (b"4", 0)]
    fill(queue, b"5", b"6", b"7", b"8")
    assert await rest(queue) == [(b"6", 1), (b"7", 0), (b"8", 0)]
    assert queue.size == 0


async def test_bytes_of_one() -> None:
    queue = spaces(waiting_bytes=2 * (OVERHEAD + 10)).enter("n")
    fill(queue, b"0" * 10, b"1" * 10, b"2" * 11)
    assert await rest(queue) == [(b"2" * 11, 2)]
    fill(queue, b"3" * 5000)  # larger than all that may wait, but alone
    assert await rest(queue) == [(b"3" * 5000, 0)]


async def test_headers_count() -> None:
    queue = spaces(waiting_bytes=2 * OVERHEAD).enter("n")
    queue.put(Message(topic="a", headers={"k": "v"}))
    queue.put(Message(topic="a", headers={"k": "v"}))
    assert len(queue) == 1


async def test_a_namespace_is_bounded_at_the_cost_of_who_holds_most() -> None:
    held = spaces(namespace_bytes=5 * (OVERHEAD + 1))
    slow, fast = held.enter("n"), held.enter("n")
    other = held.enter("other")
    fill(slow, b"0", b"1", b"2", b"3")
    fill(fast, b"4", b"5")
    fill(other, b"x", b"x", b"x", b"x", b"x")
    assert await rest(fast) == [(b"4", 0), (b"5", 0)]
    assert await rest(slow) == [(b"1", 1), (b"2", 0), (b"3", 0)]
    assert len(other) == 5


async def test_one_whose_last_is_taken_tells_with_the_next() -> None:
    held = spaces(namespace_bytes=OVERHEAD + 1)
    slow, fast = held.enter("n"), held.enter("n")
    fill(slow, b"00")
    fill(fast, b"1")
    assert (len(slow), len(fast)) in ((0, 1), (1, 0))
    assert len(slow) == 0  # it held more
    assert await rest(fast) == [(b"1", 0)]
    fill(slow, b"2")
    assert await rest(slow) == [(b"2", 1)]


async def test_how_many() -> None:
    held = spaces(subscriptions=1)
    one = held.enter("n")
    with pytest.raises(TooManyRequests, match="namespace n has 1 subscriptions"):
        held.enter("n")
    held.leave("n", one)
    held.leave("n", one)
    held.enter("n")


async def test_the_end_frees_and_wakes() -> None:
    held = spaces(namespace_bytes=3 * OVERHEAD)
    one, two = held.enter("n"), held.enter("n")
    fill(one, b"", b"")
    held.leave("n", one)
    fill(one, b"", b"", b"", b"")  # nobody will read it
    fill(two, b"", b"", b"")
    assert await rest(two) == [(b"", 0)] * 3
    reader = asyncio.ensure_future(two.take())
    await asyncio.sleep(0)
    held.end(Unavailable("broker", "closed"))
    with pytest.raises(Unavailable, match="closed"):
        await reader
    with pytest.raises(StopAsyncIteration):
        await one.take()
