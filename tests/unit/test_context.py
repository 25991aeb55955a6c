"""Who is calling, in which namespace, until when: as a value, and through nested calls."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from micro_ray.context import CURRENT, Context, current, new_request_id, use
from micro_ray.errors import MicroError, NotFound, Timeout
from micro_ray.sdk.service import Service
from micro_ray.sdk.testing import Here
from tests.fixtures.wait import PROMPT, eventually

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


# -- the value -------------------------------------------------------------------------------------


def test_outside_any_call_it_is_empty() -> None:
    assert CURRENT.get() is None
    context = current()
    assert context == Context()
    assert (context.namespace, context.caller, context.deadline) == ("micro", "", None)
    assert context.remaining() is None
    with pytest.raises(FrozenInstanceError):
        context.caller = "me"  # type: ignore[misc]


def test_what_remains_is_never_below_zero() -> None:
    now = time.monotonic()
    assert 9.9 < (Context(deadline=now + 10).remaining() or 0) <= 10
    assert Context(deadline=now - 10).remaining() == 0.0


def test_use_is_for_its_block() -> None:
    outer, inner = Context(caller="outer"), Context(caller="inner")
    with use(outer) as given:
        assert given is outer
        assert current() is outer
        try:
            with use(inner):
                assert current() is inner
                raise KeyError
        except KeyError:
            assert current() is outer
    assert current() == Context()


async def test_each_task_has_its_own() -> None:
    async def task(name: str) -> str:
        with use(Context(caller=name)):
            await asyncio.sleep(0.01)
            inner = await asyncio.create_task(asyncio.sleep(0, current().caller))
            in_thread = await asyncio.to_thread(lambda: current().caller)
            assert inner == in_thread == name
            return current().caller

    names = [str(number) for number in range(20)]
    assert await asyncio.gather(*(task(name) for name in names)) == names
    assert current() == Context()


def test_a_new_thread_has_none() -> None:
    seen: list[Context] = []
    with use(Context(caller="me")):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert seen == [Context()]


def test_request_ids_are_random_and_of_128_bits() -> None:
    ids = {new_request_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(len(id) == 32 and int(id, 16) >= 0 for id in ids)


# -- through calls ---------------------------------------------------------------------------------


def shown() -> dict[str, Any]:
    """The context here, as it can be sent."""
    context = current()
    return {
        "namespace": context.namespace,
        "caller": context.caller,
        "service": context.service,
        "endpoint": context.endpoint,
        "left": context.remaining(),
        "trace": context.trace,
        "request_id": context.request_id,
        "metadata": dict(context.metadata),
    }


@pytest.fixture
async def chain(here: Here) -> list[dict[str, Any]]:
    """Services ``front``, ``middle`` and ``back``; each notes its context and calls the next."""
    seen: list[dict[str, Any]] = []
    names = ["front", "middle", "back"]
    for name, following in zip(names, [*names[1:], ""], strict=True):
        service = Service(name)

        def add(service: Service, following: str) -> None:
            @service.endpoint
            async def call(timeout: float = 0, hang: bool = False) -> str:
                seen.append(shown())
                await asyncio.sleep(0.02)
                if following:
                    return str(
                        await service.client.call(
                            following, "call", {"hang": hang}, timeout=timeout or None
                        )
                    )
                if hang:
                    await asyncio.sleep(30)
                return "end"

        add(service, following)
        await here.serve(service)
    return seen


async def test_what_goes_along_a_chain_of_calls(here: Here, chain: list[dict[str, Any]]) -> None:
    metadata = {"traceparent": TRACE, "x-request-id": "r-1", "mine": "stays"}
    answer = await here.client.call("front", "call", {}, timeout=40, metadata=metadata)
    assert answer == "end"
    front, middle, back = chain
    assert [step["service"] for step in chain] == ["front", "middle", "back"]
    assert [step["endpoint"] for step in chain] == ["Front.Call", "Middle.Call", "Back.Call"]
    assert [step["caller"] for step in chain] == ["", "front", "middle"]
    assert [step["namespace"] for step in chain] == ["micro"] * 3
    assert [step["trace"] for step in chain] == [TRACE] * 3
    assert [step["request_id"] for step in chain] == ["r-1"] * 3
    # Each has what the one before has left of it.
    assert 40 - PROMPT < back["left"] < middle["left"] - 0.015 < front["left"] - 0.03 < 40.01
    # What a caller sends besides is for the service it calls, and no further.
    assert front["metadata"]["mine"] == "stays"
    assert "mine" not in middle["metadata"]


async def test_a_call_without_an_id_gets_one_for_all_its_calls(
    here: Here, chain: list[dict[str, Any]]
) -> None:
    await here.client.call("front")
    await here.client.call("front")
    first, second = {s["request_id"] for s in chain[:3]}, {s["request_id"] for s in chain[3:]}
    assert len(first) == len(second) == 1
    assert first != second
    assert all(len(id) == 32 for id in first | second)
    assert all(step["left"] is not None for step in chain)  # the settings' default


async def test_a_timeout_inside_can_only_shorten(here: Here, chain: list[dict[str, Any]]) -> None:
    await here.client.call("front", "call", {"timeout": 60}, timeout=2)
    await here.client.call("front", "call", {"timeout": 0.5}, timeout=2)
    assert chain[1]["left"] < 2
    assert chain[4]["left"] <= 0.501


async def test_a_deadline_ends_the_whole_chain(here: Here, chain: list[dict[str, Any]]) -> None:
    begun = time.monotonic()
    with pytest.raises(Timeout):
        await here.client.call("front", "call", {"hang": True}, timeout=0.3)
    assert time.monotonic() - begun < PROMPT
    assert len(chain) == 3

    async def idle() -> bool:
        stats = [await here.client.call(n, "Debug.Stats") for n in ("front", "middle", "back")]
        return all(row["in_flight"] == 0 for row in stats)

    await eventually(idle)


async def test_after_the_deadline_no_call_is_made(here: Here) -> None:
    """A handler that goes on when its time is over calls nobody any more."""
    tried: list[BaseException] = []
    service = Service("stubborn")

    @service.endpoint
    async def call() -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            try:
                await service.client.call("store", "Store.Databases")
            except MicroError as error:
                tried.append(error)
            raise
        return ""

    await here.serve(service)
    with pytest.raises(Timeout):
        await here.client.call("stubborn", timeout=0.1)
    await eventually(lambda: tried)
    assert isinstance(tried[0], Timeout)
    assert "had passed before the call was sent" in tried[0].detail


async def test_streams_have_a_context_too(here: Here) -> None:
    service = Service("streamer")

    @service.endpoint
    async def call(count: int = 2) -> AsyncIterator[dict[str, Any]]:
        for _ in range(count):
            yield shown()
            await asyncio.sleep(0)

    await here.serve(service)
    rows = [
        row
        async for row in here.client.stream(
            "streamer", "call", {}, timeout=40, metadata={"traceparent": TRACE}
        )
    ]
    assert len(rows) == 2
    for row in rows:
        assert (row["service"], row["trace"]) == ("streamer", TRACE)
        assert 40 - PROMPT < row["left"] <= 40.01
    assert current() == Context()


async def test_plain_functions_run_in_a_thread_under_it(here: Here) -> None:
    service = Service("threaded")
    loop = threading.get_ident()

    @service.endpoint
    def call() -> dict[str, Any]:
        return {**shown(), "thread": threading.get_ident()}

    await here.serve(service)
    row = await here.client.call("threaded", metadata={"x-request-id": "r-7"})
    assert (row["service"], row["request_id"]) == ("threaded", "r-7")
    assert row["thread"] != loop


async def test_a_handler_may_ask_for_it(here: Here) -> None:
    service = Service("asking")

    @service.endpoint
    async def call(context: Context, name: str = "x") -> dict[str, Any]:
        assert context is current()
        return {"caller": context.caller, "name": name}

    await here.serve(service)
    with use(Context(service="tester", namespace="micro")):
        assert await here.client.call("asking", "call", {"name": "a"}) == {
            "caller": "tester", "name": "a",
        }  # fmt: skip


async def test_the_namespace_of_the_call_being_served_is_that_of_its_calls(here: Here) -> None:
    """A service of one namespace, called in another, finds the services of the other; those of the
    platform are found from each, and do what they do in it."""
    await here.serve(Service("mine"))
    with use(Context(namespace="tenant")), pytest.raises(NotFound, match="no service 'mine'"):
        await here.client.call("mine", "Debug.Health")
    with use(Context(namespace="tenant")):
        await here.client.call("store", "Store.Write", {"key": "a", "value": "b"})
        assert await here.client.call("store", "Store.Databases") == {"databases": ["micro"]}
    assert await here.client.call("store", "Store.Databases") == {"databases": []}


async def test_many_calls_at_once_do_not_mix(here: Here, chain: list[dict[str, Any]]) -> None:
    async def one(number: int) -> None:
        id = f"r-{number}"
        await here.client.call("front", "call", {}, metadata={"x-request-id": id})

    await asyncio.gather(*(one(number) for number in range(50)))
    for number in range(50):
        steps = [s for s in chain if s["request_id"] == f"r-{number}"]
        assert [s["service"] for s in steps] == ["front", "middle", "back"]
        assert [s["caller"] for s in steps] == ["", "front", "middle"]
