"""The doors on a real platform: Serve's own route, streams, and replacing them under load."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import urllib.request
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import connect

from bench.stack import Server, micro
from tests.chaos.load import Load
from tests.fixtures.wait import eventually
from tests.journeys.conftest import Driver

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def services(server: Server) -> Iterator[None]:
    for name in ("helloworld", "streaming", "notes", "caller"):
        micro(server, "run", f"examples/{name}")
    yield
    for name in ("helloworld", "streaming", "notes", "caller"):
        micro(server, "kill", name)


def ask(port: int, method: str, path: str, body: str = "", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.usefixtures("services")
class TestExamples:
    """Each example, as its README would call it."""

    def test_one_that_calls_another(self, server: Server) -> None:
        code, body = ask(server.port, "POST", "/caller", '{"names":["A","B"]}')
        assert (code, json.loads(body)) == (200, {"messages": ["Hello A", "Hello B"]})

    def test_one_that_keeps_things(self, server: Server) -> None:
        assert ask(server.port, "PUT", "/notes/1", '{"text":"buy milk"}')[0] == 200
        code, body = ask(server.port, "GET", "/notes/1")
        assert (code, json.loads(body)["text"]) == (200, "buy milk")
        assert ask(server.port, "GET", "/notes/2")[0] == 404

    def test_streams_as_lines_and_as_events(self, server: Server) -> None:
        code, body = ask(server.port, "GET", "/streaming/count?to=2")
        assert (code, body) == (200, '{"value":1}\n{"value":2}\n')
        code, body = ask(server.port, "GET", "/streaming/count?to=2", accept="text/event-stream")
        assert (code, body) == (200, 'data: {"value":1}\n\ndata: {"value":2}\n\n')
        code, body = ask(server.port, "POST", "/streaming/sum", '{"value":1}\n{"value":2}\n')
        assert (code, json.loads(body)) == (200, {"value": 3})

    async def test_streams_both_ways_over_websocket(self, server: Server) -> None:
        async with connect(f"ws://127.0.0.1:{server.port}/streaming/double") as socket:
            for value in (1, 2, 3):
                await socket.send(json.dumps({"value": value}))
                assert json.loads(await socket.recv()) == {"value": value * 2}

    def test_the_same_app_on_serves_own_route(self, server: Server) -> None:
        code, body = ask(server.serve_port, "POST", "/helloworld/call", '{"name":"Alice"}')
        assert (code, body) == (200, '{"message":"Hello Alice"}')
        code, body = ask(server.serve_port, "GET", "/streaming/count?to=2")
        assert (code, body) == (200, '{"value":1}\n{"value":2}\n')
        assert ask(server.serve_port, "GET", "/nobody")[0] == 404

    def test_the_document_lists_what_runs(self, server: Server) -> None:
        paths = json.loads(ask(server.port, "GET", "/openapi.json")[1])["paths"]
        assert "/notes/{id}" in paths
        assert "/helloworld/helloworld/call" in paths
        assert "/store/store/read" in paths


def test_what_the_door_says_of_itself(server: Server) -> None:
    assert ask(server.port, "GET", "/health") == (200, '{"status":"ok"}')
    code, body = ask(server.port, "GET", "/ready")
    said = json.loads(body)
    assert (code, said["status"], said["stale"]) == (200, "ready", False)


#: Joins the platform's Ray and brings the door to ``count`` replicas of a new version.
ROLL = """
from dataclasses import replace
from pathlib import Path
from ray import serve
from micro_ray.serve.api import NAME, application
from micro_ray.settings import load
settings = load()
key = (settings.state / "platform.key").read_text()
api = replace(settings.api, replicas={count}, max_in_flight={count}000)
settings = replace(settings, key=key, api=api)
serve.run(application(settings), name=NAME, route_prefix="/")
print("rolled")
"""


@pytest.mark.usefixtures("services")
async def test_replacing_and_scaling_doors_loses_no_request(server: Server, driver: Driver) -> None:
    """Every replica of the door is replaced, to three and back to two, under load on connections
    that are kept and on connections that are made anew."""
    ending = threading.Event()
    fresh = asyncio.create_task(asyncio.to_thread(_fresh, server.port, ending))
    try:
        async with Load(server.port, rate=200) as outcome:
            await eventually(lambda: outcome.good > 100, within=10)
            for count in (3, 2):
                code = ROLL.format(count=count)
                assert "rolled\n" in await asyncio.to_thread(driver, server, code)
            target = outcome.good + 200
            await eventually(lambda: outcome.good > target, within=10)
    finally:
        ending.set()
    made, failures = await fresh
    assert not outcome.wrong
    assert not outcome.failures
    assert not failures
    assert made > 100


def _fresh(port: int, ending: threading.Event) -> tuple[int, list[str]]:
    """Requests, each on a connection of its own, until told to end."""
    made, failures = 0, []
    while not ending.is_set():
        made += 1
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/helloworld?name={made}", timeout=10
            ) as answer:
                if answer.read() != b'{"message":"Hello %d"}' % made:
                    failures.append(f"{made}: wrong")
        except OSError as error:
            failures.append(f"{made}: {error}")
    return made, failures
