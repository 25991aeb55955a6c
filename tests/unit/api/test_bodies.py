"""The bytes of a request: what passes untouched, what is merged, what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.unit.api.door import Door

pytestmark = pytest.mark.asyncio(loop_scope="package")

JSON = {"content-type": "application/json"}
MSGPACK = {"content-type": "application/msgpack"}
DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


async def test_every_method_with_a_body(door: Door) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "GET"):
        answer = await door.http.request(method, "/echo/call", json={"name": method})
        assert answer.json() == {"message": f"Hello {method}"}, method
        answer = await door.http.request(method, "/echo/call?name=query")
        assert answer.json() == {"message": "Hello query"}, method
        assert answer.headers["content-type"] == "application/json"


async def test_head_is_get_without_the_body(door: Door) -> None:
    async with door.line() as line:
        await line.send(b"HEAD /echo/call?name=Al HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await line.answer(head_only=True)
        assert (answer.code, answer.headers["content-length"]) == (200, "22")
        await line.send(b"GET /echo/call HTTP/1.1\r\nHost: x\r\n\r\n")  # nothing came between
        assert (await line.answer()).json() == {"message": "Hello World"}
        await line.send(b"HEAD /no/thing HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await line.answer(head_only=True)
        assert (answer.code, int(answer.headers["content-length"]) > 0) == (404, True)
        await line.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await line.answer()).json() == {"status": "ok"}


async def test_json_reaches_the_service_as_it_came(door: Door) -> None:
    """Order, spaces and numbers that JSON libraries differ about."""
    body = b'{ "b" : 1.0,\n "a":12345678901234567890123, "a":2 }'
    answer = await door.http.post("/echo/measure", content=body, headers=JSON)
    assert answer.json()["size"] == len(body)
    raw = await door.http.post("/echo/raw", content=body, headers=JSON)
    assert raw.content == body


@pytest.mark.parametrize(
    "kind",
    ["application/json; charset=utf-8", "Application/JSON", "application/ld+json", "text/json"],
)
async def test_spellings_of_json(door: Door, kind: str) -> None:
    head = {"content-type": kind}
    answer = await door.http.post("/echo/call", content=b'{"name":"x"}', headers=head)
    assert answer.json() == {"message": "Hello x"}
    assert answer.headers["content-type"] == "application/json"


async def test_no_body_is_an_empty_object(door: Door) -> None:
    for head in ({}, JSON, MSGPACK):
        answer = await door.http.post("/echo/call", headers=head)
        assert answer.status_code == 200, answer.text


async def test_msgpack_both_ways(door: Door) -> None:
    body = msgspec.msgpack.encode({"name": "x"})
    answer = await door.http.post("/echo/call", content=body, headers=MSGPACK)
    assert answer.headers["content-type"] == "application/msgpack"
    assert msgspec.msgpack.decode(answer.content) == {"message": "Hello x"}


async def test_bytes_pass_untouched_whatever_they_are_called(door: Door) -> None:
    body = bytes(range(256))
    for kind in ("application/octet-stream", "image/png", "application/x-www-form-urlencoded",
                 "application/json", "application/msgpack", "multipart/form-data"):  # fmt: skip
        answer = await door.http.post("/echo/raw", content=body, headers={"content-type": kind})
        assert answer.content == body, kind
        assert answer.headers["content-type"] == "application/octet-stream"
    assert (await door.http.post("/echo/raw", content=b"")).content == b""
    assert (await door.http.post("/echo/raw", content=body)).content == body
    long = {"content-type": "x/" + "y" * 5000}
    assert (await door.http.post("/echo/raw", content=body, headers=long)).content == body


async def test_an_endpoint_that_takes_bytes_answers_json(door: Door) -> None:
    head = {"content-type": "image/png"}
    answer = await door.http.post("/echo/measure", content=b"123", headers=head)
    assert answer.json()["size"] == 3
    assert answer.headers["content-type"] == "application/json"


async def test_fields_go_along_with_bytes(door: Door) -> None:
    answer = await door.http.put("/users/5/files/a/b.txt?Mode=x&b=1&b=2", content=b"123")
    assert answer.json() == {
        "size": 3,
        "fields": {
            "x-api-field-id": "5",
            "x-api-field-name": "a/b.txt",
            "x-api-field-mode": "x",
            "x-api-field-b": "2",
        },
    }
    answer = await door.http.post("/echo/measure?a=" + "x" * 9000, content=b"123")
    assert (answer.status_code, "8192" in answer.json()["detail"]) == (413, True)
    sent = {"x-api-field-name": "forged"}
    assert (await door.http.post("/echo/measure", headers=sent)).json()["fields"] == {}


async def test_the_path_wins_over_the_body_and_the_body_over_the_query(door: Door) -> None:
    url = "/users/5?id=6&name=query&place.city=query"
    answer = await door.http.put(url, json={"id": 7, "name": "body"})
    assert answer.json() == {"write": 5, "name": "body", "city": "query"}
    answer = await door.http.patch(url)
    assert answer.json() == {"write": 5, "name": "query", "city": "query"}


async def test_fields_beside_each_other_are_kept(door: Door) -> None:
    answer = await door.http.post("/echo/free?a.b=1&a.c=2", json={"a": {"b": 5, "d": 6}, "x": [1]})
    assert answer.json() == {"a": {"b": 5, "c": 2, "d": 6}, "x": [1]}


async def test_fields_of_the_path_have_types_and_may_be_nested(door: Door) -> None:
    assert (await door.http.get("/at/Rome/5")).json() == {"city": "Rome", "zip": 5}
    answer = await door.http.get("/users/x")
    assert (answer.status_code, answer.json()["detail"]) == (
        400, "field 'id': 'x' is no integer",
    )  # fmt: skip
    assert (await door.http.get("/users/5?verbose")).json() == {"read": 5, "verbose": True}
    assert (await door.http.get("/users/5/files/")).json() == {"id": 5, "file": ""}


async def test_msgpack_is_merged_as_msgpack(door: Door) -> None:
    body = msgspec.msgpack.encode({"name": "packed"})
    answer = await door.http.put("/users/5?place.city=Rome", content=body, headers=MSGPACK)
    assert msgspec.msgpack.decode(answer.content) == {"write": 5, "name": "packed", "city": "Rome"}


async def test_large_numbers_survive_a_merge(door: Door) -> None:
    number = 123456789012345678901234567890
    answer = await door.http.post("/echo/free?a=1", content=f'{{"b":{number}}}')
    assert answer.json() == {"a": 1, "b": number}


@pytest.mark.parametrize(
    ("body", "head", "code", "said"),
    [
        (b"{", JSON, 400, "malformed"),
        (b"\xff", JSON, 400, "malformed"),
        (b"\xef\xbb\xbf{}", JSON, 400, "malformed"),
        (b'{"a":"\\ud800"}', JSON, 400, "malformed"),
        (b'{"a":NaN}', JSON, 400, "malformed"),
        (b"[1]", JSON, 400, "object"),
        (b"5", JSON, 400, "object"),
        (b"null", JSON, 400, "object"),
        (DEEP, JSON, 413, "nested too deeply"),
        (b"\xc1", MSGPACK, 400, "malformed"),
        (b"\x81\xa1a", MSGPACK, 400, "malformed"),
        (b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0", MSGPACK, 413, "nested too deeply"),
        (b"\x01", MSGPACK, 400, "object"),
        (b"<a/>", {"content-type": "text/xml"}, 415, "'text/xml'"),
        (b"x", {"content-type": "multipart/form-data; boundary=x"}, 415, "multipart"),
        (b"x", {"content-type": "\xff"}, 415, "content type"),
        (b"x", {"content-encoding": "gzip", **JSON}, 415, "content encodings"),
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize("query", ["", "?x=1"])
async def test_what_cannot_be_read(
    door: Door, body: bytes, head: dict[str, Any], code: int, said: str, query: str
) -> None:
    """The same, whether the door reads it to merge the query, or the service."""
    given = {k: v.encode("latin-1") for k, v in head.items()}
    answer = await door.http.post(f"/echo/free{query}", content=body, headers=given)
    assert answer.status_code == code, answer.text
    assert said in answer.json()["detail"]
    assert answer.json()["status"]
    assert await door.alive()


async def test_octets_are_for_endpoints_that_take_bytes(door: Door) -> None:
    head = {"content-type": "application/octet-stream"}
    answer = await door.http.post("/echo/call", content=b"{}", headers=head)
    assert answer.status_code == 415
    assert "application/octet-stream" in answer.json()["detail"]


async def test_wrong_types_in_a_body_name_the_field(door: Door) -> None:
    answer = await door.http.post("/echo/everything", json={"place": {"zip": "x"}})
    assert answer.status_code == 400
    assert "$.place.zip" in answer.json()["detail"]
    answer = await door.http.post("/echo/everything?count=1", json={"numbers": [1, "x"]})
    assert answer.status_code == 400
    assert "$.numbers[1]" in answer.json()["detail"]
