"""Clients and services on a platform that asks who they are: who one is, and what one is told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from micro_ray import AsyncClient, Service
from micro_ray.auth.passes import Issuer, PrivateKey
from micro_ray.context import current
from micro_ray.errors import Forbidden, PreconditionFailed, Unauthorized
from micro_ray.sdk.authority import ITSELF
from micro_ray.sdk.logins import Login, Logins
from micro_ray.wire import authcache
from micro_ray.wire.trust import Holder
from tests.fixtures.wait import eventually
from tests.security.guarded import Guarded, Verb, guarded

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at() -> AsyncIterator[Guarded]:
    async with guarded() as found:
        yield found


async def test_nobody_is_told_to_log_in(at: Guarded) -> None:
    async with AsyncClient(replace(at.here.bootstrap, token="")) as client:
        with pytest.raises(Unauthorized, match="micro login"):
            await client.call("helloworld")
        with pytest.raises(Unauthorized, match="log in"):
            await client.call("store", "Store.List")
        assert "helloworld" not in await client.services()
        assert await client.token() == ""


async def test_who_has_a_token_that_is_none_is_told_so(at: Guarded) -> None:
    """And not that there is no platform."""
    made = await at.authority.login("voided", scopes=("admin",))
    await at.authority.auth.revoke(token=made.access, by=ITSELF)
    for token in (made.access, "none.at.all"):
        async with AsyncClient(replace(at.here.bootstrap, token=token)) as client:
            with pytest.raises(Unauthorized, match="token"):
                await client.call("helloworld")


async def test_a_service_is_not_given_the_token_that_it_is_called_with(at: Guarded) -> None:
    seen: list[dict[str, str]] = []
    spy = Service("spy")

    @spy.endpoint
    async def call() -> dict[str, str]:
        seen.append(dict(current().metadata))
        return {"by": current().caller}

    await at.here.serve(spy)
    tokens = await at.authority.login("spied")
    boot = replace(at.here.bootstrap, token=tokens.access)
    async with AsyncClient(boot) as client:
        assert await client.call("spy") == {"by": "spied"}
    await eventually(lambda: at.network.table.known("micro", "spy"))
    answer = await at.http.post("/spy", headers={"authorization": f"Bearer {tokens.access}"})
    assert answer.json() == {"by": "spied"}
    assert len(seen) == 2
    for metadata in seen:
        assert tokens.access not in json.dumps(metadata)
        # What it was given is good for itself alone.
        along = {"authorization": metadata["authorization"]}
        for service, endpoint in (("helloworld", "Helloworld.Call"), ("events", "Events.Topics")):
            verb = Verb(service=service, endpoint=endpoint)
            code, said = await at.code("frames", verb, along)
            assert (code, "another service" in said) == (401, True)


async def test_a_service_calls_as_itself(at: Guarded) -> None:
    seen: list[tuple[str, str]] = []
    back, front = Service("back"), Service("front")

    @back.endpoint(name="Back.Call")
    async def serve() -> None:
        identity = current().identity
        seen.append((identity.id, str(identity.kind)))

    @front.endpoint
    async def call() -> None:
        await front.client.call("back")
        await front.store.write("key", b"value")

    await at.here.serve(back, "back-1")
    await at.here.serve(front, "front-1")
    await at.here.client.call("front")
    assert seen == [("front-1", "service")]


async def test_a_login_is_read_refreshed_and_ends(at: Guarded, tmp_path: Path) -> None:
    tokens = await at.authority.login("worker", scopes=("admin",))
    path = tmp_path / "credentials.json"
    logins = Logins(path)
    known = Login(id="worker", namespace="micro", access=tokens.access, expires=time.time() + 5,
                  refresh=tokens.refresh)  # fmt: skip
    logins.write("here", known)
    boot = replace(at.here.bootstrap, token="", credentials=path, place="here")

    async def work() -> None:
        async with AsyncClient(boot) as client:
            await client.call("store", "Store.List")

    # Many at once: the refresh token is used once.
    await asyncio.gather(*(work() for _ in range(5)))
    after = logins.read("here")
    assert after is not None
    assert after.refresh != tokens.refresh
    assert after.expires > time.time() + 100
    await at.authority.auth.refresh(after.refresh)
    logins.write("here", replace(after, expires=0.0))
    async with AsyncClient(boot) as client:
        with pytest.raises(Unauthorized):
            await client.call("store", "Store.List")
    assert logins.read("here") is None
    path.write_text("{}")
    path.chmod(0o644)
    with pytest.raises(PreconditionFailed, match="chmod 600"):
        async with AsyncClient(boot):
            pass


async def test_a_replica_renews_its_identity(at: Guarded) -> None:
    own = PrivateKey()
    short = Issuer(at.authority.key, "micro", "micro", 3.0)
    token = short.issue("renewing-1", "micro", ("service",), own.public)
    holder = Holder(f"{token} {own.text}")
    from micro_ray.wire.dialer import WireDialer

    dialer = WireDialer(credentials=holder.passes.itself)
    async with holder.renewed(dialer, at.here.bootstrap.auths):
        await eventually(lambda: holder.token != token, within=15)
        assert holder.identity.expires > time.time() + 60
        assert (holder.identity.id, holder.identity.scopes) == ("renewing-1", ("service",))


async def test_a_replica_that_is_no_more_renews_nothing(at: Guarded) -> None:
    """Who had its key, from a copy of its environment, could be it for ever."""
    asked: list[tuple[str, str]] = []

    async def lives(namespace: str, id: str) -> bool:
        asked.append((namespace, id))
        return id == "living-1"

    authority, here = at.authority, at.here
    await here.hosts["authcache"].close()
    face = authcache.endpoints(
        authority.cache, authority.passes("authcache"), authority.issuer, lives
    )
    await here.keep("authcache", face)
    verb = Verb(service="authcache", endpoint="AuthCache.Renew")

    async def there() -> bool:
        holder = Holder(authority.issuer.identity("living-1", "acme"))
        code, _ = await at.code("frames", verb, holder.passes.itself("micro", "authcache"))
        return code == 200

    await eventually(there)
    holder = Holder(authority.issuer.identity("gone-1", "acme"))
    code, said = await at.code("frames", verb, holder.passes.itself("micro", "authcache"))
    assert (code, "runs no more" in said) == (403, True)
    assert asked[-1] == ("acme", "gone-1")


async def test_a_replica_may_not_register_as_a_service_of_the_platform(at: Guarded) -> None:
    impostor = Service("store")
    boot = replace(
        at.here.bootstrap, token="", identity=at.authority.issuer.identity("x-1", "micro")
    )
    starting = asyncio.create_task(impostor.start(boot, "x-1"))
    with pytest.raises((Forbidden, TimeoutError)):
        async with asyncio.timeout(3):
            await starting
    routes = at.network.table.lookup("micro", "store")
    assert [route.id for route in routes if route.id == "x-1"] == []


@pytest.mark.parametrize("namespace", ["acme", "other"])
async def test_an_account_may_not_register(at: Guarded, namespace: str) -> None:
    tokens = await at.authority.login(f"user-{namespace}", namespace)
    boot = replace(at.here.bootstrap, token=tokens.access, namespace=namespace)
    async with AsyncClient(boot) as client:
        with pytest.raises(Forbidden):
            await client.call("registry", "Registry.Deregister", {"node": "x"})


async def test_denials_of_a_replica_come_to_the_record(at: Guarded) -> None:
    """What a service refuses to who comes without a door, a flood of it as one."""
    from micro_ray.sdk.authority import ITSELF

    auth, verb = at.authority.auth, Verb(service="helloworld", endpoint="Helloworld.Call")
    for _ in range(50):
        code, _ = await at.code("frames", verb, {})
        assert code == 401

    async def told() -> int:
        rows = await auth.audits(by=ITSELF)
        found = [
            row for row in rows
            if row.subject == "helloworld:Helloworld.Call" and row.detail.get("told_by")
        ]  # fmt: skip
        assert {(row.by, row.namespace, row.allowed) for row in found} <= {("", "micro", False)}
        assert len(found) <= 10
        return sum(row.detail.get("count", 1) for row in found) == 50

    await eventually(told, within=15)


async def test_denials_come_to_the_record(at: Guarded) -> None:
    tokens = await at.authority.login("curious")
    head = {"authorization": f"Bearer {tokens.access}"}
    assert (await at.http.post("/store/list", headers=head)).status_code == 403
    auth = at.authority.auth
    from micro_ray.sdk.authority import ITSELF

    async def told() -> bool:
        rows = await auth.audits(by=ITSELF)
        return any(
            row.by == "micro/curious" and row.subject == "store:Store.List" and not row.allowed
            for row in rows
        )

    await eventually(told, within=15)
