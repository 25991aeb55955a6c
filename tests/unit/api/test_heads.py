"""What goes along with a request and comes back with its answer: ids, traces, deadlines."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.unit.api.door import Door

pytestmark = pytest.mark.asyncio(loop_scope="package")

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def context(door: Door, **headers: str) -> dict[str, Any]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await door.http.get("/echo/context", headers=sent)
    assert answer.status_code == 200, answer.text
    return answer.json() | {"answered": answer.headers["x-request-id"]}


@pytest.mark.parametrize("given", ["a", "A-z_0.9:8", "x" * 128])
async def test_a_request_id_is_kept(door: Door, given: str) -> None:
    seen = await context(door, x_request_id=given)
    assert seen["request_id"] == seen["answered"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a/b", "ä", "a\tb", "'", "a,b"])
async def test_a_bad_request_id_is_made_anew(door: Door, given: str) -> None:
    sent = b"GET /echo/context HTTP/1.1\r\nHost: x\r\nX-Request-Id: %b\r\n\r\n"
    answer = await door.exchange(sent % given.encode("latin-1"))
    made = answer.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert answer.json()["request_id"] == made


async def test_ids_differ(door: Door) -> None:
    seen = [await context(door) for _ in range(20)]
    assert len({one["request_id"] for one in seen}) == 20
    assert len({one["trace"] for one in seen}) == 20


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/ready", "/metrics", "/openapi.json", "/favicon.ico", "/echo", "/no/thing",
     "/echo/fail?code=409", "/echo/crash", "/streams/count", "/streams/count?fail=409&to=0",
     "/a%zz"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_every_answer_has_the_id(door: Door, path: str, method: str) -> None:
    answer = await door.http.request(method, path, headers={"x-request-id": "mine"})
    assert answer.headers["x-request-id"] == "mine"


async def test_a_trace_is_forwarded(door: Door) -> None:
    seen = await context(door, traceparent=TRACE, tracestate="a=b", baggage="c=d")
    assert seen["trace"] == TRACE
    assert (seen["metadata"]["tracestate"], seen["metadata"]["baggage"]) == ("a=b", "c=d")


@pytest.mark.parametrize(
    "given",
    [
        None,
        "x",
        TRACE.upper(),
        TRACE + "-00",
        "ff" + TRACE[2:],
        "00-" + "0" * 32 + TRACE[35:],
        TRACE[:36] + "0" * 16 + "-01",
    ],
)
async def test_a_trace_is_begun_where_there_is_none(door: Door, given: str | None) -> None:
    seen = await context(door, **({"traceparent": given} if given else {}))
    assert seen["trace"] != given
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", seen["trace"])


async def test_what_clients_say_is_not_the_platforms_word(door: Door) -> None:
    seen = await context(
        door,
        micro_namespace="other",
        micro_caller="admin",
        micro_anything="x",
        authorization="Bearer x",
        cookie="micro-token=x",
        accept_language="de",
        x_custom="x",
    )
    assert (seen["namespace"], seen["caller"]) == ("micro", "")
    assert set(seen["metadata"]) == {
        "x-request-id", "traceparent", "micro-namespace", "accept-language",
    }  # fmt: skip


async def test_forwarded_headers_are_cut(door: Door) -> None:
    seen = await context(door, baggage="x" * 5000)
    assert seen["metadata"]["baggage"] == "x" * 1024


async def test_the_deadline_goes_along(door: Door) -> None:
    assert 28 < (await context(door))["remaining"] <= 30.01
    assert 4 < (await context(door, timeout="5"))["remaining"] <= 5.01
    assert 28 < (await context(door, timeout="3600"))["remaining"] <= 30.01


@pytest.mark.parametrize("given", ["0", "-1", "x", "nan", "inf", "1s", "ä", "\xff"])
async def test_bad_timeouts(door: Door, given: str) -> None:
    head = {"timeout": given.encode("latin-1")}
    for path in ("/echo/call", "/streams/count"):
        answer = await door.http.get(path, headers=head)
        assert (answer.status_code, "header timeout" in answer.json()["detail"]) == (400, True)


async def test_the_deadline_ends_a_call(door: Door, probe: Any) -> None:
    for path in ("/echo/hang?name=late", "/streams/silent?name=late"):
        before = probe.cancelled["late"]
        answer = await door.http.get(path, headers={"timeout": "0.05"})
        assert answer.status_code == 408
        assert "deadline" in answer.json()["detail"]
        assert probe.begun["late"] == probe.cancelled["late"] == before + 1
    assert await door.alive()


async def test_a_stream_may_last_longer_than_a_call(door: Door) -> None:
    answer = await door.http.get("/streams/count", headers={"timeout": "3600"})
    assert answer.status_code == 200


async def test_no_answer_says_who_serves(door: Door) -> None:
    answer = await door.http.get("/echo")
    assert "server" not in answer.headers
