"""An open stream ends when who opened it may no more: his token has ended or was revoked, his
account is disabled, the rule that let him in is gone. Over each way in, with the error and its
fields."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from micro_ray import Service
from micro_ray.auth import Access, Resource, Rule, Tokens
from micro_ray.auth.passes import LIFE
from micro_ray.auth.tokens import LEEWAY
from micro_ray.context import current
from micro_ray.errors import MicroError
from micro_ray.network import Call
from micro_ray.sdk.authority import ITSELF
from micro_ray.serve.listener import Listener
from micro_ray.settings import Api as ApiSettings
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.statuses import error_of
from tests.fixtures.wait import PROMPT, eventually
from tests.security.guarded import Guarded, guarded

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

Ended = dict[str, Any]


class At:
    """``open`` are the handlers under way by who called."""

    def __init__(self, at: Guarded, listener: Listener, channel: Any, open: list[str]) -> None:
        self.at = at
        self.auth = at.authority.auth
        self.port = listener.bound
        self.channel = channel
        self.open = open


def ticker(open: list[str]) -> Service:
    service = Service("ticker")

    @service.endpoint
    async def watch() -> AsyncIterator[dict[str, str]]:
        by = current().caller
        open.append(by)
        try:
            yield {"by": by}
            await asyncio.Event().wait()
        finally:
            open.remove(by)

    @service.endpoint
    async def say(word: str = "") -> dict[str, str]:
        return {"by": current().caller}

    return service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at() -> AsyncIterator[At]:
    open: list[str] = []
    async with guarded() as up:
        await up.here.serve(ticker(open))
        await eventually(lambda: up.network.table.lookup("micro", "ticker"))
        settings = ApiSettings()
        listener = Listener(up.api, "127.0.0.1", 0, settings)
        await listener.start()
        try:
            yield At(up, listener, up.channel, open)
        finally:
            await listener.stop(drain=0.5)


# -- the ways: each opens, says when the first message has come, and gives the error at the end ----


async def _plain(at: At, token: str, begun: asyncio.Event, accept: str) -> Ended:
    head = {"authorization": f"Bearer {token}", "accept": accept}
    url = f"http://127.0.0.1:{at.port}/ticker/watch"
    async with (
        httpx.AsyncClient(timeout=None) as client,
        client.stream("POST", url, headers=head, json={}) as answer,
    ):
        lines: list[str] = []
        async for line in answer.aiter_lines():
            lines.append(line)
            begun.set()
    last = [line for line in lines if line][-1]
    if accept == "text/event-stream":
        assert "event: error" in lines
        found: Ended = json.loads(last.removeprefix("data: "))
    else:
        found = json.loads(last)["error"]
    return found


async def lines(at: At, token: str, begun: asyncio.Event) -> Ended:
    return await _plain(at, token, begun, "application/x-ndjson")


async def events(at: At, token: str, begun: asyncio.Event) -> Ended:
    return await _plain(at, token, begun, "text/event-stream")


async def _socket(at: At, token: str, begun: asyncio.Event, path: str) -> Ended:
    url = f"ws://127.0.0.1:{at.port}/ticker/{path}"
    async with connect(url, additional_headers={"authorization": f"Bearer {token}"}) as socket:
        await socket.send("{}")
        frames: list[Any] = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                frames.append(await socket.recv())
                begun.set()
        assert socket.close_code == 1008
        found: Ended = json.loads(frames[-1])
        assert socket.close_reason == found["status"]
    return found


async def websocket(at: At, token: str, begun: asyncio.Event) -> Ended:
    return await _socket(at, token, begun, "watch")


async def websocket_of_calls(at: At, token: str, begun: asyncio.Event) -> Ended:
    return await _socket(at, token, begun, "say")


async def websocket_that_waits(at: At, token: str, begun: asyncio.Event) -> Ended:
    """The first frame, with the request, has not come."""
    url = f"ws://127.0.0.1:{at.port}/ticker/watch"
    async with connect(url, additional_headers={"authorization": f"Bearer {token}"}) as socket:
        begun.set()
        found: Ended = json.loads(await socket.recv())
    return found


async def by_grpc(at: At, token: str, begun: asyncio.Event) -> Ended:
    call = at.channel.stream_stream("/ticker.Ticker/Watch")(
        iter([b"{}"]), metadata=(("authorization", f"Bearer {token}"),)
    )

    async def read() -> None:
        async for _ in call:
            begun.set()

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await read()
    said = error_of(raised.value.trailing_metadata() or ())
    assert said is not None
    wanted = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}
    assert raised.value.code() is wanted[said.code]
    return said.to_dict()


async def reflection(at: At, token: str, begun: asyncio.Event) -> Ended:
    """The door's own streams know the token only, and no rule."""
    from grpc_reflection.v1alpha import reflection_pb2

    call = at.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")(
        metadata=(("authorization", f"Bearer {token}"),)
    )
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    await call.write(asked.SerializeToString())
    await call.read()
    begun.set()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    return {"code": 401, "id": "auth"}


async def health(at: At, token: str, begun: asyncio.Event) -> Ended:
    call = at.channel.unary_stream("/grpc.health.v1.Health/Watch")(
        b"", metadata=(("authorization", f"Bearer {token}"),)
    )
    await call.read()
    begun.set()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    return {"code": 401, "id": "auth"}


async def _framed(
    at: At, token: str, begun: asyncio.Event, service: str, endpoint: str, body: bytes
) -> Ended:
    address = at.at.network.table.lookup("micro", service)[0].addresses[0]
    peer = await WireDialer().dial(address)
    try:
        head = {"authorization": f"Bearer {token}"}
        made = await peer.open(Call(service=service, endpoint=endpoint, metadata=head))
        async with made as stream:
            await stream.send(body)
            await stream.end()
            async for _ in stream:
                begun.set()
    except MicroError as error:
        return error.to_dict()
    finally:
        await peer.close()
    raise AssertionError("it ended without an error")


