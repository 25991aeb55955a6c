"""etcd that is away, full, stalled or guarded: what the registry does, and what it says."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import pytest

from micro_ray.errors import MicroError, TooManyRequests, Unavailable
from micro_ray.registry import Endpoint, Registry
from micro_ray.registry.etcd import EtcdRegistry
from micro_ray.registry.etcd_url import Files, Trust, parse, trust
from micro_ray.wire import registry as face
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.registry import Attachment
from micro_ray.wire.server import Server
from tests.fixtures.certificates import certificates
from tests.fixtures.etcd import PASSWORD, USER, EtcdServer, server
from tests.fixtures.history import watched
from tests.fixtures.nats import free_ports
from tests.fixtures.proxy import proxy
from tests.fixtures.registries import instance
from tests.fixtures.wait import eventually


def registry(url: str, **options: Any) -> AbstractAsyncContextManager[EtcdRegistry]:
    options = {"patience": 5.0, "attempt": 0.5, **options}
    return EtcdRegistry(parse(url), **options)


async def ids(registry: Registry) -> list[str]:
    return [i.node.id for i in (await registry.snapshot()).instances]


async def test_a_name_of_a_host() -> None:
    async with server() as etcd, registry(f"etcd://localhost:{etcd.port}") as here:
        await here.register(instance())
        assert await ids(here) == ["n1"]


async def test_an_endpoint_that_is_not_there() -> None:
    (port,) = free_ports(1)
    async with server() as etcd, registry(f"etcd://127.0.0.1:{port},{etcd.address}") as here:
        begun = time.monotonic()
        await here.register(instance())
        assert time.monotonic() - begun < 2.5
        assert await ids(here) == ["n1"]


@pytest.mark.parametrize("verb", ["register", "renew", "again", "deregister", "get", "snapshot"])
async def test_an_endpoint_that_stalls_holds_nobody_up(verb: str) -> None:
    """Its sockets stay open, nothing comes: each verb goes on elsewhere by its deadline."""
    async with (
        server() as etcd,
        proxy(etcd.port) as first,
        registry(f"etcd://127.0.0.1:{first.port},{etcd.address}") as here,
    ):
        await here.register(instance())
        await here.register(instance(node="n2"))
        assert await here.renew("micro", ["n2"]) == []
        first.stall()
        async with asyncio.timeout(4):
            if verb == "register":
                await here.register(instance(node="new"))
            elif verb == "renew":
                assert await here.renew("micro", ["n1", "n2"]) == []
            elif verb == "again":
                await here.register(instance())
            elif verb == "deregister":
                await here.deregister("micro", "n1")
            elif verb == "get":
                assert await here.get("micro", "greeter")
            else:
                assert await ids(here) == ["n1", "n2"]
        # From now on it is asked elsewhere first.
        async with asyncio.timeout(0.4):
            assert await ids(here)
        first.resume()


async def test_a_write_whose_answer_is_lost_is_done_once() -> None:
    """The line breaks after the server took it: it is looked for, and not written again."""
    async with (
        server() as etcd,
        proxy(etcd.port) as between,
        registry(f"etcd://127.0.0.1:{between.port}") as here,
        registry(f"etcd://{etcd.address}") as direct,
        watched(direct) as history,
    ):
        await here.register(instance(node="first"))
        await eventually(lambda: history.changes == 1)
        for weight in range(5):
            between.cuts_after[b"unix:/run/written.sock"] = 1
            await here.register(instance(node="written", weight=weight))
            assert between.cuts_after[b"unix:/run/written.sock"] == 0
        await eventually(lambda: history.same_as(direct))
        assert history.changes == 6
        assert (await direct.get("micro", "greeter"))[0].nodes[0].weight == 4


async def test_etcd_that_is_not_there_yet(caplog: pytest.LogCaptureFixture) -> None:
    """The registry says what it waits for, once in the log, and serves when it comes."""
    caplog.set_level(logging.INFO, "micro_ray.registry")
    async with server() as etcd:
        await etcd.kill()
        async with registry(f"etcd://{etcd.address}", patience=0.3) as here:
            for _ in range(3):
                with pytest.raises(Unavailable) as caught:
                    await here.register(instance())
            assert f"waiting for etcd at {etcd.address}" in caught.value.detail
            assert "Connection refused" in caught.value.detail
            warned = [r for r in caplog.records if r.levelno == logging.WARNING]
            assert len(warned) == 1
            assert etcd.address in warned[0].getMessage()
            waiting = asyncio.create_task(_until_registered(here))
            await etcd.start()
            await asyncio.wait_for(waiting, 10)
            assert await ids(here) == ["n1"]
            assert f"etcd answers at {etcd.address}" in caplog.text


async def _until_registered(here: Registry) -> None:
    while True:
        try:
            await here.register(instance())
        except Unavailable:
            await asyncio.sleep(0.05)
        else:
            return


async def test_nodes_stay_while_etcd_is_away_for_a_moment() -> None:
    """What cannot be renewed is not taken out: it is the registry that is away, not the node."""
    with TemporaryDirectory(prefix="ea-") as folder:
        async with (
            server() as etcd,
            registry(f"etcd://{etcd.address}", patience=0.3) as here,
            Server(face.endpoints(here).handler) as wire,
        ):
            address = await wire.listen(f"unix:{folder}/r.sock")
            attachment = Attachment(WireDialer(), [address], instance(), 3.0)
            async with watched(here, again=True) as history, attachment:
                await asyncio.wait_for(attachment.ready.wait(), 10)
                await etcd.kill()
                await eventually(lambda: not attachment.ready.is_set(), within=10)
                await etcd.start()
                await asyncio.wait_for(attachment.ready.wait(), 10)
                await here.register(instance(node="mark"))
                await eventually(lambda: history.changes == 2, within=10)
                assert await ids(here) == ["n1", "mark"]


async def fill(here: Registry) -> TooManyRequests:
    """Register until it is refused."""
    large = Endpoint(name="A.B", request={"description": "x" * 900_000})
    for number in range(60):
        try:
            await here.register(instance(node=f"large-{number}", endpoints=(large,)))
        except TooManyRequests as error:
            return error
    raise AssertionError("it is never full")


async def test_etcd_that_is_full() -> None:
    """Reads, renewals, watches and ends go on; what is new is refused with what to do."""
    async with (
        server("--quota-backend-bytes", str(8 * 2**20)) as etcd,
        registry(f"etcd://{etcd.address}") as here,
        watched(here) as history,
    ):
        await here.register(instance(), ttl=2, holder="one")
        error = await fill(here)
        for words in ("is full (alarm NOSPACE)", "defragment", "etcdctl alarm disarm"):
            assert words in error.detail
        assert error.retry_after
        full = await ids(here)
        until = time.monotonic() + 3
        while time.monotonic() < until:  # longer than its TTL
            assert await here.renew("micro", ["n1"]) == []
            await here.register(instance(), ttl=2, holder="one")
            # Who attaches elsewhere is the same node, and lives.
            await here.register(instance(), ttl=2, holder="two")
            await asyncio.sleep(0.3)
        assert await ids(here) == full
        with pytest.raises(TooManyRequests):
            await here.register(instance(weight=7), ttl=2, holder="one")
        assert (await here.get("micro", "greeter"))[0].nodes
        for node in full[1:]:
            await here.deregister("micro", node)
        assert await ids(here) == ["n1"]
        await eventually(lambda: history.same_as(here))
        await relieve(etcd)
        await here.register(instance(node="new"))
        await eventually(lambda: history.same_as(here))


async def relieve(etcd: EtcdServer) -> None:
    """What the error says."""
    await etcd.compact()
    await etcd.ask("maintenance/defragment")
    for alarm in (await etcd.ask("maintenance/alarm", action="GET")).get("alarms", []):
        await etcd.ask("maintenance/alarm", action="DEACTIVATE", **alarm)


async def test_tls(tmp_path: Path) -> None:
    made = certificates(tmp_path)
    trusted = trust(Files(authority=str(made.authority)))
    async with server(tls=made) as etcd:
        for host in ("127.0.0.1", "localhost"):
            async with registry(f"etcds://{host}:{etcd.port}", trust=trusted) as here:
                await here.register(instance())
                assert await ids(here) == ["n1"]
                assert await here.renew("micro", ["n1"]) == []
        other = Trust(authority=trust(Files()).authority)
        async with registry(f"etcds://{etcd.address}", trust=other, patience=0.5) as here:
            assert "waiting for etcd" in await refusal(here)
        async with registry(f"etcd://{etcd.address}", patience=0.5) as here:
            assert "waiting for etcd" in await refusal(here)  # in clear: it takes nothing


async def test_certificates_of_clients(tmp_path: Path) -> None:
    made = certificates(tmp_path)
    flags = ("--client-cert-auth", "--trusted-ca-file", str(made.authority))
    files = Files(
        authority=str(made.authority), certificate=str(made.certificate), key=str(made.key)
    )
    async with server(tls=made) as etcd:
        await etcd.kill()
        etcd.flags = flags
        await etcd.start(ready=False)
        async with registry(f"etcds://{etcd.address}", trust=trust(files)) as here:
            await eventually(lambda: registered(here))
        without = trust(Files(authority=str(made.authority)))
        async with registry(f"etcds://{etcd.address}", trust=without, patience=0.5) as here:
            assert "waiting for etcd" in await refusal(here)


async def registered(here: Registry) -> bool:
    await here.register(instance())
    return await ids(here) == ["n1"]


async def refusal(here: Registry) -> str:
    with pytest.raises(MicroError) as caught:
        await here.register(instance())
    assert PASSWORD not in caught.value.detail
    return caught.value.detail


async def test_user_and_password_and_tokens_that_expire() -> None:
    """Calls, the stream of renewals and watches go on over several lives of a token."""
    async with server("--auth-token-ttl", "1") as etcd:
        await etcd.protect("micro")
        url = f"etcd://{USER}:{quote(PASSWORD, safe='')}@{etcd.address}"
        async with registry(url) as here, proxy(etcd.port) as between:
            behind = registry(url.replace(etcd.address, f"127.0.0.1:{between.port}"))
            async with behind as other, watched(other) as history:
                for number in range(2):
                    await here.register(instance(node=f"n{number}"))
                    await here.register(instance(node="n0"))
                    assert await other.renew("micro", [f"n{number}"]) == []
                    await eventually(lambda n=number: history.changes == n + 1)
                    await asyncio.sleep(2.2)  # longer than a token, used by nobody, lives
                    between.cut()  # a new watch needs a new token
                assert await ids(here) == [f"n{number}" for number in range(2)]
                assert history.begun == 1
                assert history.error is None


async def test_who_may_not() -> None:
    async with server() as etcd:
        await etcd.protect("micro", seen="seen")
        secret = quote(PASSWORD, safe="")
        address = etcd.address
        begun = time.monotonic()
        options = {"patience": 30, "attempt": 10}
        async with registry(f"etcd://{USER}:wrong@{address}", **options) as here:
            told = await refusal(here)
            assert "check user and password of registry.url" in told
            assert "wrong" not in told
        async with registry(f"etcd://{address}", **options) as here:
            assert "registry.url etcd://user:password@..." in await refusal(here)
        url = f"etcd://{USER}:{secret}@{address}"
        for prefix in ("other", "seen"):
            async with registry(url, prefix=prefix, **options) as here:
                told = await refusal(here)
            assert "permission denied" in told
            assert f"user '{USER}' must read and write below registry.prefix" in told
        assert time.monotonic() - begun < 25  # who is not wanted need not ask on


async def test_auth_that_is_turned_on_while_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    async with server() as etcd:
        url = f"etcd://{USER}:{quote(PASSWORD, safe='')}@{etcd.address}"
        async with registry(url) as here:
            await here.register(instance())
            assert "auth is not enabled" in caplog.text
            await etcd.protect("micro")
            await here.register(instance(node="n2"))
            assert await here.renew("micro", ["n1", "n2"]) == []
            assert await ids(here) == ["n1", "n2"]


async def test_closing_while_it_waits() -> None:
    """Whatever is under way ends, and no task is left."""
    before = asyncio.all_tasks()
    async with server() as etcd, registry(f"etcd://{etcd.address}", patience=30) as here:
        start = await here.snapshot()
        await here.register(instance())
        await here.renew("micro", ["n1"])
        watch = here.watch(epoch=start.epoch, revision=start.revision)
        await anext(watch)
        waits = [asyncio.create_task(anext(watch, None))]
        etcd.freeze()
        waits += [asyncio.create_task(here.snapshot()) for _ in range(3)]
        waits += [asyncio.create_task(here.renew("micro", ["n1"]))]
        await asyncio.sleep(0.1)
        await asyncio.wait_for(here.close(), 5)
        ends = await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), 5)
        assert ends[0] is None
        assert all(isinstance(end, Unavailable) for end in ends[1:]), ends
        etcd.thaw()
    await eventually(lambda: asyncio.all_tasks() == before)
