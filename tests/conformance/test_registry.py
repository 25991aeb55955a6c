"""What every registry does: its verbs."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from micro_ray.errors import NotFound
from micro_ray.registry import Action, Endpoint, Instance, Node, Registry
from tests.fixtures.registries import Clock, instance
from tests.fixtures.wait import PROMPT, eventually

#: A registration that uses every field.
WHOLE = Instance(
    service="Greeter.v2",
    version="1.4-rc_1",
    namespace="tenant-a",
    endpoints=(
        Endpoint(
            name="Greeter.Hello",
            request={"type": "object", "properties": {"name": {"type": "string"}}},
            response={"$defs": {"X": {"type": ["null", "integer"], "enum": [1, None, 2.5]}}},
            stream="bidi",
            metadata={"path": "/hello/{name}", "method": "GET"},
        ),
        Endpoint(name="Greeter.Bye"),
    ),
    metadata={"description": "grüßt ✓"},
    node=Node(
        id="greeter-1",
        addresses=("unix:/run/micro/g.sock", "tcp:10.0.0.7:4000", "tcp:[fe80::1]:1"),
        host="box-7.example",
        weight=7,
        protocol="frames",
        metadata={"pid": "77", "": "blank"},
    ),
)


async def test_what_is_registered_comes_back_whole(registry: Registry) -> None:
    before = await registry.snapshot()
    await registry.register(WHOLE)
    (service,) = await registry.get("tenant-a", "Greeter.v2")
    assert (service.name, service.version, service.namespace) == (
        "Greeter.v2", "1.4-rc_1", "tenant-a",
    )  # fmt: skip
    assert service.endpoints == WHOLE.endpoints
    assert service.metadata == WHOLE.metadata
    assert service.nodes == (WHOLE.node,)
    assert await registry.list("tenant-a") == [service]
    snapshot = await registry.snapshot()
    assert snapshot.instances == (WHOLE,)
    assert snapshot.epoch == before.epoch
    assert snapshot.revision > before.revision


async def test_an_identical_registration_is_no_change(registry: Registry) -> None:
    await registry.register(instance())
    before = await registry.snapshot()
    for _ in range(3):
        await registry.register(instance())
    assert await registry.snapshot() == before


@pytest.mark.parametrize(
    "changed",
    [
        instance(version="2"),
        instance(weight=1),
        instance(addresses=("tcp:10.0.0.1:1",)),
        instance(metadata={"a": "b"}),
        instance(endpoints=(Endpoint(name="Greeter.Call"),)),
        instance("other"),
    ],
    ids=["version", "weight", "addresses", "metadata", "endpoints", "service"],
)
async def test_a_changed_registration_replaces(registry: Registry, changed: Instance) -> None:
    await registry.register(instance())
    before = await registry.snapshot()
    await registry.register(changed)
    after = await registry.snapshot()
    assert after.instances == (changed,)
    assert after.revision > before.revision
    async with contextlib.aclosing(
        registry.watch(epoch=before.epoch, revision=before.revision)
    ) as changes:
        change = await anext(changes)
    assert (change.action, change.instance) == (Action.PUT, changed)
    assert [s.name for s in await registry.list("micro")] == [changed.service]


async def test_a_node_is_known_by_its_namespace_and_id(registry: Registry) -> None:
    for namespace in ("a", "b"):
        await registry.register(instance(namespace=namespace))
    assert len((await registry.snapshot()).instances) == 2
    await registry.deregister("a", "n1")
    assert (await registry.snapshot()).instances == (instance(namespace="b"),)
    assert await registry.renew("a", ["n1"]) == ["n1"]
    assert await registry.renew("b", ["n1"]) == []


# -- time ------------------------------------------------------------------------------------------


async def test_a_registration_ends_with_its_ttl_and_within_a_second(
    timed: Registry, ticks: Clock
) -> None:
    await timed.register(instance(node="short"), ttl=5)
    await timed.register(instance(node="long"), ttl=50)
    await timed.register(instance(node="witness"), ttl=4.8)
    ticks.now += 4.9
    await eventually(lambda: _ids(timed, ["short", "long"]), within=PROMPT)
    ticks.now += 0.2
    await eventually(lambda: _ids(timed, ["long"]), within=PROMPT)


async def test_an_identical_registration_renews(timed: Registry, ticks: Clock) -> None:
    await timed.register(instance(), ttl=5)
    await timed.register(instance(node="witness"), ttl=9)
    ticks.now += 4
    await timed.register(instance(), ttl=10)
    ticks.now += 9.5  # 13.5: the first TTL and the witness's have passed, the second has not
    await eventually(lambda: _ids(timed, ["n1"]), within=PROMPT)
    ticks.now += 1
    await eventually(lambda: _ids(timed, []), within=PROMPT)


async def test_an_identical_registration_may_shorten(timed: Registry, ticks: Clock) -> None:
    await timed.register(instance(), ttl=3600)
    await timed.register(instance(), ttl=1)
    ticks.now += 1.1
    await eventually(lambda: _ids(timed, []), within=PROMPT)


async def test_renewing_is_for_the_ttl_of_each(timed: Registry, ticks: Clock) -> None:
    await timed.register(instance(node="a"), ttl=5)
    await timed.register(instance(node="b"), ttl=20)
    await timed.register(instance(node="c"), ttl=5)
    ticks.now += 4
    assert await timed.renew("micro", ["a", "zz", "b", "yy"]) == ["zz", "yy"]
    assert await timed.renew("micro", []) == []
    ticks.now += 3  # 7: c has ended, a lives until 9, b until 24
    await eventually(lambda: _ids(timed, ["a", "b"]), within=PROMPT)
    ticks.now += 3
    await eventually(lambda: _ids(timed, ["b"]), within=PROMPT)
    ticks.now += 15
    await eventually(lambda: _ids(timed, []), within=PROMPT)
    assert await timed.renew("micro", ["a", "b"]) == ["a", "b"]


async def test_a_node_that_ended_may_come_again(timed: Registry, ticks: Clock) -> None:
    await timed.register(instance(), ttl=1)
    ticks.now += 2
    await eventually(lambda: _ids(timed, []), within=PROMPT)
    await timed.register(instance(), ttl=30)
    ticks.now += 20
    await timed.register(instance(node="witness"), ttl=1)
    ticks.now += 2
    await eventually(lambda: _ids(timed, ["n1"]), within=PROMPT)


async def _ids(registry: Registry, wanted: list[str]) -> bool:
    have = [i.node.id for i in (await registry.snapshot()).instances]
    assert have == wanted
    return True


# -- finding ---------------------------------------------------------------------------------------


async def test_deregistering(registry: Registry) -> None:
    await registry.register(instance(node="a"))
    await registry.register(instance(node="b"))
    await registry.deregister("micro", "a")
    (service,) = await registry.get("micro", "greeter")
    assert [node.id for node in service.nodes] == ["b"]
    before = await registry.snapshot()
    await registry.deregister("micro", "a")
    await registry.deregister("nowhere", "b")
    assert await registry.snapshot() == before
    await registry.deregister("micro", "b")
    with pytest.raises(NotFound):
        await registry.get("micro", "greeter")
    assert await registry.list("micro") == []


async def test_versions_and_nodes_newest_first(registry: Registry) -> None:
    old, new = Endpoint(name="Greeter.Old"), Endpoint(name="Greeter.New")
    await registry.register(instance(node="a", version="1", endpoints=(old,), metadata={"by": "a"}))
    await registry.register(instance(node="b", version="2", endpoints=(old,)))
    await registry.register(instance(node="c", version="1", endpoints=(new,), metadata={"by": "c"}))
    first, second = await registry.get("micro", "greeter")
    assert (first.version, [n.id for n in first.nodes]) == ("1", ["c", "a"])
    assert (first.endpoints, first.metadata) == ((new,), {"by": "c"})
    assert (second.version, [n.id for n in second.nodes]) == ("2", ["b"])
    # A changed registration is the newest; a renewal is not.
    await registry.register(instance(node="b", version="2", endpoints=(new,)))
    await registry.register(instance(node="a", version="1", endpoints=(old,), metadata={"by": "a"}))
    assert [s.version for s in await registry.get("micro", "greeter")] == ["2", "1"]
    assert (await registry.get("micro", "greeter"))[1].endpoints == (new,)


async def test_names_match_without_regard_to_case(registry: Registry) -> None:
    await registry.register(instance("Greeter"))
    for name in ("greeter", "GREETER", "gReeTer"):
        assert (await registry.get("micro", name))[0].name == "Greeter"


@pytest.mark.parametrize("asked", ["greter", "GREETERS", "Grete"])
async def test_what_is_near_is_said(registry: Registry, asked: str) -> None:
    await registry.register(instance("Greeter"))
    await registry.register(instance("billing", "n2"))
    await registry.register(instance("greeters-of-others", "n3", namespace="other"))
    with pytest.raises(NotFound) as caught:
        await registry.get("micro", asked)
    assert caught.value.id == "registry"
    assert asked in caught.value.detail
    assert "did you mean Greeter?" in caught.value.detail
    with pytest.raises(NotFound, match="'xyzzy'") as caught:
        await registry.get("micro", "xyzzy")
    assert "did you mean" not in caught.value.detail
    with pytest.raises(NotFound):
        await registry.get("other", "greeter")
    with pytest.raises(NotFound):
        await registry.get("*", "Greeter")


async def test_lists_are_sorted_and_of_one_namespace_or_all(registry: Registry) -> None:
    for name, version, namespace in (
        ("b", "1", "z"), ("b", "2", "a"), ("a", "1", "z"), ("b", "1", "a"), ("a", "9", "z"),
    ):  # fmt: skip
        node = f"{name}{version}{namespace}"
        await registry.register(instance(name, node, version=version, namespace=namespace))

    async def rows(namespace: str) -> list[tuple[str, str, str]]:
        return [(s.namespace, s.name, s.version) for s in await registry.list(namespace)]

    assert await rows("z") == [("z", "a", "1"), ("z", "a", "9"), ("z", "b", "1")]
    assert await rows("a") == [("a", "b", "1"), ("a", "b", "2")]
    assert await rows("*") == await rows("a") + await rows("z")
    assert await rows("micro") == []


async def test_a_snapshot_is_in_the_order_of_registration(registry: Registry) -> None:
    for node in ("c", "a", "b"):
        await registry.register(instance(node=node))
    await registry.register(instance(node="a", weight=5))
    snapshot = await registry.snapshot()
    assert [i.node.id for i in snapshot.instances] == ["c", "b", "a"]
    assert (await registry.snapshot()).epoch == snapshot.epoch


async def test_a_snapshot_larger_than_a_message(registry: Registry) -> None:
    """More than the 16 MiB that one message may have."""
    schema = {"description": "x" * 900_000}
    many = [
        instance(node=f"n{i}", endpoints=(Endpoint(name="A.B", request=schema),)) for i in range(20)
    ]
    for each in many:
        await registry.register(each)
    assert (await registry.snapshot()).instances == tuple(many)


async def test_many_tasks_at_once(registry: Registry) -> None:
    """Watched from the start, the changes lead to the snapshot of the end."""
    start = await registry.snapshot()
    dice = random.Random(7)

    async def churn(number: int) -> None:
        for _ in range(10):
            if dice.random() < 0.7:
                await registry.register(instance(node=f"n{number % 7}", weight=dice.randrange(3)))
            else:
                await registry.deregister("micro", f"n{number % 7}")

    await asyncio.gather(*(churn(number) for number in range(30)))
    end = await registry.snapshot()
    held: dict[str, Instance] = {}
    seen = [start.revision]
    async with contextlib.aclosing(
        registry.watch(epoch=start.epoch, revision=start.revision)
    ) as changes:
        # Not all writes change anything: the last that does may be before the end.
        while held != {i.node.id: i for i in end.instances} or len(seen) < 20:
            change = await anext(changes)
            assert seen[-1] < change.revision <= end.revision
            seen.append(change.revision)
            if change.action is Action.PUT:
                assert held.get(change.instance.node.id) != change.instance
                held[change.instance.node.id] = change.instance
            else:
                assert held.pop(change.instance.node.id) == change.instance


async def test_only_its_holder_takes_a_registration_away(registry: Registry) -> None:
    """The end of an older holder leaves the newer alone, whichever way it came."""
    await registry.register(instance(), holder="old")
    start = await registry.snapshot()
    async with contextlib.aclosing(
        registry.watch(epoch=start.epoch, revision=start.revision)
    ) as changes:
        await registry.register(instance(), holder="new")
        await registry.deregister("micro", "n1", holder="old")
        assert (await registry.snapshot()).instances == (instance(),)
        await registry.register(instance(), holder="new")
        assert await registry.renew("micro", ["n1"]) == []
        await registry.deregister("micro", "n1", holder="new")
        assert (await registry.snapshot()).instances == ()
        change = await anext(changes)  # who held it is no change
        assert (change.action, change.instance) == (Action.DELETE, instance())
    await registry.register(instance(), holder="newest")
    await registry.deregister("micro", "n1")
    assert (await registry.snapshot()).instances == ()


async def test_a_new_holder_does_not_change_the_order(registry: Registry) -> None:
    for node in ("a", "b"):
        await registry.register(instance(node=node), holder="old")
    for _ in range(2):
        await registry.register(instance(node="a"), holder=f"new-{_}")
    await registry.register(instance(node="a"), holder="new-1", ttl=50)
    assert [i.node.id for i in (await registry.snapshot()).instances] == ["a", "b"]
    (service,) = await registry.get("micro", "greeter")
    assert [node.id for node in service.nodes] == ["b", "a"]
