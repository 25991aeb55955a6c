"""Who follows something for longer than his access token lives goes on with the next one."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from micro_ray import AsyncClient
from micro_ray.auth.tokens import LEEWAY
from micro_ray.errors import Unauthorized
from micro_ray.sdk.authority import ITSELF
from micro_ray.sdk.logins import Login, Logins
from micro_ray.sdk.testing import Here, platform
from micro_ray.settings import Auth as Settings
from micro_ray.wire.config import RemoteConfig
from micro_ray.wire.events import RemoteEvents
from tests.fixtures.wait import eventually

#: Seconds that a token lives here.
TTL = 1.5


class Counting(AsyncClient):
    """Counts the streams that are opened, by endpoint."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.opened: collections.Counter[str] = collections.Counter()

    async def open(self, service: str, endpoint: str, *args: Any, **options: Any) -> Any:
        self.opened[endpoint] += 1
        return await super().open(service, endpoint, *args, **options)


@pytest.fixture
async def here() -> AsyncIterator[Here]:
    async with platform(Settings(access_ttl=TTL)) as up:
        yield up


async def logged_in(here: Here, path: Path) -> Counting:
    """As an administrator, whose login is renewed when it must."""
    assert here.authority is not None
    made = await here.authority.login("follower", scopes=("admin",))
    login = Login(id="follower", namespace="micro", access=made.access, expires=made.expires,
                  refresh=made.refresh)  # fmt: skip
    Logins(path).write("here", login)
    return Counting(replace(here.bootstrap, credentials=path, place="here", token=""))


async def test_what_is_followed_goes_on_with_the_next_token(here: Here, tmp_path: Path) -> None:
    platform = await here.network("events")  # whose calls nothing ends
    events, config = RemoteEvents(platform), RemoteConfig(platform)
    async with await logged_in(here, tmp_path / "credentials.json") as me:
        seen: dict[str, list[Any]] = {"alone": [], "group": [], "config": []}

        async def consume(name: str, group: str) -> None:
            async for given in RemoteEvents(me).consume("t", group, start="beginning"):
                seen[name].append(int(given.event.payload))

        async def watch() -> None:
            async for version in RemoteConfig(me).watch("a", version=0):
                seen["config"].append(version.changes[0].new)

        following = [
            asyncio.create_task(each)
            for each in (consume("alone", ""), consume("group", "g"), watch())
        ]
        sent = 0

        def thrice() -> bool:
            return min(me.opened["Events.Consume"] / 2, me.opened["Config.Watch"]) >= 2

        async with asyncio.timeout(6 * (TTL + LEEWAY)):
            while not thrice():
                sent += 1
                await events.publish("t", str(sent).encode())
                await config.set("a", sent)
                await asyncio.sleep(0.05)
        all_of_them = list(range(1, sent + 1))
        await eventually(lambda: all(set(each) == set(all_of_them) for each in seen.values()))
        # The group may be given again what it had not settled; the others miss and repeat nothing.
        assert seen["alone"] == seen["config"] == all_of_them
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


async def test_one_who_may_no_more_is_told(here: Here, tmp_path: Path) -> None:
    assert here.authority is not None
    async with await logged_in(here, tmp_path / "credentials.json") as me:
        given = RemoteEvents(me).consume("t", start="beginning")
        versions = RemoteConfig(me).watch("a", version=0)
        waiting = [asyncio.ensure_future(anext(aiter(each))) for each in (given, versions)]
        await eventually(lambda: me.opened.total() == 2)
        await asyncio.sleep(1.1)  # streams that lived
        await here.authority.auth.enable("follower", False, by=ITSELF)
        for each in waiting:
            with pytest.raises(Unauthorized):
                await asyncio.wait_for(each, 10)
