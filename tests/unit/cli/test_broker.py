"""publish and subscribe: messages sent, printed and counted."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from micro_ray.sdk.testing import Here
from micro_ray.wire.broker import RemoteBroker
from tests.fixtures.terminal import Terminal
from tests.fixtures.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")


@asynccontextmanager
async def listening(
    terminal: Terminal, topic: str, *args: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """``micro subscribe`` that says that it is in force."""
    async with terminal.started("subscribe", topic, *args) as process:
        assert process.stderr is not None
        said = await asyncio.wait_for(process.stderr.readline(), 20)
        if "json" in args:
            assert json.loads(said) == {"subscribed": topic, "queue": ""}
        else:
            assert said == f"subscribed to {topic}\n".encode()
        yield process


async def test_publish(town: Here, terminal: Terminal) -> None:
    """It prints nothing."""
    async with RemoteBroker(town.client).subscribe("cli.>") as messages:
        done = await terminal.micro(
            "publish", "cli.one", "several", "words", "--header=k=v=w", "--header", "l="
        )
        assert (done.code, done.raw, done.err) == (0, b"", "")
        message = await anext(messages)
        assert (message.topic, message.body) == ("cli.one", b"several words")
        assert message.headers == {"k": "v=w", "l": ""}
        for args, stdin, body in (
            (["-5"], b"", b"-5"),
            (["--", "--header"], b"", b"--header"),
            ([""], b"", b""),
            (["-"], b"\x00\xff\r\n", b"\x00\xff\r\n"),
            (["żółw"], b"", "żółw".encode()),
        ):
            assert (await terminal.inside("publish", "cli.two", *args, stdin=stdin)).code == 0
            assert (await anext(messages)).body == body


async def test_subscribe(town: Here, terminal: Terminal) -> None:
    async with listening(terminal, "cli.*", "--count=2") as process:
        await town.broker.publish("cli.a", b"one\x1b[31m")
        await town.broker.publish("other", b"no")
        await town.broker.publish("cli.b", b"\xff two")
        out, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, out, err) == (0, b"one\x1b[31m\n\xff two\n", b"")


async def test_subscribe_as_json_and_raw(town: Here, terminal: Terminal) -> None:
    async with (
        listening(terminal, "cli.a", "-n", "2", "-o", "json") as process,
        listening(terminal, "cli.a", "-n", "2", "-o", "raw") as raw,
    ):
        await town.broker.publish("cli.a", b"text", headers={"k": "v"})
        await town.broker.publish("cli.a", b"\xff\x00")
        out, _ = await asyncio.wait_for(process.communicate(), 20)
        bare, _ = await asyncio.wait_for(raw.communicate(), 20)
    assert bare == b"text\xff\x00"
    assert [json.loads(line) for line in out.splitlines()] == [
        {"topic": "cli.a", "body": "text", "encoding": "text", "headers": {"k": "v"}, "dropped": 0},
        {"topic": "cli.a", "body": "/wA=", "encoding": "base64", "headers": {}, "dropped": 0},
    ]


async def test_a_group_shares(town: Here, terminal: Terminal) -> None:
    async with (
        listening(terminal, "cli.a", "--queue", "g") as one,
        listening(terminal, "cli.a", "-q", "g") as two,
    ):
        for number in range(40):
            await town.broker.publish("cli.a", b"%d" % number)
        lines: list[bytes] = []

        async def read(process: asyncio.subprocess.Process) -> None:
            assert process.stdout is not None
            async for line in process.stdout:
                lines.append(line)

        readers = [asyncio.create_task(read(process)) for process in (one, two)]
        await eventually(lambda: len(lines) == 40, within=20)
        for process in (one, two):
            process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(process.wait(), 20) == 130
        await asyncio.gather(*readers)
    assert sorted(map(int, lines)) == list(range(40))


async def test_it_says_what_was_lost(town: Here, terminal: Terminal) -> None:
    """One who stops reading for a while."""
    async with listening(terminal, "cli.a") as process:
        process.send_signal(signal.SIGSTOP)
        body = b"x" * 10_000
        for _ in range(5000):
            await town.broker.publish("cli.a", body)
        await town.broker.publish("cli.a", b"last")
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        assert process.stderr is not None
        count = 0
        async with asyncio.timeout(30):
            while await process.stdout.readline() != b"last\n":
                count += 1
            told = (await process.stderr.readline()).decode()
    lost = int(told.split()[0])
    assert "are not read fast enough" in told
    assert count + lost == 5000
    assert lost > 1000


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["publish", "a.*", "x"], "subscribers"),
        (["publish", "", "x"], "topic"),
        (["publish", "a"], "message"),
        (["publish", "a", "x", "--header", "k"], "--header"),
        (["publish", "a", "x", "--header", "a b=v"], "header"),
        (["publish", "a", "x" * 1_000_001], "1000000 allowed"),
        (["subscribe", "a.>.b"], "last word"),
        (["subscribe", "a", "--queue", "a b"], "queue"),
        (["subscribe", "a", "--count", "0"], "--count"),
        (["subscribe"], "topic"),
    ],
)
async def test_bad_input_is_named(terminal: Terminal, args: list[str], named: str) -> None:
    done = await terminal.inside(*args)
    assert done.code in (1, 2)
    assert named in done.err.lower()
    assert "Traceback" not in done.err


async def test_no_server(lonely: Terminal) -> None:
    for args in (["publish", "a", "x"], ["subscribe", "a"]):
        done = await lonely.inside(*args)
        assert done.code == 4
        assert "micro server" in done.err
