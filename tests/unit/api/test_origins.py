"""Pages of a browser: CORS by setting, and no calls by pages of other origins."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from micro_ray.network.network import Network
from tests.unit.api.door import Door, open_door

pytestmark = pytest.mark.asyncio(loop_scope="package")

FRIEND, STRANGER = "https://app.example.org", "https://evil.example.org"


@pytest_asyncio.fixture(loop_scope="package")
async def friendly(network: Network) -> AsyncIterator[Door]:
    async with open_door(network, cors_origins=(FRIEND,)) as up:
        yield up


@pytest.mark.parametrize(
    "path",
    ["/echo", "/echo/fail?code=409", "/no/thing", "/streams/count", "/health", "/openapi.json"],
)
async def test_an_allowed_origin_may_read(friendly: Door, path: str) -> None:
    answer = await friendly.http.get(path, headers={"origin": FRIEND})
    assert answer.headers["access-control-allow-origin"] == FRIEND
    assert answer.headers["vary"] == "origin"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_preflight(friendly: Door, door: Door) -> None:
    asked = {"origin": FRIEND, "access-control-request-method": "PUT"}
    answer = await friendly.http.options("/users/5", headers=asked)
    assert answer.status_code == 200
    assert "PUT" in answer.headers["access-control-allow-methods"]
    assert "content-type" in answer.headers["access-control-allow-headers"]
    assert answer.headers["access-control-allow-origin"] == FRIEND
    for other, origin in ((friendly, STRANGER), (door, FRIEND)):
        answer = await other.http.options("/users/5", headers=asked | {"origin": origin})
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_caches_are_told_even_without_an_origin(friendly: Door) -> None:
    answer = await friendly.http.get("/echo")
    assert answer.headers["vary"] == "origin"
    assert "access-control-allow-origin" not in answer.headers


async def test_any_origin(network: Network) -> None:
    async with open_door(network, cors_origins=("*",)) as door:
        answer = await door.http.post("/echo/call", headers={"origin": STRANGER})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "vary" not in answer.headers
        answer = await door.http.get("/echo", headers={"sec-fetch-site": "cross-site"})
        assert answer.status_code == 200


async def test_without_the_setting_nothing_is_said(door: Door) -> None:
    answer = await door.http.get("/health", headers={"origin": FRIEND})
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": STRANGER},
        {"origin": "null"},
        {"origin": "http://127.0.0.1.evil.example.org"},
        {"origin": "http://localhost:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
)
async def test_a_page_of_another_origin_may_not_call(
    friendly: Door, headers: dict[str, str]
) -> None:
    """A browser sends such a request to this machine for any page it shows: as a form, an image,
    a link. Only the answer is kept from the page, and then it is too late."""
    for method, path in (("POST", "/echo/call"), ("GET", "/echo?name=x"), ("PUT", "/users/5"),
                         ("GET", "/streams/count"), ("HEAD", "/echo")):  # fmt: skip
        answer = await friendly.http.request(method, path, headers=headers)
        assert answer.status_code == 403, (method, path)
        if method != "HEAD":
            assert "api.cors_origins" in answer.json()["detail"]


async def test_an_endpoint_that_binds_get_may_be_linked_to(friendly: Door) -> None:
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": STRANGER}):
        answer = await friendly.http.get("/users/5", headers=headers)
        assert (answer.status_code, answer.json()["read"]) == (200, 5)
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("site", ["none", "same-origin"])
async def test_the_doors_own_pages_and_the_address_bar_may(door: Door, site: str) -> None:
    own = {"origin": f"http://127.0.0.1:{door.port}", "sec-fetch-site": site}
    assert (await door.http.post("/echo/call", headers=own)).status_code == 200
    assert (await door.http.get("/echo", headers={"sec-fetch-site": site})).status_code == 200


async def test_an_empty_host_is_no_origin(door: Door) -> None:
    sent = b"POST /echo/call HTTP/1.1\r\nHost:\r\nOrigin: null\r\nContent-Length: 0\r\n\r\n"
    assert (await door.exchange(sent)).code == 403


async def test_websockets_of_other_pages_are_refused(friendly: Door) -> None:
    """CORS does not cover them at all."""
    for path in ("/echo/call", "/users/5"):
        with pytest.raises(InvalidStatus) as raised:
            await connect(f"{friendly.ws}{path}", origin=STRANGER)  # type: ignore[arg-type]
        assert raised.value.response.status_code == 403
    for origin in (FRIEND, f"http://127.0.0.1:{friendly.port}", None):
        async with connect(f"{friendly.ws}/echo/call", origin=origin) as socket:  # type: ignore[arg-type]
            await socket.send("{}")
            assert await socket.recv() == '{"message":"Hello World"}'


#: A name that a page has made lead here is that page's own: browsers say nothing of another origin.
NAMED = ("evil.example.org", "evil.example.org:8080", "EVIL.example.org.", "127.0.0.1.evil.org")
OWN = ("localhost:8080", "127.0.0.1", "[::1]:8080", "10.1.2.3:8080", "app.localhost", "door", "")


@pytest.mark.parametrize("host", NAMED)
@pytest.mark.parametrize("page", [{}, {"sec-fetch-site": "same-origin"}])
async def test_a_name_of_somebody_elses_is_not_the_doors(
    door: Door, host: str, page: dict[str, str]
) -> None:
    for method in ("GET", "POST"):
        answer = await door.http.request(method, "/echo/call", headers={"host": host, **page})
        assert answer.status_code == 403
        assert "api.cors_origins" in answer.json()["detail"]


@pytest.mark.parametrize("host", OWN)
async def test_addresses_and_names_of_this_machine_are(door: Door, host: str) -> None:
    answer = await door.http.post("/echo/call", headers={"host": host})
    assert answer.status_code == 200, answer.text


async def test_a_name_that_is_an_allowed_origin_is(friendly: Door) -> None:
    answer = await friendly.http.post("/echo/call", headers={"host": "app.example.org"})
    assert answer.status_code == 200
    answer = await friendly.http.post("/echo/call", headers={"host": "other.example.org"})
    assert answer.status_code == 403
