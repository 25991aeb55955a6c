"""call and stream: requests from every source, answers in every form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fixtures.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="package")

GREETING = '{\n\t"message": "Hello Alice"\n}\n'


async def test_the_request_is_the_argument(terminal: Terminal) -> None:
    done = await terminal.micro("call", "helloworld", "Helloworld.Call", '{"name":"Alice"}')
    assert (done.code, done.out, done.err) == (0, GREETING, "")


@pytest.mark.parametrize(
    "endpoint", ["Helloworld.Call", "call", "helloworld.call", "HELLOWORLD.CALL"]
)
async def test_endpoints_are_found_as_they_are_typed(terminal: Terminal, endpoint: str) -> None:
    done = await terminal.inside("call", "HelloWorld", endpoint, '{"name":"Alice"}')
    assert done.out == GREETING


async def test_no_request_is_an_empty_one(terminal: Terminal) -> None:
    assert "Hello World" in (await terminal.inside("call", "helloworld", "call")).out


async def test_the_request_is_standard_input(terminal: Terminal) -> None:
    done = await terminal.micro("call", "helloworld", "call", "-", stdin=b'\n {"name":"Alice"}\n')
    assert done.out == GREETING


async def test_the_request_is_a_file(terminal: Terminal, here_folder: Path) -> None:
    (here_folder / "request.json").write_text('{"name":\n"Alice"}')
    done = await terminal.inside("call", "helloworld", "call", "@request.json")
    assert done.out == GREETING


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("{", "The request is not JSON: Expecting property name enclosed in double quotes: "
              "line 1 column 2 (char 1)"),
        ("{\n'a': 1}", "line 2 column 1 (char 2)"),
        ('{"a": NaN}', "The request is not JSON: NaN is not JSON"),
        ("", "The request is not JSON: Expecting value: line 1 column 1"),
        ('{"name":"\udcff"}', "The request is not UTF-8: byte 9"),
        ("[" * 100_000, "The request is nested too deeply"),
    ],
    ids=range(6),
)  # fmt: skip
async def test_what_is_not_json_is_told_with_its_place(
    terminal: Terminal, request_: str, said: str
) -> None:
    for command in ("call", "stream"):
        done = await terminal.inside(command, "helloworld", "call", request_)
        assert done.code == 2
        assert said in done.err


async def test_a_negative_number_is_a_request(terminal: Terminal) -> None:
    done = await terminal.inside("call", "helloworld", "Helloworld.Call", "-5")
    assert "Wrong input: Expected `object`, got `int`" in done.err


async def test_metadata_goes_along(terminal: Terminal) -> None:
    args = ["call", "toolbox", "seen", "--metadata", "X-One=1", "--metadata", "two=a=b"]
    seen = (await terminal.inside(*args)).json()
    assert (seen["x-one"], seen["two"]) == ("1", "a=b")
    for wrong in ("plain", "=x"):
        done = await terminal.inside("call", "toolbox", "seen", "--metadata", wrong)
        assert done.code == 2
        assert f"Invalid value for --metadata: '{wrong}' is not like K=V" in done.err


@pytest.mark.parametrize("given", ["0.05", "50ms", "0.05s"])
async def test_the_timeout(terminal: Terminal, given: str) -> None:
    done = await terminal.inside("call", "toolbox", "slow", "--timeout", given)
    assert done.code == 1
    assert "deadline" in done.err.lower() or "timed out" in done.err.lower()


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "soon", "1e3", "99999999999d", "0s"])
async def test_a_timeout_that_is_none(terminal: Terminal, given: str) -> None:
    done = await terminal.inside("call", "toolbox", "slow", f"--request_timeout={given}")
    assert done.code == 2
    assert "Invalid value for '--timeout'" in done.err
    assert given in done.err


async def test_a_stream_is_not_called(terminal: Terminal) -> None:
    done = await terminal.inside("call", "streams", "ticks")
    assert done.code == 2
    assert done.err == "Streams.Ticks is a stream; use `micro stream streams Streams.Ticks`\n"


async def test_endpoints_that_are_not_published_can_be_called(terminal: Terminal) -> None:
    done = await terminal.inside("call", "helloworld", "Debug.Health")
    assert done.json()["status"] == "ok"


# -- bytes -----------------------------------------------------------------------------------------


async def test_bytes_go_and_come_as_they_are(terminal: Terminal, here_folder: Path) -> None:
    (here_folder / "file.bin").write_bytes(b"\x00\xff\n{")
    for source in (["@file.bin"], ["-"]):
        done = await terminal.micro(
            "call", "toolbox", "Toolbox.Reverse", *source, stdin=b"\x00\xff\n{"
        )
        assert (done.code, done.raw) == (0, b"{\n\xff\x00")
    assert (await terminal.inside("call", "toolbox", "reverse", "not json")).raw == b"nosj ton"


async def test_bytes_as_json(terminal: Terminal) -> None:
    done = await terminal.inside("call", "toolbox", "reverse", "abc", "-o", "json")
    assert done.json() == {"value": "cba", "encoding": "text"}
    done = await terminal.inside("call", "toolbox", "reverse", "-", "-ojson", stdin=b"\xff\x00")
    assert done.json() == {"value": "AP8=", "encoding": "base64"}


async def test_raw_is_the_answer_byte_for_byte(terminal: Terminal) -> None:
    done = await terminal.inside("call", "helloworld", "call", '{"name":"A"}', "-o", "raw")
    assert done.raw == b'{"message":"Hello A"}'


# -- streams ---------------------------------------------------------------------------------------


async def test_answers_are_one_a_line(terminal: Terminal) -> None:
    done = await terminal.micro("stream", "streams", "Streams.Ticks", '{"to": 3}')
    assert (done.code, done.err) == (0, "")
    assert done.lines == ['{"value": 1}', '{"value": 2}', '{"value": 3}']


async def test_what_came_before_an_error_is_printed(terminal: Terminal) -> None:
    done = await terminal.inside("stream", "streams", "breaks")
    assert (done.code, done.lines, done.err) == (1, ['{"value": 1}'], "Broke after one\n")


async def test_requests_from_standard_input(terminal: Terminal) -> None:
    """One a line; blank lines are none."""
    sent = b'{"value": 1}\n\n  \n{"value": 2}\n{"value": 39}'
    done = await terminal.micro("stream", "streams", "Streams.Total", "-", stdin=sent)
    assert (done.code, done.out) == (0, '{"value": 42}\n')
    done = await terminal.micro("stream", "streams", "Streams.Double", "-", stdin=sent)
    assert [json.loads(line)["value"] for line in done.lines] == [2, 4, 78]


async def test_many_requests(terminal: Terminal) -> None:
    """More than any credit or pipe holds at once, both ways."""
    sent = b"".join(b'{"value": %d}\n' % number for number in range(5_000))
    done = await terminal.micro("stream", "streams", "Streams.Double", "-", stdin=sent)
    assert done.code == 0
    assert [json.loads(line)["value"] for line in done.lines] == list(range(0, 10_000, 2))


async def test_requests_from_a_file_and_from_the_argument(
    terminal: Terminal, here_folder: Path
) -> None:
    (here_folder / "rows").write_text('{"value": 1}\n{"value": 2}\n')
    done = await terminal.inside("stream", "streams", "total", "@rows")
    assert done.out == '{"value": 3}\n'
    done = await terminal.inside("stream", "streams", "total", '{"value": 5}')
    assert done.out == '{"value": 5}\n'


async def test_no_request_at_all(terminal: Terminal) -> None:
    done = await terminal.inside("stream", "streams", "total", "-", stdin=b"")
    assert done.out == '{"value": 0}\n'


async def test_a_bad_line_ends_the_call(terminal: Terminal) -> None:
    sent = b'{"value": 1}\n{"value":\n'
    done = await terminal.inside("stream", "streams", "Streams.Double", "-", stdin=sent)
    assert done.code == 2
    assert done.err.startswith("The request is not JSON: Expecting value")


async def test_the_whole_of_standard_input_is_the_request_of_a_server_stream(
    terminal: Terminal,
) -> None:
    done = await terminal.inside("stream", "streams", "ticks", "-", stdin=b'{\n"to":\n2\n}')
    assert done.lines == ['{"value": 1}', '{"value": 2}']


async def test_bytes_are_streamed_in_pieces(terminal: Terminal, here_folder: Path) -> None:
    data = bytes(range(256)) * 4096
    (here_folder / "big").write_bytes(data)
    done = await terminal.inside("stream", "toolbox", "Toolbox.Sized", "@big")
    assert done.out == f"{len(data)}\n"
    done = await terminal.micro("stream", "toolbox", "Toolbox.Sized", "-", stdin=data)
    assert done.out == f"{len(data)}\n"


async def test_bytes_are_answered_as_they_are(terminal: Terminal) -> None:
    assert (await terminal.inside("stream", "toolbox", "pieces")).raw == b"\x00\xfftwo\n"
    rows = (await terminal.inside("stream", "toolbox", "pieces", "-o", "json")).lines
    assert list(map(json.loads, rows)) == [
        {"value": "AP8=", "encoding": "base64"},
        {"value": "two\n", "encoding": "text"},
    ]


async def test_a_unary_endpoint_is_a_stream_of_one(terminal: Terminal) -> None:
    done = await terminal.inside("stream", "helloworld", "call", '{"name":"Alice"}')
    assert done.out == '{"message": "Hello Alice"}\n'
