"""The follower that keeps a guard up to date, from the auth caches or from auth itself, and what a
cache follows auth by."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from micro_ray.auth import Update
from micro_ray.auth.guard import Guard
from micro_ray.auth.known import join
from micro_ray.errors import BadGateway, MicroError, NotFound, Timeout, Unavailable
from micro_ray.network import Call, Dialer, Peer, Refused, Stream
from micro_ray.wire.remote import decode, encode
from micro_ray.wire.schema import MSGPACK

__all__ = ["Credential", "Informer", "Line", "members"]

log = logging.getLogger(__name__)

#: What is said along with a request to follow: who asks.
Credential = Callable[[], Mapping[str, str]]

CACHE, AUTH = "AuthCache.Follow", "Auth.Follow"
#: Seconds between attempts when nobody answers: first, and at most.
BACKOFF = (0.01, 0.1)
#: Seconds that one has for a connection, and for everything to come.
DIAL, FIRST = 1.0, 5.0
#: Seconds between looks whether a cache is back, while auth itself is followed.
RETURN = 1.0
#: Seconds to stay with who is out of reach of the source: while another may not be, and when none
#: was better.
PATIENCE = (0.5, 10.0)
#: Seconds that who knows less than the guard does is asked again, before it is believed: the
#: source may have been set back.
BEHIND = 1.0


class Line:
    """A stream of updates."""

    def __init__(self, stream: Stream, peer: Peer | None = None) -> None:
        self._stream = stream
        self._peer = peer
        self._first: Update | None = None

    @classmethod
    async def open(
        cls,
        dialer: Dialer,
        address: str,
        credential: Credential | None,
        namespace: str | None = None,
        mark: str = "",
    ) -> Line:
        """Follow who listens at an address, a cache or auth. Raises a MicroError when it does not
        begin to tell."""
        metadata = {} if credential is None else credential()
        request = {"namespace": namespace, "mark": mark}
        names = (CACHE, AUTH) if "authcache" in address else (AUTH, CACHE)
        try:
            async with asyncio.timeout(FIRST):
                peer = await dialer.dial(address, timeout=DIAL)
                try:
                    for name in names:
                        with contextlib.suppress(NotFound, Refused):
                            return await cls._begin(peer, name, metadata, request)
                    raise Unavailable("auth", f"neither auth nor a cache of it is at {address}")
                except BaseException:
                    await peer.close()
                    raise
        except TimeoutError:
            raise Timeout("auth", f"{address} tells nothing within {FIRST:g} s") from None

    @classmethod
    async def _begin(
        cls, peer: Peer, endpoint: str, metadata: Mapping[str, str], request: Mapping[str, Any]
    ) -> Line:
        service = endpoint.partition(".")[0].lower()
        head = Call(service=service, endpoint=endpoint, content=MSGPACK, metadata=metadata)
        line = cls(await peer.open(head), peer)
        await line.ask(request)
        first = await line.receive()
        if first is None:
            raise BadGateway("auth", "a follower was told nothing")
        line._first = first
        return line

    async def ask(self, request: Mapping[str, Any]) -> None:
        await self._stream.send(encode(request))
        await self._stream.end()

    async def receive(self) -> Update | None:
        """The next, None at the end. Raises the stream's error."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        parts: list[Update] = []
        while (message := await self._stream.receive()) is not None:
            parts.append(decode(message, Update, "auth"))
            if not parts[-1].more:
                return join(parts)
        return None

    async def close(self) -> None:
        self._stream.cancel()
        if self._peer is not None:
            await self._peer.close()


def members(
    dialer: Dialer,
    addresses: Sequence[str],
    credential: Credential | None = None,
    elsewhere: Callable[[], AsyncIterator[Update]] | None = None,
) -> Callable[[], AsyncIterator[Update]]:
    """What a cache follows: the first of the auth members at some addresses that answers, from
    another one each time; then ``elsewhere``."""
    turn = 0

    async def follow() -> AsyncIterator[Update]:
        nonlocal turn
        turn, begin = turn + 1, turn % max(1, len(addresses))
        error: MicroError | None = None
        for address in (*addresses[begin:], *addresses[:begin]):
            try:
                line = await Line.open(dialer, address, credential)
            except MicroError as raised:
                error = raised
                continue
            try:
                while (update := await line.receive()) is not None:
                    yield update
            finally:
                await line.close()
            return
        if elsewhere is None:
            raise error or Unavailable("auth", "no address of auth is known")
        async with contextlib.aclosing(elsewhere()) as updates:  # type: ignore[type-var]
            async for update in updates:
                yield update

    return follow


