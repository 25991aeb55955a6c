"""Head and body of an answer leave in one write; what is not followed at once leaves by itself."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import pytest

from tests.fixtures.wait import PROMPT
from tests.unit.api.door import Line
from tests.unit.api.test_listener import line_to, listening

GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"
#: Where ``tcpi_data_segs_in`` is in the kernel's ``struct tcp_info``.
SEGMENTS_IN = 152


class Pieces:
    """Answers in the way that the path says. ``go`` lets it go on where it waits."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def head(status: int = 200, *headers: tuple[bytes, bytes]) -> None:
            given = {"type": "http.response.start", "status": status, "headers": [*headers]}
            await send(given)

        async def piece(body: bytes, more: bool = False) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        match scope["path"]:
            case "/whole":
                await head(200, (b"content-length", b"5"))
                await piece(b"whole")
            case "/error":
                await head(500, (b"content-length", b"5"), (b"connection", b"close"))
                await piece(b"error")
            case "/nothing":
                await head(204)
                await piece(b"")
            case "/large":
                await head(200, (b"content-length", b"%d" % 5_000_000))
                await piece(b"l" * 5_000_000)
            case "/stream":
                await head()
                await self.go.wait()
                await piece(b"first", True)
                self.go.clear()
                await self.go.wait()
                await piece(b"last")
            case "/raises":
                await head(200, (b"content-length", b"5"))
                raise RuntimeError("on purpose")
            case "/asks":
                message = await receive()
                await head(200, (b"content-length", b"%d" % len(message["body"])))
                await piece(message["body"])


def segments(line: Line) -> int:
    """TCP segments with data that the client has had."""
    found = line.writer.get_extra_info("socket")
    info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < SEGMENTS_IN + 4:
        pytest.skip("this kernel does not count segments")
    (count,) = struct.unpack_from("I", info, SEGMENTS_IN)
    return int(count)


async def test_one_write_for_an_answer() -> None:
    """Kept alive: each further one is one more."""
    async with listening(Pieces()) as listener, line_to(listener) as line:
        for number in range(1, 4):
            await line.send(GET % b"whole")
            assert (await line.answer()).body == b"whole"
            assert segments(line) == number


async def test_answers_to_requests_that_were_sent_together() -> None:
    async with listening(Pieces()) as listener, line_to(listener) as line:
        await line.send(GET % b"whole" * 3 + GET % b"nothing" + GET % b"whole")
        answers = [await line.answer() for _ in range(5)]
        assert [(a.code, a.body) for a in answers] == [(200, b"whole")] * 3 + [
            (204, b""),
            (200, b"whole"),
        ]


async def test_an_error_that_closes() -> None:
    async with listening(Pieces()) as listener, line_to(listener) as line:
        await line.send(GET % b"error")
        answer = await line.answer()
        assert (answer.code, answer.body) == (500, b"error")
        assert segments(line) == 1
        assert await line.ended()


@pytest.mark.parametrize("path", [b"whole", b"large", b"nothing"])
async def test_heads_alone(path: bytes) -> None:
    async with listening(Pieces()) as listener, line_to(listener) as line:
        for _ in range(2):
            await line.send(b"HEAD /%b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
            answer = await asyncio.wait_for(line.answer(head_only=True), PROMPT)
            assert answer.code == (204 if path == b"nothing" else 200)


async def test_the_head_of_a_stream_does_not_wait_for_its_first_piece() -> None:
    app = Pieces()
    async with listening(app) as listener, line_to(listener) as line:
        await line.send(GET % b"stream")
        code, headers = await asyncio.wait_for(line.head(), PROMPT)
        assert (code, headers["transfer-encoding"]) == (200, "chunked")
        app.go.set()
        assert await asyncio.wait_for(line.chunk(), PROMPT) == b"first"
        await asyncio.sleep(0)
        app.go.set()
        assert await asyncio.wait_for(line.chunk(), PROMPT) == b"last"
        assert await line.chunk() == b""
        await line.send(GET % b"whole")
        assert (await line.answer()).body == b"whole"


async def test_a_large_body() -> None:
    async with listening(Pieces()) as listener, line_to(listener) as line:
        for _ in range(2):
            await line.send(GET % b"large")
            assert (await line.answer()).body == b"l" * 5_000_000


async def test_a_body_that_is_asked_for() -> None:
    """100 Continue leaves although nothing follows it."""
    async with listening(Pieces()) as listener, line_to(listener) as line:
        await line.send(
            b"POST /asks HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
        assert (await asyncio.wait_for(line.head(), PROMPT))[0] == 100
        await line.send(b"here")
        assert (await line.answer()).body == b"here"


async def test_an_application_that_fails_between_head_and_body(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The head is there; the connection is broken off."""
    async with listening(Pieces()) as listener, line_to(listener) as line:
        await line.send(GET % b"raises")
        assert (await line.head())[0] == 200
        assert await line.ended()
    assert "on purpose" in caplog.text
