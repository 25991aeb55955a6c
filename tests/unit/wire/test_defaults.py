"""Defaults that were not sent are in the value, and so in what is sent on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from micro_ray.wire.defaults import filler
from micro_ray.wire.schema import JSON, MSGPACK, codec


@dataclass
class Place:
    street: str
    number: int = 5
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Person:
    name: str
    home: Place
    others: dict[str, list[Place]] = field(default_factory=dict)
    nickname: str | None = None


@dataclass(slots=True)
class Slotted:
    name: str = "x"


class Outer(msgspec.Struct):
    place: Place


SENT = {"name": "A", "home": {"street": "s"}, "others": {"work": [{"street": "w"}]}}
WHOLE = {
    "name": "A",
    "home": {"street": "s", "number": 5, "tags": []},
    "others": {"work": [{"street": "w", "number": 5, "tags": []}]},
    "nickname": None,
}


@pytest.mark.parametrize("content", [JSON, MSGPACK])
def test_a_request_that_is_answered_is_whole(content: str) -> None:
    room: Any = msgspec.json if content == JSON else msgspec.msgpack
    both = codec(Person, "t")
    value = both.decode(room.encode(SENT), content)
    assert value == Person("A", Place("s"), {"work": [Place("w")]})
    assert room.decode(both.encode(value, content)) == WHOLE


def test_within_other_types() -> None:
    for kind, sent, whole in (
        (list[Place], [{"street": "s"}], [WHOLE["home"]]),
        (Outer, {"place": {"street": "s"}}, {"place": WHOLE["home"]}),
        (Place | None, {"street": "s"}, WHOLE["home"]),
        (dict[str, tuple[Place, ...]], {"a": [{"street": "s"}]}, {"a": [WHOLE["home"]]}),
    ):
        both = codec(kind, "t")
        value = both.decode(msgspec.json.encode(sent), JSON)
        assert msgspec.json.decode(both.encode(value, JSON)) == whole


def test_types_that_lose_nothing_cost_nothing() -> None:
    for kind in (Slotted, int, dict[str, Any], list[Slotted], str | None, Any):
        assert filler(kind) is None
