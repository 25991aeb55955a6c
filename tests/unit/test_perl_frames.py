"""examples/perl against peers that send frames byte by byte: what docs/wire.md asks of a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from micro_ray.wire.protocol import (
    ACK,
    BARE,
    COST,
    END,
    MAX_CREDIT,
    MORE,
    Decoder,
    Head,
    Kind,
    Limits,
    encode_frame,
    encode_head,
    encode_hello,
    encode_request,
)
from tests.fixtures.perl import Perl, perl, reason

pytestmark = pytest.mark.skipif(bool(reason()), reason=reason())

WINDOW = 2**18
HELLO = encode_hello(Limits())
CALL, COUNT = (encode_head(Head(service="perl", endpoint=f"Perl.{e}")) for e in ("Call", "Count"))

Frame = tuple[int, int, int, bytes]


class Raw:
    """A connection to it, after HELLO unless told otherwise."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._decoder = Decoder(2**21)
        self._frames: list[Frame] = []

    def send(self, *frames: bytes) -> None:
        self._writer.write(b"".join(frames))

    async def frame(self) -> Frame:
        """The next one. Raises EOFError at the end of the connection."""
        async with asyncio.timeout(8):
            while not self._frames:
                try:
                    data = await self._reader.read(65536)
                except ConnectionError:
                    data = b""
                if not data:
                    raise EOFError
                self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    async def error(self) -> tuple[int, dict[str, Any]]:
        kind, _, stream, payload = await self.frame()
        assert kind == Kind.ERROR, (kind, payload)
        form = json.loads(payload)
        assert {"id", "code", "detail", "status"} <= set(form)
        return stream, form

    async def all(self) -> list[Frame]:
        """What it has to send just now: what comes before the second of two answers to PINGs."""
        frames = []
        for mark in (b"one", b"p" * 64):
            self.send(encode_frame(Kind.PING, 0, 0, mark))
            while (frame := await self.frame())[:2] != (Kind.PING, ACK):
                frames.append(frame)
            assert frame[2:] == (0, mark)
        return frames

    async def closed(self) -> list[Frame]:
        """What it sends before the end of the connection."""
        frames = []
        with contextlib.suppress(EOFError):
            while True:
                frames.append(await self.frame())
        return frames


@pytest.fixture
async def service() -> AsyncIterator[Perl]:
    """Nobody has it registered: whoever knows its socket may call."""
    with tempfile.TemporaryDirectory(prefix="pl-") as folder:
        run = Path(folder)
        async with perl(run, [f"unix:{run}/nobody.sock"], "perl-one") as up:
            await up.says("not registered: no registry")  # it listens before it asks
            yield up


@asynccontextmanager
async def raw(service: Perl, hello: bytes = HELLO) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_unix_connection(service.path)
    try:
        connection = Raw(reader, writer)
        connection.send(hello)
        if hello:
            kind, _, stream, payload = await connection.frame()
            assert (kind, stream, json.loads(payload)["magic"]) == (Kind.HELLO, 0, "micro")
        yield connection
    finally:
        writer.close()


async def greets(peer: Raw, stream: int) -> None:
    """An ordinary call on this connection works."""
    peer.send(encode_request(stream, CALL, b'{"name":"A"}', END))
    answer = (Kind.DATA, END, stream, b'{"message":"Hello A from Perl"}')
    assert await peer.frame() == answer


async def test_the_example_of_the_page(service: Perl) -> None:
    async with raw(service) as peer:
        await greets(peer, 1)
        await greets(peer, 7)


@pytest.mark.parametrize("window", [1024, 1100])
async def test_who_does_not_read_stalls_the_stream(service: Perl, window: int) -> None:
    async with raw(service, encode_hello(Limits(window=window))) as peer:
        peer.send(encode_request(1, COUNT, b'{"to":1000000}', END))
        expected = 1
        credit = window
        for _ in range(3):
            frames = await peer.all()
            assert frames
            for kind, flags, stream, payload in frames:
                assert (kind, flags, stream) == (Kind.DATA, 0, 1)
                assert json.loads(payload) == {"value": expected}
                expected += 1
                credit -= len(payload) + COST
            assert 0 <= credit < COST + 20
            assert await peer.all() == []
            peer.send(encode_frame(Kind.WINDOW, 0, 1, (500).to_bytes(4, "big")))
            credit += 500
        assert await peer.all()
        await greets(peer, 3)


