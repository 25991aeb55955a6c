"""What the OpenAPI document of a door says is so: schemathesis finds nothing.

``MICRO_SURFACE`` is how many requests of each kind are made for each operation (default 6);
``./scripts/surface`` makes more. The door is asked within this process, all platform services
included, so that streams can be left when they go on for ever.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest
import pytest_asyncio

from tests.security.asking import ask
from tests.security.guarded import Guarded, guarded
from tests.security.shapes import shapes
from tests.security.survey import Survey
from tests.security.test_refusals import PUBLIC

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Requests for each operation that are valid, and as many that are not.
EXAMPLES = int(os.environ.get("MICRO_SURFACE", "6"))
#: Seconds after which a client leaves a stream that goes on.
WITHIN = 0.2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at() -> AsyncIterator[Guarded]:
    async with guarded() as found:
        yield found


@pytest.mark.timeout(60 + EXAMPLES * 20)
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
async def test_what_the_document_says_is_so() -> None:
    async with guarded() as at:  # of its own: what it makes are rules too
        await at.here.serve(shapes())
        await surveyed(at)


async def surveyed(at: Guarded) -> None:
    tokens = await at.authority.login("surveyor", scopes=("admin",))
    head = {"authorization": f"Bearer {tokens.access}"}
    document = (await at.http.get("/openapi.json", headers=head)).json()
    loop = asyncio.get_running_loop()

    def asked(method: str, url: str, heads: Mapping[str, str], body: bytes) -> httpx.Response:
        """From the thread in which hypothesis makes its examples."""
        coming = ask(at.api, method, url, {**heads, **head}, body, WITHIN)
        return asyncio.run_coroutine_threadsafe(coming, loop).result()

    survey = Survey(document=document, ask=asked, examples=EXAMPLES)
    await asyncio.to_thread(survey.run)
    assert not survey.wrong, "\n".join(f"{key}: {why}" for key, why in survey.wrong.items())
    operations = sum(len(path) for path in document["paths"].values())
    assert len(survey.codes) == operations > 100
    # It is about what the services say, not about how they refuse.
    answered = sum(200 in codes for codes in survey.codes.values())
    assert answered > operations / 2


async def test_nobody_is_asked_who_he_is_first(at: Guarded) -> None:
    """401 for every operation of the document, but those that all may call; those are what the
    document shows to nobody."""
    tokens = await at.authority.login("reader", scopes=("admin",))
    head = {"authorization": f"Bearer {tokens.access}"}
    document = (await at.http.get("/openapi.json", headers=head)).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            service, _, endpoint = operation["operationId"].partition("-")[0].partition(".")
            if f"{service}:{endpoint}" in PUBLIC:
                continue
            answer = await at.http.request(method, path.replace("{", "").replace("}", ""))
            assert answer.status_code in (401, 400), operation["operationId"]
            assert answer.status_code == 401 or "{" in path, answer.text
    shown = (await at.http.get("/openapi.json")).json()["paths"]
    names = {op["operationId"].partition("-")[0] for ops in shown.values() for op in ops.values()}
    assert names == {name.replace(":", ".", 1) for name in PUBLIC}


async def test_a_method_that_there_is_not(at: Guarded) -> None:
    """405, and which there are."""
    tokens = await at.authority.login("methodical", scopes=("admin",))
    head = {"authorization": f"Bearer {tokens.access}"}
    document = (await at.http.get("/openapi.json", headers=head)).json()
    for path, operations in document["paths"].items():
        answer = await at.http.request("TRACE", path, headers=head)
        assert answer.status_code == 405, path
        allowed = answer.headers["allow"].split(", ")
        assert {method.upper() for method in operations} <= set(allowed), path
