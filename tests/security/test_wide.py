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

from micro_ray.auth import Identity, Resource, Rule
from micro_ray.runtime import Workload
from micro_ray.runtime.archives import Archives
from micro_ray.runtime.process import ProcessDriver
from micro_ray.runtime.reconcile import Reconciler
from micro_ray.sdk.authority import ITSELF
from micro_ray.wire import runtime as runtimes
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
        code, _ = await at.code(way, read, head, b'{"topic": "auth.audit"}')
        assert code == 403
        await at.authority.auth.delete_rule("guests", namespace="acme", by=ITSELF)
        await at.here.hosts["runtime"].close()


def _lets_in(at: Guarded) -> bool:
    assert at.here.trust is not None
    guest = Identity(id="guest", namespace="other")
    asked = Resource(name="runtime", endpoint="Runtime.Read")
    return at.here.trust.guard.decide(guest, asked, "acme").allowed


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


@pytest.mark.parametrize(("space", "code"), [("acme", 403), ("micro", 200)])
async def test_limits_of_others_are_lent_to_nobody(at: Guarded, space: str, code: int) -> None:
    """A service could take away what another namespace may do, by asking for all of it."""
    ask = {"place": {"namespace": space, "kind": "namespace"}, "limit": {"rate": 1}, "want": 1}
    assert await said(at, "replica", "limits", "Limits.Lend", {"asks": [ask]}) == code