async def test_a_large_answer_comes_in_parts_that_have_credit(service: Perl) -> None:
    name = "x" * 10_000
    async with raw(service, encode_hello(Limits(window=1024, max_frame=1024))) as peer:
        peer.send(encode_request(1, CALL, json.dumps({"name": name}).encode(), END))
        answer, credit, frames = b"", 1024, 0
        while True:
            kind, flags, stream, payload = await peer.frame()
            assert (kind, stream) == (Kind.DATA, 1)
            answer += payload
            credit -= len(payload) + COST
            frames += 1
            assert credit >= 0
            assert len(payload) <= 1024
            if flags == END:
                break
            assert flags == MORE
            if credit < 512:
                peer.send(encode_frame(Kind.WINDOW, 0, 1, (1024 - credit).to_bytes(4, "big")))
                credit = 1024
        assert json.loads(answer) == {"message": f"Hello {name} from Perl"}
        assert frames >= 10_000 / 960


async def test_parts_are_credited_as_they_come(service: Perl) -> None:
    async with raw(service) as peer:
        part = b" " * (WINDOW // 2 - COST)
        peer.send(encode_request(1, CALL, part, MORE))
        for _ in range(6):
            credit = (WINDOW // 2).to_bytes(4, "big")
            assert await peer.frame() == (Kind.WINDOW, 0, 1, credit)
            peer.send(encode_frame(Kind.DATA, MORE, 1, part))
        await peer.frame()
        peer.send(encode_frame(Kind.DATA, END, 1, b"{}"))
        frame = await peer.frame()
        assert frame == (Kind.DATA, END, 1, b'{"message":"Hello World from Perl"}')


async def test_a_message_that_comes_late_or_not(service: Perl) -> None:
    async with raw(service) as peer:
        peer.send(encode_request(1, CALL, b"", BARE))
        assert await peer.all() == []
        peer.send(encode_frame(Kind.DATA, END, 1, b'{"name":"A"}'))
        assert (await peer.frame())[3] == b'{"message":"Hello A from Perl"}'
        peer.send(encode_request(3, CALL, b"", BARE | END))
        assert (await peer.frame())[3] == b'{"message":"Hello World from Perl"}'
        peer.send(encode_request(5, COUNT, b'{"to":1}', 0))  # the caller's END may come later
        assert await peer.frame() == (Kind.DATA, 0, 5, b'{"value":1}')
        assert await peer.frame() == (Kind.DATA, END | BARE, 5, b"")
        peer.send(encode_frame(Kind.DATA, END | BARE, 5))  # ended meanwhile: ignored
        peer.send(encode_frame(Kind.CANCEL, 0, 5), encode_frame(Kind.WINDOW, 0, 5, bytes(4)))
        await greets(peer, 7)


async def test_cancel(service: Perl) -> None:
    async with raw(service, encode_hello(Limits(window=1024))) as peer:
        peer.send(encode_request(1, COUNT, b'{"to":1000000}', END))
        assert await peer.all()
        peer.send(encode_frame(Kind.CANCEL, 0, 1))
        peer.send(encode_frame(Kind.WINDOW, 0, 1, (10_000).to_bytes(4, "big")))
        assert await peer.all() == []
        await greets(peer, 3)


async def test_calls_that_fail_leave_the_connection(service: Perl) -> None:
    good = {"service": "perl", "endpoint": "Perl.Call"}
    heads: list[tuple[bytes, int]] = [
        (b"{", 400),
        (b"[]", 400),
        (b"{}", 400),
        (json.dumps(good | {"timeout_ms": -1}).encode(), 400),
        (json.dumps(good | {"timeout_ms": 2**32}).encode(), 400),
        (json.dumps(good | {"metadata": {"a": {}}}).encode(), 400),
        (json.dumps(good | {"metadata": []}).encode(), 400),
        (json.dumps(good | {"content": "text/plain"}).encode(), 415),
        (json.dumps(good | {"endpoint": "x" * 60_000}).encode(), 404),
        (json.dumps(good | {"service": "other"}).encode(), 503),
    ]
    async with raw(service) as peer:
        for number, (head, code) in enumerate(heads):
            peer.send(encode_request(2 * number + 1, head, b"{}", END))
            stream, form = await peer.error()
            assert (stream, form["code"]) == (2 * number + 1, code), form
            assert form.get("refused", False) is (code == 503)
            assert len(form["detail"]) < 600
        await greets(peer, 101)


async def test_a_deadline_before_the_message_is_whole(service: Perl) -> None:
    head = encode_head(Head(service="perl", endpoint="Perl.Call", timeout_ms=50))
    async with raw(service) as peer:
        peer.send(encode_request(1, head, b'{"name"', MORE))
        stream, form = await peer.error()
        assert (stream, form["code"], form["status"]) == (1, 408, "Request Timeout")
        await greets(peer, 3)


async def test_too_many_calls_at_once(service: Perl) -> None:
    async with raw(service) as peer:
        most = 1000
        peer.send(*(encode_request(2 * n + 1, CALL, b"", BARE) for n in range(most + 1)))
        stream, form = await peer.error()
        assert (stream, form["code"], form["refused"]) == (2 * most + 1, 503, True)
        peer.send(encode_frame(Kind.CANCEL, 0, 1))
        await greets(peer, 2 * most + 3)


async def test_too_much_unread(service: Perl) -> None:
    part = b" " * (WINDOW - COST)
    async with raw(service) as peer:
        peer.send(*(encode_request(2 * n + 1, CALL, part, MORE) for n in range(70)))
        refused = []
        for kind, _, stream, payload in await peer.all():
            if kind == Kind.ERROR:
                refused.append(stream)
                assert json.loads(payload)["code"] == 429
        # 16 MiB hold 64 such parts.
        assert refused == [2 * n + 1 for n in range(64, 70)]
        peer.send(*(encode_frame(Kind.CANCEL, 0, 2 * n + 1) for n in range(70)))
        await greets(peer, 1001)


BREACHES = {
    "an unknown kind": encode_frame(9, 0, 0),
    "a second HELLO": HELLO,
    "an ERROR of a client": encode_frame(Kind.ERROR, END, 1, b"{}"),
    "a GOAWAY of a client": encode_frame(Kind.GOAWAY, 0, 0),
    "a length under 6": bytes.fromhex("00000005") + bytes(6),
    "a length over all limits": bytes.fromhex("7fffffff") + bytes(6),
    "an even stream": encode_request(2, CALL, b"{}", END),
    "a stream again": encode_request(1, CALL, b"{}", END) * 2,
    "a REQUEST without a length": encode_frame(Kind.REQUEST, END, 1, b"\0"),
    "a REQUEST shorter than its head": encode_frame(Kind.REQUEST, END, 1, b"\xff\xff{}"),
    "DATA never opened": encode_frame(Kind.DATA, END, 5, b"{}"),
    "CANCEL never opened": encode_frame(Kind.CANCEL, 0, 5),
    "WINDOW never opened": encode_frame(Kind.WINDOW, 0, 5, bytes(4)),
    "a short WINDOW": encode_frame(Kind.WINDOW, 0, 1, b"\0"),
    "MORE with END": encode_request(1, CALL, b"{", MORE | END),
    "MORE of nothing": encode_request(1, CALL, b"", MORE),
    "BARE with a payload": encode_request(1, CALL, b"{}", BARE),
    "BARE within a message": encode_request(1, CALL, b"{", MORE)
    + encode_frame(Kind.DATA, BARE | END, 1),
    "DATA after END": encode_request(1, COUNT, b'{"to":1000000000}', END)
    + encode_frame(Kind.DATA, END, 1, b"{}"),
    "beyond the credit": encode_request(1, CALL, b" " * (WINDOW - COST + 1), END),
    "too much credit": encode_request(1, CALL, b"", BARE)
    + encode_frame(Kind.WINDOW, 0, 1, MAX_CREDIT.to_bytes(4, "big")),
}


async def test_breaches_end_their_connection_only(service: Perl) -> None:
    async with raw(service) as bystander:
        for number, (what, frames) in enumerate(BREACHES.items()):
            async with raw(service) as peer:
                peer.send(frames)
                said = await peer.closed()
                assert said, what
                kind, _, stream, payload = said[-1]
                assert (kind, stream) == (Kind.ERROR, 0), what
                assert json.loads(payload)["detail"], what
            await greets(bystander, 2 * number + 1)


async def test_a_caller_that_says_why_it_closes(service: Perl) -> None:
    async with raw(service) as peer:
        peer.send(encode_frame(Kind.ERROR, END, 0, b'{"detail":"you broke it"}'))
        assert await peer.closed() == []  # it is not answered


async def test_hellos_that_cannot_be(service: Perl) -> None:
    hello = {
        "magic": "micro", "versions": [1, 1], "max_frame": 1024, "max_message": 1024,
        "window": 1024, "max_streams": 1,
    }  # fmt: skip
    for change in (
        {"magic": "macro"}, {"versions": [2, 3]}, {"versions": 1}, {"versions": [0, 0]},
        {"versions": [1]}, {"max_frame": 1023}, {"max_message": 1000}, {"window": 2**31},
        {"window": "much"}, {"max_streams": 0}, {"max_streams": None}, {"max_header": 12},
    ):  # fmt: skip
        async with raw(service, b"") as peer:
            peer.send(encode_frame(Kind.HELLO, 0, 0, json.dumps(hello | change).encode()))
            stream, form = await peer.error()
            assert (stream, form["code"]) == (0, 400), change
            assert await peer.closed() == []
    known_and_unknown = hello | {"versions": [1, 9], "later": [{}]}
    good = encode_frame(Kind.HELLO, 0, 0, json.dumps(known_and_unknown).encode())
    async with raw(service, good) as peer:
        await greets(peer, 1)


async def test_garbage_does_not_end_it(service: Perl) -> None:
    chance = random.Random(7)
    for hello in (b"", HELLO):
        for _ in range(20):
            async with raw(service, hello) as peer:
                peer.send(
                    b"\0\0\0\x06" + chance.randbytes(2000) if hello else chance.randbytes(2000)
                )
                await peer.closed()
    for wrong in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0\0\x10\x07\0\0\0\0\0\0", b"\0"):
        async with raw(service, b"") as peer:
            peer.send(wrong)
    async with raw(service) as peer:
        await greets(peer, 1)


@pytest.fixture
async def hasty() -> AsyncIterator[Perl]:
    """Its seconds pass twenty times as fast."""
    with tempfile.TemporaryDirectory(prefix="pl-") as folder:
        run = Path(folder)
        async with perl(run, [f"unix:{run}/nobody.sock"], "perl-one", speed=20) as up:
            await up.says("not registered: no registry")
            yield up


async def test_who_says_no_hello_is_let_go(hasty: Perl) -> None:
    begun = time.monotonic()
    async with raw(hasty, b"") as peer:
        stream, form = await peer.error()
        assert (stream, form["detail"]) == (0, "no HELLO within 5 s")
        assert await peer.closed() == []
    assert 20 * (time.monotonic() - begun) > 4


async def test_who_is_silent_is_asked_and_let_go(hasty: Perl) -> None:
    begun = time.monotonic()
    async with raw(hasty) as peer, raw(hasty) as other:
        for connection in (peer, other):
            assert await connection.frame() == (Kind.PING, 0, 0, b"")
        assert 20 * (time.monotonic() - begun) > 9
        other.send(encode_frame(Kind.PING, ACK, 0))
        assert await peer.closed() == []
        assert 20 * (time.monotonic() - begun) > 19
        assert {kind for kind, *_ in await other.all()} <= {Kind.PING}
        await greets(other, 1)


async def test_who_sends_and_takes_nothing_is_not_read(service: Perl) -> None:
    """Its answers would pile up otherwise."""
    reader, writer = await asyncio.open_unix_connection(service.path, limit=1024)
    ping = encode_frame(Kind.PING, 0, 0, b"p" * 64) * 1000
    writer.write(HELLO)
    sent = 0
    async with raw(service) as other:
        try:
            while sent < 2**24:
                writer.write(ping)
                sent += len(ping)
                async with asyncio.timeout(0.5):
                    await writer.drain()
        except TimeoutError:
            pass
        assert 2**20 < sent < 2**24
        other.send(
            encode_request(1, encode_head(Head(service="perl", endpoint="Debug.Stats")), b"", END)
        )
        stats = json.loads((await other.frame())[3])
        assert 2**20 <= stats["buffered"] < 2**20 + 2**18
        await greets(other, 3)
    assert reader is not None
    writer.transport.abort()


async def test_leaving(service: Perl) -> None:
    async with (
        raw(service, encode_hello(Limits(window=1024))) as busy,
        raw(service) as idle,
        raw(service, b"") as silent,
    ):
        busy.send(encode_request(1, COUNT, b'{"to":30}', END))
        first = await busy.all()
        os.kill(service.pid, signal.SIGTERM)
        await silent.closed()
        assert await idle.frame() == (Kind.GOAWAY, 0, 0, b"")
        assert await busy.frame() == (Kind.GOAWAY, 0, 1, b"")
        assert not service.path.exists()
        idle.send(encode_request(1, CALL, b"{}", END))
        stream, form = await idle.error()
        assert (stream, form["code"], form["refused"]) == (1, 503, True)
        busy.send(encode_frame(Kind.WINDOW, 0, 1, (30 * 100).to_bytes(4, "big")))
        rest = []
        while (frame := await busy.frame())[1] != END | BARE:
            rest.append(frame)
        assert [json.loads(f[3])["value"] for f in first + rest] == list(range(1, 31))
    assert await service.wait() == 0
