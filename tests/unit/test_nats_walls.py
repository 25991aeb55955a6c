"""A NATS that others use as well: what its server refuses them, and the platform, by the very
configuration of docs/operations.md."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats

from micro_ray.broker.nats import NatsBroker
from micro_ray.events.jetstream import JetStreamEvents
from micro_ray.nats_url import parse
from micro_ray.nats_walls import walled
from tests.fixtures import brokers
from tests.fixtures.nats import NatsServer, free_ports, jetstream, server
from tests.fixtures.wait import eventually

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def shared() -> str:
    """The accounts that operations.md tells to configure."""
    (found,) = re.findall(r"^```\n(accounts \{.*?)^```", DOCS.read_text(), re.S | re.M)
    return str(found)


@contextlib.asynccontextmanager
async def somebody(one: NatsServer) -> AsyncIterator[Any]:
    """Another user of the servers, who may do anything in an account of his own."""
    client = await nats.connect(f"nats://other:...@{one.address}")
    try:
        yield client
    finally:
        await client.close()


async def test_others_see_and_forge_nothing() -> None:
    async with jetstream(shared()) as one, somebody(one) as other:
        place = parse(f"nats://micro:...@{one.address}")
        seen: list[bytes] = []

        async def take(message: Any) -> None:
            seen.append(message.data)

        await other.subscribe(">", cb=take)
        await other.flush()
        async with NatsBroker(place) as broker, JetStreamEvents(place) as events:
            await eventually(lambda: brokers.up(broker))
            async with broker.subscribe("t", namespace="acme") as given:
                await other.publish("micro.broker.acme.t", b"forged")
                await eventually(lambda: b"forged" in seen)  # by who sent it
                for _ in range(2):
                    await broker.publish("t", b"ours", namespace="acme")
                assert [(await anext(given)).body for _ in range(2)] == [b"ours", b"ours"]
            await events.publish("t", b"ours", namespace="acme")
            told = json.loads((await other.request("$JS.API.STREAM.NAMES", b"", timeout=5)).data)
            assert told["error"]["code"] == 503
            assert not told["streams"]
        assert b"ours" not in b"".join(seen)


async def test_the_platform_is_held_to_its_subjects() -> None:
    """Which doctor finds out by trying, with the verbs at work beside it."""
    async with jetstream(shared()) as one:
        place = parse(f"nats://micro:...@{one.address}")
        async with NatsBroker(place) as broker, JetStreamEvents(place) as events:
            await eventually(lambda: brokers.up(broker))
            await eventually(lambda: events.publish("t", b"1", id="x"))
            for found in (await broker.examine(), await events.examine()):
                assert all(row.good for row in found)
                assert "held to the platform's subjects" in found[0].text
            assert (await events.publish("t", b"2")).sequence == 2


async def test_a_user_without_walls() -> None:
    async with server() as one:
        said = await walled(parse(f"nats://{one.address}"), None)
        assert "publish to and subscribe any subject" in said
        async with NatsBroker(parse(f"nats://{one.address}")) as broker:
            await eventually(lambda: brokers.up(broker))
            row, _ = await broker.examine()
            assert row.good, "nothing is wrong where nobody else uses the servers"
            assert said in row.text


async def test_walls_on_one_side() -> None:
    config = """authorization { users: [ { user: "micro", password: "p", permissions: {
        publish: ["micro.>"] } } ] }"""
    async with server(config) as one:
        said = await walled(parse(f"nats://micro:p@{one.address}"), None)
        assert said.startswith("its user may subscribe any subject")


async def test_what_cannot_be_found_out() -> None:
    assert await walled(parse(f"nats://127.0.0.1:{free_ports(1)[0]}"), None) == ""
