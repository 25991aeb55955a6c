"""Bodies: wrong types name the field, sizes and depths have bounds, media types are said."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest

from micro_ray.errors import BadRequest, InternalError, TooLarge, UnsupportedMedia
from micro_ray.wire.schema import JSON, MAX_SCHEMA, MSGPACK, codec
from tests.unit.wire.kinds import KINDS, Model, Page, Plain, Struct, Tree, dumped
from tests.unit.wire.served import Served

WRONG: dict[str, tuple[bytes, str]] = {
    "a type": (b'{"name":"a","times":"x"}', r"`\$\.times`"),
    "a field that is missing": (b'{"times":1}', "name"),
    "null": (b'{"name":null,"times":1}', r"`\$\.name`"),
    "a list": (b"[]", r"object|dict"),
    "a number": (b"1", r"object|dict"),
    "nothing": (b"", "name"),
    "cut off": (b'{"name":"a"', "malformed application/json"),
    "no JSON": (b"name=a", "malformed application/json"),
    "two values": (b'{"name":"a","times":1}{}', "malformed application/json"),
    "no UTF-8": (b'{"name":"\xff","times":1}', r"UTF-8|malformed"),
    "half a pair": (b'{"name":"\\ud800","times":1}', r"malformed"),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize(("body", "why"), WRONG.values(), ids=WRONG.keys())
async def test_wrong_input_is_named(served: Served, kind: Any, body: bytes, why: str) -> None:
    async def call(request: Any) -> None:
        raise AssertionError("must not be called")

    call.__annotations__ = {"request": kind, "return": None}
    served.add(call)
    with pytest.raises(BadRequest, match=why) as caught:
        await served.call(body=body)
    assert caught.value.id == "test.Test.Call"


async def test_wrong_parameters_are_named(served: Served) -> None:
    async def call(
        count: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1,
        color: Literal["red", "green"] = "red",
        when: datetime.date | None = None,
        page: Page[Struct] | None = None,
    ) -> str:
        return f"{count} {color} {when}"

    served.add(call)
    assert await served.call({"count": 10, "when": "2026-01-31"}) == "10 red 2026-01-31"
    for value, why in (
        ({"count": 11}, r"<= 10 - at `\$\.count`"),
        ({"color": "blue"}, r"Invalid enum value 'blue' - at `\$\.color`"),
        ({"when": "tomorrow"}, r"`\$\.when`"),
        ({"page": {"items": [{"name": "a"}, {"name": 5}]}}, r"`\$\.page\.items\[1\]\.name`"),
    ):
        with pytest.raises(BadRequest, match=why):
            await served.call(value)


async def test_what_a_type_checks_itself_is_wrong_input(served: Served) -> None:
    @dataclasses.dataclass
    class Even:
        number: int

        def __post_init__(self) -> None:
            if self.number % 2:
                raise ValueError("must be even")

    class Odd(pydantic.BaseModel):
        number: int

        @pydantic.field_validator("number")
        @classmethod
        def odd(cls, number: int) -> int:
            if not number % 2:
                raise ValueError("must be odd")
            return number

    async def even(request: Any) -> int:
        return int(request.number)

    async def odd(request: Any) -> int:
        return int(request.number)

    even.__annotations__["request"] = Even
    odd.__annotations__["request"] = Odd
    served.add(even, "Test.Even")
    served.add(odd, "Test.Odd")
    assert await served.call({"number": 2}, "Test.Even") == 2
    with pytest.raises(BadRequest, match="must be even"):
        await served.call({"number": 1}, "Test.Even")
    with pytest.raises(BadRequest, match=r"must be odd.*`\$\.number`"):
        await served.call({"number": 2}, "Test.Odd")


DEEP = 100_000


@pytest.mark.parametrize("kind", [dict, Any, Tree, list[Any], Model], ids=str)
@pytest.mark.parametrize("content", [JSON, MSGPACK])
def test_input_that_is_nested_too_deeply(kind: Any, content: str) -> None:
    decode = codec(kind, "test.Test.Call").decode
    bodies = {
        JSON: b'{"below":' + b'[{"below":' * DEEP,
        MSGPACK: b"\x81\xa5below" + b"\x91\x81\xa5below" * DEEP,
    }
    if kind == list[Any]:
        bodies = {JSON: b"[" * DEEP, MSGPACK: b"\x91" * DEEP}
    if kind is Model:
        bodies = {JSON: b'{"x":' * DEEP, MSGPACK: b"\x81\xa1x" * DEEP}
    with pytest.raises(TooLarge, match="nested too deeply"):
        decode(bodies[content], content)


async def test_deep_input_over_the_line(served: Served) -> None:
    async def call(request: Tree) -> int:
        return request.value

    served.add(call)
    with pytest.raises(TooLarge, match="nested too deeply"):
        await served.call(body=b'{"below":[' * DEEP)
    assert await served.call({"value": 3}) == 3


async def test_media_types(served: Served) -> None:
    async def call(request: Plain) -> Plain:
        return request

    async def model(request: Model) -> Model:
        return request

    served.add(call)
    served.add(model, "Test.Model")
    value = {"name": "a", "times": 2}
    for name in ("Test.Call", "Test.Model"):
        for content in (JSON, "application/json; charset=utf-8", "APPLICATION/JSON"):
            assert await served.call(value, name, content=content) == value
        for content in (MSGPACK, "application/msgpack;v=1"):
            body = msgspec.msgpack.encode(value)
            answer = await served.peer.call(served.head(name, content), body)
            assert msgspec.msgpack.decode(answer) == value
        for content in ("text/plain", "", "application/json+x", "x" * 5000):
            with pytest.raises(UnsupportedMedia, match="send one of application/json") as caught:
                await served.call(value, name, content=content)
            assert content[:100] in caught.value.detail
            assert len(caught.value.detail) < 500
        with pytest.raises(BadRequest, match="malformed application/msgpack"):
            await served.call(name=name, body=b"\xc1", content=MSGPACK)
        with pytest.raises(BadRequest, match=r"name"):
            await served.call(name=name, body=b"", content=MSGPACK)


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Rich:
    at: datetime.datetime
    id: uuid.UUID
    price: decimal.Decimal
    color: Color
    data: bytes
    tags: set[str]
    pair: tuple[int, str]


async def test_rich_values_cross(served: Served) -> None:
    async def call(request: Any) -> Any:
        assert type(request) is Rich
        return request

    call.__annotations__ = {"request": Rich, "return": Rich}
    served.add(call)
    rich = Rich(
        at=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), id=uuid.UUID(int=5),
        price=decimal.Decimal("1.10"), color=Color.RED, data=b"\xff", tags={"a"}, pair=(1, "b"),
    )  # fmt: skip
    plain = json.loads(json.dumps(dumped(rich)))
    assert await served.call(plain) == plain


class _Strange:
    """What no encoder knows."""


@pytest.mark.parametrize(
    "answer", [_Strange(), {"a": _Strange()}, "\ud800", {1, _Strange()}, [complex(1)]]
)
@pytest.mark.parametrize("content", [JSON, MSGPACK])
async def test_answers_that_cannot_be_sent(served: Served, answer: Any, content: str) -> None:
    async def call() -> Any:
        return answer

    async def streamed() -> AsyncIterator[Any]:
        yield 1
        yield answer

    served.add(call)
    served.add(streamed, "Test.Stream")
    with pytest.raises(InternalError, match="answer cannot be sent"):
        await served.peer.call(served.head("Test.Call", content), b"")
    async with await served.peer.open(served.head("Test.Stream", content)) as stream:
        await stream.end()
        assert await stream.receive() in (b"1", b"\x01")
        with pytest.raises(InternalError, match="answer cannot be sent"):
            await stream.receive()


async def test_an_answer_that_refers_to_itself(served: Served) -> None:
    async def call() -> Any:
        loop: list[Any] = []
        loop.append(loop)
        return loop

    served.add(call)
    with pytest.raises(InternalError, match="RecursionError"):
        await served.call()


@pytest.mark.parametrize("answer", ["text", None, 5, [b"x"]])
async def test_bytes_that_are_none(served: Served, answer: Any) -> None:
    async def call() -> bytes:
        return answer  # type: ignore[no-any-return]

    served.add(call)
    with pytest.raises(
        InternalError, match=f"must be bytes, as declared, not {type(answer).__name__}"
    ):
        await served.call()


async def test_an_answer_over_the_largest_message(served: Served) -> None:
    async def call(size: int) -> bytes:
        return bytes(size)

    served.add(call)
    largest = 16 * 2**20
    head = served.head("Test.Call")
    assert len(await served.peer.call(head, b'{"size":%d}' % largest)) == largest
    with pytest.raises(TooLarge, match=f"{largest + 1} bytes; {largest} allowed"):
        await served.peer.call(head, b'{"size":%d}' % (largest + 1))
    with pytest.raises(TooLarge, match=f"{largest + 1} bytes; {largest} allowed"):
        await served.peer.call(head, bytes(largest + 1))


# -- what is published -----------------------------------------------------------------------------


def test_a_schema_stands_by_itself() -> None:
    """Draft 2020-12 with ``$defs``; the root is the type, not a reference, unless it recurs."""
    schema = codec(Page[Struct], "x").schema
    assert schema["properties"]["items"] == {
        "type": "array", "items": {"$ref": "#/$defs/Struct"}
    }  # fmt: skip
    assert set(schema["$defs"]) == {"Struct"}
    tree = codec(Tree, "x").schema
    assert tree["$ref"] == "#/$defs/Tree"
    assert set(tree["$defs"]) == {"Tree"}
    assert codec(Model, "x").schema["properties"]["times"]["default"] == 1
    assert codec(Any, "x").schema == {}


def _references(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
        return own.union(*map(_references, schema.values()))
    if isinstance(schema, list):
        return set().union(*map(_references, schema))
    return set()


@pytest.mark.parametrize(
    "kind", [Tree, list[Tree], Page[Tree], dict[str, Model], list[Page[Model]], Page[Page[Struct]]],
    ids=str,
)  # fmt: skip
def test_every_reference_leads_somewhere(kind: Any) -> None:
    schema = codec(kind, "x").schema
    for reference in _references(schema):
        assert reference.startswith("#/$defs/")
        assert reference.removeprefix("#/$defs/") in schema["$defs"]
    json.dumps(schema)


def test_an_endless_schema_is_published_as_anything() -> None:
    fields: Any = [(f"field_{n}_{'x' * 100}", int) for n in range(1000)]
    large = msgspec.defstruct("Large", fields)
    assert codec(large, "x").schema == {}
    model: Any = pydantic.create_model("Large", **{name: (int, ...) for name, _ in fields})
    assert codec(model, "x").schema == {}
    small = msgspec.defstruct("Small", fields[:100])
    assert 1000 < len(json.dumps(codec(small, "x").schema)) < MAX_SCHEMA
