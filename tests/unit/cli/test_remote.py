"""Commands that go to another machine: through the real gRPC door, which asks who one is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from micro_ray.runtime import Replica
from micro_ray.runtime.admission import Admission
from micro_ray.runtime.archives import Archives
from micro_ray.runtime.process import ProcessDriver
from micro_ray.runtime.reconcile import Reconciler
from micro_ray.sdk.authority import ITSELF
from micro_ray.settings import load, service_environ
from micro_ray.wire import runtime as face
from micro_ray.wire.store import RemoteStore
from tests.fixtures.terminal import Terminal
from tests.security.guarded import Guarded, guarded
from tests.unit.cli import services
from tests.unit.cli.test_start import HEAVY, loaded

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "far away and long"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at() -> AsyncIterator[Guarded]:
    async with guarded() as found:
        for service in (services.toolbox(), services.streams()):
            await found.here.serve(service)
        await found.authority.auth.generate("jane", secret=SECRET, scopes=("admin",), by=ITSELF)
        async with runtime(found):
            yield found


@asynccontextmanager
async def runtime(at: Guarded) -> AsyncIterator[None]:
    """A real one, whose replicas are local processes that are known."""
    boot = at.here.bootstrap
    with tempfile.TemporaryDirectory(prefix="mc-") as name:
        settings = load({"MICRO_STATE": name, "MICRO_RUN": str(boot.run)})
        network = await at.here.network("runtime")
        store, folder = RemoteStore(network), Path(name)

        async def admit(replica: Replica) -> Admission:
            own = at.authority.issuer.identity(replica.id, replica.namespace)
            return Admission(identity=own)

        driver = ProcessDriver(
            folder,
            environ=service_environ(boot, settings),
            known=network.table.has,
            admit=admit,
            anchor=os.getpid(),
            grace=2.0,
        )
        archives = Archives(store, folder, namespace="micro", limit=settings.runtime.max_source)
        async with Reconciler(
            store, {"process": driver}, folder, archives=archives, settings=settings.runtime
        ) as there:
            await at.here.keep("runtime", face.endpoints(there))
            await at.here.known("runtime")
            yield
            await there.halt(0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nobody(at: Guarded) -> AsyncIterator[Terminal]:
    """Of a machine where no server runs; commands go to the environment far."""
    with tempfile.TemporaryDirectory(prefix="mr-") as name:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MICRO_", "_MICRO_"))}
        own = {"MICRO_STATE": f"{name}/none", "MICRO_CREDENTIALS": f"{name}/own/credentials.json"}
        terminal = Terminal(clean | own, Path(name))
        done = await terminal.inside("env", "add", "far", f"127.0.0.1:{at.port}")
        assert (done.code, done.err) == (0, "")
        assert (await terminal.inside("env", "set", "far")).code == 0
        yield terminal


@pytest_asyncio.fixture(loop_scope="module")
async def jane(nobody: Terminal) -> AsyncIterator[Terminal]:
    done = await nobody.inside("login", "--username", "jane", "--password", SECRET)
    assert (done.code, done.out, done.err) == (0, "Successfully logged in.\n", "")
    yield nobody
    assert (await nobody.inside("logout")).code == 0


def kept(terminal: Terminal) -> Path:
    return Path(terminal.environ["MICRO_CREDENTIALS"])


# -- who one is ------------------------------------------------------------------------------------


async def test_nobody(nobody: Terminal) -> None:
    for args in (["services"], ["call", "helloworld", "Helloworld.Call"], ["helloworld", "call"]):
        done = await nobody.inside(*args)
        assert (done.code, done.raw) == (2, b""), done
    done = await nobody.inside("user", "token")
    assert (done.code, "micro login" in done.err) == (2, True)


async def test_a_wrong_password(nobody: Terminal) -> None:
    done = await nobody.inside("login", "--username", "jane", "--password", "not this one")
    assert (done.code, "not correct" in done.err) == (2, True)
    assert not kept(nobody).exists()


async def test_logging_in_and_out(jane: Terminal, at: Guarded) -> None:
    assert stat.S_IMODE(kept(jane).stat().st_mode) == 0o600
    assert [*json.loads(kept(jane).read_text())] == [f"grpc://127.0.0.1:{at.port}"]
    assert (await jane.inside("user")).lines == ["You are logged in as jane of micro."]
    assert (await jane.inside("env", "-o", "json")).json()["user"] == "jane of micro"
    assert (await jane.inside("-e", "local", "user")).lines == ["You are not logged in."]
    token = (await jane.inside("user", "token")).lines[0]
    assert (await jane.inside("logout")).code == 0
    given = jane.within(MICRO_TOKEN=token)
    assert (await given.inside("services")).code == 2  # it is void
    assert (await jane.inside("login", "--username", "jane", "--password", SECRET)).code == 0


async def test_an_old_token_is_renewed(jane: Terminal) -> None:
    rows = json.loads(kept(jane).read_text())
    (login,) = rows.values()
    before = dict(login)
    login |= {"access": "old", "expires": time.time() - 1}
    kept(jane).write_text(json.dumps(rows))
    assert (await jane.inside("helloworld", "call")).json()["by"] == "jane"
    (login,) = json.loads(kept(jane).read_text()).values()
    assert login["access"] not in ("old", before["access"])
    assert login["expires"] > time.time() + 60
    assert stat.S_IMODE(kept(jane).stat().st_mode) == 0o600


# -- calls -----------------------------------------------------------------------------------------


async def test_calls(jane: Terminal) -> None:
    said = {"message": "Hello Bo", "by": "jane", "space": "micro"}
    done = await jane.inside("call", "helloworld", "Helloworld.Call", '{"name": "Bo"}')
    assert done.json() == said
    assert (await jane.inside("helloworld", "call", "--name=Bo")).json() == said
    assert (await jane.micro("helloworld", "call", "--name=Bo")).json() == said
    assert "--name" in (await jane.inside("helloworld", "call", "--help")).out
    done = await jane.inside("call", "toolbox", "reverse", "-", "-o", "raw", stdin=b"\0ab\xff")
    assert (done.code, done.raw) == (0, b"\xffba\0")


async def test_streams_of_every_kind(jane: Terminal) -> None:
    done = await jane.inside("stream", "streams", "Streams.Ticks", '{"to": 3}')
    assert [json.loads(line) for line in done.lines] == [{"value": n} for n in (1, 2, 3)]
    done = await jane.inside("streams", "ticks", "--to=2")
    assert [json.loads(line) for line in done.lines] == [{"value": 1}, {"value": 2}]
    rows = b'{"value": 1}\n{"value": 2}\n'
    done = await jane.inside("stream", "streams", "total", "-", stdin=rows)
    assert json.loads(done.out) == {"value": 3}
    done = await jane.inside("stream", "streams", "double", "-", stdin=rows)
    assert [json.loads(line) for line in done.lines] == [{"value": 2}, {"value": 4}]
    done = await jane.inside("stream", "toolbox", "sized", "-", stdin=b"x" * 100_000)
    assert (done.code, done.out) == (0, "100000\n")


async def test_a_stream_goes_both_ways_in_turn(jane: Terminal) -> None:
    async with jane.started("stream", "streams", "double", "-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for value in (1, 2):
            process.stdin.write(json.dumps({"value": value}).encode() + b"\n")
            async with asyncio.timeout(30):
                assert json.loads(await process.stdout.readline()) == {"value": value * 2}
        process.stdin.close()
        assert await process.wait() == 0


async def test_a_stream_that_goes_on_until_ctrl_c(jane: Terminal) -> None:
    """As `micro logs -f` does."""
    async with jane.started("stream", "streams", "ticks", '{"pause": 0.05}') as process:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            for value in (1, 2, 3):
                assert json.loads(await process.stdout.readline()) == {"value": value}
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
        assert process.stderr is not None
        assert b"Traceback" not in await process.stderr.read()


async def test_failures(jane: Terminal) -> None:
    done = await jane.inside("call", "toolbox", "fail", '{"code": 409}', "-o", "json")
    assert (done.code, done.raw) == (1, b"")
    assert json.loads(done.err)["code"] == 409
    assert (await jane.inside("call", "nobody", "Nobody.Call")).code == 4
    both = jane.within(MICRO_PLATFORM="key of the platform that runs here")
    assert (await both.inside("call", "nobody", "Nobody.Call")).code == 4
    done = await jane.inside("call", "toolbox", "Toolbox.Nix")
    assert (done.code, "No endpoint" in done.err) == (5, True)
    done = await jane.inside("hellowrld", "call")
    assert (done.code, "Did you mean helloworld?" in done.err) == (1, True)
    done = await jane.inside("call", "toolbox", "slow", "--timeout", "100ms")
    assert (done.code, "before the deadline" in done.err or "deadline" in done.err) == (1, True)


# -- the nouns -------------------------------------------------------------------------------------


async def test_store(jane: Terminal) -> None:
    assert (await jane.inside("store", "write", "far/k", "a", "value")).code == 0
    assert (await jane.inside("store", "read", "far/k")).out == "a value\n"
    assert (await jane.inside("store", "list", "--prefix", "far/")).lines == ["far/k"]
    assert (await jane.inside("store", "delete", "far/k")).code == 0
    assert (await jane.inside("store", "read", "far/k")).code == 1


async def test_config(jane: Terminal) -> None:
    assert (await jane.inside("config", "set", "far.key", "17")).code == 0
    assert (await jane.inside("config", "get", "far.key")).out == "17\n"
    assert (await jane.inside("config", "del", "far.key")).code == 0


async def test_events_and_broker(jane: Terminal) -> None:
    assert (await jane.inside("events", "publish", "far.orders", '{"n": 1}')).code == 0
    assert '{"n": 1}' in (await jane.inside("events", "read", "far.orders")).out
    async with jane.started("subscribe", "far.topic", "-n", "1") as process:
        assert process.stderr is not None
        async with asyncio.timeout(30):
            assert b"subscribed" in await process.stderr.readline()
            assert (await jane.inside("publish", "far.topic", "hello")).code == 0
            assert await process.wait() == 0
        assert process.stdout is not None
        assert await process.stdout.read() == b"hello\n"


TALKS = """
from micro_ray import Service

