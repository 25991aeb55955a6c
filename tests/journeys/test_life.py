"""Starting and ending the platform: what stands in its way is named, and what should run runs again
after everything was killed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import stack
from bench.stack import MICRO, ROOT, Server, free_port, micro
from tests.chaos.platform import VICTIMS
from tests.fixtures.wait import eventually
from tests.journeys.test_workloads import get, lives, replicas

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture
def state() -> Iterator[Path]:
    """A folder with a short name: sockets are under it."""
    with tempfile.TemporaryDirectory(prefix="ml-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def everything(at: Server) -> list[psutil.Process]:
    """All processes of the platform: the server with what it has started, and what has its state
    folder in its environment."""
    mark = str(at.state)
    found = {}
    if psutil.pid_exists(at.pid):
        top = psutil.Process(at.pid)
        found = {process.pid: process for process in (top, *top.children(recursive=True))}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environ = process.environ()
            if mark in (environ.get("MICRO_STATE"), environ.get("MICRO_LIFE")):
                found[process.pid] = process
    found.pop(os.getpid(), None)
    return list(found.values())


#: Ray's agents beside the raylet.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def is_agent(process: psutil.Process) -> bool:
    return process.cmdline()[0].strip() in AGENTS


#: What must be among the processes that are killed.
PARTS = (
    "micro server", "gcs_server", "raylet", "ray::ServeController", "sleep 1000", *AGENTS, *VICTIMS,
)  # fmt: skip


def fill(at: Server) -> None:
    """Something of every kind that must be kept."""
    micro(at, "run", "--replicas", "2", "--env", "GREETING=Hi", "examples/helloworld")
    micro(at, "run", "--name", "ticker", "--command", "sh -c 'echo alive; exec sleep 1000'")
    micro(at, "run", "--name", "stopped", "--command", "sleep 1000")
    micro(at, "kill", "stopped")
    for value in ("at first", "through it all"):
        micro(at, "store", "write", "--metadata", "a=b", "kept", value)
    micro(at, "store", "write", "removed", "x")
    micro(at, "store", "delete", "removed")
    micro(at, "store", "write", "--database", "shop", "--table", "orders", "row", "1")
    for port in ("25", "26"):
        micro(at, "config", "set", "mail.port", port)
    micro(at, "config", "set", "--secret", "mail.password", '"hush"')
    for id in ("one", "two", "three"):
        micro(at, "events", "publish", "--id", id, "--metadata", "k=v", "orders", f"order {id}")
    consumed = micro(
        at, "events", "consume", "-g", "billing", "--from", "beginning", "-n", "2", "orders"
    )
    assert consumed == "order one\norder two\n"


def kept(at: Server) -> dict[str, Any]:
    """What it has of all that, as everybody is told it."""

    def told(*args: str) -> Any:
        return json.loads(micro(at, *args, "-o", "json"))

    return {
        "workloads": [row["workload"] for row in told("status")],
        "records": told("store", "read", "kept"),
        "keys": micro(at, "store", "list"),
        "elsewhere": micro(at, "store", "read", "-d", "shop", "-t", "orders", "row"),
        "tables": micro(at, "store", "tables", "-d", "shop"),
        "config": told("config", "get"),
        "secret": micro(at, "config", "get", "--secret", "mail.password"),
        "history": told("config", "history"),
        "events": micro(at, "events", "read", "-o", "json", "orders"),
        "topics": told("events", "topics"),
        "groups": told("events", "groups", "orders"),
    }


async def test_all_is_back_by_itself_after_a_kill_of_everything(state: Path) -> None:
    """``kill -9`` of every process, at once; then ``micro server`` and nothing else."""
    with stack.server(state) as first:
        fill(first)
        before = kept(first)
        processes = everything(first)
        lines = [" ".join(process.cmdline()) for process in processes]
        assert [part for part in PARTS if not any(part in line for line in lines)] == []
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await eventually(lambda: not any(lives(p.pid) for p in processes), within=20)
    with stack.server(state) as second:
        assert second.started_in < 45
        await eventually(lambda: len(replicas(second, "helloworld")) == 2, within=30)
        await eventually(lambda: len(replicas(second, "ticker")) == 1, within=30)
        assert get(second, "/helloworld?name=Again") == (200, {"message": "Hello Again"})
        assert kept(second) == before
        goes_on(second)
        processes = everything(second)
    # Stopped in good order, it leaves nothing behind either.
    await eventually(lambda: not any(lives(p.pid) for p in processes), within=20)
    assert not list((state / "run").glob("*.sock"))


def goes_on(at: Server) -> None:
    """What follows, follows on what was there: versions, numbers, groups, ids, logs."""
    assert "stopped" not in micro(at, "status")
    assert micro(at, "logs", "ticker").count("alive") == 2, "a line of each life"
    (row,) = json.loads(micro(at, "store", "read", "kept", "-o", "json"))
    stale = micro(
        at, "store", "write", "--expected", str(row["version"] - 1), "kept", "y", good=False
    )
    assert f"version {row['version']}" in stale
    micro(at, "store", "write", "--expected", str(row["version"]), "kept", "later")
    micro(at, "config", "rollback", "1", "mail.port")
    assert micro(at, "config", "get", "mail.port") == "25\n"
    assert json.loads(micro(at, "config", "history", "-o", "json"))[0]["version"] == 4
    assert micro(at, "events", "publish", "--id", "one", "orders", "again") == "1\n"
    assert micro(at, "events", "publish", "orders", "order four") == "4\n"
    rest = micro(at, "events", "consume", "-g", "billing", "-n", "2", "orders")
    assert rest == "order three\norder four\n"


async def test_what_is_left_of_an_earlier_life_is_ended(state: Path) -> None:
    """Ray's agents notice a ``kill -9`` of all others after a minute; the next server ends them,
    though their titles are written over what they are known by."""
    with stack.server(state) as first:
        processes = everything(first)
        agents = [process for process in processes if is_agent(process)]
        assert len(agents) == len(AGENTS)
        for process in processes:
            if process not in agents:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        assert all(lives(agent.pid) for agent in agents)
    with stack.server(state):
        assert not any(lives(agent.pid) for agent in agents)


async def test_the_end_of_the_server_is_the_end_of_all(state: Path) -> None:
    """``kill -9`` of the server alone: what it had started goes too; Ray's agents a minute on."""
    with stack.server(state) as up:
        micro(up, "run", "examples/helloworld")
        micro(up, "run", "--name", "ticker", "--command", "sleep 1000")
        processes = [process for process in everything(up) if not is_agent(process)]
        psutil.Process(up.pid).kill()
        await eventually(lambda: not any(lives(p.pid) for p in processes), within=60)


