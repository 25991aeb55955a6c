"""What a function's signature says: kind of stream, request, response, context."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from micro_ray.context import Context, current
from micro_ray.errors import BadRequest, InternalError
from micro_ray.wire.endpoints import Endpoints, endpoint_name, fold
from tests.fixtures.wait import PROMPT
from tests.unit.wire.kinds import KINDS, Model, Nested, Page, Plain, Struct, dumped
from tests.unit.wire.served import Served


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
async def test_a_type_is_the_request_and_the_response(served: Served, kind: Any) -> None:
    got: list[Any] = []

    async def call(request: Any) -> Any:
        got.append(request)
        return request

    call.__annotations__ = {"request": kind, "return": kind}
    served.add(call)
    assert await served.call({"name": "a", "times": 2, "later": True}) == {"name": "a", "times": 2}
    assert dumped(got[0]) == {"name": "a", "times": 2}
    if kind is not KINDS["typed dict"]:
        assert isinstance(got[0], kind)
        assert await served.call({"name": "a"}) == {"name": "a", "times": 1}
    shape = served.published()
    assert (shape["stream"], shape["request"]) == ("", shape["response"])
    assert set(shape["request"]["properties"]) == {"name", "times"}


async def test_plain_parameters_are_fields(served: Served) -> None:
    async def call(name: str = "World", times: int = 1, *, loud: bool = False) -> str:
        return f"Hello {name}" * times + "!" * loud

    served.add(call)
    assert await served.call() == "Hello World"
    assert await served.call(body=b"") == "Hello World"
    assert await served.call({"times": 2, "name": "A", "loud": True}) == "Hello AHello A!"
    schema = served.published()["request"]
    assert schema["properties"]["name"] == {"type": "string", "default": "World"}
    assert served.published()["response"] == {"type": "string"}


async def test_one_plain_parameter_is_a_field_too(served: Served) -> None:
    async def call(name: str) -> list[str]:
        return [name]

    async def many(values: list[int]) -> int:
        return sum(values)

    async def maybe(request: Plain | None = None) -> str:
        return request.name if request else "none"

    served.add(call)
    served.add(many, "Test.Many")
    served.add(maybe, "Test.Maybe")
    assert await served.call({"name": "a"}) == ["a"]
    assert await served.call({"values": [1, 2]}, "Test.Many") == 3
    assert await served.call({"request": {"name": "b"}}, "Test.Maybe") == "b"
    assert await served.call({}, "Test.Maybe") == "none"


async def test_dictionaries_and_anything_are_whole(served: Served) -> None:
    async def plain(request: dict) -> dict:  # type: ignore[type-arg]
        return request

    async def typed(request: dict[str, int]) -> Mapping[str, int]:
        return request

    async def mapping(request: Mapping[str, int]) -> dict[str, int]:
        return dict(request)

    async def anything(request: Any) -> Any:
        return request

    async def unsaid(request):  # type: ignore[no-untyped-def]
        return request

    for number, function in enumerate((plain, typed, mapping, anything, unsaid)):
        served.add(function, f"Test.N{number}")
        assert await served.call({"a": 1}, f"Test.N{number}") == {"a": 1}
    for number in (3, 4):
        assert await served.call([1, "x"], f"Test.N{number}") == [1, "x"]
    with pytest.raises(BadRequest, match=r"Expected `int`, got `str` - at `\$\[\.\.\.\]`"):
        await served.call({"a": "x"}, "Test.N1")


async def test_generic_types_are_whole(served: Served) -> None:
    async def call(page: Page[int]) -> Page[str]:
        return Page(items=[str(item) for item in page.items])

    served.add(call)
    assert await served.call({"items": [1, 2]}) == {"items": ["1", "2"]}


async def test_models_within_other_types(served: Served) -> None:
    """pydantic below lists, fields and parameters."""

    async def models(models: list[Model], nested: Nested) -> dict[str, Model]:
        assert all(type(model) is Model for model in models)
        assert type(nested.inner) is Model
        return {model.name: model for model in [*models, nested.inner]}

    served.add(models)
    value = {"models": [{"name": "a"}], "nested": {"inner": {"name": "b", "times": 5}}}
    answer = {"a": {"name": "a", "times": 1}, "b": {"name": "b", "times": 5}}
    assert await served.call(value) == answer
    with pytest.raises(BadRequest, match=r"valid integer.*`\$\.times`.*at `\$\.models\[0\]`"):
        await served.call(value | {"models": [{"name": "a", "times": "x"}]})
    schema = served.published()["request"]
    assert set(schema["$defs"]) == {"Model"}
    assert schema["properties"]["nested"]["properties"]["inner"] == {"$ref": "#/$defs/Model"}


async def test_bytes_are_untouched(served: Served) -> None:
    async def call(body: bytes) -> bytes:
        return body[::-1]

    served.add(call)
    head = served.head("Test.Call", "image/png")
    assert await served.peer.call(head, b"\xff\0{") == b"{\0\xff"
    assert await served.peer.call(head, b"") == b""
    binary = {"type": "string", "contentEncoding": "binary"}
    assert (served.published()["request"], served.published()["response"]) == (binary, binary)


async def test_no_parameters_and_no_answer(served: Served) -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1

    served.add(call)
    assert await served.call() == {}
    assert await served.call(body=b"not JSON", content="text/plain") == {}
    assert calls == 2
    assert (served.published()["request"], served.published()["response"]) == ({}, {})


@pytest.mark.parametrize("outer", [AsyncIterator, AsyncIterable, AsyncGenerator])
async def test_the_four_kinds(served: Served, outer: Any) -> None:
    streams = outer[int, None] if outer is AsyncGenerator else outer[int]

    async def counts(to: int = 3) -> Any:
        for number in range(to):
            yield number

    async def sums(numbers: Any) -> int:
        return sum([number async for number in numbers])

    async def doubles(numbers: Any) -> Any:
        async for number in numbers:
            yield number * 2

    counts.__annotations__ = {"to": int, "return": streams}
    sums.__annotations__ = {"numbers": streams, "return": int}
    doubles.__annotations__ = {"numbers": streams, "return": streams}
    for name, function in (("Count", counts), ("Sum", sums), ("Double", doubles)):
        served.add(function, f"Test.{name}")
    assert [e.stream for e in served.endpoints.published] == ["server", "client", "bidi"]
    assert await served.stream({"to": 4}, name="Test.Count") == [0, 1, 2, 3]
    assert await served.stream({}, name="Test.Count") == [0, 1, 2]
    assert await served.stream(name="Test.Count") == [0, 1, 2]  # an end without a request
    assert await served.stream(1, 2, 3, name="Test.Sum") == [6]
    assert await served.stream(name="Test.Sum") == [0]
    assert await served.stream(1, 2, name="Test.Double") == [2, 4]
    integer = {"type": "integer"}
    assert served.published("Test.Sum")["request"] == integer
    assert served.published("Test.Count")["response"] == integer
    with pytest.raises(BadRequest, match="Expected `int`, got `str`"):
        await served.stream(1, "x", name="Test.Sum")


async def test_streams_that_are_returned_or_not_annotated(served: Served) -> None:
    async def inner() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def returned() -> AsyncIterator[int]:
        return inner()

    def plain() -> AsyncIterator[int]:
        return inner()

    async def unsaid():  # type: ignore[no-untyped-def]
        yield 1
        yield 2

    for number, function in enumerate((returned, plain, unsaid)):
        served.add(function, f"Test.N{number}")
        assert await served.stream({}, name=f"Test.N{number}") == [1, 2]
    assert {e.stream for e in served.endpoints.published} == {"server"}


async def test_the_context(served: Served) -> None:
    """By a parameter anywhere, and by current()."""

    async def first(context: Context, name: str) -> list[Any]:
        return [name, context.caller, context is current()]

    async def last(request: Struct, ctx: Context) -> list[Any]:
        return [request.name, ctx.request_id, ctx.metadata["own"]]

    async def alone(context: Context) -> list[Any]:
        left = context.remaining()
        return [context.namespace, context.trace, context.service, context.endpoint, left]

    async def streamed(numbers: AsyncIterator[int], context: Context) -> AsyncIterator[str]:
        async for _ in numbers:
            yield context.caller

    for name, function in (
        ("First", first), ("Last", last), ("Alone", alone), ("Streamed", streamed)
    ):  # fmt: skip
        served.add(function, f"Test.{name}")
    metadata = {
        "micro-namespace": "tenant", "micro-caller": "someone", "traceparent": "00-ab",
        "x-request-id": "r1", "own": "x",
    }  # fmt: skip
    send = {"metadata": metadata, "timeout": 40.0}
    assert await served.call({"name": "a"}, "Test.First", **send) == ["a", "someone", True]
    assert await served.call({"name": "a"}, "Test.Last", **send) == ["a", "r1", "x"]
    *said, left = await served.call({}, "test.alone", **send)
    assert said == ["tenant", "00-ab", "test", "test.alone"]
    assert 40 - PROMPT < left <= 40.01
    assert await served.stream(1, 2, name="Test.Streamed", **send) == ["someone"] * 2
    bare = await served.call({}, "Test.Alone", timeout=None)
    assert bare == ["micro", "", "test", "Test.Alone", None]
    assert "context" not in str(served.published("Test.First")["request"])
    assert current() == Context()


async def test_functions_that_are_not_async_run_in_threads(served: Served) -> None:
    """The loop goes on meanwhile, and they know their context."""
    together = threading.Barrier(4)  # none passes it before all four have come

    def call(context: Context) -> list[Any]:
        together.wait(PROMPT)
        return [threading.current_thread() is threading.main_thread(), current().caller]

    served.add(call)
    send = {"metadata": {"micro-caller": "someone"}}
    answers = await asyncio.gather(*(served.call({}, **send) for _ in range(4)))
    assert answers == [[False, "someone"]] * 4


@pytest.mark.parametrize("raised", [StopIteration("x"), ValueError("x"), SystemExit(1)])
async def test_what_is_raised_in_a_thread(served: Served, raised: BaseException) -> None:
    """A future cannot carry StopIteration: the call would hang."""

    def call() -> None:
        raise raised

    served.add(call)
    with pytest.raises(InternalError, match=type(raised).__name__):
        await asyncio.wait_for(served.call(), 5)


async def test_a_function_that_returns_something_to_await(served: Served) -> None:
    async def real(name: str) -> str:
        return f"Hello {name}"

    @functools.wraps(real)
    def wrapped(*args: Any, **given: Any) -> Any:
        return real(*args, **given)

    class Callable:
        async def __call__(self, name: str) -> str:
            return f"Hello {name}"

    served.add(wrapped, "Test.Wrapped")
    served.add(Callable(), "Test.Object")
    served.add(functools.partial(real, name="Bob"), "Test.Partial")
    assert await served.call({"name": "A"}, "Test.Wrapped") == "Hello A"
    assert await served.call({"name": "B"}, "Test.Object") == "Hello B"
    assert await served.call({}, "Test.Partial") == "Hello Bob"


async def test_methods_of_a_class(served: Served) -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        async def add(self, by: int = 1) -> int:
            self.count += by
            return self.count

        @staticmethod
        async def fixed() -> str:
            return "fixed"

        @classmethod
        async def name(cls) -> str:
            return cls.__name__

    counter = Counter()
    for name in ("add", "fixed", "name"):
        served.add(getattr(counter, name), endpoint_name("counter", name))
    assert await served.call({"by": 2}, "Counter.Add") == 2
    assert await served.call({}, "Counter.Add") == 3
    assert await served.call({}, "Counter.Fixed") == "fixed"
    assert await served.call({}, "Counter.Name") == "Counter"


def nobody(a: int, b: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Annotated with what does not exist."""


