"""Keeps a process's credential fresh."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable

from micro_ray.certs import Credential, Issued
from micro_ray.certs.keys import new_key, signing_request
from micro_ray.errors import MicroError, Unavailable

__all__ = ["Renewal"]

log = logging.getLogger(__name__)

#: Seconds between looks at the wall clock, which may jump; and between attempts that fail: first,
#: and at most.
LOOK = 30.0
BACKOFF = (1.0, 60.0)
#: Seconds that one attempt may take.
ATTEMPT = 10.0

#: Gives a certificate for a signing request, from wherever this process has it.
Issue = Callable[[bytes], Awaitable[Issued]]


class Renewal:
    """An ``async with``: entered, ``credential`` is there; then it is renewed, each time with a new
    key, when about two thirds of its life are over, and ``use`` is told. While that fails the
    present one stays, and attempts go on.

    Entering raises what ``issue`` raises.
    """

    def __init__(
        self,
        issue: Issue,
        *,
        use: Callable[[Credential], None] | None = None,
        now: Callable[[], float] = time.time,
        look: float = LOOK,
    ) -> None:
        self._issue = issue
        self._use = use
        self._now = now
        self._look = look
        self._credential: Credential | None = None
        self._task: asyncio.Task[None] | None = None
        #: Why the last attempt failed, None when it did not.
        self.failure: str | None = None
        self.renewed = 0
        self._hurry = asyncio.Event()

    @property
    def credential(self) -> Credential:
        assert self._credential is not None, "not entered"
        return self._credential

    async def __aenter__(self) -> Renewal:
        await self._obtain()
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def hurry(self) -> None:
        """Renew now: whom to trust, or who signs, has changed."""
        self._hurry.set()

    async def examine(self) -> None:
        """Raises Unavailable when the credential could not be renewed in time."""
        if self.failure is not None:
            left = self.credential.issued.ends - self._now()
            raise Unavailable("certs", f"not renewed ({self.failure}); {left:.0f} s are left")

    async def _obtain(self) -> None:
        key = await asyncio.to_thread(new_key)
        async with asyncio.timeout(ATTEMPT):
            issued = await self._issue(signing_request(key))
        self._credential = credential = Credential(key=key, issued=issued)
        self.failure = None
        if self._use is not None:
            self._use(credential)

    async def _keep(self) -> None:
        while True:
            await self._due()
            pause = BACKOFF[0]
            while True:
                self._hurry.clear()
                try:
                    await self._obtain()
                    self.renewed += 1
                    break
                except (MicroError, TimeoutError, OSError) as error:
                    self.failure = str(error) or type(error).__name__
                    left = self.credential.issued.ends - self._now()
                    log.warning("identity not renewed, %.0f s left: %s", left, self.failure)
                except Exception as error:
                    self.failure = type(error).__name__
                    log.exception("identity not renewed")
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause = min(pause * 2, BACKOFF[1])

    async def _due(self) -> None:
        """Wait until two thirds are over, a tenth of it more or less; also when the clock jumps,
        either way. Less when there is a hurry."""
        issued = self.credential.issued
        life = issued.ends - issued.begins
        due = issued.begins + life * (2 / 3 + random.uniform(-1, 1) / 15)
        while issued.begins <= (now := self._now()) < due and not self._hurry.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(due - now, self._look)):
                    await self._hurry.wait()
