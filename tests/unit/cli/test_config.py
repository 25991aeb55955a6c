"""config: values set, read, merged and removed; their history, and secrets."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
from typing import Any

import pytest

from micro_ray.sdk.testing import Here
from tests.fixtures.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_set_get_del(terminal: Terminal) -> None:
    """Setting and removing print nothing."""
    done = await terminal.micro("config", "set", "cli.one", "a value")
    assert (done.code, done.raw, done.err) == (0, b"", "")
    assert (await terminal.micro("config", "get", "cli.one")).out == "a value\n"
    done = await terminal.inside("config", "del", "cli.one")
    assert (done.code, done.raw, done.err) == (0, b"", "")
    done = await terminal.inside("config", "get", "cli.one")
    assert (done.code, done.out, done.err) == (1, "", "Nothing at 'cli.one'\n")
    assert (await terminal.inside("config", "get", "cli.one", "--default", "[1]")).json() == [1]


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (["5"], 5), (["-5"], -5), (["1.5"], 1.5), (["true"], True), (["null"], None),
        (['"5"'], "5"), (["[1, {}]"], [1, {}]), (['{"a": "b"}'], {"a": "b"}),
        (["several", "words"], "several words"), (["it's \"quoted\" \\"], 'it\'s "quoted" \\'),
        ([""], ""), (["NaN"], "NaN"), (["{"], "{"), (["--", "--secret"], "--secret"),
    ],
)  # fmt: skip
async def test_a_value_is_json_or_else_a_text(
    terminal: Terminal, args: list[str], value: Any
) -> None:
    done = await terminal.inside("config", "set", "cli.value", *args)
    assert done.code == 0, done
    found = await terminal.inside("config", "get", "cli.value", "-o", "json")
    assert found.json()["data"] == value
    shown = (await terminal.inside("config", "get", "cli.value")).out
    assert (shown[:-1] if isinstance(value, str) else json.loads(shown)) == value


async def test_a_value_of_standard_input(terminal: Terminal) -> None:
    await terminal.micro("config", "set", "cli.in", "-", stdin=b'{"a": [1]}\n')
    assert (await terminal.inside("config", "get", "cli.in.a")).json() == [1]


async def test_list_and_merge(terminal: Terminal) -> None:
    await terminal.inside("config", "set", "cli.tree", '{"a": 1, "b": {"c": "x y"}}')
    await terminal.inside("config", "merge", "cli.tree", '{"a": null, "b": {"d": [2]}}')
    rows = (await terminal.inside("config", "list", "cli.tree")).rows()
    assert [row[:-1] for row in rows] == [["cli.tree.b.c", "x", "y"], ["cli.tree.b.d", "[2]"]]
    items = (await terminal.inside("config", "list", "cli.tree", "-o", "json")).json()
    assert [(i["path"], i["data"]) for i in items] == [
        ("cli.tree.b.c", "x y"), ("cli.tree.b.d", [2]),
    ]  # fmt: skip
    done = await terminal.inside("config", "merge", "cli.tree", "[1]")
    assert (done.code, "object of JSON" in done.err) == (2, True)


async def test_secrets(terminal: Terminal) -> None:
    await terminal.inside("config", "set", "--secret", "cli.pass", "hunter2")
    for args in (["get", "cli.pass"], ["list", "cli"], ["get", "cli"], ["history", "cli.pass"]):
        done = await terminal.inside("config", *args)
        assert done.code == 0
        assert "hunter2" not in done.out
    assert (await terminal.inside("config", "get", "cli.pass")).out == "[secret]\n"
    assert (await terminal.inside("config", "get", "-s", "cli.pass")).out == "hunter2\n"
    rotated = (await terminal.inside("config", "rotate", "-o", "json")).json()
    assert rotated["sealed"] >= 1
    again = (await terminal.inside("config", "rotate")).out
    assert again.startswith(f"{rotated['sealed']} secrets are sealed with key ")
    assert rotated["key"] not in again
    assert (await terminal.inside("config", "get", "-s", "cli.pass")).out == "hunter2\n"


async def test_history_diff_and_rollback(terminal: Terminal) -> None:
    me = pwd.getpwuid(os.getuid()).pw_name
    first = (await terminal.inside("config", "set", "cli.h.a", "1", "-o", "json")).json()["version"]
    await terminal.inside("config", "set", "cli.h", '{"a": 2, "b": "x\\u001b"}')
    rows = (await terminal.inside("config", "history", "cli.h")).rows()
    assert [row[0] for row in rows] == [str(first + 1), str(first)]
    assert me in rows[0]
    assert rows[0][-2:] == ["cli.h.a,", "cli.h.b"]
    done = await terminal.inside("config", "diff", str(first), "-k", "cli.h")
    assert done.lines == ["- cli.h.a  1", "+ cli.h.a  2", "+ cli.h.b  x\\x1b"]
    at = await terminal.inside("config", "get", "cli.h", "--at", str(first))
    assert at.json() == {"a": 1}
    assert (await terminal.inside("config", "rollback", str(first), "cli.h")).code == 0
    assert (await terminal.inside("config", "get", "cli.h")).json() == {"a": 1}
    done = await terminal.inside("config", "rollback", "100000")
    assert (done.code, "has not been" in done.err) == (1, True)


async def test_compare_and_set(terminal: Terminal) -> None:
    version = (
        await terminal.inside("config", "set", "cli.cas", "1", "--expected", "0", "-o", "json")
    ).json()["version"]
    again = await terminal.inside("config", "set", "cli.cas", "2", "--expected", "0")
    assert (again.code, str(version) in again.err) == (1, True)
    done = await terminal.inside("config", "set", "cli.cas", "2", "--expected", str(version))
    assert done.code == 0
    stale = await terminal.inside("config", "del", "cli.cas", "--expected", str(version))
    assert stale.code == 1
    verbose = (await terminal.inside("config", "get", "cli.cas", "-v")).rows()
    assert verbose == [["cli.cas", "2", str(version + 1), str(version + 1)]]


async def test_watch(terminal: Terminal, town: Here) -> None:
    before = await town.config.version()
    async with (
        asyncio.timeout(20),
        terminal.started("config", "watch", "cli.w", "-o", "json") as asked,
        terminal.started("config", "watch", "cli.w", "--from", str(before)) as shown,
    ):
        await town.config.set("cli.w", 1, by="ann")
        assert asked.stdout is not None
        assert shown.stdout is not None
        head = (await shown.stdout.readline()).decode()
        assert head.startswith(f"version {before + 1}  ")
        assert head.endswith("  set by ann\n")
        assert await shown.stdout.readline() == b"+ cli.w  1\n"
        line = asyncio.ensure_future(asked.stdout.readline())
        number = 1
        while not line.done():  # it watches from when it has begun
            number += 1
            await town.config.set("cli.w", number)
            await asyncio.wait([line], timeout=0.1)
        (change,) = json.loads(line.result())["changes"]
        assert (change["path"], change["kind"]) == ("cli.w", "changed")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["get", "a..b"], "path"),
        (["set", "", "1"], "blank"),
        (["del", ""], "blank"),
        (["set", "a b", "1"], "path"),
        (["set", "x", "1", "--expected=-1"], "expected"),
        (["diff", "x"], "old"),
        (["rollback", "-1"], "such option"),
        (["history", "--limit=0"], "limit"),
        (["set", "x", "[secret]"], "secret"),
        (["get", "x", "--at", "0"], "--at"),
    ],
)
async def test_bad_input_is_named(terminal: Terminal, args: list[str], named: str) -> None:
    done = await terminal.inside("config", *args)
    assert done.code in (1, 2)
    assert named in done.err.lower()
