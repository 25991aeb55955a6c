"""Streams of an account through both doors of a real platform, whose processes each hear for
themselves that it may no more; and what a replica refuses, in the record."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace

import grpc
import httpx
import pytest

from bench.stack import Server, micro
from tests.fixtures.wait import PROMPT, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

SECRET = "a secret of its own"


@pytest.fixture(scope="module")
def streaming(server: Server) -> Iterator[None]:
    micro(server, "run", "examples/streaming")
    yield
    micro(server, "kill", "streaming")


def token_of(server: Server, id: str) -> str:
    """The access token of a new account."""
    micro(server, "auth", "create", "account", id, "--secret", SECRET)
    asked = {"id": id, "secret": SECRET}
    answer = httpx.post(f"http://127.0.0.1:{server.port}/auth/token", json=asked)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access"])


@pytest.mark.usefixtures("streaming")
async def test_they_end_with_what_let_them_in(server: Server) -> None:
    watcher = await asyncio.to_thread(token_of, server, "watcher")
    ended: dict[str, float] = {}
    begun = {"http": asyncio.Event(), "grpc": asyncio.Event()}
    url, head = f"http://127.0.0.1:{server.port}", {"authorization": f"Bearer {watcher}"}

    async def by_http() -> dict[str, object]:
        path = f"{url}/streaming/count?to=1000000&pause=0.02"
        async with (
            httpx.AsyncClient(timeout=PROMPT) as client,
            client.stream("GET", path, headers=head) as answer,
        ):
            lines = []
            async for line in answer.aiter_lines():
                lines.append(line)
                begun["http"].set()
        ended["http"] = time.monotonic()
        error: dict[str, object] = json.loads(lines[-1])["error"]
        return error

    async def by_grpc() -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.proxy_port}") as channel:
            call = channel.stream_stream("/streaming.Streaming/Double")(
                metadata=(("authorization", f"Bearer {watcher}"),)
            )
            await call.write(b'{"value":1}')
            await call.read()
            begun["grpc"].set()
            code: grpc.StatusCode = await call.code()
        ended["grpc"] = time.monotonic()
        return code

    admin = micro(server, "user", "token").strip()
    streams = asyncio.gather(by_http(), by_grpc())
    async with asyncio.timeout(PROMPT):
        await asyncio.gather(*(event.wait() for event in begun.values()))
    async with httpx.AsyncClient() as client:
        at = time.monotonic()
        answer = await client.post(
            f"{url}/auth/Auth/Revoke",
            json={"account": "watcher"},
            headers={"authorization": f"Bearer {admin}"},
        )
        assert answer.status_code == 200, answer.text
    async with asyncio.timeout(PROMPT):
        error, code = await streams
    assert (error["code"], error["id"]) == (401, "auth")
    assert code is grpc.StatusCode.UNAUTHENTICATED
    took = {door: f"{(end - at) * 1000:.0f} ms" for door, end in ended.items()}
    await asyncio.to_thread(micro, server, "auth", "delete", "account", "watcher")
    print(f"[ended after the revocation was sent: {took}] ", end="")


@pytest.mark.usefixtures("streaming")
async def test_what_a_replica_refuses_is_read_of_the_topic(server: Server) -> None:
    """He calls by frames, past the doors."""
    watcher = await asyncio.to_thread(token_of, server, "late-watcher")
    what = ("--resource", "service:streaming:Debug.Health", "--access", "denied")
    micro(server, "auth", "create", "rule", "closed", *what, "--priority", "20000")
    his = replace(server, environ={**server.environ, "MICRO_TOKEN": watcher})
    try:

        async def refused() -> bool:
            said = await asyncio.to_thread(
                micro, his, "call", "streaming", "Debug.Health", "{}", good=False
            )
            return "Forbidden" in said

        await eventually(refused, within=PROMPT)

        async def told() -> bool:
            rows = await asyncio.to_thread(micro, server, "events", "read", "auth.audit")
            return any(
                "streaming:Debug.Health" in row and "micro/late-watcher" in row and "told_by" in row
                for row in rows.splitlines()
            )

        await eventually(told, within=PROMPT)
    finally:
        micro(server, "auth", "delete", "rule", "closed")
        micro(server, "auth", "delete", "account", "late-watcher")
