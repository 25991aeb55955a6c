"""Who is not of a namespace is told no names of what is there, and cannot have much remembered."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from micro_ray.api import paths
from micro_ray.api.app import Api
from micro_ray.auth import Resource, Rule
from micro_ray.auth import guard as guards
from micro_ray.limits.gate import Gate
from micro_ray.limits.rules import Rules
from micro_ray.sdk.authority import ITSELF
from micro_ray.settings import Api as ApiSettings
from tests.fixtures.wait import eventually
from tests.security.guarded import Guarded, Verb, guarded

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at() -> AsyncIterator[Guarded]:
    async with guarded() as found:
        yield found


NEAR = (Verb(service="helowrld", endpoint="Helloworld.Call"),
        Verb(service="helloworld", endpoint="Helloworld.Calls"))  # fmt: skip


@pytest.mark.parametrize("verb", NEAR, ids=str)
@pytest.mark.parametrize("way", ["http", "grpc"])
async def test_no_names_are_told(at: Guarded, way: str, verb: Verb) -> None:
    """What is near to a name that there is not was said to everybody, of every namespace."""
    tokens = await at.authority.login(f"stranger-{way}-{verb.service}", "acme", scopes=("admin",))
    acme = {"authorization": f"Bearer {tokens.access}", "micro-namespace": "micro"}
    told = set()
    for head in ({}, {"micro-namespace": "micro"}, acme):
        code, said = await at.code(way, verb, head)
        assert code == 404
        told.add(said.partition("x-request-id")[0])
    (one,) = told
    assert "nothing of this name" in one
    own = await at.authority.login(f"own-{way}-{verb.service}")
    _, said = await at.code(way, verb, {"authorization": f"Bearer {own.access}"})
    assert "Helloworld.Call" in said or "/helloworld" in said


async def test_what_strangers_have_remembered_is_little(
    at: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may name any namespace, and spell a path in any way."""
    monkeypatch.setattr(paths, "STRANGERS", 5)
    for number in range(12):
        head = {"micro-namespace": f"n{number}"}
        assert (await at.http.post("/store/store/read", headers=head)).status_code == 401
    known = at.api._paths
    assert len(known._strange) <= 5
    assert known._strange["n11"]._most == paths.STRANGE < paths.CACHE
    assert not any(name.startswith("n1") for name in known._known)


async def test_a_namespace_that_is_named_costs_no_rules(
    at: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules of ten thousand that nobody has made were kept, in each process."""
    monkeypatch.setattr(guards, "PLAIN", 5)
    assert at.here.trust is not None
    guard = at.here.trust.guard
    for number in range(12):
        head = {"micro-namespace": f"r{number}"}
        assert (await at.http.post("/store/store/read", headers=head)).status_code == 401
    assert len(guard._plain) <= 5
    assert not guard.ruled("r1")
    await at.authority.auth.create_rule(Rule(id="open"), namespace="r1", by=ITSELF)
    await eventually(lambda: guard.ruled("r1"))
    assert guard.decide(None, Resource(name="x", endpoint="X.Y"), "r1").allowed


async def test_documents_of_namespaces_that_are_only_named_are_one(at: Guarded) -> None:
    """Each was made anew, by a door that counts nobody who asks for one."""
    before = len(at.api._openapi)
    said = set()
    for number in range(12):
        answer = await at.http.get("/openapi.json", headers={"micro-namespace": f"d{number}"})
        said.add(answer.text)
    assert len(at.api._openapi) <= before + 1
    (one,) = said
    assert one == (await at.http.get("/openapi.json")).text


async def test_limits_of_a_namespace_that_is_only_named_are_not_followed(at: Guarded) -> None:
    """A line to config for each, and those of others were left for it."""
    gate = Gate()
    gate.follow("micro")
    gate.rule("micro", Rules())
    api = Api(at.network, at.network.table, ApiSettings(), ready=lambda: True, gate=gate,
              visitors=at.api.visitors)  # fmt: skip
    tokens = await at.authority.login("limited", "acme")
    bearer = {"authorization": f"Bearer {tokens.access}"}
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://door") as http:
        for head in ({}, bearer):
            asked = {"micro-namespace": "strange", **head}
            assert (await http.post("/auth/auth/keys", headers=asked)).status_code == 200
        assert not gate.follows("strange")
        assert (await http.post("/auth/auth/keys", headers=bearer)).status_code == 200
        assert gate.follows("acme")
        rule = Rule(id="open", resource=Resource(name="auth", endpoint="Auth.Keys"))
        await at.authority.auth.create_rule(rule, namespace="welcoming", by=ITSELF)
        assert at.here.trust is not None
        guard = at.here.trust.guard
        await eventually(lambda: guard.ruled("welcoming"))
        asked = {"micro-namespace": "welcoming"}
        assert (await http.post("/auth/auth/keys", headers=asked)).status_code == 200
        assert gate.follows("welcoming")


@pytest.mark.parametrize("endpoint", ["router:Router.Watch", "certs:Certs.Watch"])
async def test_nobody_holds_a_stream_at_a_door(at: Guarded, endpoint: str) -> None:
    """One that has no end takes its place in the door as long as somebody likes."""
    service, _, name = endpoint.partition(":")
    verb = Verb(service=service, endpoint=name)
    for way, code in (("http", 401), ("grpc", 401), ("frames", 200)):
        assert (await at.code(way, verb, {}, within=2.0))[0] == code, way
    tokens = await at.authority.login(f"watching-{service}", scopes=("admin",))
    bearer = {"authorization": f"Bearer {tokens.access}"}
    for way in ("http", "grpc"):
        assert (await at.code(way, verb, bearer, within=1.0))[0] == 200, way


async def test_what_strangers_are_refused_makes_no_namespace(at: Guarded) -> None:
    """Each that anybody named got a topic of what was done there."""
    for number in range(3):
        head = {"micro-namespace": f"e{number}"}
        assert (await at.http.post("/store/store/read", headers=head)).status_code == 401

    async def entered() -> set[str]:
        return {entry.namespace for entry in await at.authority.auth.audits(by=ITSELF)
                if entry.action == "call" and not entry.by}  # fmt: skip

    async def some() -> bool:
        return "micro" in await entered()

    await eventually(some)
    assert not await entered() & {"e0", "e1", "e2"}
