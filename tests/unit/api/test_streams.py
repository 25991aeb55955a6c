"""Streaming endpoints over plain HTTP: NDJSON, server-sent events and bytes, both ways."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from micro_ray.network.network import Network
from tests.fixtures.wait import eventually
from tests.unit.api.door import Door, Line, open_door
from tests.unit.api.services import Probe

pytestmark = pytest.mark.asyncio(loop_scope="package")

NDJSON = {"content-type": "application/x-ndjson"}
EVENTS = {"accept": "text/event-stream"}


def lines(answer: httpx.Response) -> list[Any]:
    return [json.loads(line) for line in answer.content.split(b"\n") if line]


async def begin(line: Line, path: str, *headers: str) -> None:
    """Begin a chunked POST."""
    head = [f"POST {path} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", *headers]
    await line.send("\r\n".join([*head, "", ""]).encode())


async def say(line: Line, value: Any) -> None:
    """One NDJSON line as one chunk."""
    data = json.dumps(value).encode() + b"\n"
    await line.send(b"%x\r\n%b\r\n" % (len(data), data))


async def test_answers_are_lines(door: Door) -> None:
    answer = await door.http.get("/streams/count?to=3")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text == '{"value":1}\n{"value":2}\n{"value":3}\n'
    assert (await door.http.post("/streams/count", json={"to": 1})).text == '{"value":1}\n'


async def test_no_answers(door: Door) -> None:
    answer = await door.http.get("/streams/count?to=0")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_line_has_no_break_within(door: Door) -> None:
    text = "a\nb\r\nc\rd\u2028e"
    answer = await door.http.post("/streams/lines", json={"text": text})
    assert answer.content.count(b"\n") == 1
    assert lines(answer) == [{"text": text}]


async def test_events(door: Door) -> None:
    answer = await door.http.get("/streams/count?to=2", headers=EVENTS)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.text == 'data: {"value":1}\n\ndata: {"value":2}\n\n'
    assert answer.headers["x-accel-buffering"] == "no"


async def test_each_answer_comes_when_it_is_made(door: Door) -> None:
    """Both directions at once, over one request: nothing waits for the end."""
    async with door.line() as line:
        await begin(line, "/streams/double")
        for value in (1, 2, 3):
            await say(line, {"value": value})
            if value == 1:
                code, headers = await line.head()
                assert (code, headers["content-type"]) == (200, "application/x-ndjson")
            assert await line.chunk() == b'{"value":%d}\n' % (value * 2)
        await line.send(b"0\r\n\r\n")
        assert await line.chunk() == b""
        await line.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")  # the connection goes on
        assert (await line.answer()).code == 200


async def test_a_client_stream_has_one_answer(door: Door) -> None:
    body = b'{"value":1}\n\n {"value":2}\r\n{"value":3}'
    for kind in ("application/x-ndjson", "application/json", "application/jsonl",
                 "application/x-www-form-urlencoded", "application/octet-stream"):  # fmt: skip
        answer = await door.http.post("/streams/sum", content=body, headers={"content-type": kind})
        assert answer.content == b'{"value":6}', kind
        assert answer.headers["content-type"] == "application/json"
    assert (await door.http.post("/streams/sum", content=body)).content == b'{"value":6}'
    assert (await door.http.post("/streams/sum")).json() == {"value": 0}


async def test_lines_may_be_cut_anywhere(door: Door) -> None:
    body = b'{"value":10}\n{"value":200}\n\n{"value":3000}'

    async def by(size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    for size in (1, 2, 7, 13, 14, 100):
        answer = await door.http.post("/streams/sum", content=by(size))
        assert answer.json() == {"value": 3210}


async def test_fields_of_path_and_query(door: Door) -> None:
    answer = await door.http.get("/rooms/blue/events?to=2")
    assert lines(answer) == [{"room": "blue", "number": n} for n in (0, 1)]
    answer = await door.http.post("/streams/double?value=5", content=b'{"value":1}')
    assert lines(answer) == [{"value": 10}, {"value": 2}]
    answer = await door.http.get("/streams/double?value=x")
    assert (answer.status_code, "'value'" in answer.json()["detail"]) == (400, True)
    answer = await door.http.post("/streams/take?name=x&n=1", content=b"123")
    assert answer.json() == {"size": 3, "fields": {"x-api-field-name": "x", "x-api-field-n": "1"}}


async def test_bytes_in_pieces(door: Door) -> None:
    answer = await door.http.get("/streams/pieces?size=5&times=3")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.content == b"x" * 15
    body = bytes(range(256)) * 4000
    answer = await door.http.post("/streams/mirror", content=body)
    assert answer.content == body
    head = {"content-type": "video/mp4"}
    answer = await door.http.post("/streams/take", content=body, headers=head)
    assert answer.json()["size"] == len(body)


async def test_bytes_are_never_events(door: Door) -> None:
    answer = await door.http.get("/streams/pieces?size=1&times=2", headers=EVENTS)
    assert (answer.headers["content-type"], answer.content) == ("application/octet-stream", b"xx")


@pytest.mark.parametrize("path", ["/streams/count?to=0&fail=409", "/streams/refuse?value=1"])
async def test_an_early_error_has_its_status(door: Door, path: str) -> None:
    for headers in ({}, EVENTS):
        answer = await door.http.get(path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (409, 409)
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("code", [400, 409, 499, 500, 503])
async def test_a_late_error_is_the_last_line(door: Door, code: int) -> None:
    """Behind all that came before it."""
    answer = await door.http.get(f"/streams/count?to=3&fail={code}")
    assert answer.status_code == 200
    *before, last = lines(answer)
    assert before == [{"value": 1}, {"value": 2}, {"value": 3}]
    assert (last["error"]["code"], last["error"]["id"]) == (code, "streams")


async def test_a_late_error_as_an_event(door: Door) -> None:
    answer = await door.http.get("/streams/count?to=1&crash=true", headers=EVENTS)
    first, last, rest = answer.text.split("\n\n")
    assert (first, rest) == ('data: {"value":1}', "")
    name, data = last.split("\n")
    assert name == "event: error"
    assert "boom" in json.loads(data.removeprefix("data: "))["detail"]


async def test_a_late_error_breaks_bytes_off(door: Door) -> None:
    """Nothing says it within the bytes; what must not be is a response that looks whole."""
    with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
        await door.http.get("/streams/pieces?size=5&times=3&fail=true")
    assert await door.alive()


async def test_the_service_may_answer_before_it_has_all(door: Door) -> None:
    """The client is told at once, not after an upload that nobody wants."""
    async with door.line() as line:
        await begin(line, "/streams/refuse")
        await say(line, {"value": 7})
        answer = await line.answer()
        assert (answer.code, answer.json()["detail"]) == (409, "no more after 7")


async def test_head_tells_what_get_would(door: Door, probe: Probe) -> None:
    """Without the body, and without waiting for the end of a stream that has none."""
    async with door.line() as line:
        for path, code, media in (
            ("/streams/count", 200, "application/x-ndjson"),
            ("/streams/endless?name=head", 200, "application/octet-stream"),
            ("/streams/count?to=0&fail=409", 409, "application/json"),
        ):
            await line.send(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = await line.answer(head_only=True)
            assert (answer.code, answer.headers["content-type"]) == (code, media)
    await eventually(lambda: probe.cancelled["head"] == probe.begun["head"] == 1)


async def test_streams_are_for_http_1_1(door: Door) -> None:
    """HTTP/1.0 has no chunks: the client could not tell a whole answer from a broken one."""
    answer = await door.exchange(b"GET /streams/count HTTP/1.0\r\n\r\n")
    assert (answer.code, "HTTP/1.1" in answer.json()["detail"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/streams/sum", "application/msgpack"),
        ("/streams/sum", "text/xml"),
        ("/streams/double", "multipart/form-data"),
        ("/streams/count", "application/msgpack"),
        ("/streams/count", "text/xml"),
    ],
)
async def test_content_types_that_have_no_lines(door: Door, path: str, kind: str) -> None:
    answer = await door.http.post(path, content=b"x", headers={"content-type": kind})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"garbage\n", "malformed"),
        (b'{"value":1}\n{"value":', "malformed"),
        (b'{"value":"x"}\n', "$.value"),
        (b"\xff\n", "malformed"),
        (b'{"value":1} {"value":2}', "malformed"),
    ],
)
async def test_bad_lines(door: Door, body: bytes, said: str) -> None:
    answer = await door.http.post("/streams/sum", content=body, headers=NDJSON)
    assert (answer.status_code, said in answer.json()["detail"]) == (400, True), answer.text
    assert await door.alive()


async def test_lines_are_bounded(network: Network) -> None:
    async with open_door(network, max_body=1000) as door:
        for size, code in ((1000, 200), (1001, 413)):
            line = b'{"value":1}'.ljust(size)
            for body in (line + b"\n", b'{"value":1}\n' + line):
                answer = await door.http.post("/streams/sum", content=body)
                assert answer.status_code == code, (size, answer.text)
        answer = await door.http.post("/streams/count", content=b'{"to":1}'.ljust(1001))
        assert answer.status_code == 413
        many = b'{"value":1}\n' * 1000  # the whole may be as large as it likes
        assert (await door.http.post("/streams/sum", content=many)).json() == {"value": 1000}


async def test_a_silent_event_stream_says_that_it_lives(network: Network, probe: Probe) -> None:
    async with open_door(network, heartbeat=0.02) as door, door.line() as line:
        head = b"GET /streams/silent?name=quiet HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream"
        await line.send(head + b"\r\n\r\n")
        assert (await line.head())[0] == 200
        for _ in range(3):
            assert await line.chunk() == b": still here\n\n"
        assert probe.begun["quiet"] == 1
    await eventually(lambda: probe.cancelled["quiet"] == 1)


async def test_messages_come_through_between_heartbeats(network: Network) -> None:
    """A heartbeat that is due just when a message comes loses none."""
    async with open_door(network, heartbeat=0.001) as door:
        answer = await door.http.get("/streams/count?to=2000", headers=EVENTS)
        values = [x.removeprefix("data: ") for x in answer.text.split("\n\n") if x[:1] == "d"]
        assert [json.loads(value)["value"] for value in values] == list(range(1, 2001))


async def test_many_streams_at_once(door: Door) -> None:
    async def one(to: int) -> None:
        answer = await door.http.get(f"/streams/count?to={to}")
        assert len(lines(answer)) == to

    await asyncio.gather(*(one(to) for to in range(50)))
