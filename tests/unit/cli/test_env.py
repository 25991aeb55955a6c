"""env and server: where the platform is, and what it refuses to start with."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.terminal import MICRO, Terminal

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_what_is_in_force(lonely: Terminal, here_folder: Path) -> None:
    (here_folder / "micro.toml").write_text("[api]\nport = 9123\n")
    there = lonely.within(MICRO_ROUTER="tcp:10.0.0.5:7000, tcp:10.0.0.6:7000")
    rows = (await there.inside("env", "-o", "json")).json()
    state = lonely.environ["MICRO_STATE"]
    assert rows == {
        "environment": "local",
        "state": state,
        "run": f"{state}/run",
        "namespace": "micro",
        "api": "http://127.0.0.1:9123",
        "proxy": "grpc://127.0.0.1:8081",
        "registry": f"unix:{state}/run/registry-0.sock",
        "router": "tcp:10.0.0.5:7000,tcp:10.0.0.6:7000",
    }
    table = await there.inside("env")
    assert dict(row for row in table.rows()) == rows


def known(terminal: Terminal, **form: object) -> None:
    path = Path(terminal.environ["MICRO_STATE"]) / "ray.json"
    path.write_text(json.dumps(form))


async def test_lines_for_a_shell(lonely: Terminal) -> None:
    """A shell that evaluates them has the variables, whatever is in them."""
    token = "/a path/with 'quotes'/token"
    known(lonely, RAY_ADDRESS="127.0.0.1:6379", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=token)
    line = f'eval "$({MICRO} env ray)"; printf "%s|" "$RAY_ADDRESS" "$RAY_AUTH_MODE" ' \
           '"$RAY_AUTH_TOKEN_PATH"'  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", line, env=lonely.environ, stdout=subprocess.PIPE
    )
    shown, _ = await process.communicate()
    assert shown.decode() == f"127.0.0.1:6379|token|{token}|"


async def test_the_variables_as_json(lonely: Terminal) -> None:
    known(lonely, RAY_ADDRESS="10.0.0.5:6379", RAY_AUTH_MODE="disabled")
    done = await lonely.inside("env", "ray")
    assert done.lines == ["export RAY_ADDRESS=10.0.0.5:6379", "export RAY_AUTH_MODE=disabled"]
    assert (await lonely.inside("env", "ray", "-o", "json")).json() == {
        "RAY_ADDRESS": "10.0.0.5:6379",
        "RAY_AUTH_MODE": "disabled",
    }


async def test_no_server(lonely: Terminal) -> None:
    done = await lonely.inside("env", "ray")
    assert (done.code, done.raw) == (4, b"")
    assert done.err.endswith("; start one with `micro server`\n")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"other": "x"}'])
async def test_a_file_that_cannot_be_read(lonely: Terminal, text: str) -> None:
    (Path(lonely.environ["MICRO_STATE"]) / "ray.json").write_text(text)
    done = await lonely.inside("env", "ray")
    assert (done.code, done.raw) == (4, b"")
    assert "ray.json cannot be read" in done.err


async def test_help_of_the_server(lonely: Terminal) -> None:
    done = await lonely.inside("server", "--help")
    assert done.code == 0
    for option in ("--port", "--state", "--ray-address", "--verbose"):
        assert option in done.out


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--port", "many"], 2, "Invalid value for '--port'"),
        (["--port", "70000"], 1, "70000"),
        (["--port", "-1"], 1, "-1"),
        (["--proxy-port", "70000"], 1, "70000"),
        (["--prot", "8080"], 2, "'--port'"),
        (["extra"], 2, "Got unexpected extra argument"),
        (["--state", "/proc/none"], 1, "/proc/none"),
    ],
)
async def test_a_server_that_cannot_work_is_refused_before_it_starts(
    lonely: Terminal, args: list[str], code: int, said: str
) -> None:
    done = await lonely.within(MICRO_RUN="/tmp").micro("server", *args)
    assert done.code == code, done
    assert said in done.err
    assert "Traceback" not in done.err


async def test_a_second_server_is_refused(lonely: Terminal) -> None:
    """It says which process is the first, and what to do."""
    state = Path(lonely.environ["MICRO_STATE"])
    with (state / "server.lock").open("w") as lock:
        lock.write(str(os.getpid()))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = await lonely.micro("server")
    assert done.code == 1
    assert f"nother micro server (pid {os.getpid()}) runs on {state}" in done.err