@pytest.mark.parametrize("timeout", ["0", "2"])
async def test_next_to_no_time_to_finish(state: Path, timeout: str) -> None:
    """All is done as ever; only what is under way when somebody must go is cut off."""
    with stack.server(state, MICRO_RUNTIME_DRAIN_TIMEOUT=timeout) as up:
        micro(up, "run", "examples/helloworld")
        micro(up, "run", "--name", "ticker", "--command", "sleep 1000")
        before = replicas(up, "helloworld") + replicas(up, "ticker")
        for name in ("helloworld", "ticker"):
            micro(up, "update", name, "--env", "A=1")
        assert get(up, "/helloworld?name=Again") == (200, {"message": "Hello Again"})
        after = replicas(up, "helloworld") + replicas(up, "ticker")
        assert len(after) == 2
        assert not set(before) & set(after)
        micro(up, "kill", "ticker")
        assert not lives(after[1])
        processes = everything(up)
    await eventually(lambda: not any(lives(p.pid) for p in processes), within=20)
    assert not list((state / "run").glob("*.sock"))


def start(state: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """``micro server`` that is to fail at once."""
    return subprocess.run(
        [MICRO, "server"],
        env={
            **os.environ,
            "MICRO_STATE": str(state),
            "MICRO_API_PORT": str(free_port()),
            "MICRO_API_SERVE_PORT": "0",
            "MICRO_PROXY_PORT": str(free_port()),
            **environ,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_second_server_on_the_same_state(server: Server) -> None:
    done = start(server.state)
    assert done.returncode == 1
    assert f"(pid {server.pid}) runs on {server.state}" in done.stderr
    assert "MICRO_STATE" in done.stderr


def test_a_second_server_on_the_same_run_folder(server: Server, state: Path) -> None:
    """Another state, but the sockets of the first: they stay."""
    run = server.state / "run"
    before = sorted(run.glob("*.sock"))
    done = start(state, MICRO_RUN=str(run))
    assert done.returncode == 1
    assert f"(pid {server.pid}) runs on {run}" in done.stderr
    assert "MICRO_RUN" in done.stderr
    assert sorted(run.glob("*.sock")) == before


@pytest.mark.parametrize("door", ["api", "proxy"])
@pytest.mark.parametrize("shares", [False, True])
def test_a_port_in_use(state: Path, door: str, shares: bool) -> None:
    """Also by a program that would share it: the doors do so among themselves only."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=shares) as other:
        port = other.getsockname()[1]
        variable = f"MICRO_{door.upper()}_PORT"
        done = start(state, **{variable: str(port)})
    assert done.returncode == 1
    assert f"{door[1:]}.port {port} on 127.0.0.1: address already in use" in done.stderr
    assert variable in done.stderr


def test_a_port_for_two(state: Path) -> None:
    port = str(free_port())
    done = start(state, MICRO_API_PORT=port, MICRO_PROXY_PORT=port)
    assert done.returncode == 1
    assert f"pi.port and proxy.port are both {port}" in done.stderr


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"MICRO_API_HOST": "0.0.0.0", "MICRO_AUTH_MODE": "off"}, "and auth.mode is off"),
        ({"MICRO_PROXY_HOST": "0.0.0.0", "MICRO_AUTH_MODE": "off"}, "roxy.host '0.0.0.0' is not a"),
        ({"MICRO_PROXY_PORT": "65536"}, "not a whole number from 0 to 65535"),
        ({"MICRO_API_PORT": "eighty"}, "MICRO_API_PORT"),
        ({"MICRO_API_PORT": "70000"}, "not a whole number from 1 to 65535"),
        ({"MICRO_API_PORT": "0"}, "not a whole number from 1 to 65535"),
        ({"MICRO_POOLS_REGISTRY": "2"}, "set pools.registry to 1"),
        ({"MICRO_CONFIG": "/nowhere/micro.toml"}, "/nowhere/micro.toml"),
        ({"MICRO_STATE": f"/tmp/{'x' * 100}"}, "too long for Unix sockets"),
        ({"MICRO_STATE": "/proc/nowhere"}, "annot make /proc/nowhere"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_work(state: Path, environ: dict[str, str], told: str) -> None:
    done = start(state, **environ)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_database_is_named_and_the_rest_works(state: Path) -> None:
    """As it does without a gRPC door, and without asking who somebody is: that is in there."""
    (state / "store").mkdir()
    (state / "store" / "micro.db").write_bytes(b"this was a database once " * 400)
    (state / "router-0.table").write_bytes(b"garbage")
    with stack.server(state, MICRO_PROXY_PORT="0", MICRO_AUTH_MODE="off") as up:
        assert not [line for line in up.lines if "proxy" in line]
        said = micro(up, "store", "read", "k", good=False)
        assert "micro.db" in said
        assert "restore it from a backup" in said
        assert "store" in micro(up, "services")
        assert get(up, "/health")[0] == 200
    assert (state / "store" / "micro.db").read_bytes().startswith(b"this was a database")
