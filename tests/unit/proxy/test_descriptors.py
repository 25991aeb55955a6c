"""Messages made of schemas: whatever a service publishes, and there and back with any value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_ray.errors import BadRequest, InternalError, TooLarge
from micro_ray.registry import Endpoint
from micro_ray.router import Entry
from micro_ray.router.table import Table
from micro_ray.serve.catalogue import KEPT, Catalogue
from micro_ray.serve.descriptors import Method, describe, package_of, service_of
from micro_ray.serve.messages import request_of, response_of
from micro_ray.wire.schema import codec
from tests.unit.router.test_table import entry, full

pytestmark = pytest.mark.timeout(120)

encode, decode = msgspec.json.encode, msgspec.json.decode


def described(schema: Any, service: str = "s", name: str = "H.Call") -> Method:
    endpoint = Endpoint(name=name, request=schema, response=schema)
    made = describe(Entry(namespace="micro", service=service, version="1", endpoints=(endpoint,)))
    return made.methods[name]


@dataclass
class Inner:
    a: int
    b: list[str] = field(default_factory=list)


@dataclass
class Tree:
    name: str
    kids: list[Tree] = field(default_factory=list)


@dataclass
class Whole:
    name: str
    inner: Inner
    maybe: Inner | None
    must: list[int]
    also: dict[str, str]
    opt: int | None = 5
    many: list[Inner] = field(default_factory=list)
    by_name: dict[str, Inner] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    lists: dict[str, list[int]] = field(default_factory=dict)
    anything: Any = None
    either: int | str = 3
    pair: tuple[int, str] = (1, "a")
    raw: bytes = b""
    word: Literal["a", "b"] = "a"
    code: Literal[1, 2] = 1
    deep: list[list[int]] = field(default_factory=list)
    ratio: float = 1.0
    tree: Tree | None = None


inners = st.builds(Inner, a=st.integers(-(2**63), 2**63 - 1), b=st.lists(st.text()))
small = st.integers(-(2**53), 2**53)
trees = st.recursive(
    st.builds(Tree, name=st.text(), kids=st.just([])),
    lambda kids: st.builds(Tree, name=st.text(), kids=st.lists(kids, max_size=3)),
    max_leaves=5,
)
anything = st.recursive(
    st.none() | st.booleans() | small | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(), some, max_size=3),
    max_leaves=8,
)  # fmt: skip
wholes = st.builds(
    Whole,
    name=st.text(),
    inner=inners,
    maybe=st.none() | inners,
    must=st.lists(small, max_size=3),
    also=st.dictionaries(st.text(), st.text(), max_size=3),
    opt=st.none() | small,
    many=st.lists(inners, max_size=3),
    by_name=st.dictionaries(st.text(), inners, max_size=3),
    counts=st.dictionaries(st.text(), small, max_size=3),
    lists=st.dictionaries(st.text(), st.lists(small, max_size=2), max_size=2),
    anything=anything,
    either=small | st.text(),
    pair=st.tuples(small, st.text()),
    raw=st.binary(),
    word=st.sampled_from(["a", "b"]),
    code=st.sampled_from([1, 2]),
    deep=st.lists(st.lists(small, max_size=2), max_size=2),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    tree=st.none() | trees,
)
WHOLE = described(codec(Whole, "w").schema)


@given(wholes)
def test_there_and_back(value: Whole) -> None:
    """As JSON, as a message, as JSON: the same. What is absent in protobuf is what the service
    takes for it: null where null is the default or must be said."""
    message = response_of(WHOLE, encode(value), raw=False)
    back = decode(request_of(WHOLE, message), type=Whole)
    if value.opt is None:
        assert back.opt == 5  # absent is the default: protobuf has no null beside it
        back.opt = None
    assert back == value


scalars = st.none() | st.booleans() | st.integers() | st.text()
words = st.sampled_from(
    ["type", "properties", "items", "anyOf", "allOf", "enum", "const", "required", "$ref", "$defs",
     "additionalProperties", "prefixItems", "contentEncoding", "object", "array", "string", "null",
     "#/$defs/a", "a", "b", "base64", "binary"]
)  # fmt: skip
garbage = st.recursive(
    scalars | words,
    lambda some: (
        st.lists(some, max_size=4) | st.dictionaries(words | st.text(max_size=3), some, max_size=5)
    ),
    max_leaves=30,
)
kinds = st.sampled_from(["string", "integer", "number", "boolean", "array", "object", "null"])
plausible = st.recursive(
    st.fixed_dictionaries({"type": kinds}) | st.just({"$ref": "#/$defs/a"}) | garbage,
    lambda some: (
        st.fixed_dictionaries(
            {
                "type": st.just("object"),
                "properties": st.dictionaries(st.text(max_size=4), some, max_size=4),
                "$defs": st.dictionaries(st.sampled_from("ab"), some, max_size=2),
                "required": st.lists(st.text(max_size=4), max_size=2) | scalars,
            }
        )
        | st.fixed_dictionaries({"type": st.just("array"), "items": some})
        | st.fixed_dictionaries({"type": st.just("object"), "additionalProperties": some})
        | st.fixed_dictionaries({"anyOf": st.lists(some, max_size=3)})
    ),
    max_leaves=12,
)


@given(plausible, st.text(max_size=8), st.text(max_size=8))
def test_no_schema_is_too_much(schema: Any, service: str, name: str) -> None:
    request = schema if isinstance(schema, dict) else {}
    endpoints = tuple(Endpoint(name=n, request=request) for n in ("H.Call", name, f"H.{name}"))
    made = describe(
        Entry(namespace="micro", service=service or "s", version="1", endpoints=endpoints)
    )
    assert "H.Call" in made.methods


def test_names() -> None:
    assert package_of("v1.my-shop") == "v1.my_shop"
    assert package_of("a.1b") == "a._1b"
    assert service_of("my-shop", "Cart.Add") == "my_shop.Cart"
    for name in ("Cart", "Cart.", ".Add", "Cart.Add.Twice", "1.x", "Ä.b"):
        assert service_of("s", name) == ""
    properties = {key: {"type": "integer"} for key in ("a-b", "a_b", "aB", "1", "", "ä", "Entry")}
    method = described({"type": "object", "properties": properties})
    names = [f.name for f in method.request.DESCRIPTOR.fields]
    assert len({name.replace("_", "").lower() for name in names}) == len(properties)
    sent = {key: n for n, key in enumerate(properties)}
    assert decode(request_of(method, response_of(method, encode(sent), raw=False))) == sent


def test_what_has_too_many_fields_is_a_value() -> None:
    """References that multiply end, and what is beyond the bound still passes."""
    defs: dict[str, Any] = {"d0": {"type": "integer"}}
    for n in range(1, 20):
        inner = {"x": {"$ref": f"#/$defs/d{n - 1}"}, "y": {"$ref": f"#/$defs/d{n - 1}"}}
        item = {"type": "object", "properties": inner}
        defs[f"d{n}"] = {"type": "array", "items": item}
    method = described(
        {"type": "object", "properties": {"top": {"$ref": "#/$defs/d19"}}, "$defs": defs}
    )
    value = {"top": [{"x": [{"y": []}]}]}
    assert decode(request_of(method, response_of(method, encode(value), raw=False))) in (
        value, {"top": [{"x": [{}]}]},
    )  # fmt: skip


def test_answers_that_are_not_what_was_said() -> None:
    schema = codec(Inner, "w").schema
    method = described(schema)
    for bad in ({"a": "x"}, {"a": 2**63}, {"a": 1.5}, [], 3, {"b": "x"}, {"b": [1]}):
        with pytest.raises(InternalError, match="x-content-type"):
            response_of(method, encode(bad), raw=False)
    with pytest.raises(InternalError):
        response_of(method, b"{", raw=False)
    more = response_of(method, encode({"a": 5.0, "new": 1}), raw=False)
    assert request_of(method, more) == b'{"a":5}'
    anything = described({})
    with pytest.raises(InternalError, match="does not fit"):
        response_of(anything, encode({"a": 2**53 + 1}), raw=False)


def test_what_is_nested_too_deeply() -> None:
    method = described({})
    deep: Any = []
    for _ in range(40):
        deep = [deep]
    with pytest.raises(InternalError, match="deep"):
        response_of(method, encode(deep), raw=False)
    with pytest.raises(InternalError):
        response_of(method, b"[" * 100_000 + b"]" * 100_000, raw=False)
    message: Any = method.request()
    value = message
    for _ in range(33):
        value = value.list_value.values.add()
    value.bool_value = True
    with pytest.raises((TooLarge, BadRequest)):
        request_of(method, message.SerializeToString())


def test_descriptions_that_are_kept_are_bounded() -> None:
    table = Table()
    endpoint = Endpoint(name="H.Call")
    entries = tuple(entry(f"s{n}", endpoints=(endpoint,)) for n in range(KEPT + 10))
    assert table.apply(full(entries=entries))
    catalogue = Catalogue(table, "micro")
    assert len(catalogue.services()) == len(entries)
    for found in entries:
        assert catalogue.method(found.service, "H.Call") is not None
        assert catalogue.package(found.service) is not None
    assert len(catalogue._kept) == KEPT