service = Service("talker")


@service.endpoint
async def call(name: str = "World") -> str:
    print(f"greeting {name}", flush=True)
    return f"Hello {name}"


service.run()
"""


async def test_a_folder_that_is_run_there(jane: Terminal, tmp_path: Path) -> None:
    """Its source goes through the door; what it says comes, as it says it."""
    (tmp_path / "main.py").write_text(TALKS)
    args = ["--name=talker", "--driver=process", str(tmp_path)]
    done = await jane.inside("run", *args)
    assert done.code == 0, done
    assert (await jane.inside("status")).rows()[0][0] == "talker"
    async with jane.started("logs", "-f", "-n", "0", "talker") as process, asyncio.timeout(60):
        assert process.stdout is not None
        line = asyncio.create_task(process.stdout.readline())
        while not line.done():
            assert (await jane.inside("talker", "call", "--name=Bo")).code == 0
            await asyncio.wait([line], timeout=0.1)
        assert line.result() == b"greeting Bo\n"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    assert "greeting Bo" in (await jane.inside("logs", "talker")).lines
    assert (await jane.inside("kill", "talker")).code == 0


async def test_services_network_and_accounts(jane: Terminal) -> None:
    assert {"helloworld", "store", "streams"} <= {*(await jane.inside("services")).lines}
    assert (await jane.inside("get", "service", "helloworld")).json()
    assert (await jane.inside("network", "nodes")).rows()
    assert "jane" in (await jane.inside("auth", "list", "accounts")).out


async def test_doctor(jane: Terminal) -> None:
    """What can be known from here, and that the rest is asked there."""
    rows = json.loads((await jane.inside("doctor", "-o", "json")).out)
    found = {row["check"]: row for row in rows}
    assert found["environment"]["text"].startswith("far (grpc://127.0.0.1:")
    assert found["login"]["text"] == "jane of micro"
    assert found["server"] == {"check": "server", "good": True, "text": "all platform services"}
    assert "on that machine" in found["machine"]["text"]
    assert not {"disk", "state", "sockets", "api", "proxy", "ray"} & {*found}


async def test_completion(jane: Terminal) -> None:
    asked = jane.within(_MICRO_COMPLETE="bash_complete", COMP_WORDS="micro hel", COMP_CWORD="1")
    assert "plain,helloworld" in (await asked.micro()).lines
    words = {"COMP_WORDS": "micro -e local hel", "COMP_CWORD": "3"}
    asked = jane.within(_MICRO_COMPLETE="bash_complete", **words)
    assert "plain,helloworld" not in (await asked.micro()).lines


# -- the way ---------------------------------------------------------------------------------------


async def test_nobody_there(nobody: Terminal) -> None:
    await nobody.inside("env", "add", "gone", "127.0.0.1:1")
    done = await nobody.inside("-e", "gone", "services")
    assert (done.code, done.raw) == (4, b"")
    assert done.err.startswith("The door at grpc://127.0.0.1:1 cannot be reached: ")
    done = await nobody.inside("-e", "gone", "doctor", "-o", "json")
    assert (done.code, "cannot be reached" in done.out) == (1, True)


async def test_grpc_is_loaded_for_another_machine_only(jane: Terminal) -> None:
    assert "grpc" in await loaded(jane, "services")
    for args in (["env"], ["env", "list"], ["user"], ["new", "light"]):
        assert not HEAVY & await loaded(jane, *args)
