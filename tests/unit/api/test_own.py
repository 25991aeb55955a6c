"""The door's own paths."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from micro_ray.api.app import Api
from micro_ray.api.metrics import MAX_NAMESPACES, MAX_SERVICES, Metrics
from micro_ray.network.network import Network
from micro_ray.router import Delta
from micro_ray.router.table import Table
from micro_ray.settings import Api as ApiSettings
from micro_ray.wire.dialer import WireDialer
from tests.fixtures.wait import PROMPT
from tests.unit.api.door import Door, open_door

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def scrape(door: Door) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name and label values."""
    text = (await door.http.get("/metrics")).text
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


async def test_root_health_and_icon(door: Door) -> None:
    root = (await door.http.get("/")).json()
    assert root["name"] == "micro-ray"
    assert (await door.http.get("/health")).json() == {"status": "ok"}
    icon = await door.http.get("/favicon.ico")
    assert (icon.status_code, icon.content) == (204, b"")
    assert "content-length" not in icon.headers
    assert "content-type" not in icon.headers
    head = await door.http.head("/health")
    assert (head.headers["content-length"], head.content) == ("15", b"")


async def test_post_to_them_is_a_call_of_a_service(door: Door) -> None:
    for path in ("/", "/health", "/metrics"):
        answer = await door.http.post(path)
        assert answer.status_code in (404, 405), path


async def test_ready_tells_the_truth() -> None:
    table, dialer = Table(), WireDialer()
    network = Network(table, dialer)
    async with open_door(network) as door:
        answer = await door.http.get("/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "no route table yet")
        call = await door.http.get("/echo")
        assert (call.status_code, call.headers["retry-after"]) == (503, "1")
        table.apply(Delta(epoch="e", revision=7, full=True))
        assert (await door.http.get("/ready")).json() == {
            "status": "ready", "stale": False, "revision": 7,
        }  # fmt: skip
        table.mark_stale()
        answer = await door.http.get("/ready")
        assert (answer.status_code, answer.json()["stale"]) == (200, True)
        assert (await door.http.get("/health")).status_code == 200
    await network.close()


async def test_metrics_count_services_and_codes(network: Network, probe: Any) -> None:
    async with open_door(network) as door:
        for _ in range(3):
            await door.http.get("/echo")
        await door.http.get("/echo/fail?code=409")
        await door.http.get("/streams/count")
        await door.http.get("/streams/count?fail=409")
        await door.http.get("/no/thing")
        held = asyncio.create_task(door.http.get("/echo/hang?name=metrics"))
        while not probe.begun["metrics"]:
            await asyncio.sleep(0.01)
        seen = await scrape(door)
        held.cancel()
        requests = seen["micro_api_requests_total"]
        assert requests["micro", "echo", "200"] == 3
        assert requests["micro", "echo", "409"] == 1
        assert (requests["micro", "streams", "200"], requests["micro", "streams", "409"]) == (1, 1)
        assert requests["micro", "api", "404"] == 1
        assert seen["micro_api_in_flight"][()] == 1
        buckets = list(seen["micro_api_request_seconds_bucket"].items())
        assert [value for _, value in buckets] == sorted(value for _, value in buckets)
        assert buckets[-1] == (("micro", "+Inf"), seen["micro_api_request_seconds_count"]["micro",])
        assert seen["micro_api_request_seconds_count"]["micro",] == 5  # what is over and no stream
        assert 0 < seen["micro_api_request_seconds_sum"]["micro",] < PROMPT


async def test_metrics_tell_the_tasks_and_the_process(door: Door) -> None:
    before = await scrape(door)
    assert before["micro_api_pid"][()] == os.getpid()
    more = [asyncio.create_task(asyncio.Event().wait()) for _ in range(3)]
    try:
        assert (await scrape(door))["micro_api_tasks"][()] == before["micro_api_tasks"][()] + 3
    finally:
        for task in more:
            task.cancel()
        await asyncio.gather(*more, return_exceptions=True)


async def test_what_is_asked_in_vain_makes_no_series(network: Network) -> None:
    """Names come from outside; labels must not."""
    async with open_door(network) as door:
        for number in range(20):
            await door.http.get(f"/unknown-{number}/x")
            await door.http.post(f"/echo/unknown-{number}")
        requests = (await scrape(door))["micro_api_requests_total"]
        assert set(requests) == {("micro", "api", "404")}
        assert requests["micro", "api", "404"] == 40


async def test_series_are_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_SERVICES + 50):
        metrics.count("micro", f"service-{number}", 200, 0.001)
        metrics.count("micro", f"service-{number}", 200, 0.001)
    text = metrics.text().decode()
    rows = [line for line in text.splitlines() if line.startswith("micro_api_requests_total{")]
    assert len(rows) == MAX_SERVICES + 1
    assert 'service="_other",code="200"} 100' in text


async def test_namespaces_are_bounded_too() -> None:
    metrics = Metrics()
    for number in range(MAX_NAMESPACES + 50):
        for code in (200, 404):
            metrics.count(f"tenant-{number}", "echo", code, 0.001)
    text = metrics.text().decode()
    rows = [line for line in text.splitlines() if line.startswith("micro_api_requests_total{")]
    assert len(rows) == 2 * (MAX_NAMESPACES + 1)
    assert 'namespace="_other",service="echo",code="404"} 50' in text


async def test_a_namespace_sees_its_own_alone() -> None:
    metrics = Metrics()
    metrics.count("acme", "echo", 200, 0.001)
    metrics.count("globex", "secret", 200, 0.001)
    shown = metrics.text("acme").decode()
    families = {f.name: f.samples for f in text_string_to_metric_families(shown)}
    assert families.keys() == {"micro_api_requests", "micro_api_request_seconds"}
    for samples in families.values():
        assert samples
        assert {sample.labels["namespace"] for sample in samples} == {"acme"}
    assert not any(f.samples for f in text_string_to_metric_families(metrics.text("x").decode()))


async def test_the_bounds_of_a_bucket_belong_to_it() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.0011, 10.0, 11.0):
        metrics.count("micro", "a", 200, seconds)
    text = metrics.text().decode()
    assert 'bucket{namespace="micro",le="0.001"} 1\n' in text
    assert 'bucket{namespace="micro",le="0.0025"} 2\n' in text
    assert 'bucket{namespace="micro",le="10.0"} 3\n' in text
    assert 'bucket{namespace="micro",le="+Inf"} 4\n' in text


async def test_lifespan(network: Network) -> None:
    """Servers that speak the lifespan protocol get their answers."""
    api = Api(network, network.table, ApiSettings(), ready=lambda: True)
    come = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(come)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await api({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_fault_of_the_door_itself_is_an_error_like_others(
    network: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_door(network) as door:
        monkeypatch.setattr(door.api, "timeout", lambda headers: 1 / 0)
        answer = await door.http.get("/echo", headers={"x-request-id": "fault"})
        assert (answer.status_code, answer.json()["id"]) == (500, "api")
        assert "fault" in answer.json()["detail"]
        assert "ZeroDivisionError" in caplog.text
        requests = (await scrape(door))["micro_api_requests_total"]
        assert requests["micro", "echo", "500"] == 1
