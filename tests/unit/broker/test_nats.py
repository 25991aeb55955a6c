"""The broker on NATS: how it comes in, and what it says while it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from micro_ray.broker import Limits
from micro_ray.broker.nats import NatsBroker
from micro_ray.errors import BadRequest, TooLarge, Unavailable
from micro_ray.nats_url import parse, tls_context
from tests.fixtures.brokers import bodies, says, up
from tests.fixtures.certificates import certificates
from tests.fixtures.nats import PASSWORD, USER, NatsServer, free_ports, server
from tests.fixtures.wait import eventually

SECRET = quote(PASSWORD, safe="")


def accounts(password: str) -> str:
    return f'authorization {{ user: "{USER}", password: "{password}" }}'


async def test_a_server_that_is_not_there_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryDirectory(prefix="nb-") as folder:
        one = NatsServer(Path(folder), free_ports(1)[0])
        async with NatsBroker(parse(f"nats://{one.address}"), patience=0.1) as broker:
            assert await eventually(lambda: says(broker, one.address, "Connect call failed"))
            for verb in (broker.publish("a", b""), broker.subscribe("a").open()):
                with pytest.raises(Unavailable, match="waiting for NATS") as raised:
                    await verb
                assert raised.value.retry_after
            try:
                await one.start()
                await eventually(lambda: up(broker))
                async with broker.subscribe("a") as messages:
                    await broker.publish("a", b"1")
                    assert await bodies(messages, 1) == [b"1"]
            finally:
                await one.kill()
        told = [record.message for record in caplog.records if "waiting for" in record.message]
        assert told
        assert len(told) < 5, "the same is said again and again"


async def test_a_verb_waits_a_little_for_the_connection() -> None:
    async with server() as one, NatsBroker(parse(f"nats://{one.address}"), patience=20) as broker:
        await broker.publish("a", b"")  # at once after the start


async def test_a_wrong_password_is_said_and_can_be_mended() -> None:
    async with server(accounts("another")) as one:
        url = f"nats://{USER}:{SECRET}@{one.address}"
        async with NatsBroker(parse(url), patience=0.1) as broker:
            assert await eventually(lambda: says(broker, "uthorization", "broker.url"))
            one.config = accounts(PASSWORD)
            one.reload()
            await eventually(lambda: up(broker), within=10)


async def test_no_password_where_one_is_needed() -> None:
    async with (
        server(accounts(PASSWORD)) as one,
        NatsBroker(parse(f"nats://{one.address}"), patience=0.1) as broker,
    ):
        assert await eventually(lambda: says(broker, "uthorization"))


async def test_a_token() -> None:
    async with server('authorization { token: "t@k" }') as one:
        async with NatsBroker(parse(f"nats://t%40k@{one.address}")) as broker:
            await eventually(lambda: up(broker))
        async with NatsBroker(parse(f"nats://other@{one.address}")) as broker:
            assert await eventually(lambda: says(broker, "uthorization"))


async def test_subscriptions_survive_a_password_that_is_changed() -> None:
    """The server throws the client out, and the library gives up for good."""
    async with server(accounts(PASSWORD)) as one:
        url = f"nats://{USER}:{SECRET}@{one.address}"
        async with NatsBroker(parse(url), patience=0.1) as broker:
            await eventually(lambda: up(broker))
            async with broker.subscribe("a", queue="g") as messages:
                one.config = accounts("another")
                one.reload()
                assert await eventually(lambda: says(broker, "uthorization"), within=10)
                one.config = accounts(PASSWORD)
                one.reload()
                await eventually(lambda: up(broker), within=10)
                await broker.publish("a", b"again")
                assert await bodies(messages, 1) == [b"again"]


async def test_a_peer_that_is_not_nats() -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(other, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, NatsBroker(parse(f"nats://127.0.0.1:{port}"), patience=0.1) as broker:
        assert await eventually(lambda: says(broker, "INFO"))


async def test_tls() -> None:
    with tempfile.TemporaryDirectory(prefix="nt-") as folder:
        made = certificates(Path(folder))
        config = f'tls {{ cert_file: "{made.certificate}", key_file: "{made.key}" }}\n' + accounts(
            PASSWORD
        )
        async with server(config) as one:
            place = parse(f"tls://{USER}:{SECRET}@{one.address}")
            async with NatsBroker(place, tls=tls_context(str(made.authority))) as broker:
                await eventually(lambda: up(broker))
                async with broker.subscribe("a") as messages:
                    await broker.publish("a", b"1")
                    assert await bodies(messages, 1) == [b"1"]
            # One that is not trusted is not told anything.
            async with NatsBroker(place, tls=tls_context(), patience=0.1) as broker:
                assert await eventually(lambda: says(broker, "certificate verify failed"))


async def test_tls_is_not_given_up_for_a_server_without() -> None:
    """Nor is the password sent in clear."""
    heard = bytearray()
    calls = 0

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        info = {"server_id": "x", "version": "2.10.0", "max_payload": 1048576, "headers": True}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        try:
            while piece := await reader.read(4096):
                heard.extend(piece)
                writer.write(b"PONG\r\n")
        except ConnectionError:
            pass
        writer.close()

    listening = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    place = parse(f"tls://{USER}:{SECRET}@127.0.0.1:{port}")
    async with listening, NatsBroker(place, tls=tls_context(), patience=0.1) as broker:
        assert await eventually(lambda: says(broker, "does not ask for TLS"))
        await eventually(lambda: calls >= 2)
    assert heard == b""


async def test_a_server_that_takes_less() -> None:
    async with (
        server("max_payload: 1000") as one,
        NatsBroker(parse(f"nats://{one.address}")) as broker,
        broker.subscribe("a") as messages,
    ):
        for body, headers in ((1001, {}), (900, {"k": "v" * 90})):
            with pytest.raises(TooLarge, match="max_payload"):
                await broker.publish("a", bytes(body), headers=headers)
        await broker.publish("a", bytes(1000))
        await broker.publish("a", bytes(500), headers={"k": "v" * 400})
        assert [len(body) for body in await bodies(messages, 2)] == [1000, 500]


async def test_the_largest_message_there_can_be() -> None:
    """With the servers' own default."""
    headers = {f"h{number:02}": "v" * 250 for number in range(64)}
    async with server() as one, NatsBroker(parse(f"nats://{one.address}")) as broker:
        await eventually(lambda: up(broker))
        async with broker.subscribe("a") as messages:
            await broker.publish("a", bytes(Limits().message), headers=headers)
            message = await anext(messages)
    assert (len(message.body), message.headers) == (Limits().message, headers)


