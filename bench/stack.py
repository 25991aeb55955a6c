"""Processes that a benchmark or a test needs: a platform, peers; started on free ports, ended by
their id."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "MICRO",
    "ROOT",
    "Credential",
    "Server",
    "end",
    "free_port",
    "joining",
    "micro",
    "peer",
    "server",
]

ROOT = Path(__file__).resolve().parent.parent
MICRO = Path(sys.executable).with_name("micro")
#: Seconds within which a platform must be up, however busy the machine is.
UP = 90.0
#: Seconds for which a token that was asked for is good, at least: less than the command promises.
FRESH = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A platform that runs: the environment with which ``micro`` reaches it, its ports, its pid,
    and the seconds from its start to the first good answer."""

    environ: Mapping[str, str]
    state: Path
    port: int
    serve_port: int
    proxy_port: int
    pid: int
    started_in: float
    lines: tuple[str, ...]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(state: Path | None = None, *, open: bool = True, **extra: str) -> Iterator[Server]:
    """``micro server``; ``extra`` are environment variables. A state folder that is given is kept,
    and may be that of an earlier life. Commands are logged in as its first account. An ``open`` one
    has a rule that lets everybody call everything, for those who look at something else."""
    folder = state or Path(tempfile.mkdtemp(prefix="mb-"))
    port, serve_port, proxy_port = free_port(), free_port(), free_port()
    environ = {
        **os.environ,
        "MICRO_STATE": str(folder),
        "MICRO_CREDENTIALS": f"{folder}/credentials.json",
        "MICRO_API_PORT": str(port),
        "MICRO_API_SERVE_PORT": str(serve_port),
        "MICRO_PROXY_PORT": str(proxy_port),
        **extra,
    }
    begun = time.monotonic()
    process = subprocess.Popen(
        [MICRO, "server"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        lines = _until_ready(process, begun)
        up = Server(
            environ=environ,
            state=folder,
            port=port,
            serve_port=serve_port,
            proxy_port=proxy_port,
            pid=process.pid,
            started_in=time.monotonic() - begun,
            lines=tuple(lines),
        )
        told = re.search(r"shown this once: (\S+)", "".join(lines))
        if open and told and environ.get("MICRO_AUTH_MODE") != "off":
            micro(up, "login", "--username", "admin", "--password", told[1])
            rule = ("--resource", "*:*:*", "--priority", "10000")
            micro(up, "auth", "create", "rule", "open", *rule)
        yield up
    finally:
        end(process)
        if state is None:
            shutil.rmtree(folder, ignore_errors=True)


def _until_ready(process: subprocess.Popen[str], begun: float) -> list[str]:
    lines: list[str] = []
    assert process.stdout
    for line in process.stdout:
        lines.append(line)
        if line.startswith("ready"):
            return lines
        if time.monotonic() - begun > UP:
            break
    raise RuntimeError("micro server did not come up:\n" + "".join(lines))


@contextmanager
def peer(name: str, *args: str) -> Iterator[int]:
    """A peer process (``bench.peers``) that prints ``ready``; its port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.peers", name, str(port), *args],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        while (line := process.stdout.readline()) != "ready\n":
            if not line:
                raise RuntimeError(f"peer {name} ended with {process.wait()}")
        _accepts(port)
        yield port
    finally:
        end(process)


def micro(at: Server, *args: str, good: bool = True) -> str:
    """Run one command against a server; its output. Raises RuntimeError when it fails, unless it
    may (``good`` False)."""
    done = subprocess.run(
        [MICRO, *args], env=at.environ, cwd=ROOT, timeout=120,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode and good:
        raise RuntimeError(f"micro {' '.join(args)} ({done.returncode}): {done.stdout}")
    return done.stdout


class Credential:
    """The access token of who is logged in at a server, asked for anew before it ends."""

    def __init__(self, at: Server) -> None:
        self._at, self._token, self._until = at, "", 0.0

    def __call__(self) -> str:
        if time.monotonic() > self._until:
            self._token = micro(self._at, "user", "token").strip()
            self._until = time.monotonic() + FRESH
        return self._token


def joining(at: Server) -> dict[str, str]:
    """The environment with which a process joins the platform's Ray."""
    lines = micro(at, "env", "ray").splitlines()
    pairs = (line.removeprefix("export ").partition("=") for line in lines)
    return {**at.environ, **{name: value for name, _, value in pairs}}


def _accepts(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def end(process: subprocess.Popen[str]) -> None:
    """Ask a process of ours to end; make it after a while."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=45)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()
