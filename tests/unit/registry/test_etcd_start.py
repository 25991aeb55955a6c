"""A platform that starts on etcd: it waits for it, and takes out what an earlier life left."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from micro_ray.actors.backends import open_registry
from micro_ray.actors.registry import RegistryActor
from micro_ray.cluster import _external_registry
from micro_ray.finding import Finding
from micro_ray.settings import Settings, load
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.remote import Direct
from tests.fixtures.etcd import server
from tests.fixtures.registries import instance
from tests.fixtures.wait import eventually


def settings(url: str, ray: str = "local") -> Settings:
    return load(
        {},
        {
            "state": f"/tmp/none-{os.getpid()}",
            "run": Path("/run/here"),
            "host": "here",
            "registry.url": url,
            "registry.patience": 0.3,
            "ray.address": ray,
        },
    )


async def left(given: Settings) -> list[str]:
    async with open_registry(given) as registry:
        return [i.node.id for i in (await registry.snapshot()).instances]


async def test_it_waits_and_says_for_what() -> None:
    said: list[str] = []
    async with server() as etcd:
        await etcd.kill()
        given = settings(f"etcd://{etcd.address}")
        waiting = asyncio.create_task(_external_registry(given, said.append))
        await eventually(lambda: said)
        assert said[0].startswith(f"registry  waiting for etcd at {etcd.address}: ")
        assert not waiting.done()
        await etcd.start()
        await asyncio.wait_for(waiting, 10)


async def test_nodes_of_an_earlier_life_are_taken_out() -> None:
    """Those of this machine and this folder, and no other."""
    async with server() as etcd:
        given = settings(f"etcd://{etcd.address}")
        async with open_registry(given) as registry:
            for node, host, address in (
                ("ours", "here", "unix:/run/here/a.sock"),
                ("another-folder", "here", "unix:/run/hereafter/a.sock"),
                ("another-machine", "there", "unix:/run/here/a.sock"),
            ):
                await registry.register(instance(node=node, host=host, addresses=(address,)))
        await _external_registry(settings(f"etcd://{etcd.address}", "10.0.0.1:6379"), print)
        assert await left(given) == ["ours", "another-folder", "another-machine"]
        await _external_registry(given, print)
        assert await left(given) == ["another-folder", "another-machine"]


async def test_memory_needs_nothing() -> None:
    await _external_registry(settings("memory://"), print)


async def test_members_of_a_pool_over_etcd() -> None:
    """Two actors as Ray would make them: each serves, and says what is behind it."""
    with TemporaryDirectory(prefix="em-") as folder:
        async with server() as etcd:
            given = load(
                {},
                {
                    "state": folder,
                    "auth.mode": "off",
                    "registry.url": f"etcd://{etcd.address}",
                    "pools.registry": 2,
                },
            )
            members = [RegistryActor.__new__(RegistryActor) for _ in range(2)]
            for index, member in enumerate(members):
                await member.__init__(given, index)  # type: ignore[misc]
            try:
                await asyncio.gather(*(member.host.registered(10) for member in members))
                for member in members:
                    assert len(await member.list("micro")) == 1
                    direct = Direct(WireDialer(), member.addresses(), "registry")
                    first, *_ = await direct.call("Debug.Backend", {}, list[Finding])
                    await direct.close()
                    assert first.good
                    assert etcd.address in first.text
            finally:
                for member in members:
                    await member.stop()
            assert await left(given) == []
