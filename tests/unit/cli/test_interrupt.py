"""Ctrl-C, readers that go away, and ends that do not wait for anybody."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from micro_ray.sdk.testing import Here
from tests.fixtures.terminal import MICRO, Terminal
from tests.fixtures.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def ended(process: asyncio.subprocess.Process, within: float = 5.0) -> tuple[int, str]:
    """The exit code and what was on standard error."""
    async with asyncio.timeout(within):
        assert process.stderr
        said = await process.stderr.read()
        return await process.wait(), said.decode()


async def in_flight(town: Here, service: str) -> int:
    stats = await town.client.call(service, "Debug.Stats", node=f"{service}-1")
    return int(stats["in_flight"])


async def test_ctrl_c_in_a_stream(terminal: Terminal, town: Here) -> None:
    async with terminal.started("stream", "streams", "Streams.Ticks", '{"pause": 0.01}') as process:
        assert process.stdout
        assert await process.stdout.readline() == b'{"value": 1}\n'
        process.send_signal(signal.SIGINT)
        assert await ended(process) == (130, "")
    await eventually(lambda: _idle(town, "streams"))  # and the handler has been told


async def _idle(town: Here, service: str) -> bool:
    return await in_flight(town, service) == 0


@pytest.mark.parametrize(
    "args",
    [
        ["call", "toolbox", "Toolbox.Slow"],
        ["toolbox", "slow"],
        ["streams", "ticks", "--pause=100"],
        ["stream", "streams", "Streams.Total", "-"],
    ],
    ids=" ".join,
)
async def test_ctrl_c_while_waiting(terminal: Terminal, town: Here, args: list[str]) -> None:
    service = args[0] if args[0] in ("toolbox", "streams") else args[1]

    async def waits() -> bool:
        return await in_flight(town, service) == 1

    async with terminal.started(*args) as process:
        await eventually(waits)
        process.send_signal(signal.SIGINT)
        assert await ended(process) == (130, "")
    await eventually(lambda: _idle(town, service))


async def test_ctrl_c_as_json_says_nothing_either(terminal: Terminal) -> None:
    async with terminal.started("-o", "json", "streams", "ticks", "--pause=0.01") as process:
        assert process.stdout
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert await ended(process) == (130, "")


async def test_a_reader_that_goes_away(terminal: Terminal) -> None:
    """``micro ... | head -2`` is no failure and says nothing."""
    async with terminal.started("streams", "ticks", "--pause=0.001") as process:
        assert process.stdout
        assert await process.stdout.readline() == b'{"value": 1}\n'
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        assert await ended(process) == (0, "")


async def test_a_reader_that_goes_away_while_nothing_is_said(
    terminal: Terminal, town: Here
) -> None:
    """``micro logs -f x | head -1`` ends with ``head``, not with the next line, hours later."""
    async with terminal.started("streams", "ticks", "--pause=1000") as process:
        assert process.stdout
        assert await process.stdout.readline() == b'{"value": 1}\n'
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        assert await ended(process) == (0, "")
    await eventually(lambda: _idle(town, "streams"))


async def test_a_reader_that_stays_is_not_taken_for_gone(terminal: Terminal) -> None:
    """A socket, a file and a pipe that nobody empties for a while."""
    async with terminal.started("streams", "ticks", "--pause=0.4", "--to=3") as process:
        out, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")
        assert len(out.splitlines()) == 3


@pytest.mark.parametrize("line", ["--help", "services", "services -o json", "status", "zzzz"])
async def test_a_reader_that_is_not_there_at_all(terminal: Terminal, line: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        process = await asyncio.create_subprocess_exec(
            MICRO, *line.split(), env=terminal.environ, stdout=write, stderr=subprocess.PIPE
        )
    finally:
        os.close(write)
    code, said = await ended(process)
    assert code == (1 if line == "zzzz" else 0)
    assert said.count("\n") == (1 if line == "zzzz" else 0)


async def test_a_full_disk_is_told(terminal: Terminal) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(
        MICRO, "services", env=terminal.environ, stdout=full, stderr=subprocess.PIPE
    )
    os.close(full)
    code, said = await ended(process)
    assert (code, said) == (1, "No space left on device\n")


async def test_a_stream_that_ends_does_not_wait_for_a_key(terminal: Terminal) -> None:
    """Somebody types requests; the endpoint has its answer after one and the command ends, though
    standard input stays open."""
    async with terminal.started("stream", "streams", "Streams.First", "-") as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b'{"value": 7}\n')
        assert await process.stdout.readline() == b'{"value": 7}\n'
        assert await ended(process) == (0, "")


async def test_a_stream_that_is_refused_does_not_wait_for_a_key(terminal: Terminal) -> None:
    async with terminal.started("stream", "streams", "Streams.Total", "-") as process:
        assert process.stdin
        process.stdin.write(b'{"value": "x"}\n')
        code, said = await ended(process)
        assert code == 1
        assert said.startswith("Wrong input: ")


async def test_requests_are_answered_one_by_one(terminal: Terminal) -> None:
    """A conversation over pipes: each answer comes before the next request is typed."""
    async with terminal.started("stream", "streams", "Streams.Double", "-") as process:
        assert process.stdin
        assert process.stdout
        for value in (1, 2, 3):
            process.stdin.write(b'{"value": %d}\n' % value)
            async with asyncio.timeout(5):
                assert await process.stdout.readline() == b'{"value": %d}\n' % (2 * value)
        process.stdin.close()
        assert await ended(process) == (0, "")


async def test_on_a_terminal_values_cannot_drive_it(terminal: Terminal, town: Here) -> None:
    await town.store.write("interrupt/escape", b"\x1b[2Jgone \x1b[31mred")
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        MICRO, "store", "read", "interrupt/escape", env=terminal.environ, stdout=theirs
    )
    assert await process.wait() == 0
    os.close(theirs)
    shown = os.read(ours, 1000)
    os.close(ours)
    assert shown == b"\\x1b[2Jgone \x1b[31mred\x1b[0m\r\n"
    piped = await terminal.micro("store", "read", "interrupt/escape")
    assert piped.raw == b"\x1b[2Jgone \x1b[31mred\n"


async def test_head(terminal: Terminal, here_folder: Path) -> None:
    """As a shell runs it, with the pipe's own exit code."""
    line = f"set -o pipefail; {MICRO} streams ticks | head -2"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", line, env=terminal.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(10):
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b'{"value": 1}\n{"value": 2}\n', b"")
