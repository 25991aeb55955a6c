"""Starting and ending the platform: what stands in its way is named, and what should run runs again
after everything was killed."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench import stack
from bench.stack import MICRO, ROOT, Server, free_port, micro
from tests.fixtures.wait import eventually
from tests.journeys.test_workloads import get, lives, replicas

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture
def state() -> Iterator[Path]:
    """A folder with a short name: sockets are under it."""
    with tempfile.TemporaryDirectory(prefix="ml-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def everything(at: Server) -> list[psutil.Process]:
    """All processes of the platform: they have its state folder in their environment."""
    mark = str(at.state)
    found = []
    for process in psutil.process_iter():
        try:
            environ = process.environ()
        except psutil.Error:
            continue
        if mark in (environ.get("MICRO_STATE"), environ.get("MICRO_LIFE")):
            found.append(process)
    return [process for process in found if process.pid != os.getpid()]


async def test_all_that_should_run_runs_again_after_a_kill_of_everything(state: Path) -> None:
    """``kill -9`` of every process, at once; then ``micro server`` and nothing else."""
    with stack.server(state) as first:
        micro(first, "run", "--replicas", "2", "examples/helloworld")
        micro(first, "run", "--name", "ticker", "--command", "sleep 1000")
        micro(first, "store", "write", "kept", "through it all")
        processes = everything(first)
        assert len(processes) > 10
        for process in processes:
            if lives(process.pid):
                process.kill()
        await eventually(lambda: not any(lives(p.pid) for p in processes), within=20)
    with stack.server(state) as second:
        await eventually(lambda: len(replicas(second, "helloworld")) == 2, within=30)
        await eventually(lambda: len(replicas(second, "ticker")) == 1, within=30)
        assert get(second, "/helloworld?name=Again") == (200, {"message": "Hello Again"})
        assert micro(second, "store", "read", "kept") == "through it all\n"
        assert second.started_in < 45
        processes = everything(second)
    # Stopped in good order, it leaves nothing behind either.
    await eventually(lambda: not any(lives(p.pid) for p in processes), within=20)
    assert not list((state / "run").glob("*.sock"))


async def test_the_end_of_the_server_is_the_end_of_all(state: Path) -> None:
    """``kill -9`` of the server alone: what it had started goes too."""
    with stack.server(state) as up:
        micro(up, "run", "examples/helloworld")
        micro(up, "run", "--name", "ticker", "--command", "sleep 1000")
        processes = everything(up)
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


def test_a_port_in_use(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = start(state, MICRO_API_PORT=str(port))
    assert done.returncode == 1
    assert f"pi.port {port} on 127.0.0.1: address already in use" in done.stderr
    assert "MICRO_API_PORT" in done.stderr


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"MICRO_API_HOST": "0.0.0.0"}, "listen on this machine only until there are accounts"),
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
    (state / "store").mkdir()
    (state / "store" / "micro.db").write_bytes(b"this was a database once " * 400)
    (state / "router-0.table").write_bytes(b"garbage")
    with stack.server(state) as up:
        said = micro(up, "store", "read", "k", good=False)
        assert "micro.db" in said
        assert "restore it from a backup" in said
        assert "store" in micro(up, "services")
        assert get(up, "/health")[0] == 200
    assert (state / "store" / "micro.db").read_bytes().startswith(b"this was a database")