class Foreign:
    """No type that crosses."""


@dataclasses.dataclass
class Half:
    """A field of it is annotated with what does not exist."""

    what: Nowhere  # type: ignore[name-defined]  # noqa: F821


async def half(request: Half) -> None: ...


async def foreign(request: Foreign) -> None: ...
async def foreign_answer() -> list[Foreign]: ...
async def foreign_stream(items: AsyncIterator[Foreign]) -> None: ...
async def starred(*names: str) -> None: ...
async def double_starred(**names: str) -> None: ...
async def positional(name: str, /) -> None: ...
async def unsafe(names: list[str] = ["a"]) -> None: ...  # noqa: B006
def generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (nobody, "'Nowhere' is not defined in its annotations"),
        (foreign, "parameter request of type .*Foreign"),
        (foreign_answer, "the answer of type .*Foreign"),
        (foreign_stream, "parameter items of type .*Foreign"),
        (half, "parameter request of type .*Half.*'Nowhere' is not defined"),
        (starred, r"\*names cannot be a field"), (double_starred, r"\*names cannot be a field"),
        (positional, "name is positional only"), (unsafe, "[Mm]utable|list"),
        (generator, "takes an async function"),
    ],
)  # fmt: skip
def test_signatures_that_cannot_be_endpoints(function: Any, why: str) -> None:
    endpoints = Endpoints("test")
    with pytest.raises(TypeError, match=rf"test\.Test\.Call.*({why})"):
        endpoints.add("Test.Call", function)
    assert endpoints.published == ()


def test_names() -> None:
    assert endpoint_name("foo-bar", "say_hello") == "FooBar.SayHello"
    assert endpoint_name("helloworld", "call") == "Helloworld.Call"
    assert endpoint_name("a.b", "readAll") == "AB.ReadAll"
    assert fold("Foo-Bar.Say_Hello") == "foobar.sayhello"
