"""Two tenants on one platform: whatever one says, by every verb, field and trick with names, he
gets nothing of the other's, and changes nothing of it.

The other one has things of names that the first may guess (``hush``) and of one that he cannot, and
all values are what he cannot guess. Who administers the first calls each verb with each of the
tricks in each of its text fields, over each way in; no answer may say it, and afterwards all must
be as it was.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from micro_ray import AsyncClient, Service
from micro_ray.auth import Resource, Rule
from micro_ray.sdk.authority import ITSELF
from micro_ray.wire.broker import RemoteBroker
from tests.fixtures.wait import eventually
from tests.security.guarded import REFUSED, WAYS, Guarded, Verb, guarded

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

#: What a tenant may say in the place of a name. The other one is called ``other``.
TRICKS = (
    "hush", "other", "OTHER", "*", "**", ">", "%", "_", "", ".", "..", "../other/hush",
    "other/hush", "/other/hush", "other.hush", "other.*", "other.>", "other:hush", "other\x00hush",
    "%2e%2e/other/hush", "hush%", "h_sh", "other--hush", "acme/../other/hush", "micro", "*/hush",
    "\u202eother", "o\u0074her", "other hush", "'; select * from records; --", "$SYS.>", "a" * 300,
)  # fmt: skip
#: What the first one never says.
UNSAID = "q7k2unsaid9x"
#: Heads by which one might come into another namespace.
HEADS: tuple[dict[str, str], ...] = (
    {},
    {"micro-namespace": "other"},
    {"micro-namespace": "acme/../other"},
    {"micro-namespace": "*"},
    {"micro-caller": "other", "micro-account": "hush", "micro-trusted": "1", "micro-admitted": "1"},
    {"host": "other.example.org", "x-forwarded-host": "other"},
)
#: Calls at a time, and seconds for one that follows something.
AT_ONCE, FOLLOWS = 20, 0.15


class Tenants:
    def __init__(self, at: Guarded, acme: str, theirs: str, other: AsyncClient) -> None:
        self.at = at
        self.head = {"authorization": f"Bearer {acme}"}
        self.theirs = {"authorization": f"Bearer {theirs}"}
        self.other = other

    async def has(self) -> dict[str, Any]:
        """All that the other one has."""
        call = self.other.call
        return {
            "records": await call("store", "Store.Query", {}),
            "table": await call("store", "Store.Query", {"table": "hush", "database": "hush"}),
            "databases": await call("store", "Store.Databases"),
            "blobs": await call("store", "BlobStore.List"),
            "config": await call("config", "Config.List", {"secret": True}),
            "versions": await call("config", "Config.Version"),
            "topics": await call("events", "Events.Topics"),
            "events": await call("events", "Events.Read", {"topic": "hush"}),
            "groups": await call("events", "Events.Groups", {"topic": "hush"}),
            "kept": [await call(at, f"{at.title()}.Usage") for at in ("store", "events")],
            "limits": (await call("limits", "Limits.List"))["rules"],
            "accounts": await call("auth", "Accounts.List", {"namespace": "other"}),
            "rules": await call("auth", "Rules.List", {"namespace": "other"}),
            "services": await call("registry", "Registry.ListServices"),
        }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tenants() -> AsyncIterator[Tenants]:
    async with guarded() as at:
        acme = await at.authority.login("boss", "acme", scopes=("admin",))
        theirs = await at.authority.login(UNSAID, "other", scopes=("admin",))
        boot = replace(at.here.bootstrap, namespace="other", token=theirs.access)
        service = Service(f"{UNSAID}-service")

        @service.endpoint
        async def call() -> str:
            return UNSAID

        own = replace(boot, token="", identity=at.authority.issuer.identity("hush-1", "other"))
        await service.start(own, f"{UNSAID}-1")
        try:
            async with AsyncClient(boot) as other:
                await _fill(other)
                await at.authority.auth.create_rule(
                    Rule(id=UNSAID, priority=-1), namespace="other", by=ITSELF
                )
                known = Tenants(at, acme.access, theirs.access, other)
                await eventually(lambda: at.network.table.known("other", service.name))
                yield known
        finally:
            await service.stop()


async def _fill(other: AsyncClient) -> None:
    call = other.call
    for name in ("hush", UNSAID):
        for place in ({}, {"database": name, "table": name}):
            await call("store", "Store.Write", {"key": name, "value": UNSAID, **place})
        for path, secret in ((f"{name}.a", False), (f"{name}.b", True)):
            request = {"path": path, "value": UNSAID, "secret": secret}
            await call("config", "Config.Set", request)
        await call("events", "Events.Publish", {"topic": name, "payload": UNSAID})
        await call("events", "Events.Fetch", {"topic": name, "group": name})
        await call("limits", "Limits.Set", {"kind": "account", "name": name, "rate": 1000})
        await call("store", "BlobStore.Write", _blob(name))


async def _blob(name: str) -> AsyncIterator[bytes]:
    yield json.dumps({"key": name}).encode()
    yield UNSAID.encode()


def bodies(at: Guarded, verb: Verb) -> Iterator[bytes]:
    """Requests of a verb with each trick in each of its text fields, and in all at once."""
    entry = next(e for e in at.network.table.entries("*") if e.service == verb.service)
    endpoint = next(e for e in entry.endpoints if e.name == verb.endpoint)
    schema: Any = endpoint.request
    definitions = schema.get("$defs", {})
    while "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    fields = {
        name: field.get("type", "")
        for name, field in dict(schema.get("properties", {})).items()
        if isinstance(field, dict)
    }
    texts = [name for name, kind in fields.items() if kind == "string"]
    flags = {name: True for name in ("prefix", "suffix", "secret") if fields.get(name) == "boolean"}
    yield b"{}"
    if endpoint.stream:  # each of them is waited for
        yield from (json.dumps({n: t, **flags}).encode() for n in texts for t in TRICKS[:5])
        return
    for name in texts:
        others = {other: "hush" for other in texts if other != name}
        for trick in TRICKS:
            yield json.dumps({name: trick, **flags}).encode()
        if others:
            for trick in TRICKS[:12]:
                yield json.dumps({**others, name: trick}).encode()


def says(text: str) -> bool:
    """Whether an answer tells what only the other one knows."""
    forms = (UNSAID, base64.b64encode(UNSAID.encode()).decode())
    return any(form in text for form in forms)


@pytest.mark.parametrize("way", WAYS)
async def test_nothing_crosses(tenants: Tenants, way: str) -> None:
    at = tenants.at
    before = await tenants.has()
    assert says(json.dumps(before))
    turn = asyncio.Semaphore(AT_ONCE)
    found: list[str] = []

    async def one(verb: Verb, head: dict[str, str], body: bytes) -> None:
        async with turn:
            within = FOLLOWS if verb.stream and not head else REFUSED
            code, text = await at.code(way, verb, {**tenants.head, **head}, body, within=within)
        if says(text):
            found.append(f"{verb} {head} {body!r}: {text[:300]}")
        if code == 200 and head.get("micro-namespace"):
            found.append(f"{verb} was let in with {head}")

    work = []
    for verb in at.verbs():
        if verb.service.endswith(("helloworld", "-service")) or str(verb) in OPEN:
            continue
        work += [one(verb, {}, body) for body in bodies(at, verb)]
        heads = [head for head in HEADS if "micro-namespace" in head or not verb.stream]
        work += [one(verb, head, b"{}") for head in heads if way != "grpc" or "host" not in head]
    await asyncio.gather(*work)
    assert found == []
    assert await tenants.has() == before


#: What answers everybody, about himself or nothing; and what would log the tester out.
OPEN = {
    "auth:Auth.Token", "auth:Auth.Refresh", "auth:Auth.Keys", "router:Router.Watch",
    "certs:Certs.Sign", "certs:Certs.Roots", "certs:Certs.Watch",
}  # fmt: skip


async def test_what_answers_what_it_was_asked_is_ones_own(tenants: Tenants) -> None:
    """The names that the other one uses are there for this one too, with his own things."""
    boot = replace(
        tenants.at.here.bootstrap, namespace="acme",
        token=tenants.head["authorization"].removeprefix("Bearer "),
    )  # fmt: skip
    before = await tenants.has()
    async with AsyncClient(boot) as acme:
        for endpoint, value in (
            ("Store.Write", {"key": "hush", "value": "mine"}),
            ("Store.Write", {"key": "hush", "value": "mine", "database": "hush", "table": "hush"}),
        ):
            await acme.call("store", endpoint, value)
        (record,) = (await acme.call("store", "Store.Read", {"key": "hush"}))["records"]
        assert record["value"] == "mine"
        await acme.call("events", "Events.Publish", {"topic": "hush", "payload": "mine"})
        events = await acme.call("events", "Events.Read", {"topic": "hush"})
        assert not says(json.dumps(events))
        await acme.call("config", "Config.Set", {"path": "hush.a", "value": "mine"})
        found = await acme.call("config", "Config.Get", {"path": "hush.a"})
        assert found["data"] == "mine", found
        services = await acme.services()
        assert not says(json.dumps(services))
        assert "helloworld" not in services
    assert await tenants.has() == before


async def test_a_message_stays_in_its_namespace(tenants: Tenants) -> None:
    """Of wildcards too."""
    boot = replace(
        tenants.at.here.bootstrap, namespace="acme",
        token=tenants.head["authorization"].removeprefix("Bearer "),
    )  # fmt: skip
    async with (
        AsyncClient(boot) as acme,
        RemoteBroker(acme).subscribe(">", namespace="acme") as messages,
    ):
        await RemoteBroker(tenants.other).publish("hush", UNSAID.encode(), namespace="other")
        await RemoteBroker(acme).publish("mine", b"mine", namespace="acme")
        message = await asyncio.wait_for(anext(aiter(messages)), 10)
        assert (message.topic, message.body) == ("mine", b"mine")


async def test_the_pages_of_the_door_are_of_ones_own(tenants: Tenants) -> None:
    """Its document, and its figures but for who administers the platform."""
    http = tenants.at.http
    theirs = tenants.theirs
    path = f"/{UNSAID}-service/call"
    assert (await http.post(path, headers=theirs)).json() == UNSAID
    await http.post("/store/list", headers=tenants.head)
    for page in ("/metrics", "/openapi.json"):
        assert says((await http.get(page, headers=theirs)).text), page
        for head in HEADS:
            shown = await http.get(page, headers={**tenants.head, **head})
            assert not says(shown.text), (page, head)
    figures = (await http.get("/metrics", headers=tenants.head)).text
    assert 'micro_api_requests_total{namespace="acme",service="store",code="200"}' in figures
    assert "micro_api_in_flight" not in figures
    # As docs/operations.md has it for Prometheus.
    resource = Resource(name="api", endpoint="Api.Metrics")
    rule = Rule(id="metrics", scope="metrics", resource=resource, priority=350)
    await tenants.at.authority.auth.create_rule(rule, by=ITSELF)
    scraper = await tenants.at.authority.login("prometheus", scopes=("metrics",))
    head = {"authorization": f"Bearer {scraper.access}"}

    async def whole() -> bool:
        shown = await http.get("/metrics", headers=head)
        return says(shown.text) and "micro_api_in_flight" in shown.text

    await eventually(whole)
    assert (await http.post("/store/list", headers=head)).status_code == 403
