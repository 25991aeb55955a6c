"""What the platform keeps for itself in the store and in events: a service of its own namespace,
which may do everything else there, neither reads nor writes it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from micro_ray.auth import AUDIT
from micro_ray.runtime.archives import PREFIX
from micro_ray.wire import events, store
from micro_ray.wire.events import RemoteEvents
from tests.security.guarded import Guarded, guarded

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACES = (
    {"database": "auth", "table": "accounts"},
    {"database": "auth"},
    {"database": "config", "table": "micro"},
    {"database": "config"},
    {"table": "runtime"},
)
#: Verbs of the store that take a place, with what else they must be told.
OF_PLACES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Store.Read", {"key": "", "prefix": True}),
    ("Store.Query", {}),
    ("Store.List", {}),
    ("Store.Write", {"key": "micro/mine", "value": "x"}),
    ("Store.Delete", {"key": "micro/admin"}),
    ("Store.Watch", {}),
)
OF_TOPICS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Events.Read", {}),
    ("Events.Replay", {}),
    ("Events.Consume", {"group": "g"}),
    ("Events.Fetch", {"group": "g"}),
    ("Events.Groups", {}),
    ("Events.Dead", {"group": "g"}),
    ("Events.Requeue", {"group": "g"}),
    ("Events.Discard", {"group": "g"}),
    ("Events.DeleteGroup", {"group": "g"}),
)
WRITES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Events.Publish", {"payload": "forged"}),
    ("Events.Retain", {"ttl": 1}),
    ("Events.Delete", {}),
)


class Asked:
    def __init__(self, at: Guarded, token: str) -> None:
        self._at, self._head = at, {"authorization": f"Bearer {token}"}

    async def __call__(
        self, endpoint: str, request: dict[str, Any], service: str = "store"
    ) -> tuple[int, Any]:
        """The code and the answer: of what streams, that it was let in (0)."""
        verb = next(
            verb
            for verb in self._at.verbs()
            if (verb.service, verb.endpoint) == (service, endpoint)
        )
        body = json.dumps(request).encode()
        code, text = await self._at.code("http", verb, self._head, body, within=0.3)
        try:
            return code, json.loads(text)
        except ValueError:
            return code, text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at() -> AsyncIterator[Guarded]:
    async with guarded() as found:
        # Who makes an account has the platform write down that he did.
        await found.authority.login("somebody", "acme")
        yield found


async def asked(at: Guarded, id: str, namespace: str = "micro", *scopes: str) -> Asked:
    return Asked(at, (await at.authority.login(id, namespace, scopes=scopes)).access)


@pytest.mark.parametrize("number", range(len(PLACES)))
async def test_a_service_of_the_same_namespace_does_not_touch_it(at: Guarded, number: int) -> None:
    place = PLACES[number]
    service = await asked(at, f"service-{number}", "micro", "service")
    for endpoint, request in OF_PLACES:
        code, said = await service(endpoint, {**request, **place})
        assert code == 403, (endpoint, said)
        assert "the platform's own" in said["detail"]
    operations = [{"kind": "put", "key": "a", "value": "x", "table": place.get("table", "t")}]
    request = {"operations": operations, "database": place.get("database", "micro")}
    code, said = await service("Store.Transaction", request)
    assert code == 403, said
    if "database" in place:
        code, said = await service("Store.Tables", {"database": place["database"]})
        assert code == 403, said


async def test_nor_is_it_shown_to_it(at: Guarded) -> None:
    operator = await asked(at, "shows", "micro", "admin")
    service = await asked(at, "is-shown", "micro", "service")
    await operator("Store.Write", {"key": "a", "value": "b", "database": "auth", "table": "mine"})
    await operator("Store.Write", {"key": "a", "value": "b", "table": "runtime"})
    await operator("Store.Write", {"key": "a", "value": "b", "table": "open"})
    _, shown = await operator("Store.Databases", {})
    assert "auth" in shown["databases"]
    _, shown = await service("Store.Databases", {})
    assert "micro" in shown["databases"]
    assert "auth" not in shown["databases"]
    _, shown = await operator("Store.Tables", {})
    assert {"open", "runtime"} <= set(shown["tables"])
    _, shown = await service("Store.Tables", {})
    assert "open" in shown["tables"]
    assert "runtime" not in shown["tables"]


async def test_sources_of_workloads(at: Guarded) -> None:
    own, mine = f"{PREFIX}0123/acme", "mine"
    for key in (own, mine):
        await at.here.store.write_blob(key, _pieces())
    service = await asked(at, "of-blobs", "micro", "service")
    for endpoint in ("BlobStore.Read", "BlobStore.Delete", "BlobStore.Write"):
        code, _ = await service(endpoint, {"key": own})
        assert code == 403, endpoint
    code, _ = await service("BlobStore.List", {"prefix": PREFIX})
    assert code == 403
    _, shown = await service("BlobStore.List", {})
    assert [blob["key"] for blob in shown["blobs"]] == [mine]
    operator = await asked(at, "all-blobs", "micro", "admin")
    _, shown = await operator("BlobStore.List", {})
    assert {blob["key"] for blob in shown["blobs"]} == {own, mine}


async def _pieces() -> AsyncIterator[bytes]:
    yield b"source"


async def test_another_namespace_has_such_names_for_itself(at: Guarded) -> None:
    tenant = await asked(at, "tenant", "acme", "admin")
    for place in PLACES:
        code, said = await tenant("Store.Write", {"key": "k", "value": "v", **place})
        assert code == 200, said
        code, said = await tenant("Store.Read", {"key": "k", **place})
        assert said["records"][0]["value"] == "v"
    _, shown = await tenant("Store.Databases", {})
    assert set(shown["databases"]) == {"auth", "config", "micro"}


async def test_what_was_done_is_for_who_administers_to_read(at: Guarded) -> None:
    admin = await asked(at, "reads-audit", "acme", "admin")
    user = await asked(at, "reads-nothing", "acme")
    # The entries are published by auth's actor, which is not of this platform.
    await RemoteEvents(at.network).publish(AUDIT, b"{}", namespace="acme")
    for endpoint, request in OF_TOPICS:
        code, said = await user(endpoint, {**request, "topic": AUDIT}, "events")
        assert code == 403, (endpoint, said)
    code, said = await admin("Events.Read", {"topic": AUDIT}, "events")
    assert (code, len(said["events"])) == (200, 1)


async def test_nobody_forges_or_removes_what_was_done(at: Guarded) -> None:
    admin = await asked(at, "forger", "other", "admin")
    written = RemoteEvents(at.network)  # as the platform
    await written.publish(AUDIT, b"true", namespace="other")
    for endpoint, request in WRITES:
        code, said = await admin(endpoint, {**request, "topic": AUDIT}, "events")
        assert code == 403, (endpoint, said)
    kept = await written.read(AUDIT, namespace="other")
    assert [event.payload for event in kept] == [b"true"]
    operator = await asked(at, "operates", "micro", "admin")
    await written.publish(AUDIT, b"true")
    code, said = await operator("Events.Retain", {"topic": AUDIT, "ttl": 3600}, "events")
    assert code == 200, said


async def test_every_verb_that_takes_a_place_is_looked_at() -> None:
    def taking(face: Any, fields: set[str]) -> set[str]:
        return {
            endpoint.name
            for endpoint in face.endpoints(None).published
            if fields & _fields(endpoint.request).keys()
        }

    looked = {endpoint for endpoint, _ in (*OF_PLACES, *OF_TOPICS, *WRITES)}
    looked |= {"Store.Transaction", "Store.Tables", "BlobStore.Read", "BlobStore.Delete"}
    assert taking(store, {"database", "table", "key"}) <= looked
    assert taking(events, {"topic"}) <= looked


def _fields(schema: Any) -> dict[str, Any]:
    while "$ref" in schema:
        schema = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    return dict(schema.get("properties", {}))
