"""What a verb of a handle asks, without Ray: an actor's body whose trust is a platform's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import pytest_asyncio

from micro_ray.actors.member import Member
from micro_ray.actors.streams import streamed
from micro_ray.errors import Forbidden, Unauthorized, Unavailable
from micro_ray.sdk.authority import ITSELF
from micro_ray.sdk.testing import Here, platform
from micro_ray.settings import Auth as Settings
from micro_ray.wire.trust import Trust
from tests.fixtures.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Notes(Member):
    service = "notes"
    authored = frozenset(("keep",))
    unasked = frozenset(("about",))

    def __init__(self, trust: Trust | None) -> None:  # Ray's would open a backend
        self.trust = trust
        self.left = asyncio.Event()

    async def keep(self, text: str, *, by: str = "", **options: Any) -> tuple[str, str, Any]:
        return text, by, options

    @streamed()
    async def told(self, count: int) -> AsyncIterator[int]:
        try:
            for number in range(count):
                yield number
        finally:
            self.left.set()

    async def about(self) -> str:
        return "notes"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here() -> AsyncIterator[Here]:
    async with platform(Settings()) as up:
        assert up.trust is not None
        await up.trust.informer.ready.wait()
        yield up


async def token(here: Here, id: str, namespace: str = "micro", *scopes: str) -> str:
    assert here.authority is not None
    return (await here.authority.login(id, namespace, scopes=scopes)).access


async def refused(notes: Any, error: type[Exception], credential: Any, **options: Any) -> str:
    """Whatever the verb is."""
    said = set()
    with pytest.raises(error) as one:
        await notes.keep("a", credential=credential, **options)
    said.add(str(one.value))
    with pytest.raises(error) as two:
        await anext(notes.told(3, credential=credential))
    said.add(str(two.value))
    assert len(said) == 1
    return said.pop()


async def test_who_administers_the_platform_is_let_in(here: Here) -> None:
    notes = cast("Any", Notes(here.trust))
    boss = await token(here, "boss", "micro", "admin")
    assert await notes.keep("a", credential=boss, more=1) == ("a", "boss", {"more": 1})
    # Whoever he says that he is.
    assert (await notes.keep("a", by="another", credential=boss))[1] == "boss"
    assert [number async for number in notes.told(3, credential=boss)] == [0, 1, 2]


async def test_nobody_else_is(here: Here) -> None:
    notes = cast("Any", Notes(here.trust))
    assert "access token" in await refused(notes, Unauthorized, "")
    for wrong in (None, 7, "x", "a.b.c", b"x"):
        await refused(notes, Unauthorized, wrong)
    assert here.authority is not None
    made = await here.authority.login("boss2", scopes=("admin",))
    await refused(notes, Unauthorized, made.refresh)
    assert "administer" in await refused(notes, Forbidden, await token(here, "user"))
    await refused(notes, Forbidden, await token(here, "tenant", "acme", "admin"))
    await refused(notes, Forbidden, await token(here, "service", "micro", "service"))
    replica = here.authority.issuer.identity("replica-1", "micro").partition(" ")[0]
    assert "process" in await refused(notes, Unauthorized, replica)
    await here.authority.auth.revoke(token=made.access, by=ITSELF)

    async def revoked() -> bool:
        try:
            await notes.keep("a", credential=made.access)
        except Unauthorized:
            return True
        return False

    await eventually(revoked)


async def test_who_may_not_is_written_down(here: Here) -> None:
    assert here.trust is not None
    here.trust.denials.take(1000)
    await refused(cast("Any", Notes(here.trust)), Forbidden, await token(here, "curious"))
    told = here.trust.denials.take(1000)
    assert {(entry.by, entry.subject) for entry in told} >= {
        ("micro/curious", "notes:Notes.Keep"),
        ("micro/curious", "notes:Notes.Told"),
    }


async def test_before_anything_is_known_nobody_is_let_in(here: Here) -> None:
    assert here.authority is not None
    trust = Trust(here.authority.dialer("notes"), (), Settings(), platform="")
    boss = await token(here, "early", "micro", "admin")
    await refused(cast("Any", Notes(trust)), Unavailable, boss)


async def test_without_accounts_nobody_asks() -> None:
    notes = cast("Any", Notes(None))
    assert await notes.keep("a", by="me") == ("a", "me", {})
    assert [number async for number in notes.told(2)] == [0, 1]


async def test_what_is_not_asked_is_not(here: Here) -> None:
    assert await Notes(here.trust).about() == "notes"


async def test_a_stream_that_is_left_ends_what_it_is_of(here: Here) -> None:
    notes = cast("Any", Notes(here.trust))
    stream = notes.told(100, credential=await token(here, "leaves", "micro", "admin"))
    assert await anext(stream) == 0
    await stream.aclose()
    assert notes.left.is_set()
