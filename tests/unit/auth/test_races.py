"""Logins beside changes of the account, and guards whose source is away."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

import pytest

from micro_ray.auth.guard import Guard
from micro_ray.auth.passwords import Passwords
from micro_ray.auth.stored import StoredAuth
from micro_ray.errors import Unauthorized, Unavailable
from micro_ray.sealing import KeyFile
from micro_ray.store.memory import MemoryStore
from tests.fixtures.auths import ROOT, SETTINGS, over
from tests.fixtures.stores import Clock
from tests.fixtures.wait import PROMPT, eventually


class Slow(Passwords):
    """Proving waits until it is let go."""

    def __init__(self) -> None:
        super().__init__(memory=8, passes=1)
        self.proving = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def proves(self, secret: str, hashed: str | None) -> tuple[bool, bool]:
        answer = await super().proves(secret, hashed)
        self.proving.set()
        await self.go.wait()
        return answer


@pytest.mark.parametrize("change", ["secret", "disabled", "deleted"])
async def test_an_account_that_changes_while_one_logs_in(change: str) -> None:
    """However long that takes: what was proved is not what holds now."""
    with tempfile.TemporaryDirectory(prefix="ar-") as name:
        clock, slow = Clock(), Slow()
        async with (
            MemoryStore() as store,
            StoredAuth(
                store,
                KeyFile(Path(name) / "auth.keys", "auth"),
                settings=SETTINGS,
                passwords=slow,
                clock=clock,
            ) as auth,
        ):
            await auth.generate("jane", secret="the old one", by=ROOT)
            slow.go.clear()
            login = asyncio.create_task(auth.token("jane", "the old one"))
            await slow.proving.wait()
            if change == "secret":
                await auth.change_secret("jane", new="the new one", by=ROOT)
            elif change == "disabled":
                await auth.enable("jane", False, by=ROOT)
            else:
                await auth.delete("jane", by=ROOT)
            clock.now += 60
            slow.go.set()
            with pytest.raises(Unauthorized, match="just been changed"):
                await login


class Away(MemoryStore):
    """A store that can go away."""

    away = False

    async def revision(self, *, namespace: str = "micro") -> int:
        if self.away:
            raise Unavailable("store", "away")
        return await super().revision(namespace=namespace)


async def test_a_guard_whose_source_is_away_is_stale_and_goes_on() -> None:
    with tempfile.TemporaryDirectory(prefix="ar-") as name:
        clock = Clock()
        async with Away() as store, over(store, Path(name), clock) as auth:
            made = await auth.generate("jane", by=ROOT)
            tokens = await auth.token("jane", made.secret)
            guard = Guard(clock=clock)

            async def follow() -> None:
                async with contextlib.aclosing(auth.follow(by=ROOT)) as updates:  # type: ignore[type-var]
                    async for update in updates:
                        guard.apply(update)

            task = asyncio.create_task(follow())
            await eventually(lambda: guard.ready and not guard.stale, within=PROMPT)
            store.away = True
            # The watch is cut, as it is when a store's member dies.
            auth._feed._task.cancel()  # type: ignore[union-attr]
            auth._feed._task = asyncio.create_task(auth._feed._run())
            await eventually(lambda: guard.stale, within=PROMPT)
            assert guard.verify(tokens.access).id == "jane"
            store.away = False
            await eventually(lambda: not guard.stale, within=PROMPT)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
