"""Streams that are open, and whether who opened them still may.

A call is decided when it comes. One that stays is decided again whenever something changed that
the guard knows (rules, revocations), and ends when the token of its caller does. Unary calls cost
nothing here; streams a place in a set and, where their caller's token ends, one in a heap with one
timer.

Many streams and many changes are no reason to hold the loop: changes that come together are looked
at once, in slices of a few milliseconds, and a few streams are ended at a time.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import NoReturn

from micro_ray.auth import Identity, Resource
from micro_ray.auth.tokens import LEEWAY
from micro_ray.errors import Forbidden, MicroError, Unauthorized

__all__ = ["Stay", "Stays"]

#: Seconds of looking before others have their turn, and streams that are ended in one turn: what
#: each of them does at its end takes longer than a look.
SLICE, ENDED = 0.002, 20
#: Seconds from the end of a look to the next: what changes meanwhile is looked at together.
REST = 0.04
#: Most seconds between looks at the clock: it may be set, or have gone on while the machine slept.
LOOK = 1.0
#: Streams that have ended and are still in the heap before it is made anew.
LITTLE = 100

#: Raises Unauthorized or Forbidden for who may no more.
Judge = Callable[["Stay"], None]


class Stay:
    """One open stream; leaving ``with`` says that it is closed. ``over`` is done, with the error
    that says why, once its caller may no more. ``identity`` None is nobody. ``resource`` None: only
    the token counts. ``spaces`` are the namespaces whose rules must let it be."""

    __slots__ = ("_stays", "identity", "over", "resource", "spaces", "until")

    def __init__(
        self,
        identity: Identity | None = None,
        resource: Resource | None = None,
        spaces: tuple[str, ...] = (),
        stays: Stays | None = None,
    ) -> None:
        self.identity = identity
        self.resource = resource
        self.spaces = spaces
        self.over: asyncio.Future[MicroError] = asyncio.get_running_loop().create_future()
        #: When the token has ended; a process renews its own, which its streams do not learn.
        self.until: float | None = None
        if identity is not None and identity.token and not identity.key:
            self.until = identity.expires + LEEWAY
        self._stays = stays

    def __enter__(self) -> Stay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()

    def leave(self) -> None:
        """It is closed."""
        if self._stays is not None:
            self._stays.leave(self)

    def also(self, namespace: str) -> None:
        """From now on the rules of another namespace must let it be as well."""
        if namespace not in self.spaces:
            self.spaces = (*self.spaces, namespace)

    def check(self) -> None:
        """Raises why it is over, if it is."""
        if self.over.done():
            raise self.over.result()

    async def ended(self) -> NoReturn:
        """Wait until it is over, and raise why."""
        await asyncio.wait([self.over])
        raise self.over.result()


class Stays:
    """Those of one guard, on one loop. ``judge`` decides; ``clock`` is wall-clock seconds."""

    def __init__(self, judge: Judge, clock: Callable[[], float] = time.time) -> None:
        self._judge = judge
        self._clock = clock
        self._open: set[Stay] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Those that wait for their look, whether one is under way or has just been, and whether
        #: something changed since it began.
        self._queue: list[Stay] = []
        self._looking = False
        self._again = False
        self._ends: list[tuple[float, int, Stay]] = []
        self._number = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, identity: Identity | None, resource: Resource | None, *spaces: str) -> Stay:
        """A stream that is opened now. Raises Unauthorized or Forbidden for who may not (any more:
        something may have changed since the call was let in)."""
        if identity is not None and not identity.token and identity.everywhere:
            return Stay(identity, resource, spaces)  # the platform itself: nothing takes that away
        stay = Stay(identity, resource, spaces, self)
        self._judge(stay)
        self._loop = stay.over.get_loop()
        self._open.add(stay)
        if stay.until is not None:
            self._await_end(stay, stay.until)
        return stay

    def leave(self, stay: Stay) -> None:
        """It is closed."""
        self._open.discard(stay)
        if len(self._ends) > 2 * len(self._open) + LITTLE:
            self._ends = [entry for entry in self._ends if entry[2] in self._open]
            heapq.heapify(self._ends)
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def changed(self) -> None:
        """Look at all of them soon: something that may decide is not as it was."""
        self._again = True
        if self._open and not self._looking and self._loop is not None:
            self._looking = True
            self._loop.call_soon(self._look)

    # -- looking ---------------------------------------------------------------------------------

    def _look(self) -> None:
        assert self._loop is not None
        if not self._again or not self._open:
            self._looking = False
            return
        self._again = False
        self._queue = list(self._open)
        self._slice()

    def _slice(self) -> None:
        assert self._loop is not None
        begun, ended = time.monotonic(), 0
        while self._queue:
            stay = self._queue.pop()
            if stay not in self._open:
                continue
            try:
                self._judge(stay)
            except (Unauthorized, Forbidden) as error:
                self._end(stay, error)
                ended += 1
            if ended >= ENDED or time.monotonic() > begun + SLICE:
                self._loop.call_soon(self._slice)
                return
        self._loop.call_later(REST, self._look)

    def _end(self, stay: Stay, error: MicroError) -> None:
        self._open.discard(stay)
        if not stay.over.done():
            stay.over.set_result(error)

    # -- the ends of tokens ------------------------------------------------------------------------

    def _await_end(self, stay: Stay, until: float) -> None:
        heapq.heappush(self._ends, (until, next(self._number), stay))
        if self._timer is None or self._ends[0][2] is stay:
            self._wait()

    def _wait(self) -> None:
        """For the first end."""
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._ends:
            left = min(max(0.0, self._ends[0][0] - self._clock()), LOOK)
            self._timer = self._loop.call_later(left, self._expire)

    def _expire(self) -> None:
        now, ended = self._clock(), 0
        while self._ends and self._ends[0][0] <= now and ended < ENDED:
            stay = heapq.heappop(self._ends)[2]
            if stay in self._open:
                self._end(stay, Unauthorized("auth", "the token has expired: log in again"))
                ended += 1
        self._wait()
