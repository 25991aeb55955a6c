"""Errors: one form, the right status, whoever says it; and the door goes on."""

from __future__ import annotations

import math

import pytest

from micro_ray.errors import CODES
from tests.unit.api.door import Door

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.mark.parametrize("code", sorted(CODES))
async def test_every_error_has_its_status(door: Door, code: int) -> None:
    answer = await door.http.post(f"/echo/fail?code={code}")
    assert answer.status_code == code
    form = answer.json()
    assert set(form) == {"id", "code", "detail", "status"}
    assert (form["id"], form["code"], form["detail"]) == ("echo", code, f"as asked: {code}")
    assert form["status"] == CODES[code]("", "").status
    assert answer.headers["content-type"] == "application/json"
    assert "retry-after" not in answer.headers
    assert await door.alive()


@pytest.mark.parametrize(
    ("seconds", "header"),
    [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.5, "2"), (60.0, "60"), (3e5, "86400")],
)
async def test_retry_after(door: Door, seconds: float, header: str) -> None:
    """In whole seconds, as HTTP has it; the form keeps what the service said."""
    answer = await door.http.post(f"/echo/fail?code=503&retry_after={seconds}")
    assert answer.headers["retry-after"] == header
    assert math.isclose(answer.json()["retry_after"], seconds)


async def test_a_service_that_raises(door: Door) -> None:
    answer = await door.http.get("/echo/crash")
    assert (answer.status_code, answer.json()["id"]) == (500, "echo")
    assert "ValueError: boom" in answer.json()["detail"]
    assert "set-cookie" not in answer.headers


async def test_a_service_whose_answer_is_none(door: Door) -> None:
    answer = await door.http.get("/echo/liar")
    assert (answer.status_code, answer.json()["status"]) == (500, "Internal Server Error")
    assert "cannot be sent" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/ecko/call", ["no service 'ecko'", "did you mean /echo?"]),
        ("/echo/cal", ["no endpoint echo.cal in echo", "Echo.Call"]),
        ("/echo/other/call", ["no endpoint other.call in echo"]),
    ],
)
async def test_unknown_says_what_is_near(door: Door, path: str, said: list[str]) -> None:
    answer = await door.http.post(path)
    assert (answer.status_code, answer.json()["id"]) == (404, "api")
    for part in said:
        assert part in answer.json()["detail"]


async def test_methods(door: Door) -> None:
    answer = await door.http.request("PROPFIND", "/echo/call")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
    answer = await door.http.post("/users/5")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, GET, PATCH, PUT, HEAD, OPTIONS"
    assert "POST is not for /users/5" in answer.json()["detail"]
    answer = await door.http.request("TRACE", "/echo/call")
    assert answer.status_code == 405


async def test_options(door: Door) -> None:
    answer = await door.http.options("/echo/call")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["allow"] == "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
    answer = await door.http.options("/users/5")
    assert answer.headers["allow"] == "DELETE, GET, PATCH, PUT, HEAD, OPTIONS"
    for path in ("/", "/health", "/openapi.json"):
        assert (await door.http.options(path)).headers["allow"] == "GET, HEAD, OPTIONS"
    answer = await door.exchange(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.code == 200


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("/echo/%zz", 400, "hexadecimal"),
        ("/echo%", 400, "hexadecimal"),
        ("/echo/%00", 400, "control"),
        ("/echo/%0d%0aset-cookie:a", 400, "control"),
        ("/echo/../store/read", 400, "'..'"),
        ("/echo/%2e%2e/store/read", 400, "'..'"),
        ("/echo/%c0%af", 400, "UTF-8"),
        ("/echo/%ed%a0%80", 400, "UTF-8"),
        ("/echo/%ff", 400, "UTF-8"),
        ("/" + "x" * 5000, 400, "4096"),
        ("/echo/caf%C3%A9", 404, "caf\u00e9"),
        ("/%65cho/call", 200, ""),
        ("/echo/call#fragment", 200, ""),
    ],
)
async def test_paths_as_they_come(door: Door, path: str, code: int, said: str) -> None:
    answer = await door.exchange(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.code == code
    if said:
        assert said in answer.json()["detail"]
    assert "set-cookie" not in answer.headers
    assert await door.alive()
