"""A user of NATS for each namespace: what the servers refuse him, though the platform's own code
asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from micro_ray.actors import backends
from micro_ray.broker.nats import NatsBroker
from micro_ray.broker.nats_spaces import NatsSpaces, login
from micro_ray.errors import BadRequest, TooManyRequests, Unavailable
from micro_ray.events.jetstream import JetStreamEvents
from micro_ray.events.jetstream_api import Names
from micro_ray.nats_url import Place, parse
from micro_ray.nats_users import Account, Key, configuration, read
from micro_ray.settings import Broker, Settings
from tests.fixtures import brokers
from tests.fixtures.nats import NatsServer, jetstream, server, walled_server
from tests.fixtures.wait import eventually

Walled = tuple[NatsServer, Account]


@pytest.fixture
async def walled() -> AsyncIterator[Walled]:
    async with walled_server() as made:
        yield made


def place_of(walled: Walled, namespace: str) -> Place:
    one, account = walled
    return replace(parse(f"nats://{one.address}"), login=login(account, "micro", namespace))


async def test_what_is_sent_to_another_namespace_does_not_arrive(walled: Walled) -> None:
    async with (
        brokers.nats_spaces(*walled) as spaces,
        NatsBroker(place_of(walled, "acme")) as acme,
    ):
        await eventually(lambda: brokers.up(acme))
        async with spaces.subscribe(">", namespace="other") as given:
            await acme.publish("t", b"forged", namespace="other")
            # Behind it on the same connection, and so judged after it.
            async with acme.subscribe("t", namespace="acme") as own:
                await acme.publish("t", b"ours", namespace="acme")
                assert (await anext(own)).body == b"ours"
            await spaces.publish("t", b"theirs", namespace="other")
            assert (await anext(given)).body == b"theirs"


@pytest.mark.parametrize("topic", ["t", "*", ">"])
@pytest.mark.parametrize("queue", ["", "workers"])
async def test_what_another_namespace_is_sent_is_not_heard(
    walled: Walled, topic: str, queue: str
) -> None:
    """Nor taken from it: each message reaches who it is for."""
    async with (
        brokers.nats_spaces(*walled) as spaces,
        NatsBroker(place_of(walled, "acme")) as acme,
    ):
        await eventually(lambda: brokers.up(acme))
        async with (
            spaces.subscribe("t", queue=queue, namespace="other") as theirs,
            acme.subscribe(topic, queue=queue, namespace="other") as stolen,
            acme.subscribe("t", namespace="acme") as own,
        ):
            for number in range(20):
                await spaces.publish("t", b"%d" % number, namespace="other")
            async with asyncio.timeout(10):
                assert [int((await anext(theirs)).body) for _ in range(20)] == list(range(20))
            await acme.publish("t", b"ours", namespace="acme")
            assert (await anext(own)).body == b"ours"
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):  # what there was has come before
                    await anext(stolen)


@pytest.mark.parametrize("namespace", ["a.b", "a", "a=b"])
async def test_names_that_look_alike(walled: Walled, namespace: str) -> None:
    """A dot is no border of a namespace, and no wildcard can be in its name."""
    async with brokers.nats_spaces(*walled) as spaces:
        if namespace == "a=b":
            with pytest.raises(BadRequest):
                await spaces.publish("t", b"", namespace=namespace)
            return
        async with spaces.subscribe(">", namespace=namespace) as given:
            await spaces.publish("b.t", b"1", namespace={"a.b": "a", "a": "a.b"}[namespace])
            await spaces.publish("t", b"2", namespace=namespace)
            assert (await anext(given)).body == b"2"


async def test_connections_are_bounded(walled: Walled) -> None:
    """Beside the platform's own: who is not in use makes room, who is does not."""
    async with brokers.nats_spaces(*walled, most=3) as spaces:
        async with spaces.subscribe("t", namespace="a") as first:
            for namespace in ("b", "c", "d", "b"):
                await spaces.publish("t", b"", namespace=namespace)
                assert len(spaces._kept) <= 3
            async with spaces.subscribe("t", namespace="b"):
                with pytest.raises(TooManyRequests, match=r"broker\.max_connections"):
                    await spaces.publish("t", b"", namespace="c")
                await spaces.publish("t", b"1", namespace="a")
                assert (await anext(first)).body == b"1"
            await spaces.publish("t", b"", namespace="c")
            await spaces.check()
        await eventually(lambda: not spaces._closing)


async def test_the_examination_tries_it(walled: Walled) -> None:
    async with brokers.nats_spaces(*walled) as spaces:
        await eventually(lambda: brokers.up(spaces))
        found = await spaces.examine()
        assert all(row.good for row in found)
        assert "NATS keeps namespaces apart" in found[-1].text
    async with server() as one, brokers.nats_spaces(one, walled[1]) as spaces:
        await eventually(lambda: brokers.up(spaces))
        (*_, last) = await spaces.examine()
        assert not last.good
        assert "publish to and subscribe" in last.text
        async with NatsBroker(parse(f"nats://{one.address}")) as plain:
            await eventually(lambda: brokers.up(plain))
            (*_, last) = await plain.examine()
            assert last.good
            assert "by subjects of ours" in last.text


async def test_a_key_that_the_servers_do_not_know(walled: Walled) -> None:
    one, _ = walled
    stranger = Account(key=Key.make("A"))
    async with brokers.nats_spaces(one, stranger) as spaces:
        with pytest.raises(Unavailable, match=r"(?i)authorization.*broker\."):
            await spaces.publish("t", b"", namespace="acme")


async def test_a_key_that_signs_for_an_account(tmp_path: Path) -> None:
    """Then the account's own key is nowhere but with who operates it."""
    own, signs = (Key.make("A") for _ in range(2))
    path = tmp_path / "key"
    path.write_text(f"-----BEGIN-----\n{signs.seed}\n-----END-----\n")
    async with jetstream(configuration(own, signing=[signs.id])) as one:
        given = Broker(
            url=f"nats://{one.address}", account_key=str(path), account=own.id, max_connections=5
        )
        async with backends.open_broker(replace(Settings(), broker=given)) as broker:
            assert isinstance(broker, NatsSpaces)
            async with broker.subscribe("t", namespace="acme") as given_to:
                await broker.publish("t", b"1", namespace="acme")
                assert (await anext(given_to)).body == b"1"


@pytest.mark.parametrize(
    ("content", "account", "said"),
    [
        (None, "", "broker.account_key"),
        ("", "", "not the seed of one account"),
        ("SAnonsense", "", "not the seed of one account"),
        ("SUAOMQHQJBTQFXDZQZZ", "", "not the seed of one account"),
        (Key.make("A").seed, "micro", "broker.account: "),
    ],
)
def test_keys_that_are_none(tmp_path: Path, content: str | None, account: str, said: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadRequest, match=said) as raised:
        read(str(path), account, "broker")
    assert not content or content not in raised.value.detail


async def test_events_come_in_by_the_same_key(walled: Walled) -> None:
    """As one user for all namespaces, who is held to the prefix."""
    one, account = walled
    place = replace(parse(f"nats://{one.address}"), login=Names("micro").login(account))
    async with JetStreamEvents(place) as events:
        await eventually(lambda: events.publish("t", b"1", id="x", namespace="acme"))
        assert (await events.publish("t", b"2", namespace="acme")).sequence == 2
        assert [e.payload for e in await events.read("t", namespace="acme")] == [b"1", b"2"]
        first, *rest = await events.examine()
        assert "held to the platform's subjects" in first.text
        assert any("names of ours alone" in row.text for row in rest)
