"""What is the platform's own is nobody's else: also not of who has all of the namespace that it is
kept in, or of another one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from micro_ray.actors import auth as publishing
from micro_ray.auth import Identity, Resource, Rule
from micro_ray.auth import records as accounts
from micro_ray.config import records as documents
from micro_ray.runtime import Workload, archives, desired
from micro_ray.runtime.archives import Archives
from micro_ray.runtime.process import ProcessDriver
from micro_ray.runtime.reconcile import Reconciler
from micro_ray.sdk.authority import ITSELF
from micro_ray.wire import events
from micro_ray.wire import runtime as runtimes
from micro_ray.wire import store as face
from micro_ray.wire.trust import Holder
from tests.fixtures.wait import eventually
from tests.security.guarded import Guarded, Verb, guarded

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at() -> AsyncIterator[Guarded]:
    async with guarded() as found:
        yield found


async def who(at: Guarded, name: str, verb: Verb) -> tuple[str, dict[str, str]]:
    """The way in of somebody, and what he says."""
    authority = at.authority
    if name == "replica":
        holder = Holder(authority.issuer.identity("own-1", "micro"))
        return "frames", dict(holder.passes.itself("micro", verb.service))
    space, _, scope = name.partition("/")
    known = _known.setdefault(id(at), {})
    if name not in known:
        scopes = (scope,) if scope else ()
        known[name] = (await authority.login(f"own-{scope}", space, scopes=scopes)).access
    return "http", {"authorization": f"Bearer {known[name]}"}


#: The tokens of accounts that are made once per platform.
_known: dict[int, dict[str, str]] = {}


async def said(at: Guarded, name: str, service: str, endpoint: str, request: Any) -> int:
    verb = Verb(service=service, endpoint=endpoint)
    way, head = await who(at, name, verb)
    code, _ = await at.code(way, verb, head, json.dumps(request).encode(), within=2.0)
    return code


PLACES = (
    {"database": "auth", "table": "accounts"},
    {"database": "config", "table": "acme"},
    {"table": "runtime"},
)
#: Verbs of the store that are about a place.
STORE: dict[str, dict[str, Any]] = {
    "Read": {"key": "acme/boss"},
    "Query": {},
    "Write": {"key": "micro/me", "value": "{}"},
    "Delete": {"key": "acme/boss"},
    "List": {},
    "Watch": {"revision": 0},
}


@pytest.mark.parametrize("name", ["replica", "micro/service", "micro/store-keeper", "acme/admin"])
async def test_the_platforms_records_are_its_own(at: Guarded, name: str) -> None:
    """An account of ``micro`` with the scope of a service had all accounts, and could make itself
    one that administers."""
    if name == "micro/store-keeper":
        rule = Rule(id="keeper", scope="store-keeper", resource=Resource(name="store"),
                    priority=600)  # fmt: skip
        await at.authority.auth.create_rule(rule, by=ITSELF)
        await eventually(lambda: _allowed(at))
    for verb, request in STORE.items():
        for place in PLACES:
            code = await said(at, name, "store", f"Store.{verb}", {**request, **place})
            assert code == 403, (verb, place)
    for place in PLACES:
        database, table = place.get("database", "micro"), place["table"]
        operation = {"kind": "put", "key": "x", "value": "x", "table": table}
        request = {"operations": [{**operation, "table": "mine"}, operation], "database": database}
        assert await said(at, name, "store", "Store.Transaction", request) == 403
    for database in ("auth", "config"):
        assert await said(at, name, "store", "Store.Tables", {"database": database}) == 403
    for verb in ("BlobStore.Read", "BlobStore.Write", "BlobStore.Delete"):
        key = {"key": f"source/{'0' * 64}/acme"}
        assert await said(at, name, "store", verb, key) == 403, verb
    assert await said(at, name, "store", "BlobStore.List", {"prefix": "source/"}) == 403
    # Its own goes on as before.
    assert await said(at, name, "store", "Store.Write", {"key": "mine", "value": "x"}) == 200
    assert await said(at, name, "store", "BlobStore.List", {}) == 200


def _allowed(at: Guarded) -> bool:
    assert at.here.trust is not None
    rules = at.here.trust.guard._rules.get("micro")
    return rules is not None and any(rule.id == "keeper" for rule in rules.ordered)


async def test_a_list_of_blobs_has_none_of_the_platforms(at: Guarded) -> None:
    async def one() -> AsyncIterator[bytes]:
        yield b"x"

    await at.here.store.write_blob("source/0/acme", one())
    await at.here.store.write_blob("sound", one())
    verb = Verb(service="store", endpoint="BlobStore.List")
    way, head = await who(at, "micro/service", verb)
    code, text = await at.code(way, verb, head, b'{"prefix": "so"}')
    assert (code, [blob["key"] for blob in json.loads(text)["blobs"]]) == (200, ["sound"])


async def test_variables_of_a_workload_are_not_told_to_everybody(
    at: Guarded, tmp_path: Path
) -> None:
    """What runs is there for any account to see; what it is given may be secret."""
    store = at.here.store
    archives = Archives(store, tmp_path, namespace="micro", limit=2**20)
    driver = ProcessDriver(tmp_path, environ={}, known=lambda _space, _id: False)
    async with Reconciler(store, {"process": driver}, tmp_path, archives=archives) as runtime:
        await at.here.keep("runtime", runtimes.endpoints(runtime))
        workload = Workload(name="w", command=("sleep", "1"), driver="process", replicas=0,
                            env={"PASSWORD": "hush"})  # fmt: skip
        for space in ("micro", "acme"):
            await runtime.create(replace(workload, namespace=space))
        verb = Verb(service="runtime", endpoint="Runtime.Read")
        await eventually(lambda: at.network.table.known("micro", "runtime"))
        for name, env in (
            ("micro/", {"PASSWORD": ""}), ("acme/", {"PASSWORD": ""}),
            ("acme/admin", {"PASSWORD": "hush"}), ("micro/admin", {"PASSWORD": "hush"}),
            ("replica", {"PASSWORD": "hush"}),
        ):  # fmt: skip
            way, head = await who(at, name, verb)
            code, text = await at.code(way, verb, head)
            assert code == 200, text
            if way == "http":
                assert json.loads(text)[0]["workload"]["env"] == env, name
            else:
                assert "hush" in text
        # Who is let in from elsewhere is told no more than that it runs.
        await at.authority.auth.create_rule(
            Rule(id="guests", scope="+", priority=600), namespace="acme", by=ITSELF
        )
        way, head = await who(at, "other/admin", verb)
        head["micro-namespace"] = "acme"
        await eventually(lambda: _lets_in(at))
        code, text = await at.code(way, verb, head)
        assert (code, json.loads(text)[0]["workload"]["env"]) == (200, {"PASSWORD": ""})
        read = Verb(service="events", endpoint="Events.Read")
        code, _ = await at.code(way, read, head, json.dumps(AUDIT).encode())
        assert code == 403
        await at.authority.auth.delete_rule("guests", namespace="acme", by=ITSELF)
        await at.here.hosts["runtime"].close()


def _lets_in(at: Guarded) -> bool:
    assert at.here.trust is not None
    guest = Identity(id="guest", namespace="other")
    asked = Resource(name="runtime", endpoint="Runtime.Read")
    return at.here.trust.guard.decide(guest, asked, "acme").allowed


AUDIT = {"topic": "auth.audit"}


async def test_what_was_done_is_said_by_auth_alone(at: Guarded) -> None:
    """An account could say that others had done something, and take away what it had done."""
    await at.here.client.call("events", "Events.Publish", {**AUDIT, "payload": "true"})
    for name in ("micro/", "micro/service", "acme/", "acme/admin", "replica"):
        for verb, more in (("Publish", {"payload": "x"}), ("Delete", {}), ("Retain", {"ttl": 1})):
            code = await said(at, name, "events", f"Events.{verb}", {**AUDIT, **more})
            assert code == 403, (name, verb)
    group: dict[str, Any] = {"group": "g"}
    for verb, more in (
        ("Read", {}), ("Replay", {}), ("Consume", group), ("Fetch", group), ("Groups", {}),
        ("Dead", group), ("Requeue", group), ("Discard", group), ("DeleteGroup", group),
    ):  # fmt: skip
        code = await said(at, "micro/", "events", f"Events.{verb}", {**AUDIT, **more})
        assert code == 403, verb
    for name in ("micro/service", "micro/admin", "replica"):
        assert await said(at, name, "events", "Events.Read", AUDIT) == 200
    assert (
        await said(at, "micro/", "events", "Events.Publish", {"topic": "auth", "payload": "x"})
        == 200
    )


async def test_what_is_kept_where() -> None:
    """The face of the store says by name what the others keep in it."""
    assert {accounts.DATABASE, documents.DATABASE} == face.OWN_DATABASES
    assert {desired.TABLE} == face.OWN_TABLES
    assert archives.PREFIX == face.OWN_BLOBS
    assert publishing.TOPIC == events.AUDIT


#: What is about all namespaces at once.
WIDE = (
    "certs:Certs.List",
    "certs:Certs.Renew",
    "config:Config.Rotate",
    "authcache:AuthCache.Status",
)


@pytest.mark.parametrize("name", ["acme/admin", "acme/service", "micro/service", "replica"])
async def test_what_is_of_all_is_not_of_a_tenant(at: Guarded, name: str) -> None:
    """Who administers a tenant could have the key of the authority replaced, all secrets sealed
    anew, and see whose certificates there are."""
    for verb in WIDE:
        service, _, endpoint = verb.partition(":")
        assert await said(at, name, service, endpoint, {}) == 403, verb


async def test_figures_of_the_door_are_not_a_tenants(at: Guarded) -> None:
    """They name the services of all; rules of a tenant's own are no way to them."""
    rule = Rule(id="figures", priority=10_000)
    await at.authority.auth.create_rule(rule, namespace="acme", by=ITSELF)
    verb = Verb(service="api", endpoint="Api.Metrics")
    _, acme = await who(at, "acme/admin", verb)
    _, micro = await who(at, "micro/admin", verb)
    for head, code in (
        ({}, 401), ({"micro-namespace": "acme"}, 401), (acme, 403), (micro, 200),
        ({**micro, "micro-namespace": "acme"}, 200),
    ):  # fmt: skip
        assert (await at.http.get("/metrics", headers=head)).status_code == code, head


@pytest.mark.parametrize(("space", "code"), [("acme", 403), ("micro", 200)])
async def test_limits_of_others_are_lent_to_nobody(at: Guarded, space: str, code: int) -> None:
    """A service could take away what another namespace may do, by asking for all of it."""
    ask = {"place": {"namespace": space, "kind": "namespace"}, "limit": {"rate": 1}, "want": 1}
    assert await said(at, "replica", "limits", "Limits.Lend", {"asks": [ask]}) == code
