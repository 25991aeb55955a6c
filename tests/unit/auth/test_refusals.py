"""What is refused is entered; keys that are too young do not sign; what hashing costs."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from micro_ray.auth import Audit, Identity, Kind, Rule
from micro_ray.auth.passwords import Passwords
from micro_ray.auth.records import AccountRow
from micro_ray.auth.refusals import MOST
from micro_ray.auth.stored import StoredAuth
from micro_ray.errors import Conflict, Forbidden, Unauthorized
from micro_ray.sealing import KeyFile
from micro_ray.settings import Auth as Settings
from micro_ray.store import Store
from micro_ray.store.memory import MemoryStore
from tests.fixtures.auths import BOSS, ROOT, SETTINGS, identity
from tests.fixtures.stores import Clock

JANE = identity("jane", namespace="acme", scopes=("a",))


@asynccontextmanager
async def opened(
    clock: Clock, settings: Settings = SETTINGS, store: Store | None = None
) -> AsyncIterator[StoredAuth]:
    with tempfile.TemporaryDirectory(prefix="rf-") as name:
        sealing = KeyFile(Path(name) / "auth.keys", "auth")
        settings = replace(settings, password_memory=8, password_passes=1)
        async with (
            MemoryStore() as own,
            StoredAuth(store or own, sealing, settings=settings, clock=clock) as auth,
        ):
            yield auth


async def refusals(auth: StoredAuth) -> list[Audit]:
    return [entry for entry in await auth.audits(by=ROOT) if not entry.allowed]


async def test_who_is_refused_is_entered_with_what_he_tried() -> None:
    clock = Clock()
    async with opened(clock) as auth:
        tries = [
            ("rule.create", "r", auth.create_rule(Rule(id="r"), namespace="acme", by=JANE)),
            ("account.create", "x", auth.generate("x", namespace="acme", by=JANE)),
            ("account.delete", "boss", auth.delete("boss", namespace="acme", by=JANE)),
            ("keys.rotate", "", auth.rotate(by=BOSS)),
            ("token.issue", "door", auth.issue("door", by=BOSS)),
            ("token.revoke", "boss", auth.revoke(account="boss", namespace="acme", by=JANE)),
        ]
        for _, _, refused in tries:
            clock.now += 1
            with pytest.raises(Forbidden):
                await refused
        found = await refusals(auth)
        assert [(e.action, e.subject) for e in found] == [(a, s) for a, s, _ in tries]
        assert {e.namespace for e in found} == {"acme"}
        assert found[0].by == "acme/jane"
        assert "administer" in found[0].detail["why"]
        assert found[3].detail["namespace"] == "micro"


async def test_what_is_entered_is_bounded_and_counted() -> None:
    clock = Clock()
    async with opened(clock) as auth:
        for _ in range(MOST + 7):
            with pytest.raises(Forbidden):
                await auth.delete_rule("r", namespace="other", by=JANE)
        with pytest.raises(Forbidden):
            await auth.delete_rule("r", by=identity("u", namespace="beta"))
        found = await refusals(auth)
        assert sorted(e.namespace for e in found) == ["acme"] * MOST + ["beta"]
        clock.now += 1
        with pytest.raises(Forbidden):
            await auth.delete_rule("r", namespace="other", by=JANE)
        assert (await refusals(auth))[-1].detail["left_out"] == 7


async def test_a_wrong_old_secret_is_entered_and_nobody_is_not() -> None:
    async with opened(Clock()) as auth:
        await auth.generate("jane", secret="her secret", namespace="acme", by=ROOT)
        with pytest.raises(Unauthorized):
            await auth.change_secret("jane", old="wrong", namespace="acme", by=JANE)
        for by in (None, "no.to.ken"):
            with pytest.raises(Unauthorized):
                await auth.delete_rule("r", by=by)
        (found,) = await refusals(auth)
        assert (found.action, found.by, found.subject) == ("account.secret", "acme/jane", "jane")
        assert "wrong" not in str(found.detail)


async def test_a_key_signs_once_it_is_known() -> None:
    clock = Clock()
    async with opened(clock, replace(SETTINGS, publish=10)) as auth:
        first = await auth.keys()
        clock.now += 4
        with pytest.raises(Conflict, match="wait 6 s") as caught:
            await auth.rotate(by=ROOT)
        assert caught.value.retry_after == 6
        clock.now += 6
        second = await auth.rotate(by=ROOT)
        assert [k.id for k in second if k.state == "active"] == [first[-1].id]
        with pytest.raises(Conflict, match="wait 10 s"):
            await auth.rotate(by=ROOT)
        assert await auth.keys() == second


async def test_a_key_that_is_over_its_time_signs_on_until_the_next_is_known() -> None:
    clock = Clock()
    async with opened(clock, replace(SETTINGS, publish=10, key_ttl=5)) as auth:
        (active, _) = await auth.keys()
        clock.now += 6
        await auth.issue("p", by=ROOT)
        assert (await auth.keys())[0] == active
        clock.now += 5
        await auth.issue("p", by=ROOT)
        assert (await auth.keys())[0].state == "retired"


async def test_the_cost_of_hashing_is_a_setting() -> None:
    """What was hashed at another cost is hashed anew when it is proved."""
    clock = Clock()
    async with MemoryStore() as store, opened(clock, store=store) as auth:
        await auth.generate("jane", secret="her secret", by=ROOT)
        row = await auth._records.get("accounts", "micro/jane", AccountRow)
        assert row is not None
        assert "m=8,t=1" in row[0].hash
        auth._passwords.close()
        auth._accounts._passwords = Passwords(memory=16, passes=2)
        await auth.token("jane", "her secret")
        row = await auth._records.get("accounts", "micro/jane", AccountRow)
        assert row is not None
        assert "m=16,t=2" in row[0].hash
        await auth.token("jane", "her secret")
        auth._accounts._passwords.close()


async def test_who_administers_comes_into_possession_of_nothing() -> None:
    """Also by way of an account that holds more."""
    service = Identity(id="s", kind=Kind.SERVICE, namespace="micro", scopes=("service",))
    async with opened(Clock()) as auth:
        await auth.generate("root", kind=Kind.ADMIN, by=ROOT)
        for refused in (
            auth.change_secret("root", by=service),
            auth.delete("root", by=service),
            auth.enable("root", False, by=service),
        ):
            with pytest.raises(Forbidden):
                await refused
