"""Who is not of a namespace is told no names of what is there, and cannot have much remembered."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from micro_ray.api import paths
from tests.security.guarded import Guarded, Verb, guarded

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at() -> AsyncIterator[Guarded]:
    async with guarded() as found:
        yield found


NEAR = (Verb(service="helowrld", endpoint="Helloworld.Call"),
        Verb(service="helloworld", endpoint="Helloworld.Calls"))  # fmt: skip


@pytest.mark.parametrize("verb", NEAR, ids=str)
@pytest.mark.parametrize("way", ["http", "grpc"])
async def test_no_names_are_told(at: Guarded, way: str, verb: Verb) -> None:
    """What is near to a name that there is not was said to everybody, of every namespace."""
    tokens = await at.authority.login(f"stranger-{way}-{verb.service}", "acme", scopes=("admin",))
    acme = {"authorization": f"Bearer {tokens.access}", "micro-namespace": "micro"}
    told = set()
    for head in ({}, {"micro-namespace": "micro"}, acme):
        code, said = await at.code(way, verb, head)
        assert code == 404
        told.add(said.partition("x-request-id")[0])
    (one,) = told
    assert "nothing of this name" in one
    own = await at.authority.login(f"own-{way}-{verb.service}")
    _, said = await at.code(way, verb, {"authorization": f"Bearer {own.access}"})
    assert "Helloworld.Call" in said or "/helloworld" in said


async def test_what_strangers_have_remembered_is_little(
    at: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may name any namespace, and spell a path in any way."""
    monkeypatch.setattr(paths, "STRANGERS", 5)
    for number in range(12):
        head = {"micro-namespace": f"n{number}"}
        assert (await at.http.post("/store/store/read", headers=head)).status_code == 401
    known = at.api._paths
    assert len(known._strange) <= 5
    assert known._strange["n11"]._most == paths.STRANGE < paths.CACHE
    assert not any(name.startswith("n1") for name in known._known)
