"""The gRPC door's figures: counted as those of the HTTP door, and shown by it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from micro_ray.api.metrics import MAX_NAMESPACES, MAX_SERVICES, Metrics, exposition
from micro_ray.auth import Update
from micro_ray.auth.callers import Callers
from micro_ray.auth.guard import Guard
from micro_ray.auth.passes import PrivateKey, platform
from micro_ray.serve.figures import asked, told
from micro_ray.wire.dialer import WireDialer
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.api import services
from tests.unit.api.services import Probe
from tests.unit.proxy.door import opened
from tests.unit.proxy.test_bounds import refused
from tests.unit.proxy.test_proxy import unary

pytestmark = pytest.mark.timeout(60)

KEY = PrivateKey()


def samples(text: bytes) -> dict[str, dict[tuple[str, ...], float]]:
    """By name and label values, but for the process."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        for sample in family.samples:
            labels = tuple(v for k, v in sample.labels.items() if k != "pid")
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


async def test_calls_are_counted_by_service_and_status() -> None:
    probe = Probe()
    async with opened(services.echo(probe), services.streams(probe)) as door:

        def seen() -> dict[str, dict[tuple[str, ...], float]]:
            return samples(exposition("proxy", [door.proxy.metrics.figures()]))

        for _ in range(3):
            await unary(door.channel, "/echo.Echo/Call", {})
        await refused(door.channel, "/echo.Echo/Crash")
        await refused(door.channel, "/echo.Echo/Nothing")
        await refused(door.channel, "/nothing-1.Echo/Call")
        stream: Any = door.channel.stream_stream("/streams.Streams/Count")(iter([b"{}"]))
        assert [message async for message in stream]
        call = door.channel.unary_unary("/echo.Echo/Hang")(b'{"name":"h"}')
        await eventually(lambda: probe.begun["h"])
        assert seen()["micro_proxy_in_flight"][()] == 1
        call.cancel()
        await eventually(lambda: not door.proxy.metrics.in_flight)
        figures = seen()
        requests = figures["micro_proxy_requests_total"]
        assert requests["micro", "echo", "OK"] == 3
        assert requests["micro", "echo", "INTERNAL"] == 1
        assert requests["micro", "proxy", "NOT_FOUND"] == 2  # what is asked for in vain
        assert requests["micro", "streams", "OK"] == 1
        assert requests["micro", "echo", "CANCELLED"] == 1
        assert figures["micro_proxy_request_seconds_count"]["micro",] == 5  # no stream
        assert 0 < figures["micro_proxy_request_seconds_sum"]["micro",] < PROMPT
        assert figures["micro_proxy_tasks"][()] >= 1


async def test_replicas_are_told_apart_and_tenants_see_their_own() -> None:
    metrics = Metrics()
    metrics.count("acme", "shop", "OK", 0.001)
    metrics.count("elsewhere", "hush", "UNAUTHENTICATED", None)
    figures = metrics.figures()
    text = exposition("proxy", [figures], "acme").decode()
    pid = os.getpid()
    row = f'micro_proxy_requests_total{{namespace="acme",service="shop",code="OK",pid="{pid}"}} 1'
    assert row in text.splitlines()
    assert "hush" not in text
    assert "in_flight" not in text
    for number in range(MAX_SERVICES + MAX_NAMESPACES):
        metrics.count(f"n-{number}", f"s-{number}", "OK", None)
    rows = exposition("proxy", [metrics.figures()]).decode().splitlines()
    counted = [row for row in rows if row.startswith("micro_proxy_requests_total{")]
    assert len(counted) <= MAX_SERVICES + MAX_NAMESPACES
    assert len([row for row in rows if "_count{" in row]) == MAX_NAMESPACES + 1
    # Nobody's namespace has the name of what all others are counted as.
    metrics.count("other", "mine", "OK", None)
    assert b"namespace=" not in exposition("proxy", [metrics.figures()], "other")


async def test_they_are_told_to_another_process(tmp_path: Path) -> None:
    metrics, dialer = Metrics(), WireDialer()
    metrics.count("micro", "echo", "OK", 0.5)
    async with told(metrics, tmp_path, None):
        with socket.socket(socket.AF_UNIX) as left:  # by a process that was killed
            left.bind(str(tmp_path / "proxy-figures-999999999.sock"))
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(str(tmp_path / f"proxy-figures-{os.getppid()}.sock"))
        (found,) = await asked(dialer, tmp_path)
        assert (found.pid, found.spaces) == (os.getpid(), metrics.figures().spaces)
        assert set(os.listdir(tmp_path)) == {
            f"proxy-figures-{pid}.sock" for pid in (os.getpid(), os.getppid())
        }
    assert await asked(dialer, tmp_path) == []


async def test_they_are_told_to_the_platform_alone(tmp_path: Path) -> None:
    guard = Guard(platform=KEY.public)
    guard.apply(Update(revision=1, full=True, keys=()))
    callers = Callers(guard, service="proxy", platform=KEY.public, shared=True)
    passes = platform(KEY, "api")
    async with told(Metrics(), tmp_path, callers):
        assert await asked(WireDialer(), tmp_path) == []
        assert len(await asked(WireDialer(credentials=passes.itself), tmp_path)) == 1
