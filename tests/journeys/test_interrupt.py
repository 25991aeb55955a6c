"""``micro server`` is interrupted, or fails, while it starts: it ends in order, nothing is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.stack import MICRO, free_port
from tests.fixtures.processes import marked
from tests.fixtures.wait import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

#: Seconds in which it must have ended, on a machine that is very busy with other tests; on another
#: it takes a few. A start of Ray cannot be broken off, so its end is waited for.
ENDS = 100.0


@pytest.fixture
def state() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mi-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def starting(state: Path, *args: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """``micro server`` that has just been started."""
    given = {
        "MICRO_STATE": str(state), "MICRO_API_PORT": str(free_port()), "MICRO_API_SERVE_PORT": "0",
        "MICRO_PROXY_PORT": str(free_port()),
    }  # fmt: skip
    process = subprocess.Popen(
        [MICRO, "server", *args], env={**os.environ, **given, **environ},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until(process: subprocess.Popen[str], words: str) -> None:
    """Read its output up to a line with these words."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if words in line:
            return
    raise AssertionError("".join(said))


def ended(process: subprocess.Popen[str]) -> str:
    """What it says to its end."""
    return process.communicate(timeout=ENDS)[0]


def left(state: Path) -> list[str]:
    """What a platform has left on this machine."""
    found = [f"process {pid}" for pid in marked("MICRO_LIFE", str(state))]
    found += [str(path) for path in state.glob("run/*.sock")]
    found += [str(path) for path in state.glob("ray.json")]
    for lock in (state / "server.lock", state / "run" / "server.lock"):
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                found.append(f"lock {lock}")
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
@pytest.mark.parametrize("moment", ["ray starts", "actors start"])
async def test_a_signal_while_it_starts(state: Path, number: signal.Signals, moment: str) -> None:
    port = free_port()
    with starting(state, MICRO_API_PORT=str(port)) as server:
        if moment == "ray starts":
            await eventually(lambda: marked("MICRO_LIFE", str(state)), within=60)
        else:
            until(server, "ray       up")
        begun = time.monotonic()
        server.send_signal(number)
        said = ended(server)
        print(f"[ended in {time.monotonic() - begun:.1f} s] ", end="")
    assert server.returncode == 130, said
    assert said.splitlines()[-1] == "stopped"
    assert "stopping" in said
    assert "Traceback" not in said
    assert left(state) == []
    socket.create_server(("127.0.0.1", port)).close()


# -- on a Ray that was joined ----------------------------------------------------------------------


@contextmanager
def head(folder: Path) -> Iterator[Mapping[str, str]]:
    """A Ray of somebody's; the environment that joins it."""
    port = free_port()
    environ = {
        **os.environ,
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # fmt: skip
    process = subprocess.Popen(
        [
            Path(sys.executable).with_name("ray"), "start", "--head", "--block",
            "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=4",
            "--include-dashboard=false", f"--temp-dir={folder}", "--object-store-memory=80000000",
        ],
        env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        until(process, "Ray runtime started")
        yield {**environ, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=20)
        if process.poll() is None:
            process.kill()
        process.communicate()


def actors(joining: Mapping[str, str]) -> list[str]:
    """The named actors that Ray has or makes again."""
    code = (
        "import ray\nray.init(logging_level='error', log_to_driver=False)\n"
        "print(*[a['name'] for a in ray.util.list_named_actors(all_namespaces=True)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=joining, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    return done.stdout.split()


async def test_a_start_that_ends_early_on_a_joined_ray(state: Path) -> None:
    """By a signal at once, when no actor has answered yet, and by a port that was taken meanwhile:
    Ray has none of its actors any more, nor makes one again."""
    folder = tempfile.TemporaryDirectory(prefix="mh-", ignore_cleanup_errors=True)
    with folder as name, head(Path(name)) as joining:
        place = ("--ray-address", joining["RAY_ADDRESS"])
        with starting(state, *place, **joining) as server:
            until(server, "ray       up")
            server.send_signal(signal.SIGTERM)
            said = ended(server)
        assert server.returncode == 130, said
        assert actors(joining) == []
        assert left(state) == []
        port = free_port()
        with starting(state, *place, **{**joining, "MICRO_API_PORT": str(port)}) as server:
            until(server, "ray       up")
            with socket.create_server(("127.0.0.1", port)):
                until(server, "actor")
                said = server.communicate(timeout=120)[0]
        assert server.returncode == 1, said
        assert f"perhaps another program has taken port {port}" in said
        assert actors(joining) == []
