"""What goes along with a call that is made while another is served."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from micro_ray import AsyncClient, Context, Service
from micro_ray.context import current, use
from micro_ray.errors import NotFound, Timeout
from micro_ray.sdk.testing import Here
from tests.fixtures.wait import eventually
from tests.unit.sdk.services import Everything

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def between(here: Here, timeout: float | None = None) -> Service:
    """A service that passes calls on."""
    service = Service("between")

    @service.endpoint
    async def call() -> str:
        await service.client.call("every-thing", "where", timeout=timeout, metadata={"mine": "yes"})
        return "passed on"

    @service.endpoint
    async def slow() -> None:
        await service.client.call("every-thing", "slow", {"seconds": 30})

    @service.endpoint
    async def counted() -> int:
        answers = service.client.stream("every-thing", "count", {"to": 99, "pause": 0.05})
        return len([answer async for answer in answers])

    await here.serve(service)
    return service


async def test_what_is_known_of_a_call(here: Here, every: Everything) -> None:
    """Outside of any: a request id of its own, the client's namespace, nothing else."""
    for _ in range(2):
        await here.client.call("every-thing", "where", metadata={"colour": "red"})
    first, second = every.contexts
    assert (first.namespace, first.caller, first.trace) == ("micro", "", "")
    assert (first.service, first.endpoint) == ("every-thing", "EveryThing.Where")
    assert first.metadata["colour"] == "red"
    assert len(first.request_id) == 32
    assert first.request_id != second.request_id
    assert current() == Context(), "and it is over with the call"


async def test_trace_and_request_id_go_along(here: Here, every: Everything) -> None:
    await between(here)
    metadata = {"traceparent": TRACE, "x-request-id": "r-1", "mine": "no"}
    assert await here.client.call("between", metadata=metadata) == "passed on"
    (seen,) = every.contexts
    assert (seen.trace, seen.request_id, seen.caller) == (TRACE, "r-1", "between")
    assert seen.metadata["mine"] == "yes", "what was not meant for it stays behind"


async def test_deadlines_go_along(here: Here, every: Everything) -> None:
    """What is left of the caller's time, or less where less is asked for."""
    await between(here)
    begun = time.monotonic()
    await here.client.call("between", timeout=5)
    left = every.contexts[0].remaining()
    assert left is not None
    assert 5 - (time.monotonic() - begun) - 1 < left < 5
    await here.client.call("between")
    other = every.contexts[1].remaining()
    assert other is not None
    assert other < 30.5, "the default of the settings"


async def test_less_time_than_is_left(here: Here, every: Everything) -> None:
    await between(here, timeout=2)
    await here.client.call("between", timeout=20)
    left = every.contexts[0].remaining()
    assert left is not None
    assert left < 2


async def test_time_is_up_everywhere(here: Here, every: Everything) -> None:
    """The innermost handler ends as well, for unary calls and for streams."""
    await between(here)
    for number, endpoint in enumerate(("slow", "counted"), 1):
        with pytest.raises(Timeout):
            await here.client.call("between", endpoint, timeout=0.2)
        await eventually(lambda number=number: every.cancelled == number)


async def test_who_called_first_goes_away(here: Here, every: Everything) -> None:
    """That is passed on too."""
    await between(here)
    calling = asyncio.create_task(here.client.call("between", "slow"))
    await eventually(lambda: every.service.in_flight == 1)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    await eventually(lambda: every.cancelled == 1)


async def test_a_context_of_ones_own(here: Here, every: Everything) -> None:
    """A script, or a test, can speak as if it served a call."""
    context = Context(trace=TRACE, request_id="r-2", service="script")
    with use(context):
        await here.client.call("every-thing", "where")
        with pytest.raises(Timeout), use(replace(context, deadline=time.monotonic() - 1)):
            await here.client.call("every-thing", "where")
    (seen,) = every.contexts
    assert (seen.trace, seen.request_id, seen.caller) == (TRACE, "r-2", "script")


async def test_namespaces(here: Here, every: Everything) -> None:
    """A client speaks for one; while a call is served, for that call's. What metadata claims does
    not count."""
    tenant = replace(here.bootstrap, namespace="tenant")
    theirs, ours = Everything(), every
    await theirs.service.start(tenant, "theirs")
    try:
        async with AsyncClient(tenant) as client:
            await eventually(lambda: client.table.lookup("tenant", "every-thing"))
            assert (await client.call("every-thing", "where"))["node"] == "theirs"
            claim = {"micro-namespace": "micro"}
            assert (await client.call("every-thing", "where", metadata=claim))["node"] == "theirs"
            assert {c.namespace for c in theirs.contexts} == {"tenant"}
            services = await client.services()
            assert "every-thing" in services
            assert "between" not in services
            with pytest.raises(NotFound):
                await client.call("between")
        assert (await here.client.call("every-thing", "where"))["node"] == "node-1"
        assert {c.namespace for c in ours.contexts} == {"micro"}
        with use(Context(namespace="tenant")):
            assert (await here.client.call("every-thing", "where"))["node"] == "theirs"
    finally:
        await theirs.service.stop()