async def test_platforms_on_the_same_servers() -> None:
    async with (
        server() as one,
        NatsBroker(parse(f"nats://{one.address}"), prefix="north") as north,
        NatsBroker(parse(f"nats://{one.address}"), prefix="south") as south,
        north.subscribe(">") as there,
        south.subscribe(">") as here,
    ):
        await north.publish("a", b"north")
        await south.publish("a", b"south")
        assert await bodies(there, 1) == [b"north"]
        assert await bodies(here, 1) == [b"south"]


@pytest.mark.parametrize("prefix", ["", "a b", "*", "a.>", "a..b", "a.", "x" * 64])
def test_prefixes_that_cannot_be(prefix: str) -> None:
    with pytest.raises(BadRequest):
        NatsBroker(parse("nats://a"), prefix=prefix)


async def test_who_gives_up_waiting_does_not_make_it_deaf() -> None:
    """The server's answer to a flush whose caller has gone ends nothing."""
    async with server() as one, NatsBroker(parse(f"nats://{one.address}")) as broker:
        await eventually(lambda: up(broker))
        async with broker.subscribe("a") as messages:

            async def enter() -> None:
                async with broker.subscribe("b"):
                    pass

            for _ in range(20):
                entering = asyncio.create_task(enter())
                for _ in range(3):
                    await asyncio.sleep(0)
                entering.cancel()
                await asyncio.gather(entering, return_exceptions=True)
            await broker.publish("a", b"heard")
            assert await bodies(messages, 1) == [b"heard"]
        assert not broker._readers


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    tasks, files = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
    yield
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= files)


async def test_closing_leaves_nothing() -> None:
    async with server() as one:
        async with nothing_left():
            async with NatsBroker(parse(f"nats://{one.address}")) as broker:
                await eventually(lambda: up(broker))
                await broker.subscribe("a").open()
                await broker.publish("a", b"1")
            await broker.close()
        async with nothing_left(), NatsBroker(parse(f"nats://{one.address}")):
            pass  # it is just connecting


async def test_closing_while_it_waits_leaves_nothing() -> None:
    async with nothing_left():
        port = free_ports(1)[0]
        async with NatsBroker(parse(f"nats://127.0.0.1:{port}"), patience=0.1) as broker:
            assert await eventually(lambda: says(broker, "Connect call failed"))