async def frames(at: At, token: str, begun: asyncio.Event) -> Ended:
    """To the replica itself, without a door."""
    return await _framed(at, token, begun, "ticker", "Ticker.Watch", b"{}")


async def to_platform(at: At, token: str, begun: asyncio.Event) -> Ended:
    """To a service of the platform, without a door."""
    body = b'{"topic":"x","confirm":true}'
    return await _framed(at, token, begun, "broker", "Broker.Subscribe", body)


Way = Callable[[At, str, asyncio.Event], Awaitable[Ended]]
RULED: tuple[Way, ...] = (lines, events, websocket, websocket_of_calls, by_grpc, frames)
WAYS: tuple[Way, ...] = (*RULED, websocket_that_waits, reflection, health, to_platform)


@contextlib.asynccontextmanager
async def opened(at: At, token: str, *ways: Way) -> AsyncIterator[dict[str, asyncio.Task[Ended]]]:
    """A stream over each way, once each has begun."""
    begun = {way.__name__: asyncio.Event() for way in ways}
    tasks = {
        way.__name__: asyncio.create_task(way(at, token, begun[way.__name__]))  # type: ignore[arg-type]
        for way in ways
    }
    try:
        await eventually(
            lambda: (
                all(one.is_set() for one in begun.values())
                or any(task.done() for task in tasks.values())
            ),
            within=PROMPT,
        )
        assert not any(task.done() for task in tasks.values())
        yield tasks
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def all_end(tasks: dict[str, asyncio.Task[Ended]], code: int) -> dict[str, Ended]:
    done, left = await asyncio.wait(tasks.values(), timeout=PROMPT)
    assert not left, [name for name, task in tasks.items() if task in left]
    assert done
    found = {name: task.result() for name, task in tasks.items()}
    assert {name: said["code"] for name, said in found.items()} == dict.fromkeys(tasks, code)
    return found


async def test_a_disabled_account_has_no_streams(at: At) -> None:
    whom, other = await at.at.authority.login("gone"), await at.at.authority.login("stays")
    async with (
        opened(at, whom.access, *WAYS) as tasks,
        opened(at, other.access, lines, websocket, by_grpc, frames) as goes_on,
    ):
        assert at.open.count("gone") == 5
        await at.auth.enable("gone", False, by=ITSELF)
        found = await all_end(tasks, 401)
        assert {said["id"] for said in found.values()} == {"auth"}
        await eventually(lambda: "gone" not in at.open, within=PROMPT)
        assert not any(task.done() for task in goes_on.values())
        assert at.open.count("stays") == 4


async def test_a_revoked_token_has_no_streams(at: At) -> None:
    whom: Tokens = await at.at.authority.login("revoked")
    async with opened(at, whom.access, *WAYS) as tasks:
        await at.auth.revoke(token=whom.access, by=ITSELF)
        found = await all_end(tasks, 401)
    assert "revoked" in found["lines"]["detail"]
    await eventually(lambda: "revoked" not in at.open, within=PROMPT)


async def test_a_stream_ends_with_the_rule_that_let_it_in(at: At) -> None:
    resource = Resource(name="ticker", endpoint="*")
    let = Rule(id="let", scope="tick", resource=resource, priority=400)
    shut = Rule(id="shut", scope="*", resource=resource, access=Access.DENIED, priority=350)
    for rule in (let, shut):
        await at.auth.create_rule(rule, by=ITSELF)
    whom = await at.at.authority.login("ruled", scopes=("tick",))
    head = {"authorization": f"Bearer {whom.access}"}
    try:

        async def let_in() -> bool:
            return (await at.at.http.post("/ticker/say", headers=head)).status_code == 200

        await eventually(let_in, within=PROMPT)
        async with opened(at, whom.access, *RULED) as tasks:
            await at.auth.delete_rule("let", by=ITSELF)
            found = await all_end(tasks, 403)
        assert {said["id"] for said in found.values()} == {"ticker"}
        await eventually(lambda: "ruled" not in at.open, within=PROMPT)
    finally:
        await at.auth.delete_rule("shut", by=ITSELF)


async def test_a_pass_may_end_and_a_socket_go_on(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of a WebSocket goes on with a pass that is good: it is made anew, as the socket
    may be open for longer than one is good."""
    whom = await at.at.authority.login("patient")
    visitors = at.at.api.visitors
    assert visitors._passes is not None
    now = time.time()
    monkeypatch.setattr(visitors._passes, "_clock", lambda: now - 2 * LIFE)
    url, head = f"ws://127.0.0.1:{at.port}/ticker/say", {"authorization": f"Bearer {whom.access}"}
    async with connect(url, additional_headers=head) as socket:
        monkeypatch.undo()  # the pass of the handshake is of long ago
        await socket.send("{}")
        assert json.loads(await socket.recv()) == {"by": "patient"}


async def test_a_stream_ends_with_its_token(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = at.auth._sessions
    life = 1.0
    monkeypatch.setattr(sessions, "_settings", sessions._settings.__class__(access_ttl=life))
    begun = time.time()
    whom = await at.at.authority.login("short")
    monkeypatch.undo()
    async with opened(at, whom.access, *WAYS) as tasks:
        found = await all_end(tasks, 401)
    assert time.time() >= begun + life + LEEWAY - 1
    assert "expired" in found["lines"]["detail"]
    await eventually(lambda: "short" not in at.open, within=PROMPT)
