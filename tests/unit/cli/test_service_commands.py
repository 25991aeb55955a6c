"""Services as commands: words, flags and help, made from what they publish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fixtures.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_the_first_call_that_anybody_makes(terminal: Terminal) -> None:
    done = await terminal.micro("helloworld", "call", "--name=Alice")
    assert (done.code, done.out, done.err) == (0, '{\n\t"message": "Hello Alice"\n}\n', "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["helloworld"], "Hello World"),
        (["helloworld", "--name=A"], "Hello A"),
        (["HelloWorld", "CALL", "--name", "A"], "Hello A"),
        (["helloworld", "helloworld", "call", "--name", "A"], "Hello A"),
        (["helloworld", "Helloworld.Call", "--name", "A"], "Hello A"),
        (["helloworld", "call", "--name=--x=y"], "Hello --x=y"),
        (["helloworld", "call", "--name", "-1"], "Hello -1"),
        (["helloworld", "call", "--name", "żółw 漢"], "Hello żółw 漢"),
        (["-o", "json", "helloworld", "-o", "json", "call", "--name=A"], "Hello A"),
    ],
)
async def test_words_and_flags(terminal: Terminal, args: list[str], message: str) -> None:
    assert (await terminal.inside(*args)).json() == {"message": message}


async def test_a_handler_of_its_own_takes_two_words(terminal: Terminal) -> None:
    for words in (["greeter", "hello"], ["Greeter.Hello"]):
        assert (await terminal.inside("toolbox", *words, "--name=A")).json() == "Hello A"


async def test_services_of_the_platform_are_commands_too(terminal: Terminal) -> None:
    names = (await terminal.inside("registry", "list-services")).json()
    assert "toolbox" in {entry["name"] for entry in names}
    routes = (await terminal.inside("router", "lookup", "--service=toolbox")).json()
    assert routes[0]["id"] == "toolbox-1"


async def test_every_type_arrives(terminal: Terminal, here_folder: Path) -> None:
    (here_folder / "data").write_bytes(b"\xff\x00")
    args = [
        "--text=--t", "--count", "-3", "--ratio=-.5", "--loud", "--colour", "green", "--level=3",
        "--tags=a,b", "--numbers=1", "--numbers", "-2", "--pair=4,four", "--labels=a=1",
        "--either=word", "--maybe=9", "--no-on", "--address_street=Elm", "--other-street=Oak",
        "--other.number=7", '--places=[{"street": "P"}]', "--tree_value=1", "--data=@data",
        '--anything={"x": [null]}',
    ]  # fmt: skip
    assert (await terminal.micro("toolbox", "everything", *args)).json() == {
        "text": "--t",
        "count": -3,
        "ratio": -0.5,
        "loud": True,
        "colour": "green",
        "level": 3,
        "tags": ["a", "b"],
        "numbers": [1, -2],
        "pair": [4, "four"],
        "labels": {"a": 1},
        "either": "word",
        "maybe": 9,
        "on": False,
        "address": {"street": "Elm", "number": 1},
        "other": {"street": "Oak", "number": 7},
        "places": [{"street": "P", "number": 1}],
        "tree": {"value": 1, "left": None},
        "data": "/wA=",
        "anything": {"x": [None]},
        "age": 1,
    }


async def test_pydantic_and_free_requests(terminal: Terminal) -> None:
    done = await terminal.inside("toolbox", "person", "--name=A", "--home=city=B")
    assert done.json() == {"name": "A", "nick": None, "home": {"city": "B"}}
    assert (await terminal.inside("toolbox", "free", "--x=1", "--y=z")).json() == {"x": 1, "y": "z"}


async def test_the_service_has_the_last_word_on_values(terminal: Terminal) -> None:
    done = await terminal.inside("toolbox", "everything", "--text=x", "--count=1", "--age=-1")
    assert done.code == 1
    assert "Wrong input" in done.err
    assert "$.age" in done.err


async def test_streams_print_one_answer_a_line(terminal: Terminal) -> None:
    done = await terminal.inside("streams", "ticks", "--to=2")
    assert done.lines == ['{"value": 1}', '{"value": 2}']


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["streams", "total"], "use `micro stream streams Streams.Total -`"),
        (["streams", "double"], "use `micro stream streams Streams.Double -`"),
        (["toolbox", "reverse"], "use `micro call toolbox Toolbox.Reverse @FILE`"),
        (["toolbox", "nothing", "word"], "No endpoint nothing word in toolbox"),
        (["toolbox", "nothing", "--word"], "Unknown flag: --word"),
        (["toolbox", "--zzz"], "No endpoint call in toolbox"),
        (["toolbox", "grter", "hello"], "there is greeter hello"),
    ],
)
async def test_what_cannot_be_done_so_says_how(
    terminal: Terminal, args: list[str], said: str
) -> None:
    done = await terminal.inside(*args)
    assert done.code in (2, 5)
    assert said in done.err


async def test_bytes_are_printed_as_they_are(terminal: Terminal) -> None:
    assert (await terminal.inside("toolbox", "pieces")).raw == b"\x00\xfftwo\n"


# -- help ------------------------------------------------------------------------------------------


async def test_help_of_a_service(terminal: Terminal) -> None:
    done = await terminal.micro("toolbox", "--help")
    assert done.code == 0
    assert "NAME:\n\tmicro toolbox\n" in done.out
    assert "DESCRIPTION:\n\tDoes what tests need\n" in done.out
    assert "VERSION:\n\tv2\n" in done.out
    assert "USAGE:\n\tmicro toolbox [command]\n" in done.out
    commands = done.out.partition("COMMANDS:\n")[2].splitlines()
    assert commands == sorted(commands)
    assert "\tgreeter hello  Greet with a handler of its own." in commands
    assert "\teverything     Give back what came." in commands
    assert (await terminal.inside("toolbox", "-h")).out == done.out


async def test_help_of_an_endpoint(terminal: Terminal) -> None:
    done = await terminal.inside("toolbox", "everything", "--help")
    assert done.code == 0
    assert "NAME:\n\tmicro toolbox everything\n" in done.out
    assert "USAGE:\n\tmicro toolbox everything [flags]\n" in done.out
    flags = done.out.partition("FLAGS:\n")[2].splitlines()
    assert flags == sorted(flags)
    rows = [" ".join(row.split()) for row in flags]
    for row in (
        "--text string (required)",
        "--ratio number (default 0.5)",
        "--colour green|red (default \"red\")",
        "--tags []string",
        "--address_street string",
        "--age integer in years (default 1)",
        "--other_street string",
        "--tree_left object",
        "--data bytes",
    ):  # fmt: skip
        assert any(line.startswith(row) for line in rows), row


async def test_help_of_streams_and_bytes(terminal: Terminal) -> None:
    assert "STREAM:\n\tserver\n" in (await terminal.inside("streams", "ticks", "--help")).out
    assert "STREAM:\n\tbidirectional\n" in (await terminal.inside("streams", "double", "-h")).out
    assert "FLAGS:\n" in (await terminal.inside("toolbox", "reverse", "--help")).out


async def test_help_says_what_models_say_of_their_fields(terminal: Terminal) -> None:
    done = await terminal.inside("toolbox", "person", "--help")
    assert "--name string  who it is (required)" in " ".join(done.out.replace("\t", "").split("\n"))


async def test_a_request_that_was_made_is_what_curl_would_send(terminal: Terminal) -> None:
    """Flags left out are left out of the request: defaults are the service's own."""
    done = await terminal.inside("toolbox", "free", "--a=1")
    assert json.loads(done.out) == {"a": 1}
