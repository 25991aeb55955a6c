"""A client of another machine's platform: through the real gRPC door, which asks who he is."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from micro_ray import AsyncClient, Service, errors
from micro_ray.network import Stream
from micro_ray.sdk.authority import ITSELF
from micro_ray.sdk.logins import Login, Logins
from micro_ray.sdk.remote import Door
from micro_ray.settings import Bootstrap, load
from micro_ray.wire.remote import to_json
from tests.fixtures.certificates import certificates
from tests.fixtures.proxy import Proxy
from tests.fixtures.wait import PROMPT, eventually
from tests.security.guarded import Guarded, guarded
from tests.unit.cli import services

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at() -> AsyncIterator[Guarded]:
    busy = Service("busy")

    @busy.endpoint
    async def call() -> None:
        raise errors.TooManyRequests("busy", "later", 1.5)

    hasty = Service("hasty")

    @hasty.endpoint(name="Hasty.Call")
    async def ends(numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        for value in range(5):
            yield value
        raise errors.Conflict("hasty", "enough")

    async with guarded() as found:
        for service in (services.toolbox(), services.streams(), busy, hasty):
            await found.here.serve(service)
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def token(at: Guarded) -> str:
    return (await at.authority.login("far", scopes=("admin",))).access


@pytest.fixture
def boot(at: Guarded, token: str) -> Bootstrap:
    """Nothing of this machine in it but the door."""
    door = f"grpc://127.0.0.1:{at.port}"
    return Bootstrap(
        registry=(), routers=(), namespace="micro", host="", run=Path("/nowhere"),
        door=door, place=door, token=token,
    )  # fmt: skip


@pytest_asyncio.fixture(loop_scope="module")
async def client(boot: Bootstrap) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(boot) as made:
        yield made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- calls -----------------------------------------------------------------------------------------


async def test_a_call(client: AsyncClient) -> None:
    answer = await client.call("helloworld", "call", {"name": "Alice"})
    assert answer == {"message": "Hello Alice", "by": "far", "space": "micro"}
    assert await client.call("toolbox", "Greeter.Hello", {"name": "Bo"}) == "Hello Bo"


async def test_bytes(client: AsyncClient) -> None:
    assert await client.call("toolbox", "reverse", b"{\x00\xff1") == b"1\xff\x00{"
    assert await client.call("toolbox", "reverse", b"") == b""


async def test_what_there_is(client: AsyncClient, at: Guarded) -> None:
    """The same as a client of the machine has it."""
    assert await client.entries() == await at.here.client.entries()
    assert await client.services() == await at.here.client.services()


async def numbers(*values: int) -> AsyncIterator[dict[str, int]]:
    for value in values:
        yield {"value": value}


async def test_streams_of_every_kind(client: AsyncClient) -> None:
    ticks = [n["value"] async for n in client.stream("streams", "ticks", {"to": 100})]
    assert ticks == list(range(1, 101))
    assert await client.call("streams", "total", numbers(1, 2, 3)) == {"value": 6}
    doubled = client.stream("streams", "double", numbers(1, 2, 3))
    assert [n["value"] async for n in doubled] == [2, 4, 6]
    assert await client.call("streams", "first", numbers(*range(10_000))) == {"value": 0}


async def test_both_ways_in_turn(client: AsyncClient) -> None:
    """An answer comes while requests go on; who stops waiting for one ends nothing."""
    async with await client.open("streams", "Streams.Double") as stream:
        for value in (1, 2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await stream.receive()
            await stream.send(to_json({"value": value}))
            assert await stream.receive() == to_json({"value": value * 2})
        await stream.end()
        assert await stream.receive() is None
        with pytest.raises(errors.Cancelled):
            await stream.send(b"{}")


async def test_a_stream_that_is_left_ends_at_the_service(client: AsyncClient, at: Guarded) -> None:
    answers = client.stream("streams", "ticks", {"pause": 0.01})
    assert await anext(answers) == {"value": 1}
    await answers.aclose()

    def over() -> bool:
        return not any(status.in_flight for status in at.network.nodes("micro")
                       if status.service == "streams")  # fmt: skip

    await eventually(over)


async def test_a_service_that_ends_first_is_heard(client: AsyncClient) -> None:
    """What it has said, and why it ended, though requests go on."""
    for _ in range(30):
        async with await client.open("hasty", "Hasty.Call") as stream:
            sender = asyncio.create_task(_on_and_on(stream))
            try:
                await eventually(sender.done, within=PROMPT)
                for value in range(5):
                    assert await stream.receive() == to_json(value)
                with pytest.raises(errors.Conflict, match="enough"):
                    await stream.receive()
            finally:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)


async def _on_and_on(stream: Stream) -> None:
    with contextlib.suppress(errors.MicroError):
        while True:
            await stream.send(b"1")


async def test_messages_of_many_tasks(client: AsyncClient) -> None:
    async with await client.open("streams", "Streams.Total") as stream:
        await asyncio.gather(*(stream.send(to_json({"value": 1})) for _ in range(200)))
        await stream.end()
        assert await stream.receive() == to_json({"value": 200})


async def test_what_making_a_request_raises(client: AsyncClient) -> None:
    async def bad() -> AsyncIterator[dict[str, int]]:
        yield {"value": 1}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async for _ in client.stream("streams", "double", bad()):
            pass


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted({*errors.CODES} - {408, 499, 503}))
async def test_errors_come_as_they_were(client: AsyncClient, code: int) -> None:
    with pytest.raises(errors.CODES[code]) as caught:
        await client.call("toolbox", "fail", {"code": code, "detail": "ü\n"})
    assert (caught.value.code, caught.value.detail) == (code, "ü\n")


async def test_when_to_come_again(client: AsyncClient) -> None:
    with pytest.raises(errors.TooManyRequests) as caught:
        await client.call("busy")
    assert caught.value.retry_after == 1.5


async def test_an_error_in_a_stream(client: AsyncClient) -> None:
    answers = client.stream("streams", "breaks")
    assert await anext(answers) == {"value": 1}
    with pytest.raises(errors.Conflict, match="broke after one"):
        await anext(answers)


async def test_what_there_is_not(client: AsyncClient) -> None:
    for service, endpoint in (("nobody", "call"), ("toolbox", "Toolbox.Nix"), ("a/b", "call"),
                              ("ü", "call"), ("", "X.Y"), ("toolbox", "A..B")):  # fmt: skip
        with pytest.raises(errors.NotFound):
            await client.call(service, endpoint)


async def test_deadlines(client: AsyncClient) -> None:
    begun = time.monotonic()
    with pytest.raises(errors.Timeout):
        await client.call("toolbox", "slow", timeout=0.2)
    with pytest.raises(errors.Timeout):
        async for _ in client.stream("streams", "ticks", {"pause": 60}, timeout=0.2):
            pass
    with pytest.raises(errors.Timeout):
        await client.call("toolbox", "nothing", timeout=-1)
    assert time.monotonic() - begun < PROMPT


async def test_the_deadline_of_the_settings(boot: Bootstrap) -> None:
    short = replace(boot, network=replace(boot.network, timeout=0.2))
    async with AsyncClient(short) as client:
        with pytest.raises(errors.Timeout):
            await client.call("toolbox", "slow")


async def test_no_node_can_be_asked_for(client: AsyncClient) -> None:
    with pytest.raises(errors.BadRequest, match="chooses"):
        await client.call("toolbox", "nothing", node="toolbox-1")


@pytest.mark.parametrize(
    "metadata",
    [{"a b": "x"}, {"x-bin": "x"}, {"grpc-timeout": "1"}, {"x": "ü"}, {"x": "a\nb"},
     {"": "x"}, {"te": "x"}, {"content-type": "x"}, {"x" * 300: "y"}],
)  # fmt: skip
async def test_metadata_that_cannot_go(client: AsyncClient, metadata: dict[str, str]) -> None:
    with pytest.raises(errors.BadRequest, match="gRPC door"):
        await client.call("toolbox", "nothing", metadata=metadata)


async def test_metadata(client: AsyncClient) -> None:
    seen = await client.call("toolbox", "seen", metadata={"X-Mood": "good", "blank": ""})
    assert seen["x-mood"] == "good"


async def test_a_message_over_the_limit(boot: Bootstrap) -> None:
    small = replace(boot, wire=replace(boot.wire, max_message=70_000))
    async with AsyncClient(small) as client:
        with pytest.raises(errors.TooLarge):
            await client.call("toolbox", "reverse", b"x" * 80_000)


# -- who one is ------------------------------------------------------------------------------------


async def test_nobody_and_a_wrong_credential(boot: Bootstrap) -> None:
    for given in ("", "nonsense", "a.b.c"):
        async with AsyncClient(replace(boot, token=given)) as client:
            with pytest.raises(errors.Unauthorized):
                await client.call("helloworld")
            with pytest.raises(errors.Unauthorized):
                await client.entries()
            with pytest.raises(errors.Unauthorized):
                async for _ in client.stream("streams", "ticks"):
                    pass


async def test_who_may_not(boot: Bootstrap, at: Guarded) -> None:
    access = (await at.authority.login("stranger", "elsewhere")).access
    async with AsyncClient(replace(boot, token=access, namespace="tenant")) as client:
        with pytest.raises(errors.Forbidden):
            await client.call("store", "Store.List")


def logged_in(tmp_path: Path, place: str, access: str, refresh: str, expires: float) -> Path:
    path = tmp_path / "credentials.json"
    login = Login(id="late", namespace="micro", access=access, expires=expires, refresh=refresh)
    Logins(path).write(place, login)
    return path


async def test_an_old_token_is_renewed_once(boot: Bootstrap, at: Guarded, tmp_path: Path) -> None:
    tokens = await at.authority.login("late", scopes=("admin",))
    path = logged_in(tmp_path, boot.place, "old", tokens.refresh, time.time() - 1)
    own = replace(boot, token="", credentials=path)
    async with AsyncClient(own) as one, AsyncClient(own) as two:
        assert (await one.call("helloworld"))["by"] == "late"
        assert (await two.call("helloworld"))["by"] == "late"
        assert await one.token() == await two.token() != "old"
    known = Logins(path).read(boot.place)
    assert known is not None
    assert known.refresh != tokens.refresh


async def test_a_session_that_has_ended(boot: Bootstrap, tmp_path: Path) -> None:
    path = logged_in(tmp_path, boot.place, "old", "void", time.time() - 1)
    async with AsyncClient(replace(boot, token="", credentials=path)) as client:
        with pytest.raises(errors.Unauthorized):
            await client.call("helloworld")
    assert Logins(path).read(boot.place) is None


async def test_a_login_is_for_its_place_only(boot: Bootstrap, token: str, tmp_path: Path) -> None:
    """A token is never told to another door."""
    path = logged_in(tmp_path, "grpcs://another:8081", token, "", time.time() + 900)
    async with AsyncClient(replace(boot, token="", credentials=path)) as client:
        with pytest.raises(errors.Unauthorized):
            await client.call("helloworld")


async def test_in_another_namespace(boot: Bootstrap, at: Guarded) -> None:
    made = await at.authority.auth.generate("t", namespace="tenant", by=ITSELF, scopes=("admin",))
    access = (await at.authority.auth.token("t", made.secret, namespace="tenant")).access
    async with AsyncClient(replace(boot, token=access, namespace="tenant")) as client:
        assert "helloworld" not in await client.services()
        assert "store" in await client.services()


# -- the way ---------------------------------------------------------------------------------------


async def test_nobody_there(boot: Bootstrap) -> None:
    begun = time.monotonic()
    async with AsyncClient(replace(boot, door=f"grpc://127.0.0.1:{free_port()}")) as client:
        with pytest.raises(errors.Unavailable, match=r"cannot be reached.*refused"):
            await client.call("helloworld")
        with pytest.raises(errors.Unavailable):
            async for _ in client.stream("streams", "ticks"):
                pass
    async with AsyncClient(replace(boot, door="grpc://nowhere.invalid:80")) as client:
        with pytest.raises(errors.Unavailable):
            await client.call("helloworld")
    assert time.monotonic() - begun < PROMPT


async def test_what_is_no_door(boot: Bootstrap) -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(http, "127.0.0.1", 0)
    other = grpc.aio.server()
    ports = [server.sockets[0].getsockname()[1], other.add_insecure_port("127.0.0.1:0")]
    await other.start()
    try:
        for port in ports:
            door = replace(boot, door=f"grpc://127.0.0.1:{port}")
            async with AsyncClient(door) as client:
                with pytest.raises((errors.Unavailable, errors.BadGateway)):
                    await client.call("helloworld", timeout=5)
    finally:
        server.close()
        await other.stop(0)


async def test_a_connection_that_breaks(boot: Bootstrap, at: Guarded) -> None:
    """What was under way is said to be broken, and the next call has another connection."""
    line = Proxy("127.0.0.1", at.port)
    await line.open()
    try:
        async with AsyncClient(replace(boot, door=f"grpc://127.0.0.1:{line.port}")) as client:
            answers = client.stream("streams", "ticks", {"pause": 0.05})
            assert await anext(answers) == {"value": 1}
            line.cut()
            with pytest.raises(errors.BadGateway, match="broke"):
                async for _ in answers:
                    pass

            async def again() -> bool:
                return (await client.call("helloworld"))["by"] == "far"

            await eventually(again)
    finally:
        await line.close()


async def test_closing_ends_what_is_under_way(boot: Bootstrap) -> None:
    client = AsyncClient(boot)
    await client.__aenter__()
    answers = client.stream("streams", "ticks", {"pause": 60})
    assert await anext(answers) == {"value": 1}
    waiting = asyncio.create_task(anext(answers))
    call = asyncio.create_task(client.call("toolbox", "slow"))
    await asyncio.sleep(0)
    await client.__aexit__()
    for task in (waiting, call):
        with pytest.raises(errors.Cancelled):
            await task  # type: ignore[misc]
    with pytest.raises(errors.BadRequest):
        await client.call("helloworld")
    with pytest.raises(errors.BadRequest):
        await client.__aenter__()


async def test_a_task_that_is_cancelled_is_so(client: AsyncClient) -> None:
    call = asyncio.create_task(client.call("toolbox", "slow"))
    answers = client.stream("streams", "ticks", {"pause": 60})
    assert await anext(answers) == {"value": 1}
    stream = asyncio.create_task(anext(answers))
    await asyncio.sleep(0)
    for task in (call, stream):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task  # type: ignore[misc]


# -- TLS -------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module")
async def secure(at: Guarded, tmp_path: Path) -> AsyncIterator[tuple[int, Path]]:
    """A TLS end before the door: its port, and whom to trust."""
    made = certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    context.set_alpn_protocols(["h2"])
    tasks: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while piece := await reader.read(65536):
                    writer.write(piece)
                    await writer.drain()
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", at.port)
        for pair in ((reader, outer), (inner, writer)):
            tasks.add(asyncio.create_task(copy(*pair)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1], made.authority
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_tls(boot: Bootstrap, secure: tuple[int, Path]) -> None:
    port, authority = secure
    there = replace(boot, door=f"grpcs://127.0.0.1:{port}", ca=str(authority))
    async with AsyncClient(there) as client:
        assert (await client.call("helloworld"))["by"] == "far"
    async with AsyncClient(replace(there, door=f"grpcs://localhost:{port}")) as client:
        assert (await client.call("helloworld"))["by"] == "far"


async def test_an_authority_that_is_not_trusted(boot: Bootstrap, secure: tuple[int, Path]) -> None:
    """Neither is the system's, nor does it speak in the clear."""
    port, _ = secure
    for door in (f"grpcs://127.0.0.1:{port}", f"grpc://127.0.0.1:{port}"):
        async with AsyncClient(replace(boot, door=door)) as client:
            with pytest.raises((errors.Unavailable, errors.BadGateway)):
                await client.call("helloworld", timeout=10)


async def test_a_file_of_certificates_that_is_gone(boot: Bootstrap) -> None:
    with pytest.raises(errors.PreconditionFailed, match=r"gone\.pem"):
        Door(replace(boot, door="grpcs://127.0.0.1:1", ca="/gone.pem"))


# -- which one -------------------------------------------------------------------------------------


async def test_a_program_goes_where_the_variable_says(
    boot: Bootstrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not to the current one: what somebody does at a terminal must not move programs."""
    from micro_ray.sdk.environments import Environments, by_settings

    environ = {"MICRO_STATE": str(tmp_path), "MICRO_CREDENTIALS": str(tmp_path / "c.json")}
    known = Environments(load(environ))
    known.add("far", boot.door)
    known.use("far")
    assert by_settings(load(environ)).door == ""
    assert by_settings(load({**environ, "MICRO_ENV": "far"})).door == boot.door
    monkeypatch.setenv("MICRO_ENV", "far")
    monkeypatch.setenv("MICRO_TOKEN", boot.token)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    async with AsyncClient() as client:
        assert (await client.call("helloworld"))["by"] == "far"
