"""events: published, consumed, read, requeued and deleted from the command line."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from micro_ray.sdk.testing import Here
from tests.fixtures.terminal import Terminal
from tests.fixtures.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_publish_and_read(terminal: Terminal) -> None:
    first = await terminal.micro("events", "publish", "cli-one", "several", "words  here")
    assert (first.code, first.out, first.err) == (0, "1\n", "")
    second = await terminal.inside("events", "publish", "cli-one", "-5", "--metadata", "k=v")
    assert second.out == "2\n"
    assert (await terminal.inside("events", "read", "cli-one")).lines == [
        "several words  here", "-5",
    ]  # fmt: skip
    done = await terminal.inside("events", "read", "cli-one", "--from", "2", "-o", "json")
    (event,) = done.json()
    assert (event["sequence"], event["metadata"], event["payload"]) == (2, {"k": "v"}, "-5")
    assert (await terminal.inside("events", "read", "cli-one", "-l", "1", "--offset", "1")).out == (
        "-5\n"
    )
    for place, count in (("1h", 2), ("2100-01-01", 0), ("now", 0), ("beginning", 2)):
        done = await terminal.inside("events", "read", "cli-one", f"--from={place}")
        assert (done.code, len(done.lines)) == (0, count), place
    assert (await terminal.inside("events", "read", "cli-one", "--until=1h")).out == ""
    (line,) = (await terminal.inside("events", "read", "cli-one", "-v", "--from=2")).lines
    assert line.startswith("2  20")
    assert line.endswith("  -5")


async def test_bytes_go_through_untouched(terminal: Terminal) -> None:
    data = bytes(range(256))
    assert (await terminal.micro("events", "publish", "cli-bytes", "-", stdin=data)).code == 0
    assert (await terminal.micro("events", "read", "cli-bytes", "-o", "raw")).raw == data


async def test_ids_and_expectations(terminal: Terminal) -> None:
    for _ in range(2):
        done = await terminal.inside("events", "publish", "cli-id", "x", "--id", "same")
        assert done.out == "1\n"
    done = await terminal.inside("events", "publish", "cli-id", "x", "--expected", "0")
    assert done.code != 0
    assert "last event 0 expected, 1 found" in done.err


async def test_consume_by_a_group(terminal: Terminal) -> None:
    """Each is acknowledged once printed; the group goes on where it was."""
    for i in range(5):
        await terminal.inside("events", "publish", "cli-group", str(i))
    consume = ["events", "consume", "cli-group", "-g", "g", "--from", "beginning"]
    assert (await terminal.micro(*consume, "--count", "2")).lines == ["0", "1"]
    assert (await terminal.inside(*consume, "--count", "1", "--no-ack")).lines == ["2"]
    assert (await terminal.inside(*consume, "--count", "3")).lines == ["2", "3", "4"]
    (row,) = (await terminal.inside("events", "groups", "cli-group")).rows()
    assert row == ["g", "6", "0", "0", "0"]


async def test_consume_what_comes(terminal: Terminal) -> None:
    async with terminal.started("events", "consume", "cli-live", "-g", "live") as process:

        async def joined() -> bool:
            return "live" in (await terminal.inside("events", "groups", "cli-live")).out

        await eventually(joined, within=15, every=0.1)
        for word in ("one", "two"):
            await terminal.inside("events", "publish", "cli-live", word)
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), 10)
            assert line == f"{word}\n".encode()
        os.kill(process.pid, signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 10) == 130


async def test_dead_letters(terminal: Terminal, town: Here) -> None:
    for i in range(3):
        await terminal.inside("events", "publish", "cli-dead", f"poison {i}")
    ask = town.client.call
    request = {"topic": "cli-dead", "group": "g", "start": "beginning", "retry_limit": 0}
    given = (await ask("events", "Events.Fetch", {**request, "limit": 3}))["events"]
    await ask("events", "Events.Nack", {"tokens": [event["token"] for event in given]})
    rows = (await terminal.inside("events", "dead", "cli-dead", "g")).rows()
    assert [(row[0], row[2], row[-1]) for row in rows] == [
        ("1", "1", "0"), ("2", "1", "1"), ("3", "1", "2"),
    ]  # fmt: skip
    assert (await terminal.inside("events", "requeue", "cli-dead", "g", "2")).out == "1\n"
    assert (await terminal.inside("events", "discard", "cli-dead", "g", "1")).out == "1\n"
    assert (await terminal.inside("events", "requeue", "cli-dead", "g")).out == "1\n"
    consumed = await terminal.inside("events", "consume", "cli-dead", "-g", "g", "-n", "2")
    assert consumed.lines == ["poison 1", "poison 2"]
    gone = await terminal.inside("events", "requeue", "cli-dead", "none")
    assert gone.code == 1
    assert "group 'none'" in gone.err


async def test_topics_are_kept_and_deleted(terminal: Terminal) -> None:
    await terminal.inside("events", "publish", "cli-topic", "12345")
    done = await terminal.inside("events", "retain", "cli-topic", "--ttl=2h", "--max-size=1048576")
    assert (done.code, done.out) == (0, "")
    rows = {row[0]: row[1:] for row in (await terminal.inside("events", "topics")).rows()}
    assert rows["cli-topic"] == ["1", "1", "1", "0.00mb", "0", "7200s", "1.00mb"]
    usage = (await terminal.inside("events", "usage")).lines
    assert usage[0].split()[:3] == ["TOPICS", "EVENTS", "BYTES"]
    kept = (await terminal.inside("events", "usage", "-o", "json")).json()
    assert kept["topics"] >= 1
    assert kept["bytes"] >= 5
    assert (await terminal.inside("events", "delete", "cli-topic")).code == 0
    assert "cli-topic" not in (await terminal.inside("events", "topics")).out
    assert (await terminal.inside("events", "replay", "cli-topic")).out == ""


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["publish", "a/b", "x"], "topic"),
        (["publish", "t", "x", "--metadata", "x"], "K=V"),
        (["read", "t", "--from", "whenever"], "whenever"),
        (["read", "t", "--until", "beginning"], "beginning"),
        (["read", "t", "--limit", "0"], "limit"),
        (["consume", "t", "--ack-wait", "0s", "--count", "1"], "ack-wait"),
        (["consume", "t", "--count", "0"], "count"),
        (["retain", "t", "--max-size", "0"], "max-size"),
        (["dead", "t"], "GROUP"),
        (["consum", "t"], "consume"),
    ],
)
async def test_what_is_wrong_is_said(terminal: Terminal, args: list[str], word: str) -> None:
    done = await terminal.inside("events", *args)
    assert done.code != 0
    assert word.lower() in done.err.lower()
    assert done.out == ""


async def test_fetch_and_settle(terminal: Terminal) -> None:
    await terminal.inside("events", "publish", "cli-fetch", "one")
    place = ("events", "fetch", "cli-fetch", "g", "--from", "beginning", "-l", "5")
    ((number, _, attempt, token, payload),) = (await terminal.inside(*place)).rows()
    assert (number, attempt, payload) == ("1", "1", "one")
    assert (await terminal.inside(*place)).rows() == []
    assert (await terminal.inside("events", "progress", token)).out == "1\n"
    assert (await terminal.inside("events", "nack", token, "--delay", "0")).out == "1\n"
    ((_, _, attempt, token, _),) = (await terminal.inside(*place)).rows()
    assert attempt == "2"
    assert (await terminal.inside("events", "ack", token)).out == "1\n"
    assert (await terminal.inside("events", "ack", token)).out == "0\n"
    wrong = await terminal.inside("events", "ack", "no-token")
    assert wrong.code == 1
    assert "token" in wrong.err
