"""Frames over TCP with identities: who is let in, who is believed, and what ends with them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from micro_ray.certs import Credential
from micro_ray.errors import Unavailable
from micro_ray.network import Call, Refused
from micro_ray.network.network import Network
from micro_ray.router import Delta, Route
from micro_ray.router.table import Table
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.identity import Secured
from micro_ray.wire.protocol import Limits
from micro_ray.wire.remote import Direct
from micro_ray.wire.server import Incoming, Server
from tests.fixtures.identities import Town
from tests.fixtures.wait import eventually

CALL = Call(service="store", endpoint="Store.Who", timeout=20.0)
TCP = "tcp:127.0.0.1:0"


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path / "certs")


async def who(incoming: Incoming) -> None:
    """Answer each message with it and who has sent it; a call of one message or a stream."""
    caller = incoming.peer_identity
    name = caller.uri if caller else "nobody"
    if incoming.head.endpoint == "Store.Echo":
        while (message := await incoming.receive()) is not None:
            await incoming.send(message)
        return
    await incoming.receive()
    await incoming.reply(name.encode())


@asynccontextmanager
async def serving(
    identity: Secured | None, limits: Limits | None = None
) -> AsyncIterator[tuple[Server, str]]:
    async with Server(who, identity=identity, limits=limits) as server:
        yield server, await server.listen(TCP)


async def asked(address: str, identity: Secured | None, service: str = "store") -> str:
    peer = await WireDialer(identity=identity).dial(
        address, timeout=10, service=service, namespace="micro"
    )
    try:
        return (await peer.call(CALL, b"?")).decode()
    finally:
        await peer.close()


async def refused(address: str, identity: Secured | None, service: str = "store") -> str:
    with pytest.raises(Refused) as caught:
        await asked(address, identity, service)
    return caught.value.detail


async def test_both_know_who_the_other_is(town: Town) -> None:
    async with serving(await town.secured("store")) as (_, address):
        said = await asked(address, await town.secured("orders"))
        assert said == "spiffe://micro/micro/orders/orders-1"


async def test_a_large_message_goes_both_ways(town: Town) -> None:
    async with serving(await town.secured("store")) as (_, address):
        peer = await WireDialer(identity=await town.secured("orders")).dial(address, timeout=10)
        body = bytes(range(256)) * 16_384
        call = Call(service="store", endpoint="Store.Echo", timeout=20.0)
        async with await peer.open(call) as stream:
            await stream.send(body)
            await stream.end()
            assert await stream.receive() == body
            assert await stream.receive() is None
        await peer.close()


async def test_a_unix_socket_needs_no_identity(town: Town, tmp_path: Path) -> None:
    async with Server(who, identity=await town.secured("store")) as server:
        address = await server.listen(f"unix:{tmp_path}/s.sock")
        assert await asked(address, None) == "nobody"
        assert await asked(address, await town.secured("orders")) == "nobody"


async def test_without_a_certificate(town: Town) -> None:
    secured = await town.secured("orders")
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(cadata=(await town.credential("orders")).issued.trusted.decode())
    secured.client = bare
    async with serving(await town.secured("store")) as (server, address):
        assert "our certificate is not accepted" in await refused(address, secured)
        assert not server.connections


async def test_the_authority_of_another(town: Town, tmp_path: Path) -> None:
    other = Town(tmp_path / "other")
    async with serving(await town.secured("store")) as (server, address):
        assert "certificate is not accepted" in await refused(address, await other.secured("store"))
        assert not server.connections


async def test_a_caller_of_another_authority_that_believes_ours(town: Town, tmp_path: Path) -> None:
    other = Town(tmp_path / "other")
    secured = await other.secured("orders")
    secured.client.load_verify_locations(cadata=(await town.authority.trusted()).decode())
    async with serving(await town.secured("store")) as (server, address):
        assert "our certificate is not accepted" in await refused(address, secured)
        assert not server.connections


@pytest.mark.parametrize(("by", "word"), [(-7200, "expired"), (7200, "not yet valid")])
async def test_a_node_out_of_its_time(town: Town, by: float, word: str) -> None:
    async with serving(await town.secured("store", by=by)) as (_, address):
        assert word in await refused(address, await town.secured("orders"))


@pytest.mark.parametrize("by", [-7200, 7200])
async def test_a_caller_out_of_its_time(town: Town, by: float) -> None:
    async with serving(await town.secured("store")) as (server, address):
        said = await refused(address, await town.secured("orders", by=by))
        assert "our certificate is not accepted" in said
        assert not server.connections


async def test_who_answers_for_another(town: Town) -> None:
    async with serving(await town.secured("orders")) as (server, address):
        said = await refused(address, await town.secured("api"))
        assert "orders of micro is at" in said
        assert "not store of micro" in said
        await eventually(lambda: not server.connections)
    async with serving(await town.secured("store", namespace="evil")) as (_, address):
        assert "store of evil is at" in await refused(address, await town.secured("api"))


async def test_the_ways_to_a_node_say_whom_they_mean(town: Town) -> None:
    """By a route, and by a well-known address: who is another is not called."""
    dialer = WireDialer(identity=await town.secured("api"))
    async with serving(await town.secured("orders")) as (_, address):
        table = Table()
        routes = tuple(
            Route(id=f"{name}-1", namespace="micro", service=name, addresses=(address,))
            for name in ("store", "orders")
        )
        table.apply(Delta(epoch="e", revision=1, full=True, entries=(), routes=routes))
        network = Network(table, dialer)
        try:
            with pytest.raises(Unavailable, match=r"orders of micro is at .* not store of micro"):
                await network.call("store", "Store.Who", b"?")
            answer = await network.call("orders", "Orders.Who", b"?")
            assert answer == b"spiffe://micro/micro/api/api-1"
        finally:
            await network.close()
        direct = Direct(dialer, [address], "registry")
        with pytest.raises(Refused, match=r"orders of micro is at .* not registry"):
            await direct.peer()
        await direct.close()


async def for_calling_only(town: Town) -> Credential:
    """As the authority would sign it, but not for serving."""
    credential = await town.credential("store")
    authority = town.authority._path.read_bytes()
    signer = load_pem_private_key(authority, None)
    issued = x509.load_pem_x509_certificate(credential.issued.certificate)
    builder = x509.CertificateBuilder(
        issuer_name=issued.issuer,
        subject_name=issued.subject,
        public_key=issued.public_key(),
        serial_number=issued.serial_number,
        not_valid_before=issued.not_valid_before_utc,
        not_valid_after=issued.not_valid_after_utc,
    )
    for extension in issued.extensions:
        value = extension.value
        if isinstance(value, x509.ExtendedKeyUsage):
            value = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(value, critical=extension.critical)
    made = builder.sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    certificate = made.public_bytes(Encoding.PEM)
    given = credential.issued
    return Credential(
        key=credential.key,
        issued=type(given)(
            certificate=certificate, trusted=given.trusted, begins=given.begins, ends=given.ends
        ),
    )


async def test_a_certificate_for_another_use(town: Town) -> None:
    caller = Secured(await for_calling_only(town))
    async with serving(caller) as (_, address):
        assert "purpose" in await refused(address, await town.secured("orders"))
    async with serving(await town.secured("store")) as (_, address):
        assert await asked(address, caller) == "spiffe://micro/micro/store/store-1"


async def test_a_new_authority_beside_the_old(town: Town) -> None:
    before = await town.secured("orders")
    node = await town.secured("store")
    async with serving(node) as (_, address):
        await town.authority.rotate()
        late = await town.credential("store")
        # Who has not renewed knows the former alone, and is still believed by who has.
        node.use(late)
        assert "certificate is not accepted" in await refused(address, before)
        before.use(await town.credential("orders"))
        assert await asked(address, before)


async def test_a_node_that_has_renewed_takes_callers_of_the_former_authority(town: Town) -> None:
    caller = await town.secured("orders")
    node = await town.secured("store")
    await town.authority.rotate()
    new = await town.credential("store")
    caller.client.load_verify_locations(cadata=new.issued.trusted.decode())
    node.use(new)
    async with serving(node) as (_, address):
        assert await asked(address, caller)
        await town.authority.retire()
        node.use(await town.credential("store"))
        assert "our certificate is not accepted" in await refused(address, caller)


async def test_an_exchanged_identity_leaves_open_streams_alone(town: Town) -> None:
    node, caller = await town.secured("store"), await town.secured("orders")
    async with serving(node) as (server, address):
        peer = await WireDialer(identity=caller).dial(address, timeout=10)
        call = Call(service="store", endpoint="Store.Echo", timeout=30.0)
        async with await peer.open(call) as stream:
            for number in range(50):
                if number % 10 == 5:
                    await town.authority.rotate()
                    node.use(await town.credential("store"))
                    caller.use(await town.credential("orders"))
                await stream.send(b"%d" % number)
                assert await stream.receive() == b"%d" % number
                if number % 10 == 7:
                    assert await asked(address, caller)
            assert not peer.closed
        await peer.close()
        await eventually(lambda: not server.connections)


async def test_who_has_no_identity_at_the_door_of_who_has(town: Town) -> None:
    async with serving(await town.secured("store"), Limits(handshake=2.0)) as (_, address):
        said = await refused(address, None)
        assert "it wants TLS and an identity" in said


async def test_who_has_an_identity_at_the_door_of_who_has_none(town: Town) -> None:
    async with serving(None, Limits(handshake=2.0)) as (_, address):
        said = await refused(address, await town.secured("orders"))
        assert "does not speak TLS" in said


async def test_those_who_only_connect(town: Town) -> None:
    """They are let go of after the time of a handshake, and over the bound at once; who has come
    meanwhile and speaks is served."""
    async with serving(await town.secured("store"), Limits(handshake=1.0)) as (server, address):
        port = int(address.rpartition(":")[2])
        (entrance,) = server._entrances
        entrance.most = 8
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
        try:
            await eventually(lambda: len(entrance.shaking) == 8)
            cut = 0
            for one in idle:
                one.settimeout(10)
                try:
                    cut += await asyncio.to_thread(one.recv, 1) == b""
                except ConnectionError:
                    cut += 1
            assert cut == 12
            await eventually(lambda: not entrance.shaking)
            assert await asked(address, await town.secured("orders"))
        finally:
            for one in idle:
                one.close()


async def test_a_server_that_closes_leaves_those_who_shake_hands(town: Town) -> None:
    async with serving(await town.secured("store"), Limits(handshake=30.0)) as (server, address):
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as idle:
            (entrance,) = server._entrances
            await eventually(lambda: len(entrance.shaking) == 1)
            await server.close()
            assert not entrance.shaking
            idle.settimeout(10)
            with contextlib.suppress(ConnectionResetError):  # it may be cut as well as closed
                assert await asyncio.to_thread(idle.recv, 1) == b""


async def test_a_certificate_that_ends_while_connected(town: Town) -> None:
    """The caller is asked to go; what is under way goes on."""
    node = await town.secured("store")
    caller = await town.secured("orders", ttl=62, by=-60)  # two seconds are left
    async with serving(node) as (server, address):
        peer = await WireDialer(identity=caller).dial(address, timeout=10)
        call = Call(service="store", endpoint="Store.Echo", timeout=30.0)
        async with await peer.open(call) as stream:
            await eventually(lambda: peer.closed, within=20)
            await stream.send(b"still")
            assert await stream.receive() == b"still"
            assert len(server.connections) == 1
            with pytest.raises(Refused):
                await peer.call(CALL, b"?")
        await peer.wait_closed()


async def test_one_lifetime_later_it_is_cut_off(town: Town) -> None:
    caller = await town.secured("orders")
    async with serving(await town.secured("store")) as (server, address):
        peer = await WireDialer(identity=caller).dial(address, timeout=10)
        call = Call(service="store", endpoint="Store.Echo", timeout=30.0)
        async with await peer.open(call) as stream:
            await stream.send(b"one")
            assert await stream.receive() == b"one"
            (connection,) = server.connections
            connection._expire(0.05)
            with pytest.raises(Exception, match="certificate has ended"):
                await stream.receive()
        await peer.wait_closed()


def test_what_is_given_is_not_shown() -> None:
    from micro_ray.certs import Issued

    issued = Issued(certificate=b"c", trusted=b"t", begins=0.0, ends=1.0)
    assert "secret" not in repr(Credential(key=b"secret", issued=issued))
