"""The broker over HTTP: it is a service like any other."""

from __future__ import annotations

import asyncio
import json

import pytest

from micro_ray.sdk.testing import Here
from tests.fixtures.wait import eventually
from tests.unit.api.door import Door, Line

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def subscribe(line: Line, query: str, *headers: str) -> None:
    head = [f"GET /broker/subscribe?{query} HTTP/1.1", "Host: x", *headers]
    await line.send("\r\n".join([*head, "", ""]).encode())


async def publish(door: Door, topic: str, body: str, **more: object) -> None:
    answer = await door.http.post("/broker/publish", json={"topic": topic, "body": body, **more})
    assert (answer.status_code, answer.json()) == (200, {})


async def test_lines(door: Door, town: Here) -> None:
    async with door.line() as line:
        await subscribe(line, "topic=http.%3E&confirm=true")
        code, headers = await line.head()
        assert (code, headers["content-type"]) == (200, "application/x-ndjson")
        assert json.loads(await line.chunk())["topic"] == "http.>"
        await publish(door, "http.a", "hello", headers={"k": "v"})
        await publish(door, "http.b", "/wA=", encoding="base64")
        assert json.loads(await line.chunk()) == {
            "topic": "http.a", "body": "hello", "encoding": "text", "headers": {"k": "v"},
            "dropped": 0,
        }  # fmt: skip
        assert json.loads(await line.chunk())["body"] == "/wA="
    await eventually(lambda: not town.broker._spaces._spaces)  # the client's end ends it


async def test_events(door: Door) -> None:
    async with door.line() as one, door.line() as two:
        for line in (one, two):
            query = "topic=http.a&queue=g&confirm=true"
            await subscribe(line, query, "Accept: text/event-stream")
            code, headers = await line.head()
            assert (code, headers["content-type"]) == (200, "text/event-stream")
            await line.chunk()
        await publish(door, "http.a", "shared")
        waiting = [asyncio.create_task(line.chunk()) for line in (one, two)]
        done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        (event,) = [task.result() for task in done]
        assert event.startswith(b"data: {")
        assert json.loads(event.removeprefix(b"data: "))["body"] == "shared"
        (other,) = others
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)


@pytest.mark.parametrize(
    ("path", "body", "code", "told"),
    [
        ("publish", {"topic": "a.*"}, 400, "subscribers"),
        ("publish", {"body": "x"}, 400, "topic"),
        ("publish", {"topic": "a", "body": "x" * 1_000_001}, 413, "1000000 allowed"),
        ("publish", {"topic": "a", "body": "%", "encoding": "base64"}, 400, "base64"),
        ("publish", {"topic": "a", "encoding": "utf-7"}, 400, "utf-7"),
        ("publish", {"topic": "a", "headers": {"k": "a\r\nb: c"}}, 400, "header"),
        ("publish", {"topic": "a", "headers": {"Nats-Trace-Dest": "x"}}, 400, "servers'"),
        ("subscribe", {"topic": ">.a"}, 400, "last word"),
        ("subscribe", {"topic": "a", "queue": "*"}, 400, "queue"),
    ],
)
async def test_what_is_wrong(
    door: Door, path: str, body: dict[str, object], code: int, told: str
) -> None:
    answer = await door.http.post(f"/broker/{path}", json=body)
    assert answer.status_code == code
    assert told in answer.json()["detail"]
