"""docs/wire.md says who may send which frame, and on which streams; both sides hold to it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from micro_ray.wire.server import Incoming
from tests.fixtures.wait import eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line, call
from tests.unit.wire.test_spec import section, table

KINDS = {row[1]: int(row[0]) for row in table(section("Frames"), "kind")}
#: Who may send it on a call, by the page.
SENDERS = {row[1]: row[2].partition(";")[0] for row in table(section("Frames"), "kind")}
#: A frame of each kind but HELLO, for stream 1 where it is for a stream.
FRAMES: Mapping[str, bytes] = {
    "REQUEST": raw.request(3, b"", raw.BARE),
    "DATA": raw.data(1, b"x"),
    "ERROR": raw.frame(raw.ERROR, raw.END, 1, b"{}"),
    "CANCEL": raw.frame(raw.CANCEL, 0, 1),
    "WINDOW": raw.window(1, 1),
    "PING": raw.frame(raw.PING),
    "GOAWAY": raw.frame(raw.GOAWAY, 0, 1),
}
#: Frames that are ignored for a stream that has ended.
(ENDED,) = re.findall(
    r"(\w+, \w+, \w+ and \w+) for a stream that has ended are ignored", section("Giving up")
)
FOR_A_STREAM = re.split(r", | and ", ENDED)
MAY = [
    (kind, sender)
    for kind in FOR_A_STREAM
    for sender in ("client", "server")
    if SENDERS[kind] in ("both", sender)
]
END_OF_ONE = {"client": raw.frame(raw.CANCEL, 0, 1), "server": raw.data(1, b"{}", raw.END)}


async def goes_on(line: Line, sender: str, frames: bytes) -> bool:
    """Whether the connection outlives frames that come on it while call 1 is under way."""

    async def hang(incoming: Incoming) -> None:
        while await incoming.receive() is not None:
            pass

    probe = raw.frame(raw.PING, 0, 0, b"still there?")

    async def answered(peer: raw.Raw) -> bool:
        while True:
            try:
                found = await peer.next()
            except EOFError:
                return False
            if found.kind == raw.PING and found.flags == raw.ACK and found.payload:
                return True
            if found.kind == raw.ERROR and found.stream == 0:
                assert await peer.rest() == []  # it is the last frame
                return False

    if sender == "client":
        _, address = await line.server(hang)
        async with raw.caller(address) as caller:
            caller.send(raw.request(1, b"", raw.BARE), frames, probe)
            return await answered(caller)

    outcome: list[bool] = []

    async def serve(peer: raw.Raw) -> None:
        await peer.get(raw.HELLO)
        peer.send(raw.hello())
        await peer.get(raw.REQUEST)
        peer.send(frames, probe)
        outcome.append(await answered(peer))

    async with raw.listening(f"{line.folder}/by-hand", serve) as address:
        peer = await line.peer(address)
        async with await peer.open(call()):
            await eventually(lambda: bool(outcome))
    return outcome[0]


def test_the_page_names_them_all() -> None:
    assert set(KINDS) == {"HELLO", *FRAMES}
    assert set(FOR_A_STREAM) == {"DATA", "ERROR", "CANCEL", "WINDOW"}
    assert set(SENDERS.values()) == {"both", "client", "server"}


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize("kind", FRAMES)
async def test_who_may_send_what(line: Line, kind: str, sender: str) -> None:
    assert await goes_on(line, sender, FRAMES[kind]) is (SENDERS[kind] in ("both", sender))


@pytest.mark.parametrize("sender", ["client", "server"])
async def test_both_may_say_why_they_close(line: Line, sender: str) -> None:
    """It is not answered, and ends the connection."""
    assert "both on 0" in {row[1]: row[2] for row in table(section("Frames"), "kind")}["ERROR"]
    assert not await goes_on(line, sender, raw.frame(raw.ERROR, raw.END, 0, b'{"detail":"so"}'))


@pytest.mark.parametrize(("kind", "sender"), MAY)
async def test_a_stream_that_has_ended(line: Line, kind: str, sender: str) -> None:
    assert await goes_on(line, sender, END_OF_ONE[sender] + FRAMES[kind] * 2)


@pytest.mark.parametrize("stream", [9, 2])
@pytest.mark.parametrize(("kind", "sender"), MAY)
async def test_a_stream_that_was_never_opened(
    line: Line, kind: str, sender: str, stream: int
) -> None:
    frame = FRAMES[kind]
    assert not await goes_on(line, sender, frame[:6] + stream.to_bytes(4, "big") + frame[10:])
