"""examples/perl: a service in another language, made from docs/wire.md, that a real platform finds,
calls and loses nothing of. ``test_perl_frames.py`` shows what it does with peers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from micro_ray.errors import BadRequest, NotFound, Timeout, TooLarge, UnsupportedMedia
from micro_ray.registry import Registry
from micro_ray.registry.memory import MemoryRegistry
from micro_ray.sdk.testing import Here
from micro_ray.wire import registry as face
from micro_ray.wire.server import Server
from tests.fixtures.lines import registry_at
from tests.fixtures.perl import Perl, perl, reason
from tests.fixtures.wait import eventually

pytestmark = pytest.mark.skipif(bool(reason()), reason=reason())


@pytest.fixture
async def service(here: Here) -> AsyncIterator[Perl]:
    async with perl(here.bootstrap.run, here.bootstrap.registry, "perl-one") as up:
        await here.known("perl", up.id)
        yield up


async def test_unary(here: Here, service: Perl) -> None:
    call = here.client.call
    assert await call("perl", "call", {"name": "Zoë ☃ 𝄞"}) == {"message": "Hello Zoë ☃ 𝄞 from Perl"}
    assert await call("perl", "call") == {"message": "Hello World from Perl"}
    assert await call("perl", "p-e_rl.CALL", {"name": "A"}) == {"message": "Hello A from Perl"}


async def test_what_is_published(here: Here, service: Perl) -> None:
    (found,) = await here.registry.get("micro", "perl")
    (node,) = found.nodes
    assert (node.id, node.host, node.protocol, node.weight) == (service.id, "here", "frames", 100)
    assert node.addresses == (f"unix:{service.path}",)
    assert found.version == "v7"
    assert [(e.name, e.stream) for e in found.endpoints] == [
        ("Perl.Call", ""),
        ("Perl.Count", "server"),
    ]
    assert found.endpoints[0].request["properties"]["name"]["type"] == "string"
    assert found.endpoints[0].metadata["description"] == "Greet somebody."
    assert service.path.stat().st_mode & 0o777 == 0o600


async def test_what_every_service_answers(here: Here, service: Perl) -> None:
    assert await here.client.call("perl", "Debug.Health") == {"status": "ok", "checks": 0}
    stats = await here.client.call("perl", "Debug.Stats")
    assert (stats["pid"], stats["in_flight"], stats["errors"]) == (service.pid, 0, 0)
    assert stats["requests"] >= 2
    assert stats["memory"] > 2**20


@pytest.mark.parametrize("to", [0, 1, 3])
async def test_a_stream(here: Here, service: Perl, to: int) -> None:
    values = [v["value"] async for v in here.client.stream("perl", "count", {"to": to})]
    assert values == list(range(1, to + 1))


async def test_an_endpoint_that_is_not_there(here: Here, service: Perl) -> None:
    with pytest.raises(NotFound) as caught:
        await here.client.call("perl", "Perl.Cal")
    said = (
        "no endpoint 'Perl.Cal' in perl; there is Debug.Health, Debug.Stats, Perl.Call, Perl.Count"
    )
    assert (caught.value.id, caught.value.detail) == ("perl", said)


BAD = [
    ("Perl.Call", b'{"name":', "malformed JSON"),
    ("Perl.Call", b'{"name":"A"} x', "malformed JSON"),
    ("Perl.Call", b'{"name":"\xff"}', "malformed JSON"),
    ("Perl.Call", b"[" * 100_000, "malformed JSON"),
    ("Perl.Call", b'["Alice"]', "must be a JSON object"),
    ("Perl.Call", b"null", "must be a JSON object"),
    ("Perl.Call", b'{"name":7}', "name must be a string"),
    ("Perl.Call", b'{"name":null}', "name must be a string"),
    ("Perl.Call", b'{"name":["A"]}', "name must be a string"),
    ("Perl.Count", b"{}", "to must be an integer"),
    ("Perl.Count", b'{"to":"3"}', "to must be an integer"),
    ("Perl.Count", b'{"to":-1}', "to must be an integer"),
    ("Perl.Count", b'{"to":1.5}', "to must be an integer"),
    ("Perl.Count", b'{"to":true}', "to must be an integer"),
    ("Perl.Count", b'{"to":1e30}', "to must be an integer"),
]


async def test_bad_input(here: Here, service: Perl) -> None:
    for endpoint, body, said in BAD:
        with pytest.raises(BadRequest, match=said) as caught:
            await here.client.call("perl", endpoint, body)
        assert "main.pl" not in caught.value.detail
    stats = await here.client.call("perl", "Debug.Stats")
    assert (stats["requests"], stats["errors"], stats["in_flight"]) == (len(BAD) + 1, 0, 0)


async def test_content_that_is_not_read(here: Here, service: Perl) -> None:
    opened = await here.client.open("perl", "Perl.Call", content="application/msgpack")
    async with opened as stream:
        with pytest.raises(UnsupportedMedia, match="send application/json"):
            await stream.receive()


async def test_many_calls_at_once(here: Here, service: Perl) -> None:
    calls = (here.client.call("perl", "call", {"name": f"n{n}"}) for n in range(50))
    answers = await asyncio.gather(*calls)
    assert answers == [{"message": f"Hello n{n} from Perl"} for n in range(50)]
    # The registry's connection and the one that all of these shared.
    assert (await here.client.call("perl", "Debug.Stats"))["sockets"] == 2


async def test_a_message_in_several_frames_both_ways(here: Here, service: Perl) -> None:
    name = "é" * 2**19
    answer = await here.client.call("perl", "call", {"name": name}, timeout=20)
    assert answer == {"message": f"Hello {name} from Perl"}
    stats = await here.client.call("perl", "Debug.Stats")
    assert stats["buffered"] < 2**16


async def test_a_message_that_is_too_large(here: Here, service: Perl) -> None:
    with pytest.raises(TooLarge):
        await here.client.call("perl", "call", {"name": "x" * 2**22})
    assert await here.client.call("perl", "Debug.Health")


async def test_a_slow_reader(here: Here, service: Perl) -> None:
    opened = await here.client.open("perl", "Perl.Count")
    async with opened as stream:
        await stream.send(b'{"to":20000}')
        await stream.end()
        for expected in range(1, 20_001):
            message = await stream.receive()
            assert message is not None
            assert json.loads(message) == {"value": expected}
            if expected % 4000 == 1:  # others are served meanwhile, and nothing piles up there
                stats = await here.client.call("perl", "Debug.Stats")
                assert stats["buffered"] < 2 * 2**16
        assert await stream.receive() is None


async def test_cancel_in_the_middle(here: Here, service: Perl) -> None:
    async with aclosing(here.client.stream("perl", "count", {"to": 10**9})) as values:
        async for value in values:
            if value["value"] == 1000:
                break

    async def idle() -> bool:
        return bool((await here.client.call("perl", "Debug.Stats"))["in_flight"] == 0)

    await eventually(idle)
    assert await here.client.call("perl", "call", {"name": "C"}) == {"message": "Hello C from Perl"}


async def test_a_deadline(here: Here, service: Perl) -> None:
    opened = await here.client.open("perl", "Perl.Call", timeout=0.2)
    async with opened as stream:  # and no message
        with pytest.raises(Timeout):
            await stream.receive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_end_loses_no_call(here: Here, service: Perl, number: int) -> None:
    opened = await here.client.open("perl", "Perl.Count")
    async with opened as stream:
        await stream.send(b'{"to":20000}')
        await stream.end()
        assert await stream.receive() == b'{"value":1}'
        os.kill(service.pid, number)
        await eventually(lambda: not here.client.table.lookup("micro", "perl"))
        await eventually(lambda: not service.path.exists())
        values = [json.loads(message)["value"] async for message in stream]
    assert values == list(range(2, 20_001))
    assert await service.wait() == 0


async def test_calls_go_on_while_one_of_two_leaves(here: Here, service: Perl) -> None:
    async with perl(here.bootstrap.run, here.bootstrap.registry, "perl-two") as other:
        await here.known("perl", other.id)
        ended = asyncio.Event()

        async def caller() -> int:
            done = 0
            while not ended.is_set():
                await here.client.call("perl", "call", {"name": "D"})
                done += 1
            return done

        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(caller()) for _ in range(4)]
            os.kill(other.pid, signal.SIGTERM)
            assert await other.wait() == 0
            ended.set()
        assert sum(task.result() for task in callers) > 4


async def there(registry: Registry) -> bool:
    return bool([s for s in await registry.list("micro") if s.name == "perl"])


async def gone(registry: Registry) -> bool:
    return not await there(registry)


async def test_it_registers_again() -> None:
    with tempfile.TemporaryDirectory(prefix="pl-") as folder:
        run = Path(folder)
        async with registry_at(run / "r.sock") as place:
            addresses = (f"unix:{run}/nobody.sock", place.address)
            async with perl(run, addresses, "perl-one") as service:
                await eventually(lambda: there(place.registry))
                await place.close()
                await service.says("not registered: ")
                await place.open()  # another, that knows nobody
                await eventually(lambda: there(place.registry))
                await place.close()  # the line is cut, the registry lives
                await eventually(lambda: gone(place.registry))
                await place.open(same=True)
                await eventually(lambda: there(place.registry))
                os.kill(service.pid, signal.SIGTERM)
                assert await service.wait() == 0
                await eventually(lambda: gone(place.registry))


async def test_a_registry_that_comes_later() -> None:
    with tempfile.TemporaryDirectory(prefix="pl-") as folder:
        run = Path(folder)
        place = registry_at(run / "r.sock")
        async with perl(run, [place.address], "perl-one") as service:
            await service.says(f"not registered: no registry at {place.address}")
            async with place:
                await eventually(lambda: there(place.registry))


async def test_the_registration_is_renewed() -> None:
    """Both clocks run fifty times as fast: the TTL of 30 s is over in 0.6 s."""

    def clock() -> float:
        return 50 * time.monotonic()

    with tempfile.TemporaryDirectory(prefix="pl-") as folder:
        run = Path(folder)
        async with contextlib.AsyncExitStack() as stack:
            registry = MemoryRegistry(clock=clock, sweep=0.02)
            stack.push_async_callback(registry.close)
            server = await stack.enter_async_context(Server(face.endpoints(registry).handler))
            address = await server.listen(f"unix:{run}/r.sock")
            async with perl(run, [address], "perl-one", speed=50) as service:
                await eventually(lambda: there(registry))
                end = clock() + 80
                while clock() < end:
                    assert await there(registry)
                    await asyncio.sleep(0.01)
                os.kill(service.pid, signal.SIGSTOP)  # its stream stays open
                await eventually(lambda: gone(registry))
                os.kill(service.pid, signal.SIGCONT)
                await eventually(lambda: there(registry))


async def test_a_registry_that_refuses(here: Here) -> None:
    async with perl(here.bootstrap.run, here.bootstrap.registry, "perl-x", namespace="?/") as bad:
        assert "namespace" in await bad.says("not registered: the peer says: ")


async def test_what_it_needs_is_named() -> None:
    with tempfile.TemporaryDirectory(prefix="pl-") as folder:
        async with perl(Path(folder), [], "perl-one") as service:
            assert await service.says("MICRO_REGISTRY is not set; start this with: micro run")
            assert await service.wait() != 0


async def test_the_socket_of_a_killed_run(here: Here) -> None:
    run, registry = here.bootstrap.run, here.bootstrap.registry
    async with perl(run, registry, "perl-one") as first:
        await here.known("perl", "perl-one")
        os.kill(first.pid, signal.SIGKILL)
        await first.wait()
        await eventually(lambda: not here.client.table.lookup("micro", "perl"))
        assert first.path.exists()
    async with perl(run, registry, "perl-one"):
        await here.known("perl", "perl-one")
        assert await here.client.call("perl", "call") == {"message": "Hello World from Perl"}


async def test_a_name_too_long_for_a_socket(here: Here) -> None:
    id = "perl-" + "x" * 100
    async with perl(here.bootstrap.run, here.bootstrap.registry, id):
        await here.known("perl", id)
        assert await here.client.call("perl", "call") == {"message": "Hello World from Perl"}
