"""A cookie comes along with whatever a page makes a browser ask: it does not say whose page."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from micro_ray import Service
from micro_ray.api.app import Api
from micro_ray.settings import Api as ApiSettings
from tests.fixtures.wait import eventually
from tests.security.guarded import Guarded, guarded

pytestmark = pytest.mark.asyncio(loop_scope="module")

STRANGER, FRIEND = "https://evil.example.org", "https://app.example.org"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at() -> AsyncIterator[Guarded]:
    async with guarded() as found:
        reads = Service("reads")

        @reads.endpoint(path="/reads", method="GET")
        async def call() -> str:
            return "read"

        await found.here.serve(reads)
        await eventually(lambda: found.network.table.known("micro", "reads"))
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cookie(at: Guarded) -> dict[str, str]:
    tokens = await at.authority.login("browsing", scopes=("admin",))
    return {"cookie": f"a=b; micro-token={tokens.access}"}


#: What a browser says of a page, and what is answered to it with a cookie.
PAGES: tuple[tuple[dict[str, str], int], ...] = (
    ({}, 403),  # a GET to what is neither HTTPS nor this machine
    ({"origin": STRANGER}, 403),
    ({"origin": "null"}, 403),
    ({"sec-fetch-site": "cross-site"}, 403),
    ({"sec-fetch-site": "same-site"}, 403),
    ({"authorization": ""}, 403),
    ({"origin": "http://door"}, 200),
    ({"sec-fetch-site": "same-origin"}, 200),
    ({"sec-fetch-site": "none"}, 200),
)


@pytest.mark.parametrize(("page", "code"), PAGES)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_page_of_another_does_not_call_by_a_cookie(
    at: Guarded, cookie: dict[str, str], method: str, page: dict[str, str], code: int
) -> None:
    answer = await at.http.request(method, "/auth/accounts/list", headers={**cookie, **page})
    assert answer.status_code == code, answer.text


async def test_reads_may_be_linked_to(at: Guarded, cookie: dict[str, str]) -> None:
    assert (await at.http.get("/reads", headers=cookie)).status_code == 200


async def test_a_token_needs_no_page(at: Guarded, cookie: dict[str, str]) -> None:
    head = {"authorization": f"Bearer {cookie['cookie'].rpartition('=')[2]}", **cookie}
    assert (await at.http.get("/auth/accounts/list", headers=head)).status_code == 200


@pytest.mark.parametrize(("origin", "code"), [(STRANGER, 403), (FRIEND, 200)])
async def test_any_origin_is_not_any_cookie(
    at: Guarded, cookie: dict[str, str], origin: str, code: int
) -> None:
    """Who lets all pages call does not let them call as whoever reads them."""
    settings = ApiSettings(cors_origins=("*", FRIEND))
    table = at.network.table
    api = Api(at.network, table, settings, ready=lambda: True, visitors=at.api.visitors)
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://door") as http:
        head = {**cookie, "origin": origin}
        answer = await http.post("/auth/accounts/list", headers=head)
        assert answer.status_code == code, answer.text
