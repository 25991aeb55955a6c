"""``service.store``: a table of the service's own."""

from __future__ import annotations

import pytest

from micro_ray import Service
from micro_ray.errors import Conflict, NotFound
from micro_ray.sdk.testing import Here


async def test_a_table_of_its_own(here: Here) -> None:
    """Two services do not see each other's keys; the table is named as the service is."""
    services = [Service("one"), Service("two")]
    for service in services:
        await here.serve(service)
    one, two = (service.store for service in services)
    await one.write("key", b"of one")
    with pytest.raises(NotFound):
        await two.read("key")
    await two.write("key", b"of two")
    assert (await one.read("key")).value == b"of one"
    assert (await here.store.read("key", table="one")).value == b"of one"
    assert sorted(await here.store.tables()) == ["one", "two"]
    assert await one.keys() == ["key"]


async def test_another_table_where_it_is_named(here: Here) -> None:
    service = Service("one")
    await here.serve(service)
    await service.store.write("key", b"x", table="shared")
    assert (await here.store.read("key", table="shared")).value == b"x"


async def test_compare_and_set(here: Here) -> None:
    """Two who read the same do not both write."""
    service = Service("one")
    await here.serve(service)
    record = await service.store.write("count", b"1", expected=0)
    await service.store.write("count", b"2", expected=record.version)
    with pytest.raises(Conflict):
        await service.store.write("count", b"3", expected=record.version)
    assert (await service.store.read("count")).value == b"2"


async def test_it_ends_with_the_service(here: Here) -> None:
    service = Service("one")
    await here.serve(service)
    store = service.store
    await service.stop()
    with pytest.raises(Exception, match="async with"):
        await store.read("key")
