"""Identities as processes get, keep and change them: over real sockets, under load, through kills
of the authority."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from micro_ray.certs import Identity
from micro_ray.context import Context
from micro_ray.errors import BadRequest, Forbidden
from micro_ray.network import Call, Peer, Refused
from micro_ray.network.network import Network
from micro_ray.registry import Action, Instance, Node
from micro_ray.registry.memory import MemoryRegistry
from micro_ray.router import Delta, Route
from micro_ray.router.table import Table
from micro_ray.sdk.service import Service
from micro_ray.settings import Bootstrap
from micro_ray.wire import registry as registry_face
from micro_ray.wire.address import parse
from micro_ray.wire.certs import RemoteCerts
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.enrolment import Enrolled, OnDemand, covers, enrolled
from micro_ray.wire.identity import Secured, Trusting
from micro_ray.wire.registry import RemoteRegistry
from micro_ray.wire.server import Server
from tests.fixtures.identities import Town
from tests.fixtures.offices import Office
from tests.fixtures.wait import eventually

TCP = "tcp:127.0.0.1:0"


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    with tempfile.TemporaryDirectory(prefix="ce-") as folder:
        async with Office(Path(folder)).running() as opened:
            yield opened


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path / "certs")


@asynccontextmanager
async def own(office: Office, service: str, node: str = "") -> AsyncIterator[Enrolled]:
    """The identity of a replica that was started with a ticket."""
    node = node or f"{service}-1"
    who = Identity(namespace="micro", service=service, node=node)
    async with enrolled(await office.boot(service, node), who) as opened:
        yield opened


async def who(context: Context) -> str:
    return context.peer


@asynccontextmanager
async def serving(identity: Secured, service: str = "orders") -> AsyncIterator[str]:
    """A service that tells its callers who they are."""
    table = Endpoints(service).add(f"{service.title()}.Who", who)
    async with Server(table.handler, name=service, identity=identity) as server:
        yield await server.listen(TCP)


async def ask(peer: Peer, service: str = "orders") -> str:
    call = Call(service=service, endpoint=f"{service.title()}.Who", timeout=20.0)
    return (await peer.call(call, b"{}")).decode().strip('"')


async def test_a_ticket_leads_to_calls_both_ways(office: Office) -> None:
    async with (
        own(office, "orders") as one,
        own(office, "shop") as two,
        serving(one.secured) as address,
    ):
        peer = await WireDialer(identity=two.secured).dial(
            address, timeout=10, service="orders", namespace="micro"
        )
        assert await ask(peer) == "spiffe://micro/micro/shop/shop-1"
        await peer.close()


async def test_what_is_covered() -> None:
    assert [covers("auto", a) for a in ("127.0.0.1", "::1", "10.0.0.1", "fd00::1")] == [
        False, False, True, True,
    ]  # fmt: skip
    assert covers("always", "127.0.0.1")
    assert not covers("never", "10.0.0.1")
    trusting = Trusting(b"", loopback=False)
    places = ("unix:/x", "tcp:localhost:1", "tcp:127.0.0.9:1", "tcp:[::1]:1", "tcp:a.b:1")
    assert [trusting.covers(parse(a)) for a in places] == [False] * 4 + [True]


async def test_who_has_proved_nothing_gets_a_certificate_and_nothing_else(office: Office) -> None:
    trusted = (await office.certs.roots()).trusted
    certs = RemoteCerts(office.addresses[1:], trusted=trusted)
    with pytest.raises(Forbidden, match="who are you"):
        await certs.client(b"")
    for refused in (certs.list(), certs.renew()):
        with pytest.raises(Forbidden, match="for those who have a certificate"):
            await refused
    await certs.close()


async def test_who_has_a_certificate_may_ask_certs_by_it(office: Office) -> None:
    async with own(office, "orders") as one:
        peer = await WireDialer(identity=one.secured).dial(
            office.addresses[1], timeout=10, service="certs"
        )
        call = Call(service="certs", endpoint="Certs.List", timeout=20.0)
        assert b"orders-1" in await peer.call(call, b"{}")
        await peer.close()


async def test_a_certs_of_another_authority_is_not_believed(office: Office, tmp_path: Path) -> None:
    async with Office(tmp_path).running() as other:
        boot = replace(await office.boot("orders"), certs=other.addresses[1:])
        mine = Identity(namespace="micro", service="orders", node="orders-1")
        with pytest.raises(Refused, match="certificate is not accepted"):
            async with enrolled(boot, mine):
                pass


async def test_another_service_does_not_pass_for_certs(office: Office) -> None:
    async with own(office, "orders") as one, serving(one.secured) as address:
        boot = replace(await office.boot("shop"), certs=(address,))
        mine = Identity(namespace="micro", service="shop", node="shop-1")
        with pytest.raises(Refused, match="orders of micro is at"):
            async with enrolled(boot, mine):
                pass


async def test_a_ticket_for_another_name(office: Office) -> None:
    other = Identity(namespace="micro", service="store", node="orders-1")
    with pytest.raises(BadRequest, match="named as its workload is"):
        async with enrolled(await office.boot("orders"), other):
            pass


async def test_on_the_authoritys_machine_one_is_who_one_says(office: Office) -> None:
    boot = await office.boot(far=False)
    mine = Identity(namespace="micro", service="byhand", node="byhand-1")
    async with enrolled(boot, mine) as opened, serving(opened.secured, "byhand") as address:
        client = OnDemand(boot)
        peer = await WireDialer(identity=client).dial(address, timeout=10, service="byhand")
        assert (await ask(peer, "byhand")).startswith("spiffe://micro/micro/client/")
        await peer.close()
        await client.close()
    for service in ("store", "api"):
        with pytest.raises(Forbidden, match="service of the platform"):
            async with enrolled(boot, replace(mine, service=service)):
                pass


async def test_a_command_without_an_authority_says_so(tmp_path: Path) -> None:
    boot = Bootstrap(
        registry=(), routers=(), namespace="micro", host="", run=tmp_path,
        certs=(f"unix:{tmp_path}/none.sock",),
    )  # fmt: skip
    client = OnDemand(boot)
    with pytest.raises(Refused, match=r"no identity to call tcp:192\.0\.2\.1:1 with: cannot reach"):
        await WireDialer(identity=client).dial("tcp:192.0.2.1:1", timeout=10)
    await client.close()


# -- under load ----------------------------------------------------------------------------------


class Load:
    """Calls without end from one identity to another, half of them over connections of their own.
    Any that fails is in ``failed``."""

    def __init__(self, dialer: WireDialer, address: str) -> None:
        table = Table()
        route = Route(id="orders-1", namespace="micro", service="orders", addresses=(address,))
        table.apply(Delta(epoch="1", revision=1, full=True, routes=(route,)))
        self._network = Network(table, dialer)
        self._dialer = dialer
        self._address = address
        self.done = 0
        self.failed: list[BaseException] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        tasks = [asyncio.create_task(self._pooled()) for _ in range(4)]
        tasks += [asyncio.create_task(self._anew()) for _ in range(4)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._network.close()

    async def _pooled(self) -> None:
        while True:
            try:
                await self._network.call("orders", "Orders.Who", b"{}", timeout=20)
                self.done += 1
            except Exception as error:
                self.failed.append(error)

    async def _anew(self) -> None:
        while True:
            try:
                peer = await self._dialer.dial(self._address, timeout=20, service="orders")
                await ask(peer)
                await peer.close()
                self.done += 1
            except Exception as error:
                self.failed.append(error)

    async def more(self, count: int = 50) -> None:
        """So many calls have ended well from now on, and none badly."""
        end = self.done + count
        await eventually(lambda: self.done >= end or self.failed, within=30)
        assert not self.failed


@asynccontextmanager
async def loaded(office: Office) -> AsyncIterator[tuple[Load, list[Enrolled]]]:
    async with (
        own(office, "orders") as one,
        own(office, "shop") as two,
        serving(one.secured) as address,
        Load(WireDialer(identity=two.secured), address).running() as load,
    ):
        yield load, [one, two]


async def test_renewals_lose_no_call(office: Office) -> None:
    async with loaded(office) as (load, both):
        await load.more()
        for count in range(1, 4):
            for each in both:
                each.hurry()
            await eventually(lambda n=count: all(each.renewed >= n for each in both), within=20)
            await load.more()


async def test_a_new_key_of_the_authority_loses_no_call(office: Office) -> None:
    """Published to everybody before it signs; all have renewed before the former is left."""
    async with loaded(office) as (load, both):
        await load.more()
        first = {root.id for root in (await office.certs.roots()).roots}
        await office.certs.renew()

        async def over() -> bool:
            roots = (await office.certs.roots()).roots
            return len(roots) == 1 and roots[0].id not in first

        await eventually(over, within=40)
        await load.more()
        assert all(each.renewed >= 2 for each in both)
        (root,) = (await office.certs.roots()).roots
        assert {c.root for c in await office.certs.list()} == {root.id}


async def test_an_authority_that_dies_is_missed_by_nobody(office: Office) -> None:
    async with loaded(office) as (load, both):
        await load.more()
        await office.close()
        for each in both:
            each.hurry()
        await load.more()
        again = Office(office.folder, port=office.port)
        await again.open()
        try:
            await eventually(lambda: all(each.renewed for each in both), within=20)
            for each in both:
                await each.examine()
            await load.more()
        finally:
            await again.close()


# -- who may register ----------------------------------------------------------------------------


def instance(service: str, node: str) -> Instance:
    return Instance(service=service, node=Node(id=node, addresses=("tcp:127.0.0.1:9",)))


@asynccontextmanager
async def registry(office: Office) -> AsyncIterator[str]:
    backend = MemoryRegistry()
    face = registry_face.endpoints(backend)
    async with own(office, "registry") as opened:
        async with Server(face.handler, name="registry", identity=opened.secured) as server:
            yield await server.listen(TCP)
        await backend.close()


async def test_a_node_registers_itself_and_nobody_else(office: Office) -> None:
    async with registry(office) as address, own(office, "helloworld") as mine:
        remote = RemoteRegistry(WireDialer(identity=mine.secured), [address])
        await remote.register(instance("helloworld", "helloworld-1"))
        for service, node in (("store", "helloworld-1"), ("helloworld", "helloworld-2")):
            with pytest.raises(Forbidden, match="helloworld-1, which is helloworld of micro"):
                await remote.register(instance(service, node))
        with pytest.raises(Forbidden):
            await remote.register(
                replace(instance("helloworld", "helloworld-1"), namespace="other")
            )
        for refused in (remote.renew("micro", ["x-1"]), remote.deregister("micro", "x-1")):
            with pytest.raises(Forbidden, match="not the node x-1 of micro"):
                await refused
        assert await remote.renew("micro", ["helloworld-1"]) == []
        await remote.deregister("micro", "helloworld-1")
        await remote.close()


async def test_a_registration_under_anothers_name_is_told(office: Office) -> None:
    async with registry(office) as address, own(office, "helloworld") as mine:
        dialer = WireDialer(identity=mine.secured)
        attachment = registry_face.Attachment(dialer, [address], instance("store", "store-0"))
        async with attachment:
            await asyncio.wait_for(attachment.settled.wait(), 10)
            assert isinstance(attachment.refused, Forbidden)


async def test_a_certificate_that_ends_takes_no_node_out_of_the_registry(town: Town) -> None:
    """The connection of the registration is left in time, and the next one there before."""
    backend = MemoryRegistry()
    face = registry_face.endpoints(backend)
    node = await town.secured("registry", by=-3596.0)
    caller = await town.secured("store")
    async with Server(face.handler, name="registry", identity=node) as server:
        address = await server.listen(TCP)
        dialer = WireDialer(identity=caller)
        mine = instance("store", "store-1")
        async with registry_face.Attachment(dialer, [address], mine, ttl=1.5) as attachment:
            await asyncio.wait_for(attachment.ready.wait(), 10)
            (first,) = server.connections
            gone = asyncio.create_task(_gone(backend))
            node.use(await town.credential("registry"))
            await eventually(lambda: first not in server.connections, within=20)
            assert attachment.ready.is_set()
            assert len(server.connections) == 1
            assert not gone.done()
        await asyncio.wait_for(gone, 10)
    await backend.close()


async def _gone(backend: MemoryRegistry) -> None:
    """The end of the first registration that ends."""
    snapshot = await backend.snapshot()
    async for change in backend.watch(epoch=snapshot.epoch, revision=snapshot.revision):
        if change.action is Action.DELETE:
            return


# -- services ------------------------------------------------------------------------------------


async def test_a_service_begins_with_its_ticket_and_goes_on_without(office: Office) -> None:
    """It may be started again in its process: the ticket is good for once."""
    service = Service("helloworld")
    service.endpoint(who)
    async with registry(office) as address:
        boot = await office.boot("helloworld", "helloworld-7")
        boot = replace(boot, registry=(address,), routers=(TCP,), address="127.0.0.1")
        for _ in range(2):
            await service.start(boot, "helloworld-7")
            listed = await office.certs.list()
            assert ("helloworld", "helloworld-7") in [(c.service, c.node) for c in listed]
            (tcp,) = [a for a in service._life.host.addresses if a.startswith("tcp:")]  # type: ignore[union-attr]
            with pytest.raises(Refused):
                await WireDialer().dial(tcp, timeout=10)
            await service.stop()


async def test_a_service_whose_ticket_was_used(office: Office) -> None:
    boot = await office.boot("helloworld", "helloworld-7")
    boot = replace(boot, registry=("unix:/none",), routers=(TCP,))
    mine = Identity(namespace="micro", service="helloworld", node="helloworld-7")
    async with enrolled(boot, mine):
        with pytest.raises(Forbidden, match="used already"):
            await Service("helloworld").start(boot, "helloworld-7")