class Informer:
    """An ``async with`` that keeps ``guard`` as auth has it: by the first of ``addresses`` that
    answers, caches before auth itself, and again by a cache when one is back.

    It never raises: with nobody in reach the guard goes on with what it knows, stale, and attempts
    go on. ``ready`` is set once everything has come, be it old. ``credential`` says who asks, anew
    for each connection; ``namespace`` is whose rules the guard needs (None: of all that he may).
    """

    def __init__(
        self,
        dialer: Dialer,
        addresses: Sequence[str],
        guard: Guard,
        *,
        credential: Credential | None = None,
        namespace: str | None = None,
    ) -> None:
        self._dialer = dialer
        caches = [address for address in addresses if "authcache" in address]
        random.shuffle(caches)  # those of a machine share its guards
        self._caches = tuple(caches)
        self._addresses = (*caches, *(a for a in addresses if a not in caches))
        self._guard = guard
        self._credential = credential
        self._namespace = namespace
        self._task: asyncio.Task[None] | None = None
        self._open: set[Line] = set()
        #: Who is followed: what another one says is not applied.
        self._line: Line | None = None
        #: Those in a row that were out of reach of the source.
        self._stale = 0
        #: Since when all know less than the guard.
        self._behind: float | None = None
        self.ready = asyncio.Event()

    async def __aenter__(self) -> Informer:
        self._task = asyncio.create_task(self._run(), name="auth-informer")
        return self

    async def __aexit__(self, *exc: object) -> None:
        task, self._task = self._task, None
        if task is not None:
            await _ended(task)
            for line in tuple(self._open):
                await self._close(line)

    async def _run(self) -> None:
        pause = BACKOFF[0]
        while True:
            for address in self._addresses:
                line = await self._try(address)
                cache = address in self._caches
                while line is not None:
                    line = await self._hold(line, cache=cache)
                    cache = True  # whom it goes on with is one
                if not self._guard.stale:
                    pause = BACKOFF[0]
                self._guard.apply(Update(revision=self._guard.revision, stale=True))
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, BACKOFF[1])

    async def _try(self, address: str) -> Line | None:
        try:
            mark = self._guard.mark if self._guard.ready else ""
            line = await Line.open(self._dialer, address, self._credential, self._namespace, mark)
        except MicroError as error:
            log.debug("auth at %s: %s", address, error)
        except Exception:
            log.exception("auth at %s", address)
        else:
            self._open.add(line)
            return line
        return None

    async def _close(self, line: Line) -> None:
        self._open.discard(line)
        await line.close()

    async def _hold(self, line: Line, *, cache: bool) -> Line | None:
        """Follow a line until it ends, or another is better: that one, then. Closes it."""
        self._line = line
        self._guard.aside = False
        tasks = [asyncio.create_task(self._read(line))]
        if not cache and self._caches:
            tasks.append(asyncio.create_task(self._return()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _ended(*tasks)
            await self._close(line)
        better, self._line = self._line, None
        return None if better is line else better

    async def _read(self, line: Line) -> None:
        """Apply what a line says, until it ends or is not worth following."""
        patience: float | None = None
        try:
            while True:
                async with asyncio.timeout(patience):
                    update = await line.receive()
                if update is None or line is not self._line or not self._take(update):
                    return
                patience = self._patience() if update.stale else None
        except TimeoutError:
            log.debug("auth is out of reach of who is followed")
        except MicroError as error:
            log.debug("auth is followed no more: %s", error)
        except Exception:
            log.exception("following auth")

    def _take(self, update: Update) -> bool:
        """Apply an update. False when its sender knows less than the guard, and may be asked again
        or be passed over for another."""
        if update.full and not update.stale and update.revision < self._guard.revision:
            now = time.monotonic()
            self._behind = now if self._behind is None else self._behind
            if now - self._behind < BEHIND:
                return False
        if self._guard.aside and not update.full and not update.stale:
            return False  # it is back, and may go on from the mark
        self._guard.apply(update)
        if update.stale:
            self._stale += 1
        else:
            self._stale, self._behind = 0, None
        if self._guard.ready:
            self.ready.set()
        return True

    def _patience(self) -> float:
        """While one that is not out of reach of the source may be found, not long; when all have
        been asked, for a while, as nobody is helped by going round."""
        each = PATIENCE[0] if self._stale <= len(self._addresses) else PATIENCE[1]
        return each * random.uniform(0.5, 1)

    async def _return(self) -> None:
        """Look for a cache that knows as much as the guard, and follow it from there: in between
        nothing is missed, as the line that is held goes on until then."""
        while True:
            await asyncio.sleep(RETURN * random.uniform(0.5, 1))
            for address in self._caches:
                line = await self._try(address)
                if line is None:
                    continue
                found = False
                try:
                    async with asyncio.timeout(FIRST):
                        found = await self._caught_up(line)
                except (MicroError, TimeoutError) as error:
                    log.debug("the cache at %s: %s", address, error)
                finally:
                    if not found:
                        await self._close(line)
                if found:
                    return

    async def _caught_up(self, line: Line) -> bool:
        told: list[Update] = []
        whole = False
        while (update := await line.receive()) is not None and not update.stale:
            told.append(update)
            whole = whole or update.full or update.resumed
            if whole and update.revision >= self._guard.revision:
                self._guard.aside = False
                for update in told:
                    self._guard.apply(update)
                self._line = line
                return True
        return False


async def _ended(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
