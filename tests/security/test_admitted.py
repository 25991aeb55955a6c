"""Who says that a door has let him in: a door, or somebody who comes by himself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from micro_ray import AsyncClient, Service
from micro_ray.errors import Forbidden, TooManyRequests
from micro_ray.limits import Kind, Limit
from micro_ray.limits.gate import ADMITTED
from micro_ray.limits.ledger import Ask, Place
from micro_ray.sdk.authority import ITSELF
from micro_ray.wire.limits import Granted, Said
from micro_ray.wire.remote import from_json, to_json
from tests.fixtures.wait import PROMPT, eventually
from tests.security.guarded import Guarded, Verb, guarded


def echo() -> Service:
    service = Service("echo", limited=True)

    @service.endpoint
    async def call() -> str:
        return "hello"

    return service


async def refused(client: AsyncClient) -> bool:
    try:
        await client.call("echo", "Echo.Call", metadata={ADMITTED: "1"})
    except TooManyRequests as error:
        return error.detail.startswith("service echo may make 0.001 requests")
    return False


async def test_only_a_door_is_believed_that_a_door_has_let_one_in() -> None:
    """An account has its pass from an auth cache, signed by the platform's key as a door's are; a
    service has its own."""
    async with guarded() as at:
        await at.here.serve(echo())
        await at.here.limits.set("service", "echo", rate=0.001, burst=1)
        tokens = await at.authority.login("direct")
        boot = replace(at.here.bootstrap, token=tokens.access)
        async with AsyncClient(boot) as client:
            assert await eventually(lambda: refused(client), within=PROMPT)
        front = Service("front")
        async with running(at, front):
            assert await refused(front.client)
        # What a door has let in was counted there.
        door = at.authority.passes("api").to("micro", "echo", ITSELF)
        verb = Verb(service="echo", endpoint="Echo.Call")
        assert (await at.code("frames", verb, {**door, ADMITTED: "1"}))[0] == 200
        assert (await at.code("frames", verb, door))[0] == 429


class running:  # noqa: N801 - it reads as a verb
    def __init__(self, at: Guarded, service: Service) -> None:
        self._at, self._service = at, service

    async def __aenter__(self) -> None:
        boot = self._at.here.bootstrap
        identity = self._at.authority.issuer.identity("front-1", "micro")
        await self._service.start(replace(boot, identity=identity), "front-1")

    async def __aexit__(self, *exc: object) -> None:
        await self._service.stop()


def asks(namespace: str) -> bytes:
    place = Place(namespace=namespace, kind=Kind.NAMESPACE)
    # The newest version counts: whoever may say it sets the limit.
    ask = Ask(place=place, limit=Limit(rate=0.001), version=2**60, want=10**6, number=1)
    return to_json(Said(asks=(ask,)))


async def test_a_tenant_borrows_in_its_own_namespace() -> None:
    async with guarded() as at:
        tokens = await at.authority.login("boss", "acme", scopes=("admin",))
        boot = replace(at.here.bootstrap, namespace="acme", token=tokens.access)
        async with (
            AsyncClient(boot) as client,
            await client.open("limits", "Limits.Lend") as stream,
        ):
            await stream.send(asks("acme"))
            answer = from_json(await stream.receive() or b"", Granted, "limits")
            assert [grant.place.namespace for grant in answer.grants] == ["acme"]
            await stream.send(asks("micro"))
            with pytest.raises(Forbidden):
                await stream.receive()
        assert await at.here.limits.usage() == []
