"""A write from the newest document to the next, over whatever others write meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from micro_ray.config import Action
from micro_ray.config.document import Document, Edit, Entry, Leaf, commit, tree
from micro_ray.config.records import Head, Records
from micro_ray.errors import BadGateway, Conflict, GatewayTimeout, MicroError, Timeout, Unavailable
from micro_ray.sealing import Keys
from micro_ray.settings import Config as Limits

__all__ = ["Make", "Write", "Writer"]

log = logging.getLogger(__name__)

#: How often a write is made again when another came first, and the longest pause between.
ATTEMPTS = 50
PAUSE = 0.2
#: What says that the store may or may not have written.
_UNKNOWN = (BadGateway, GatewayTimeout, Timeout)
#: How often a write looks again for what became of it, in pauses up to a second: about four.
LOOKS = 8

#: What a write makes of a document: the tree to put in its place.
Make = Callable[[Document, dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """What is to be written; ``make`` may be called more than once."""

    action: Action
    path: str
    author: str
    expected: int | None
    make: Make


class Writer:
    """Writers of one process come one after the other, so that only other processes can be
    first. ``written`` is told each entry once the store has it."""

    def __init__(
        self,
        records: Records,
        limits: Limits,
        clock: Callable[[], float],
        written: Callable[[str, Entry], None],
    ) -> None:
        self._records = records
        self._limits = limits
        self._clock = clock
        self._written = written
        self._turns: dict[str, asyncio.Lock] = {}

    async def write(self, namespace: str, write: Write) -> int:
        """The version of the document after it. Raises Conflict when the path is not of the
        expected version or others came first too often, and what the store raised when it cannot be
        found out whether it has written (BadGateway, Timeout)."""
        async with self._turns.setdefault(namespace, asyncio.Lock()):
            return await self._write(namespace, write)

    async def _write(self, namespace: str, write: Write) -> int:
        trace = _Trace(id=secrets.token_hex(8))
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(random.uniform(0, min(PAUSE, 0.001 * 2**attempt)))
            try:
                head = await self._records.head(namespace)
                if await self._landed(namespace, head, trace):
                    return trace.sent
                document, changes = await _made(write, head, self._limits)
            except (*_UNKNOWN, Unavailable):
                if trace.unknown is None:
                    raise  # nothing has been sent
                await trace.wait()
                continue
            if not changes:
                return head.document.version
            entry = self._entry(write, document, changes, trace.id)
            try:
                await self._records.write(namespace, head, document, entry)
            except Conflict:
                continue
            except _UNKNOWN as error:
                trace.unknown, trace.sent = error, document.version
                await trace.wait()
                continue
            self._written(namespace, entry)
            return document.version
        raise trace.unknown or _crowded()

    async def _landed(self, namespace: str, head: Head, trace: _Trace) -> bool:
        """Whether what was sent without an answer is there. Another in its place means that it is
        not and will not be: the document it was to replace is gone."""
        if trace.unknown is None or head.document.version < trace.sent:
            return False
        entry = await self._records.entry(namespace, trace.sent)
        if entry.id == trace.id:
            return True
        trace.unknown = None
        return False

    def _entry(self, write: Write, document: Document, changes: list[Edit], id: str) -> Entry:
        return Entry(
            id=id,
            version=document.version,
            time=self._clock(),
            author=write.author,
            action=write.action.value,
            path=write.path,
            changes=changes,
        )

    async def reseal(self, namespace: str, keys: Keys) -> int:
        """Seal the secrets of the newest document with the newest key; how many there are. It is
        the same document: no version is made of it. Those whose key is lost stay as they are."""
        async with self._turns.setdefault(namespace, asyncio.Lock()):
            for attempt in range(ATTEMPTS):
                if attempt:
                    await asyncio.sleep(random.uniform(0, min(PAUSE, 0.001 * 2**attempt)))
                head = await self._records.head(namespace)
                leaves, sealed = _resealed(namespace, head.document, keys)
                if not sealed:
                    return 0
                document = Document(
                    version=head.document.version, leaves=leaves, branches=head.document.branches
                )
                with contextlib.suppress(Conflict):
                    await self._records.reseal(namespace, head, document)
                    return sealed
        raise _crowded()


@dataclass(slots=True, kw_only=True)
class _Trace:
    """What is known of a write whose answer did not come: ``unknown`` says so, ``sent`` is the
    version it would have made."""

    id: str
    sent: int = 0
    unknown: MicroError | None = None
    looks: int = 0

    async def wait(self) -> None:
        """Pause before looking again. Raises ``unknown`` when it has been looked often enough."""
        self.looks += 1
        if self.looks > LOOKS and self.unknown is not None:
            raise self.unknown
        await asyncio.sleep(min(1.0, 0.02 * 2**self.looks))


async def _made(write: Write, head: Head, limits: Limits) -> tuple[Document, list[Edit]]:
    """The next document and its changes; none when it is as it should be. Raises Conflict when the
    path is not of the expected version."""
    document = head.document
    found = document.at(write.path)
    if write.expected is not None and write.expected != found:
        have = f"version {found}" if found else "nothing"
        want = f"version {write.expected}" if write.expected else "nothing"
        raise Conflict("config", f"{write.path!r}: {want} expected, {have} found")
    root = await write.make(document, tree(document.leaves))
    return commit(document, root, limits) or (document, [])


def _resealed(namespace: str, document: Document, keys: Keys) -> tuple[dict[str, Leaf], int]:
    leaves = dict(document.leaves)
    sealed = 0
    for path, leaf in document.leaves.items():
        if not leaf.sealed:
            continue
        try:
            text = keys.open(namespace, path, leaf.value)
        except MicroError as error:
            log.warning("%s: not sealed anew: %s", namespace, error)
            continue
        leaves[path] = Leaf(leaf.version, keys.seal(namespace, path, text), True)
        sealed += 1
    return leaves, sealed


def _crowded() -> Conflict:
    return Conflict(
        "config",
        f"others wrote first {ATTEMPTS} times in a row; nothing was written, try again",
        1.0,
    )
