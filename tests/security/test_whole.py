"""The limits and quotas of a namespace as a whole bind who administers it: he reads them, and no
write of his, of whatever path, changes them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from micro_ray import AsyncClient
from micro_ray.errors import Conflict, Forbidden
from tests.security.guarded import Guarded, guarded

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE = {
    "namespace": {"rate": 100.0},
    "store": {"bytes": 1000, "rate": 10.0},
    "events": {"bytes": 1000},
    "broker": {"rate": 10.0},
}
MINE = {"account": {"rate": 5.0}, "services": {"echo": {"concurrency": 2}}}
number = itertools.count()


class Tenant:
    def __init__(self, operator: AsyncClient, admin: AsyncClient) -> None:
        self.operator, self.admin = operator, admin

    async def limits(self) -> Any:
        found = await self.operator.call("config", "Config.Get", {"path": "limits", "default": {}})
        return found["data"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at() -> AsyncIterator[Guarded]:
    async with guarded() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def tenant(at: Guarded) -> AsyncIterator[Tenant]:
    """A namespace of its own for each test, with limits that the operator has set."""
    name, who = f"tenant-{next(number)}", f"operator-{next(number)}"
    boss = await at.authority.login("boss", name, scopes=("admin",))
    owner = await at.authority.login(who, scopes=("admin",))
    boot = replace(at.here.bootstrap, namespace=name)
    async with (
        AsyncClient(replace(boot, token=owner.access)) as operator,
        AsyncClient(replace(boot, token=boss.access)) as admin,
    ):
        set_them = {"path": "limits", "value": {**WHOLE, **MINE}}
        await operator.call("config", "Config.Set", set_them)
        await operator.call("config", "Config.Set", {"path": "other", "value": 1})
        yield Tenant(operator, admin)


WRITES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Set", {"path": "", "value": {}}),
    ("Set", {"path": "", "value": {"limits": MINE}}),
    ("Set", {"path": "", "value": {"limits": {**WHOLE, "store": {"bytes": 10**12}}}}),
    ("Set", {"path": "limits", "value": MINE}),
    ("Set", {"path": "limits", "value": {**WHOLE, "namespace": {"rate": 10**6}}}),
    ("Set", {"path": "limits", "value": 1}),
    ("Set", {"path": "limits.namespace", "value": {"rate": 1}}),
    ("Set", {"path": "limits.store.bytes", "value": 10**12}),
    ("Delete", {"path": ""}),
    ("Delete", {"path": "limits"}),
    ("Delete", {"path": "limits.broker"}),
    ("Delete", {"path": "limits.events.bytes"}),
    ("Merge", {"path": "", "value": {"limits": None}}),
    ("Merge", {"path": "", "value": {"limits": {"store": None}}}),
    ("Merge", {"path": "limits", "value": {"namespace": {"rate": 10**6}}}),
    ("Merge", {"path": "limits", "value": None}),
    ("Merge", {"path": "limits.store", "value": {"bytes": 10**12}}),
    ("Rollback", {"version": 0, "path": ""}),
    ("Rollback", {"version": 0, "path": "limits"}),
    ("Rollback", {"version": 0, "path": "limits.store"}),
)  # fmt: skip


@pytest.mark.parametrize(("verb", "request_"), WRITES, ids=str)
async def test_no_write_changes_them(tenant: Tenant, verb: str, request_: dict[str, Any]) -> None:
    before = await tenant.limits()
    with pytest.raises(Forbidden, match="set by who keeps the platform"):
        await tenant.admin.call("config", f"Config.{verb}", request_)
    assert await tenant.limits() == before
    await tenant.operator.call("config", f"Config.{verb}", request_)


@pytest.mark.parametrize("kind", WHOLE)
async def test_nor_do_the_verbs_of_limits(tenant: Tenant, kind: str) -> None:
    for verb, request in (("Set", {"kind": kind, "rate": 1000.0}), ("Unset", {"kind": kind})):
        with pytest.raises(Forbidden, match="who keeps the platform"):
            await tenant.admin.call("limits", f"Limits.{verb}", request)
        await tenant.operator.call("limits", f"Limits.{verb}", request)


async def test_the_rest_is_his(tenant: Tenant) -> None:
    """His limits of accounts, services and routes, and all other config, also in one write with
    what is kept as it is."""
    call = tenant.admin.call
    await call("limits", "Limits.Set", {"kind": "service", "name": "echo", "rate": 7.0})
    await call("limits", "Limits.Unset", {"kind": "account"})
    now = await tenant.limits()
    assert {word: now[word] for word in WHOLE} == WHOLE
    assert now["services"]["echo"]["rate"] == 7.0
    changed = {**WHOLE, "routes": {"echo": {"Echo": {"Call": {"rate": 1.0}}}}}
    await call("config", "Config.Set", {"path": "", "value": {"limits": changed, "mine": 2}})
    assert await tenant.limits() == changed
    await call("config", "Config.Set", {"path": "limits", "value": {**WHOLE, **MINE}})
    await call("config", "Config.Merge", {"path": "", "value": {"mine": None, "more": [1]}})
    await call("config", "Config.Merge", {"path": "limits", "value": {"account": None}})
    found = await call("config", "Config.Version")
    await call("config", "Config.Delete", {"path": "more"})
    await call("config", "Config.Rollback", {"version": found["version"], "path": ""})
    now = (await call("config", "Config.Get", {"path": ""}))["data"]
    assert now == {"more": [1], "limits": {**WHOLE, "services": MINE["services"]}}


async def test_what_is_set_meanwhile_is_not_lost(tenant: Tenant) -> None:
    """A write over what is there is allowed for that alone."""
    call = tenant.admin.call
    whole = await call("config", "Config.Get", {"path": ""})
    for wrong in (whole["version"] + 1, whole["version"] - 1):
        request = {"path": "", "value": whole["data"], "expected": wrong}
        with pytest.raises(Conflict):
            await call("config", "Config.Set", request)
    request = {"path": "", "value": whole["data"], "expected": whole["version"]}
    await call("config", "Config.Set", request)


async def test_what_he_sets_wrong_keeps_none_out(at: Guarded) -> None:
    boss = await at.authority.login("boss", "wrong", scopes=("admin",))
    owner = await at.authority.login("of-wrong", scopes=("admin",))
    boot = replace(at.here.bootstrap, namespace="wrong")
    wrong = {"path": "limits", "value": {"services": {"echo": {"rate": "fast"}}}}
    async with AsyncClient(replace(boot, token=boss.access)) as admin:
        await admin.call("config", "Config.Set", {"path": "limits.service.rate", "value": 9})
        await admin.call("config", "Config.Set", wrong)
        async with AsyncClient(replace(boot, token=owner.access)) as operator:
            for word, value in WHOLE.items():
                request = {"path": f"limits.{word}", "value": value}
                await operator.call("config", "Config.Set", request)
        standing = await admin.call("limits", "Limits.List")
    assert "echo" in standing["problem"]
    kinds = {rule["kind"]: rule["limit"]["rate"] for rule in standing["rules"]}
    assert kinds == {"namespace": 100.0, "store": 10.0, "broker": 10.0, "service": 9.0}
    assert (standing["store"]["bytes"], standing["events"]["bytes"]) == (1000, 1000)


async def test_where_none_are_set_nothing_is_in_the_way(at: Guarded) -> None:
    boss = await at.authority.login("boss", "free", scopes=("admin",))
    async with AsyncClient(replace(at.here.bootstrap, namespace="free", token=boss.access)) as me:
        await me.call("config", "Config.Set", {"path": "", "value": {"a": 1}})
        await me.call("config", "Config.Delete", {"path": "limits"})
        await me.call("config", "Config.Set", {"path": "limits", "value": MINE})
        await me.call("config", "Config.Rollback", {"version": 1, "path": ""})
        await me.call("config", "Config.Delete", {"path": "limits"})
        with pytest.raises(Forbidden):
            await me.call("config", "Config.Set", {"path": "limits.namespace.rate", "value": 1})
