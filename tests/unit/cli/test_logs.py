"""logs: the last lines, what comes, and what lines may hold."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from micro_ray.sdk.testing import Here
from tests.fixtures.terminal import MICRO, Terminal, environment
from tests.fixtures.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")

#: Says twenty lines, then a line whenever told to by a file.
TALKS = r"""
echo oops >&2
sleep 0.05
for i in $(seq 20); do echo "line $i"; done
printf 'colour \033[31mred\033[0m \033[2J\tend\n'
printf 'caf\351\n'
i=0
while true; do
  if [ -e "$GO$i" ]; then echo "more $i"; i=$((i + 1)); fi
  sleep 0.02
done
"""


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def talker(town: Here, state: Path) -> AsyncIterator[str]:
    """It runs for all tests here; the file name that makes it talk."""
    with tempfile.TemporaryDirectory(prefix="mg-") as folder:
        terminal = Terminal(environment(town.bootstrap, state), Path(folder))
        args = ["--name=talker", "-e", f"GO={folder}/go", "-e", f"SAY={TALKS}"]
        done = await terminal.inside("run", *args, "--command", "sh -c 'eval \"$SAY\"'")
        assert done.code == 0, done

        async def spoke() -> bool:
            return len((await terminal.inside("logs", "talker", "-n", "100")).lines) >= 23

        await eventually(spoke)
        yield f"{folder}/go"
        await terminal.inside("kill", "talker")


async def test_tail(terminal: Terminal, talker: str) -> None:
    """Fifteen lines of the end, or as many as are asked for, byte for byte."""
    done = await terminal.micro("logs", "talker")
    rows = done.raw.split(b"\n")
    assert len(rows) == 16
    assert rows[:2] == [b"line 8", b"line 9"]
    assert b"colour \x1b[31mred\x1b[0m \x1b[2J\tend" in rows
    assert "caf\ufffd".encode() in rows
    assert (await terminal.inside("logs", "talker", "-n", "22")).lines[0] == "line 1"
    assert (await terminal.inside("logs", "talker", "--lines=2")).lines[-1] == "caf\ufffd"
    assert len((await terminal.inside("logs", "talker", "-n1")).lines) == 1
    assert (await terminal.inside("logs", "talker", "-n0")).raw == b""


async def test_lines_as_json(terminal: Terminal, talker: str) -> None:
    done = await terminal.inside("logs", "talker", "-n", "100", "-o", "json")
    rows = [json.loads(line) for line in done.out.rstrip("\n").split("\n")]
    assert [row["text"] for row in rows if row["stream"] == "out"][:2] == ["line 1", "line 2"]
    assert [row["stream"] for row in rows].count("err") == 1
    for row in rows:
        assert set(row) == {"at", "replica", "stream", "text"}
        assert re.fullmatch(r"talker-[0-9a-f]{12}", row["replica"])
        assert abs(time.time() - row["at"]) < 60


async def test_follow(terminal: Terminal, talker: str) -> None:
    """The last lines, then each as it comes; Ctrl-C ends it."""
    async with terminal.started("logs", "-f", "talker", "-n", "1") as process:
        assert process.stdout
        assert (await process.stdout.readline()).decode().startswith("caf")
        for number in range(2):
            with open(f"{talker}{number}", "w"):  # noqa: ASYNC230 - a file in a folder of ours
                pass
            assert await process.stdout.readline() == b"more %d\n" % number
        process.send_signal(signal.SIGINT)
        _, said = await process.communicate()
        assert (process.returncode, said) == (130, b"")


async def test_the_reader_of_a_follower_goes_away(terminal: Terminal, talker: str) -> None:
    """It is noticed with the next line, and is no failure."""
    line = f"set -o pipefail; {MICRO} logs -f talker | head -1"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", line, env=terminal.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.startswith((b"line ", b"more "))


async def test_logs_of_a_service_that_ends_again_and_again(terminal: Terminal) -> None:
    """Those of all its replicas, in order."""
    await terminal.inside("run", "--name=brief", "--command=sh -c 'echo hello; exit 3'")

    async def twice() -> bool:
        return (await terminal.inside("logs", "brief")).lines.count("hello") >= 2

    try:
        await eventually(twice)
        rows = (await terminal.inside("logs", "brief", "-o", "json")).lines
        assert len({json.loads(row)["replica"] for row in rows}) >= 2
    finally:
        await terminal.inside("kill", "brief")


@pytest.mark.parametrize("lines", ["-1", "10001", "x"])
async def test_a_number_of_lines_that_is_none(terminal: Terminal, lines: str) -> None:
    done = await terminal.inside("logs", "talker", "-n", lines)
    assert done.code == 2
    assert "Invalid value for '-n' / '--lines'" in done.err
