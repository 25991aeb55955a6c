"""docs/wire.md says what the code does."""

from __future__ import annotations

import re

import msgspec
import pytest

from bench.stack import ROOT
from micro_ray.wire.protocol import (
    COST,
    END,
    HEAD_SIZE,
    LEAST,
    MAX_CREDIT,
    MAX_PING,
    Decoder,
    Head,
    Kind,
    Limits,
    decode_hello,
    encode_frame,
    encode_head,
    encode_hello,
    encode_request,
)

TEXT = (ROOT / "docs" / "wire.md").read_text()
BYTES = [
    bytes.fromhex("".join(block.split())) for block in re.findall(r"```\n([0-9a-f\s]+)```", TEXT)
]


def test_the_example_is_what_is_sent() -> None:
    head = encode_head(Head(service="helloworld", endpoint="Helloworld.Call", timeout_ms=30_000))
    assert [
        encode_hello(Limits()),
        encode_request(1, head, b'{"name":"Alice"}', END),
        encode_frame(Kind.DATA, END, 1, b'{"message":"Hello Alice"}'),
    ] == BYTES
    kinds = [frame[0] for data in BYTES for frame in Decoder(2**20).feed(data)]
    assert kinds == [Kind.HELLO, Kind.REQUEST, Kind.DATA]


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_is_in_the_table(kind: Kind) -> None:
    assert re.search(rf"^\| {kind.value} \| {kind.name} \|", TEXT, re.MULTILINE)


def test_the_hello_shown_is_the_default() -> None:
    shown = next(b for b in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL) if "magic" in b)
    assert decode_hello(shown.encode()) == decode_hello(encode_hello(Limits())[HEAD_SIZE:])


def test_numbers() -> None:
    limits = Limits()
    assert (limits.max_frame, MAX_CREDIT) == (2**20, 2**31 - 1)
    for text in (
        f"**plus\n{COST}**",
        f"up to {MAX_PING} bytes",
        "at most 2^31 - 1",
        f"within {limits.handshake:g} seconds",
        f"nothing for {limits.keepalive:g} seconds",
        f"| 1 MiB | {LEAST:,} |",
    ):
        assert text in TEXT, text


def test_the_forms_shown_are_json() -> None:
    for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL):
        assert isinstance(msgspec.json.decode(block), dict)
