"""The examination of etcd finds what is wrong with it, and says what to do."""

from __future__ import annotations

import pytest

from micro_ray.finding import Finding
from micro_ray.registry.etcd import EtcdRegistry
from micro_ray.registry.etcd_health import _versions
from micro_ray.registry.etcd_url import parse
from micro_ray.registry.etcdapi import rpc_pb2 as pb
from tests.fixtures.etcd import cluster, server
from tests.fixtures.nats import free_ports
from tests.fixtures.wait import eventually


async def found(*addresses: str) -> list[Finding]:
    url = f"etcd://{','.join(addresses)}"
    async with EtcdRegistry(parse(url), patience=2, attempt=0.5) as registry:
        return await registry.examine()


async def wrong(*addresses: str) -> str:
    """What is wrong, all of it."""
    return "\n".join(finding.text for finding in await found(*addresses) if not finding.good)


async def test_one_server() -> None:
    async with server() as etcd:
        first, space = await found(etcd.address)
        assert first.good
        assert first.text.startswith("etcd 3.")
        assert first.text.endswith(f"at {etcd.address}, 1 member")
        assert space.good
        assert f"MiB at {etcd.address}" in space.text
        await etcd.ask("maintenance/alarm", action="ACTIVATE", alarm="NOSPACE")
        told = await wrong(etcd.address)
        assert "alarm NOSPACE" in told
        assert "etcdctl alarm disarm" in told


async def test_nobody_answers() -> None:
    (port,) = free_ports(1)
    told = await wrong(f"127.0.0.1:{port}")
    assert told.startswith("no etcd answers")
    assert "Connection refused" in told
    assert "correct registry.url" in told


async def test_members_that_are_down_and_cut_off() -> None:
    async with cluster() as three:
        first = (await found(*three.addresses))[0]
        assert first.good
        assert first.text.endswith("3 members")
        leader = await three.leader()
        alone, other = (member for member in three.members if member is not leader)
        await three.cut_off(alone)

        async def cut_off() -> bool:
            told = await wrong(*three.addresses)
            return f"{alone.address} is cut off from the others" in told

        await eventually(cut_off, within=20)
        three.join_again()

        async def well() -> bool:
            return not await wrong(*three.addresses)

        await eventually(well, within=20)
        other.freeze()
        told = await wrong(*three.addresses)
        assert f"not in reach: {other.address}: no answer within 0.5 s" in told
        await alone.kill()

        async def without_a_leader() -> bool:
            return "they have no leader" in await wrong(*three.addresses)

        await eventually(without_a_leader, within=20)
        other.thaw()


@pytest.mark.parametrize(
    ("version", "told"),
    [("3.3.27", "3.4 or newer"), ("3.5.1", "3.5.3 or newer"), ("3.4.0", ""), ("3.6.4", "")],
)
def test_versions(version: str, told: str) -> None:
    findings = _versions({"a:2379": pb.StatusResponse(version=version)})
    assert bool(findings) == bool(told)
    assert all(told in finding.text and not finding.good for finding in findings)
