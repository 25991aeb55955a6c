"""Query strings and forms as typed fields: through the door to a service and back."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from micro_ray.api.fields import MAX_DEPTH, MAX_FIELDS, parse_fields, typed
from micro_ray.errors import BadRequest, TooLarge
from tests.unit.api.door import Door

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("count=5", {"count": 5}),
        ("count=-5", {"count": -5}),
        ("count=%2B5", {"count": 5}),
        ("count=1&count=2", {"count": 2}),
        ("count=" + "9" * 40, {"count": int("9" * 40)}),
        ("ratio=0.5", {"ratio": 0.5}),
        ("ratio=-1e3", {"ratio": -1000.0}),
        ("ratio=7", {"ratio": 7.0}),
        ("sure=true", {"sure": True}),
        ("sure", {"sure": True}),
        ("sure=ON", {"sure": True}),
        ("sure=0", {"sure": False}),
        ("sure=no", {"sure": False}),
        ("text=5", {"text": "5"}),
        ("text=true", {"text": "true"}),
        ("text=null", {"text": "null"}),
        ("text=", {"text": ""}),
        ("text=a+b%20c", {"text": "a b c"}),
        ("text=%C3%A4", {"text": "ä"}),
        ("text=%F0%9F%98%80", {"text": "\U0001f600"}),
        ("text=a%26b%3Dc", {"text": "a&b=c"}),
        ("tags=a", {"tags": ["a"]}),
        ("tags=a&tags=5", {"tags": ["a", "5"]}),
        ("tags[]=a&tags[]=b", {"tags": ["a", "b"]}),
        ("numbers=1&numbers=2", {"numbers": [1, 2]}),
        ("pair=3&pair=x", {"pair": [3, "x"]}),
        ("place.city=Rome&place.zip=5", {"place": {"city": "Rome", "zip": 5}}),
        ("place[city]=Rome", {"place": {"city": "Rome", "zip": 0}}),
        ('place={"city":"Rome","zip":1}', {"place": {"city": "Rome", "zip": 1}}),
        ("labels.a=1&labels.b=true", {"labels": {"a": "1", "b": "true"}}),
        ("colour=red", {"colour": "red"}),
        ("colour=1", {"colour": "1"}),
        ("maybe=5", {"maybe": 5}),
        ("maybe=", {"maybe": None}),
        ("maybe=null", {"maybe": None}),
        ("either=5", {"either": 5}),
        ("either=a", {"either": "a"}),
        ("when=2024-01-02T03:04:05", {"when": "2024-01-02T03:04:05"}),
        ("unknown=5&count=1", {"count": 1}),
        ("unknown.deeper=5", {}),
        ("", {}),
        ("&&", {}),
    ],
)
async def test_typed_by_the_endpoint(door: Door, query: str, fields: dict[str, Any]) -> None:
    answer = await door.http.get(f"/echo/everything?{query}")
    assert answer.status_code == 200, answer.text
    base = (await door.http.get("/echo/everything")).json()
    assert answer.json() == base | fields


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("count=x", "'count': 'x' is no integer"),
        ("count=1.5", "'count': '1.5' is no integer"),
        ("count=", "'count': '' is no integer"),
        ("count=1_000", "'count'"),
        ("count=%20" + "5", "'count'"),
        ("count=%EF%BC%95", "'count'"),
        ("count=" + "9" * 5000, "'count'"),
        ("ratio=x", "'ratio': 'x' is no number"),
        ("ratio=nan", "'ratio'"),
        ("ratio=inf", "'ratio'"),
        ("ratio=1e999", "'ratio'"),
        ("ratio=1_0.5", "'ratio'"),
        ("sure=perhaps", "'sure': 'perhaps' is no boolean"),
        ("numbers=1&numbers=x", "'numbers': 'x' is no integer"),
        ("pair=x&pair=y", "'pair': 'x' is no integer"),
        ("place=x", "'place': 'x' is no object"),
        ("place.zip=x", "'place.zip': 'x' is no integer"),
        ("place=" + "[" * 5000, "'place'"),
        ("colour=blue", "'colour': 'blue' is none of"),
        ("maybe=x", "'maybe': 'x' is no integer"),
        ("when=yesterday", "$.when"),
        ("place.city=a&place=5", "'place'"),
        ('place={"city":"a"}&place.city=b', "'place.city' is given both"),
        ("text=%ff", "query is not UTF-8"),
        ("text=%ed%a0%80", "query is not UTF-8"),
    ],
)
async def test_wrong_types_name_the_field(door: Door, query: str, field: str) -> None:
    answer = await door.http.get(f"/echo/everything?{query}")
    assert answer.status_code == 400
    assert field in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 500


async def test_bytes_of_the_query_are_escaped(door: Door) -> None:
    """URLs are ASCII; what is not is no request."""
    for raw in (b"\xc3\xa4", b"\xff", b"\xc0\xaf"):
        answer = await door.exchange(b"GET /echo?name=" + raw + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (answer.code, answer.json()["status"]) == (400, "Bad Request")
    with pytest.raises(BadRequest, match="query is not UTF-8"):
        parse_fields(b"name=\xff", {}, "query")
    assert parse_fields(b"name=\xc3\xa4", {}, "query") == {"name": "\u00e4"}


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("a=5", {"a": 5}),
        ("a=-1.5", {"a": -1.5}),
        ("a=true", {"a": True}),
        ("a=null", {"a": None}),
        ("a=007", {"a": "007"}),
        ("a=x", {"a": "x"}),
        ('a="x"', {"a": '"x"'}),
        ("a=[1]", {"a": "[1]"}),
        ("a={}", {"a": "{}"}),
        ("a=1e999", {"a": "1e999"}),
        ("a.b.c=1&a.b.d=2", {"a": {"b": {"c": 1, "d": 2}}}),
        ("a[b]=1&a[c][d]=x", {"a": {"b": 1, "c": {"d": "x"}}}),
    ],
)
async def test_untyped_as_json(door: Door, query: str, value: Any) -> None:
    assert (await door.http.get(f"/echo/free?{query}")).json() == value


async def test_fields_are_counted_and_their_depth_is_bounded(door: Door) -> None:
    many = "&".join(f"a{i}=1" for i in range(MAX_FIELDS))
    assert len((await door.http.get(f"/echo/free?{many}")).json()) == MAX_FIELDS
    answer = await door.http.get(f"/echo/free?{many}&b=1")
    assert (answer.status_code, answer.json()["detail"]) == (413, "over 1000 fields in the query")
    deep = ".".join("a" * MAX_DEPTH)
    assert (await door.http.get(f"/echo/free?{deep}=1")).status_code == 200
    answer = await door.http.get(f"/echo/free?{deep}.b=1")
    assert answer.status_code == 413
    assert "nested over 16" in answer.json()["detail"]


async def test_forms(door: Door) -> None:
    form = {"count": "5", "tags": ["a", "b"], "sure": "on", "place.city": "Rome"}
    answer = (await door.http.post("/echo/everything", data=form)).json()
    assert (answer["count"], answer["tags"], answer["sure"]) == (5, ["a", "b"], True)
    assert answer["place"]["city"] == "Rome"


async def test_bad_forms(door: Door) -> None:
    head = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
    for body, code, said in (
        (b"count=x", 400, "'count'"),
        (b"text=%ff", 400, "form is not UTF-8"),
        (b"text=\xff", 400, "form is not UTF-8"),
        (b"&".join(b"a%d=1" % i for i in range(MAX_FIELDS + 1)), 413, "in the form"),
    ):
        answer = await door.http.post("/echo/everything", content=body, headers=head)
        assert (answer.status_code, said in answer.json()["detail"]) == (code, True), answer.text


async def test_what_curl_posts_as_a_form_is_json_when_it_looks_so(door: Door) -> None:
    head = {"content-type": "application/x-www-form-urlencoded"}
    answer = await door.http.post("/echo/call", content=b'{"name":"A=B&C"}', headers=head)
    assert answer.json() == {"message": "Hello A=B&C"}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": []},
        {"properties": {"a": 5}},
        {"properties": {"a": {"type": 5}}},
        {"properties": {"a": {"type": ["array", 3]}}},
        {"properties": {"a": {"type": "array", "items": False, "prefixItems": 1}}},
        {"properties": {"a": {"enum": 5}}},
        {"properties": {"a": {"anyOf": [1, 2]}}},
        {"$ref": "#/$defs/X", "$defs": []},
        {"$ref": "#/$defs/X", "$defs": {"X": {"$ref": "#/$defs/X"}}},
        {"properties": {"a": {"$ref": 7}}},
    ],
)
async def test_schemas_may_be_garbage(schema: dict[str, Any]) -> None:
    """Services of other languages publish what they like; their callers get an error at worst."""
    try:
        fields = parse_fields(b"a=1&a=2", schema, "query")
    except BadRequest:
        return
    assert fields["a"] in (2, "2", [1, 2], ["1", "2"])


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": ["integer", "null"]}, "5", 5),
        ({"type": ["integer", "null"]}, "", None),
        ({"type": ["string", "null"]}, "", ""),
        ({"type": ["integer", "string"]}, "5", 5),
        ({"const": 5}, "5", 5),
        ({"enum": [1, "1", None, True]}, "true", True),
        ({"allOf": [{"$ref": "#/$defs/N"}]}, "5", 5),
        ({"oneOf": [{"type": "null"}, {"type": "boolean"}]}, "yes", True),
        ({"$ref": "#/$defs/Gone"}, "5", 5),
    ],
)
async def test_schemas_of_other_tools(schema: dict[str, Any], text: str, value: Any) -> None:
    root = {"$defs": {"N": {"type": "integer"}}}
    found = typed(text, schema, root, "a")
    assert (found, type(found)) == (value, type(value))


async def test_names_in_errors_are_cut() -> None:
    with pytest.raises(TooLarge) as raised:
        parse_fields(quote("a." * 5000).encode() + b"=1", {}, "query")
    assert len(raised.value.detail) < 200
