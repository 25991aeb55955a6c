"""Services on a real platform: good ones rolled and killed under load, and bad ones of every kind,
whose authors are told what is wrong."""

from __future__ import annotations

import ast
import asyncio
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from bench.stack import MICRO, ROOT, Server, micro
from tests.chaos.load import Load
from tests.chaos.platform import processes
from tests.fixtures.wait import eventually
from tests.journeys.conftest import Driver, Source

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


@pytest.fixture
def run(server: Server) -> Iterator[Any]:
    """``run(...)`` is ``micro run ...``; what was run is killed afterwards."""
    names: list[str] = []

    def start(name: str, *args: str, good: bool = True) -> str:
        names.append(name)
        return micro(server, "run", "--name", name, *args, good=good)

    yield start
    for name in set(names):
        micro(server, "kill", name, good=False)


def status(at: Server, name: str) -> Any:
    (row,) = json.loads(micro(at, "status", name, "-o", "json"))
    return row


def replicas(at: Server, name: str) -> list[int]:
    """The pids of the replicas that run."""
    return [r["pid"] for r in status(at, name)["replicas"] if r["state"] == "running"]


def lives(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def get(at: Server, path: str, data: bytes | None = None) -> tuple[int, Any]:
    """Status and JSON; a POST when there is ``data``."""
    try:
        url = f"http://127.0.0.1:{at.port}{path}"
        with urllib.request.urlopen(url, data=data, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


async def test_rolling_scaling_and_killing_lose_no_request(server: Server, run: Any) -> None:
    """Under load: three replicas, a rolling update of all, down to one, up again."""
    await asyncio.to_thread(run, "helloworld", "--replicas", "3", "examples/helloworld")
    old = replicas(server, "helloworld")
    assert len(old) == 3
    async with Load(server.port, rate=200) as outcome:
        await eventually(lambda: outcome.good > 100, within=10)
        for change in (("--env", "A=1"), ("--replicas", "1"), ("--replicas", "3")):
            await asyncio.to_thread(micro, server, "update", "helloworld", *change)
        target = outcome.good + 100
        await eventually(lambda: outcome.good > target, within=10)
    assert not outcome.wrong
    assert not outcome.failures
    new = replicas(server, "helloworld")
    assert len(new) == 3
    assert not set(old) & set(new)
    assert not any(lives(pid) for pid in old)


async def test_a_killed_replica_is_replaced(server: Server, run: Any) -> None:
    await asyncio.to_thread(run, "helloworld", "--replicas", "2", "examples/helloworld")
    first, second = replicas(server, "helloworld")
    psutil.Process(first).kill()

    def replaced() -> bool:
        now = replicas(server, "helloworld")
        return len(now) == 2 and first not in now and second in now

    await eventually(replaced, within=20)
    assert status(server, "helloworld")["restarts"] == 1


def actors(driver: Driver, at: Server, name: str) -> list[str]:
    """The ids of a workload's actors, as Ray has them."""
    code = "print([a['name'] for a in ray.util.list_named_actors(all_namespaces=True)])"
    found = ast.literal_eval(driver(at, code).strip().splitlines()[-1])
    prefix = f"replica:micro:{name}:"
    return [actor.removeprefix(prefix) for actor in found if actor.startswith(prefix)]


async def test_a_busy_replica_is_no_orphan_when_the_runtime_dies(
    server: Server, run: Any, driver: Driver, source: Source
) -> None:
    """It does not say what it is, so it is ended, and what is known is all that there is."""
    folder = source(
        "busy",
        """
        import time
        from micro_ray import Service
        service = Service("busy")
        @service.endpoint
        async def call(seconds: float = 0) -> str:
            time.sleep(seconds)  # holds its loop up
            return "done"
        """,
    )
    await asyncio.to_thread(run, "busy", folder)
    (old,) = replicas(server, "busy")
    url = f"http://127.0.0.1:{server.port}/busy?seconds=40"
    request = urllib.request.Request(url, data=b"", headers={"timeout": "1"})
    with pytest.raises(urllib.error.HTTPError) as late:
        await asyncio.to_thread(urllib.request.urlopen, request)
    late.value.close()
    (runtime,) = processes(server)["ray::RuntimeActor"]
    runtime.kill()

    def replaced() -> bool:
        found = status(server, "busy")["replicas"]
        return [r["id"] for r in found if r["state"] == "running"] == actors(driver, server, "busy")

    await eventually(replaced, within=60, every=0.5)
    assert not lives(old)
    assert get(server, "/busy", data=b"{}") == (200, "done")


def test_a_pool_is_whole_again_when_a_member_was_stopped(server: Server, driver: Driver) -> None:
    """By its handle, as anybody on the cluster can."""
    code = """
    import time
    one = handle("store-1")
    pid = ray.get(one.ping.remote())["pid"]
    ray.get(one.stop.remote())
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            said = ray.get(handle("store-1").ping.remote())
        except (ray.exceptions.RayError, ValueError):
            said = {"pid": pid}
        if said["pid"] != pid:
            print("good")
            break
        time.sleep(0.1)
    """
    assert "good\n" in driver(server, code)
    assert status_of_store(server) == 2


def status_of_store(at: Server) -> int:
    """How many members of the store can be called."""
    return len(json.loads(micro(at, "health", "store", "-o", "json")))


def test_an_update_that_does_not_come_up_leaves_the_old_one(
    server: Server, run: Any, source: Source
) -> None:
    good = """
    from micro_ray import Service
    service = Service("fragile")
    @service.endpoint
    async def call() -> str:
        return "old"
    """
    run("fragile", source("fragile", good))
    folder = source("fragile", "import nothing_of_this_name\n")
    said = micro(server, "update", "--name", "fragile", folder, good=False)
    assert "ModuleNotFoundError: No module named 'nothing_of_this_name'" in said
    assert get(server, "/fragile") == (200, "old")
    row = status(server, "fragile")
    assert row["state"] == "error"
    assert "main.py" in row["error"]
    assert row["ready"] == 0
    assert [r["state"] for r in row["replicas"]] == ["running"]


#: Sources that cannot run -> what their author must be told.
BAD = {
    "syntax": ("def call(:\n    pass\n", "SyntaxError"),
    "missing": ("import nothing_of_this_name\n", "No module named 'nothing_of_this_name'"),
    "empty": ("x = 1\n", "must have one micro_ray.Service"),
    "twice": (
        'from micro_ray import Service\na = Service("a")\nb = Service("b")\n',
        "must have one micro_ray.Service",
    ),
    "leaves": ("import sys\nprint('bye')\nsys.exit(3)\n", "SystemExit: 3"),
    "dies": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "process ended"),
    "hook": (
        'from micro_ray import Service\nservice = Service("hook")\n'
        "@service.on_start\nasync def up():\n    raise ValueError('no key')\n",
        "ValueError: no key",
    ),
    "signature": (
        'from micro_ray import Service\nservice = Service("signature")\n'
        "@service.endpoint\nasync def call(*names: str) -> str:\n    return ''\n",
        "*names cannot be a field of a request",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_author_is_told_what_is_wrong(
    server: Server, run: Any, source: Source, name: str
) -> None:
    """In the command's output, in the status and in the logs, from the author's own line on."""
    code, told = BAD[name]
    said = run(name, source(name, code), good=False)
    assert told in said
    assert "micro_ray/" not in said
    assert told in status(server, name)["error"]
    if name not in ("dies",):
        assert told in micro(server, "logs", "-n", "50", name)
    assert micro(server, "services").split().count(name) == 0


def test_a_crash_loop_backs_off_and_says_why(server: Server, run: Any, source: Source) -> None:
    folder = source(
        "looping",
        """
        import asyncio, os
        from micro_ray import Service
        service = Service("looping")
        @service.on_start
        async def later():
            asyncio.get_running_loop().call_later(0.3, os._exit, 7)
        """,
    )
    run("looping", folder, good=False)
    row = status(server, "looping")
    for _ in range(200):
        row = status(server, "looping")
        if row["restarts"] >= 2 and row["retry_in"] > 0:
            break
    assert row["restarts"] >= 2
    assert row["retry_in"] > 0
    assert "process ended" in row["error"]
    assert "next attempt in" in micro(server, "status", "looping")


BEHAVES_BADLY = """
import asyncio, os
from collections.abc import AsyncIterator
from micro_ray import Service

service = Service("unruly")

@service.endpoint
async def raises() -> str:
    raise KeyError("lost")

@service.endpoint
async def hangs() -> str:
    await asyncio.sleep(3600)
    return ""

@service.endpoint
async def exits() -> str:
    os._exit(1)

@service.endpoint
async def leaves() -> str:
    raise SystemExit(1)

@service.endpoint
async def garbage() -> int:
    return {1, object()}

@service.endpoint
async def floods() -> AsyncIterator[bytes]:
    while True:
        yield bytes(65536)

@service.endpoint
async def call() -> str:
    return "well"
"""


def test_a_service_that_behaves_badly_hurts_itself_only(
    server: Server, run: Any, source: Source
) -> None:
    """One that raises, hangs, answers what cannot be sent, floods, or exits in the middle."""
    run("unruly", "--replicas", "2", source("unruly", BEHAVES_BADLY))
    code, error = get(server, "/unruly/raises")
    assert (code, error["id"], error["detail"]) == (500, "unruly", "KeyError: 'lost'")
    assert get(server, "/unruly/leaves")[0] == 500
    code, error = get(server, "/unruly/garbage")
    assert code == 500
    assert "the answer cannot be sent" in error["detail"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/unruly/hangs", headers={"timeout": "0.3"}
    )
    with pytest.raises(urllib.error.HTTPError) as late:
        urllib.request.urlopen(request, timeout=5)
    assert late.value.code == 408
    late.value.close()
    with urllib.request.urlopen(
        f"http://127.0.0.1:{server.port}/unruly/floods", timeout=5
    ) as answer:
        assert len(answer.read(10 * 2**20)) == 10 * 2**20
    # Not by GET, which is safe to try again: that would end the other replica too.
    code, error = get(server, "/unruly/exits", data=b"{}")
    assert (code, error["status"]) == (502, "Bad Gateway")
    assert get(server, "/unruly") == (200, "well")
    assert get(server, "/store/databases")[0] == 200


def test_shares_of_a_machine(server: Server, run: Any, driver: Driver) -> None:
    """A fraction of a core is taken from what Ray has, and given back."""
    free = "print(ray.available_resources()['CPU'])"
    before = float(driver(server, free))
    run("helloworld", "--cpu", "0.25", "examples/helloworld")
    assert float(driver(server, free)) == pytest.approx(before - 0.25)
    micro(server, "kill", "helloworld")
    assert float(driver(server, free)) == pytest.approx(before)


def test_more_than_the_cluster_has(server: Server, run: Any) -> None:
    said = run("helloworld", "--gpu", "64", "examples/helloworld", good=False)
    assert "64 GPU" in said
    assert "the cluster has 0" in said


def test_a_command_as_a_process(server: Server, run: Any) -> None:
    """Any program: it runs, its output is kept, it ends with its children."""
    run(
        "ticker", "--command", "sh -c 'echo up with $COLOUR; sleep 1000 & wait'", "-e", "COLOUR=red"
    )
    assert "up with red" in micro(server, "logs", "ticker")
    (pid,) = replicas(server, "ticker")
    children = [pid, *(c.pid for c in psutil.Process(pid).children(recursive=True))]
    assert len(children) >= 2
    micro(server, "kill", "ticker")
    assert not any(lives(pid) for pid in children)


async def test_the_example_that_is_not_python(server: Server, run: Any) -> None:
    await asyncio.to_thread(
        run, "shell", "examples/shell", "--command", "sh tick.sh", "-e", "EVERY=0.05"
    )

    def ticks() -> bool:
        return "tick 3 of shell" in micro(server, "logs", "-n", "1000", "shell")

    await eventually(ticks, within=20)
    (pid,) = replicas(server, "shell")
    micro(server, "kill", "shell")
    assert not lives(pid)


async def test_logs_are_followed(server: Server, run: Any, source: Source) -> None:
    folder = source(
        "talker",
        """
        from micro_ray import Service
        service = Service("talker")
        @service.endpoint
        async def call(text: str) -> str:
            print(text)
            return text
        """,
    )
    run("talker", folder)
    following = await asyncio.create_subprocess_exec(
        MICRO, "logs", "-n", "0", "-f", "talker",
        env=server.environ, cwd=ROOT, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert following.stdout
        line = asyncio.ensure_future(following.stdout.readline())

        async def said() -> bool:
            await asyncio.to_thread(get, server, "/talker?text=word")
            return line.done()

        await eventually(said, within=20)
        assert await line == b"word\n"
    finally:
        following.terminate()
        await following.wait()
