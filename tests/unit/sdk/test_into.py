"""``into=`` reads an answer by the rules by which an endpoint reads its request: what was not sent
and has a default is in the value, and in what is made of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import msgspec
import pydantic
import pytest

from micro_ray.errors import BadGateway, BadRequest
from micro_ray.sdk.testing import Here
from micro_ray.wire.schema import JSON, Reader, codec, write
from tests.unit.sdk.services import Everything


class Colour(pydantic.BaseModel):
    name: str = "red"
    shades: list[str] = pydantic.Field(default_factory=lambda: ["dark"])


@dataclass
class Place:
    street: str
    number: int = 5
    tags: list[str] = field(default_factory=lambda: ["new"])


@dataclass(frozen=True)
class Person:
    name: str
    home: Place
    colour: Colour
    others: dict[str, list[Place]] = field(default_factory=dict)
    nickname: str | None = None


class Struct(msgspec.Struct):
    place: Place
    count: int = 1
    names: list[str] = []


class Outer(pydantic.BaseModel):
    place: Colour
    size: int = 3


class Pair(NamedTuple):
    left: Place
    right: int = 2


class Foreign:
    """Nothing that JSON is read into."""


PLACE = {"street": "s"}
WHOLE = {"street": "s", "number": 5, "tags": ["new"]}
RED = {"name": "red", "shades": ["dark"]}
#: The type, what is answered, and what it is whole.
ANSWERS: list[tuple[Any, Any, Any]] = [
    (Place, PLACE, WHOLE),
    (list[Place], [PLACE], [WHOLE]),
    (Place | None, PLACE, WHOLE),
    (dict[str, tuple[Place, ...]], {"a": [PLACE]}, {"a": [WHOLE]}),
    (Annotated[Place, "said"], PLACE, WHOLE),
    (Annotated[Place, ["no", "hash"]], PLACE, WHOLE),
    (Pair, [PLACE], [WHOLE, 2]),
    (Struct, {"place": PLACE}, {"place": WHOLE, "count": 1, "names": []}),
    (Colour, {}, RED),
    (list[Colour], [{}], [RED]),
    (Outer, {"place": {}}, {"place": RED, "size": 3}),
    (
        Person,
        {"name": "A", "home": PLACE, "colour": {}, "others": {"w": [PLACE]}},
        {
            "name": "A", "home": WHOLE, "colour": RED, "others": {"w": [WHOLE]}, "nickname": None,
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "sent", "whole"), ANSWERS, ids=lambda v: str(v)[:20])
async def test_an_answer_is_whole(
    here: Here, every: Everything, kind: Any, sent: Any, whole: Any
) -> None:
    body = msgspec.json.encode(sent)
    both = codec(kind, "t")
    asked = both.decode(body, JSON)  # as the request of an endpoint
    for _ in range(2):  # the decoder is made, then kept
        answer = await here.client.call("every-thing", "raw", body[::-1], into=kind)
        assert type(answer) is type(asked)
        assert answer == asked
        assert msgspec.json.decode(both.encode(answer, JSON)) == whole
        assert msgspec.json.decode(write(answer)) == whole


async def test_models_within_a_request(here: Here, every: Everything) -> None:
    """A client sends what an endpoint may answer."""
    for value in (Person("A", Place("s"), Colour()), [Colour()], {"c": Colour()}):
        sent = await here.client.call("every-thing", "call", {"name": write(value).decode()})
        assert sent["message"] == "Hello " + write(value).decode()
    answer = await here.client.call("every-thing", "item", {"name": "a", "extra": [Colour()]})
    assert answer == {"name": "aa", "count": 2}


async def test_what_cannot_be_read_into(here: Here, every: Everything) -> None:
    call = here.client.call
    for kind in (Foreign, list[Foreign]):
        with pytest.raises(BadRequest, match=re.escape("into cannot be")):
            await call(
                "every-thing", "raw", b"[{}]"[::-1] if kind is not Foreign else b"}{", into=kind
            )
    for body, kind in ((b"{}", Place), (b"{", Place), (b"[{}]", list[Person]), (b"1", Colour)):
        with pytest.raises(BadGateway, match="an answer that cannot be read"):
            await call("every-thing", "raw", body[::-1], into=kind)


def test_types_without_end_are_not_kept() -> None:
    reader = Reader()
    for number in range(1000):
        kind = Annotated[int, msgspec.Meta(le=number)]
        assert reader.read(b"%d" % number, kind) == number
        with pytest.raises(ValueError, match="<= "):
            reader.read(b"%d" % (number + 1), kind)
    assert len(reader._kept) <= 256
