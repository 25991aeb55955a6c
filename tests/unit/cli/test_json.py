"""``-o json`` of every command that prints data: valid JSON, and nothing else, before and after the
command's name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fixtures.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="package")

#: A command, and the type of what it gives.
ONE: list[tuple[list[str], type]] = [
    (["services"], list),
    (["services", "-v"], list),
    (["get", "service", "toolbox"], list),
    (["network", "nodes"], list),
    (["network", "routes"], list),
    (["network", "services"], list),
    (["network", "graph"], dict),
    (["status"], list),
    (["health", "toolbox"], list),
    (["stats", "toolbox"], list),
    (["call", "helloworld", "Helloworld.Call"], dict),
    (["call", "toolbox", "Toolbox.Reverse", "abc"], dict),
    (["helloworld", "call", "--name=Alice"], dict),
    (["helloworld"], dict),
    (["toolbox", "nothing"], dict),
    (["store", "write", "json/key", "value"], dict),
    (["store", "read", "json/key"], list),
    (["store", "read", "-p", "json/none"], list),
    (["store", "read", "-v", "json/key"], list),
    (["store", "list", "-p", "json/"], list),
    (["store", "databases"], list),
    (["store", "tables"], list),
    (["events", "publish", "json-topic", "value"], dict),
    (["events", "read", "json-topic"], list),
    (["events", "topics"], list),
    (["events", "usage"], dict),
    (["store", "usage"], dict),
    (["events", "groups", "json-topic"], list),
    (["events", "dead", "json-topic", "none"], list),
    (["events", "retain", "json-topic", "--ttl=7d"], dict),
    (["env"], dict),
    (["new", "json-made"], dict),
]

#: Streams: one value a line.
MANY = [
    ["stream", "streams", "Streams.Ticks", '{"to": 3}'],
    ["stream", "toolbox", "Toolbox.Pieces"],
    ["streams", "ticks", "--to=3"],
    ["events", "consume", "json-topic", "--from=beginning", "--count=2"],
    ["events", "replay", "json-topic"],
    ["toolbox", "pieces"],
]


def only_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("args", "kind"), ONE, ids=lambda a: " ".join(a) if type(a) is list else ""
)
async def test_one_value(terminal: Terminal, args: list[str], kind: type) -> None:
    for line in ([*args, "-o", "json"], ["-o", "json", *args], [*args, "--output=json"]):
        if args[0] == "new":
            line = [
                word.replace("json-made", f"json-made-{len(line)}{line[0][1:2]}") for word in line
            ]
        done = await terminal.inside(*line)
        assert done.code == 0, done
        assert not done.err
        assert type(only_json(done.out)) is kind


@pytest.mark.parametrize("args", MANY, ids=" ".join)
async def test_one_value_a_line(terminal: Terminal, args: list[str]) -> None:
    for line in ([*args, "-o", "json"], ["-o", "json", *args]):
        done = await terminal.inside(*line)
        assert done.code == 0, done
        assert not done.err
        assert len(done.lines) >= 2
        for row in done.out.rstrip("\n").split("\n"):
            assert isinstance(only_json(row), dict)


async def test_doctor_and_unwell_nodes_give_json_though_they_fail(terminal: Terminal) -> None:
    for args in (["health", "ailing"], ["doctor"]):
        done = await terminal.inside(*args, "-o", "json")
        assert done.code == 1
        assert isinstance(only_json(done.out), list)


async def test_what_prints_nothing_takes_the_option_too(terminal: Terminal) -> None:
    done = await terminal.inside("store", "delete", "json/key", "-o", "json")
    assert (done.code, done.raw, done.err) == (0, b"", "")


async def test_what_comes_after_wins(terminal: Terminal) -> None:
    done = await terminal.inside("-o", "json", "services", "-o", "table")
    assert "helloworld" in done.lines


async def test_numbers_and_words_arrive_as_the_service_gave_them(terminal: Terminal) -> None:
    done = await terminal.inside("toolbox", "exact", "-o", "json")
    assert only_json(done.out) == {"large": 2**63 - 1, "small": 0.1, "word": "żółw\u2028"}
    assert "żółw" in done.out


async def test_json_is_utf8_wherever_it_goes(terminal: Terminal) -> None:
    """The encoding of JSON does not hang on the locale."""
    poor = terminal.within(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    done = await poor.micro("toolbox", "exact", "-o", "json")
    assert done.code == 0, done
    assert only_json(done.out)["word"] == "żółw\u2028"
