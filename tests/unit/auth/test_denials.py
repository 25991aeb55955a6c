"""What was refused comes to the record: what is the same once, and so much of it a second."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from micro_ray.auth import Audit, Identity, Kind
from micro_ray.auth.denials import LONGEST, MOST, WAITING, Denials, Entering
from micro_ray.errors import Forbidden, Unauthorized
from tests.fixtures.auths import BOSS, ROOT, identity
from tests.fixtures.stores import Clock
from tests.unit.auth.test_passes import STORE, Place
from tests.unit.auth.test_refusals import opened, refusals

SHOP = Identity(id="shop-1", kind=Kind.SERVICE, namespace="acme", scopes=("service",))
DENIED = Audit(
    id="", time=1_700_000_000.0, action="call", by="acme/jane", namespace="acme",
    subject="shop:Shop.Buy", allowed=False, detail={"why": "no"},
)  # fmt: skip


def test_what_a_service_refuses_is_kept_for_the_record() -> None:
    at = Place()
    with pytest.raises(Forbidden):
        at.callers.admit(at.door.to("micro", "store", at.account()), STORE)
    for _ in range(3):
        at.clock.now += 0.25
        with pytest.raises(Unauthorized):
            at.callers.admit({}, STORE)
    first, second = at.denials.take(10)
    assert (first.by, first.namespace, first.subject) == ("acme/jane", "acme", "store:Store.Read")
    assert (first.allowed, second.by) == (False, "")
    assert "count" not in first.detail
    assert (second.detail["count"], second.time) == (3, at.clock.now - 0.5)
    assert len(at.denials) == 0


def test_they_are_bounded_and_what_there_is_no_room_for_is_told() -> None:
    at = Place()
    for number in range(WAITING + 5):
        at.denials.add(at.account(f"a-{number}"), STORE, "acme", "no")
    at.denials.add(at.account("a-5"), STORE, "acme", "no")  # one that waits takes no room
    assert (len(at.denials), at.denials.dropped) == (WAITING, 5)
    first, second = at.denials.take(2)
    assert (first.by, first.detail) == ("acme/a-5", {"why": "no", "count": 2, "left_out": 5})
    assert second.detail == {"why": "no"}
    at.denials.put_back([first, second])
    at.denials.add(at.account("a-6"), STORE, "acme", "no")
    assert [entry.detail for entry in at.denials.take(2)] == [
        {"why": "no", "count": 2, "left_out": 5}, {"why": "no", "count": 2},
    ]  # fmt: skip


def test_what_cannot_be_entered_waits_again_in_its_place() -> None:
    denials, at = Denials(Clock()), Place()
    for name in "abcd":
        denials.add(at.account(name), STORE, "acme", "no")
    first = denials.take(2)
    denials.put_back(first)
    assert [entry.by for entry in denials.take(9)] == [f"acme/{name}" for name in "abcd"]
    for number in range(WAITING - 1):
        denials.add(at.account(str(number)), STORE, "acme", "no")
    denials.put_back(first)
    assert (len(denials), denials.dropped) == (WAITING, 1)
    assert denials.take(1)[0].by == "acme/b"


async def test_a_service_tells_of_its_namespace_and_with_its_name() -> None:
    clock = Clock()
    async with opened(clock) as auth:
        clock.now += 1
        forged = replace(
            DENIED, time=clock.now + 500, action="login", allowed=True, namespace="other",
            subject="x" * 999, detail={"why": 5, "count": True, "left_out": -3, "more": "x"},
        )  # fmt: skip
        await auth.note(replace(DENIED, detail={"why": "no", "count": 7}), forged, by=SHOP)
        first, second = await refusals(auth)
        assert first.detail == {"why": "no", "count": 7, "told_by": "shop-1"}
        assert first.subject == "shop:Shop.Buy"
        assert (second.action, second.namespace, second.time) == ("call", "acme", clock.now)
        assert second.subject == "x" * LONGEST
        assert second.detail == {"why": "5", "namespace": "other", "told_by": "shop-1"}
        weak: list[Any] = [
            BOSS, identity("u"), replace(SHOP, scopes=()), replace(SHOP, kind=Kind.USER),
        ]  # fmt: skip
        for by in weak:
            with pytest.raises(Forbidden):
                await auth.note(DENIED, by=by)


async def test_a_flood_of_them_is_entered_as_a_count() -> None:
    clock = Clock()
    async with opened(clock) as auth:
        flood = [replace(DENIED, subject=f"shop:Shop.E{n}") for n in range(MOST + 10)]
        await auth.note(*flood, by=SHOP)
        await auth.note(*flood, by=ROOT)
        # What nobody asks for leaves room for what accounts do, and each namespace has its own.
        await auth.note(*(replace(e, by="") for e in flood), by=ROOT)
        await auth.note(replace(DENIED, by="beta/eve"), replace(DENIED, namespace="beta"), by=ROOT)
        assert len(await refusals(auth)) == 2 * MOST + 2
        clock.now += 1
        await auth.note(replace(DENIED, detail={"why": "no", "left_out": 4}), by=SHOP)
        (last,) = [entry for entry in await refusals(auth) if "left_out" in entry.detail]
        assert last.detail["left_out"] == (MOST + 20) + 4


def test_what_is_no_denial_is_entered_always() -> None:
    entering = Entering(Clock())
    done = [replace(DENIED, action="keys.rotate", allowed=True)] * (MOST + 5)
    assert entering.few(entering.said(ROOT, done)) == done
