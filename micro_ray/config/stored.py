"""Config kept in a store: what the store promises of its writes, this promises of its own.

Any number of instances, in any processes, may stand on one store. A write reads the newest
document, changes it and puts it back over exactly that version, with its entry of the history, in
one transaction; when another came first it is made again over what that one left.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from micro_ray.config import (
    DEFAULT,
    Action,
    Change,
    Config,
    Item,
    Rotation,
    Value,
    Version,
    checks,
)
from micro_ray.config.document import (
    Document,
    Edit,
    Entry,
    Node,
    Sealing,
    below,
    dressed,
    find,
    merged,
    plain,
    put,
    remove,
    tree,
)
from micro_ray.config.feed import Feed
from micro_ray.config.records import Records
from micro_ray.config.showing import Shown, shown_changes
from micro_ray.config.writing import Make, Write, Writer
from micro_ray.errors import Conflict, NotFound, Unavailable
from micro_ray.sealing import KeyFile
from micro_ray.settings import Config as Limits
from micro_ray.store import Store

__all__ = ["StoredConfig"]

log = logging.getLogger(__name__)


class StoredConfig(Config):
    """``space`` is the namespace of the store that holds all of it; ``clock`` is wall-clock
    seconds."""

    def __init__(
        self,
        store: Store,
        keys: KeyFile,
        *,
        limits: Limits | None = None,
        space: str = DEFAULT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._limits = limits or Limits()
        self._records = Records(store, space, self._limits.history)
        self._keys = keys
        self._writer = Writer(self._records, self._limits, clock, self._offer)
        self._feeds: dict[str, Feed] = {}
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        for feed in self._feeds.values():
            feed.close()

    # -- reading ---------------------------------------------------------------------------------

    def _check(self, namespace: str, by: str) -> None:
        if self._closed:
            raise Unavailable("config", "the config is closed")
        checks.namespace(namespace)
        checks.author(by)

    async def read(
        self,
        path: str = "",
        *,
        at: int = 0,
        secret: bool = False,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> Value:
        parts = checks.path(path)
        checks.number("at", at)
        self._check(namespace, by)
        document = (await self._records.head(namespace)).document
        leaves = document.leaves
        if at:
            leaves = await self._records.leaves(namespace, document, at)
        chosen = {p: leaf for p, leaf in leaves.items() if below(p, path)}
        node = find(tree(chosen), parts)
        if node is None:
            when = f" in version {at}" if at else ""
            raise NotFound("config", f"nothing at {path!r}{when}")
        shown = await self._shown("read", secret, by, namespace)
        return Value(
            path=path,
            data=plain(node, path, shown),
            version=at or document.at(path),
            document=at or document.version,
            secrets=tuple(sorted(p for p, leaf in chosen.items() if leaf.sealed)),
        )

    async def _shown(self, verb: str, secret: bool, by: str, namespace: str) -> Shown:
        keys = await self._keys.keys() if secret else None
        return Shown(keys, verb=verb, by=by, namespace=namespace)

    async def items(
        self, path: str = "", *, secret: bool = False, by: str = "", namespace: str = DEFAULT
    ) -> list[Item]:
        checks.path(path)
        self._check(namespace, by)
        document = (await self._records.head(namespace)).document
        shown = await self._shown("list", secret, by, namespace)
        return [
            Item(path=p, data=shown(p, leaf), version=leaf.version, secret=leaf.sealed)
            for p, leaf in sorted(document.leaves.items())
            if below(p, path)
        ]

    async def version(self, *, namespace: str = DEFAULT) -> int:
        self._check(namespace, "")
        return (await self._records.head(namespace)).document.version

    async def history(
        self,
        path: str = "",
        *,
        limit: int = 100,
        before: int = 0,
        secret: bool = False,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> list[Version]:
        checks.path(path)
        checks.page(limit, before)
        self._check(namespace, by)
        newest = await self.version(namespace=namespace)
        newest = min(newest, before - 1) if before else newest
        shown = await self._shown("history", secret, by, namespace)
        found: list[Version] = []
        async with contextlib.aclosing(self._records.back(namespace, newest)) as entries:
            while len(found) < limit and (entry := await anext(entries, None)) is not None:
                changes = shown_changes(entry.changes, path, shown)
                if changes:
                    found.append(_version(entry, changes))
        return found

    async def diff(
        self,
        old: int,
        new: int = 0,
        *,
        path: str = "",
        secret: bool = False,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> list[Change]:
        checks.path(path)
        checks.number("old", old)
        checks.number("new", new)
        self._check(namespace, by)
        document = (await self._records.head(namespace)).document
        before = await self._records.leaves(namespace, document, old)
        after = await self._records.leaves(namespace, document, new or document.version)
        edits: list[Edit] = [
            (p, before.get(p), after.get(p)) for p in sorted(before.keys() | after.keys())
        ]
        shown = await self._shown("diff", secret, by, namespace)
        return list(shown_changes(edits, path, shown))

    async def watch(
        self,
        path: str = "",
        *,
        version: int | None = None,
        secret: bool = False,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> AsyncIterator[Version]:
        checks.path(path)
        checks.number("version", version)
        self._check(namespace, by)
        if version is None:
            version = await self.version(namespace=namespace)
        else:
            await self._check_given(version, namespace)
        feed = self._feeds.setdefault(namespace, Feed(self._records, namespace))
        try:
            async with contextlib.aclosing(feed.watch(version)) as entries:
                async for entry in entries:
                    shown = await self._shown("watch", secret, by, namespace)
                    changes = shown_changes(entry.changes, path, shown)
                    if changes:
                        yield _version(entry, changes)
        finally:
            if feed.idle and self._feeds.get(namespace) is feed:
                del self._feeds[namespace]

    async def _check_given(self, version: int, namespace: str) -> None:
        """Raises Conflict for a version that was never given. Not while the store is away: a watch
        that goes on waits for it."""
        with contextlib.suppress(Unavailable):
            newest = await self.version(namespace=namespace)
            if version > newest:
                raise Conflict(
                    "config",
                    f"version {version} was never given; the newest of {namespace} is {newest}",
                )

    # -- writing ---------------------------------------------------------------------------------

    async def set(
        self,
        path: str,
        data: Any,
        *,
        secret: bool = False,
        expected: int | None = None,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> int:
        parts = self._given(path, data)

        async def make(document: Document, root: dict[str, Any]) -> dict[str, Any]:
            sealing = await self._sealing(namespace, document, path, secret)
            node = dressed(path, data, find(root, parts), secret, sealing)
            return put(root, parts, node)

        return await self._write(Action.SET, path, make, expected, by, namespace)

    def _given(self, path: str, data: Any) -> tuple[str, ...]:
        parts = checks.path(path)
        checks.data(data, parts, self._limits.max_depth)
        return parts

    async def delete(
        self, path: str, *, expected: int | None = None, by: str = "", namespace: str = DEFAULT
    ) -> int:
        parts = checks.path(path)

        async def make(document: Document, root: dict[str, Any]) -> dict[str, Any]:
            return remove(root, parts)

        return await self._write(Action.DELETE, path, make, expected, by, namespace)

    async def merge(
        self,
        path: str,
        patch: Any,
        *,
        secret: bool = False,
        expected: int | None = None,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> int:
        parts = self._given(path, patch)

        async def make(document: Document, root: dict[str, Any]) -> dict[str, Any]:
            sealing = await self._sealing(namespace, document, path, secret)
            node = merged(path, find(root, parts), patch, secret, sealing)
            return remove(root, parts) if node is None else put(root, parts, node)

        return await self._write(Action.MERGE, path, make, expected, by, namespace)

    async def rollback(
        self,
        version: int,
        *,
        path: str = "",
        expected: int | None = None,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> int:
        parts = checks.path(path)
        checks.number("version", version)

        async def make(document: Document, root: dict[str, Any]) -> dict[str, Any]:
            leaves = await self._records.leaves(namespace, document, version)
            node: Node | None = find(tree(leaves), parts)
            return remove(root, parts) if node is None else put(root, parts, node)

        return await self._write(Action.ROLLBACK, path, make, expected, by, namespace)

    async def _sealing(
        self, namespace: str, document: Document, path: str, secret: bool
    ) -> Sealing | None:
        """How to seal for a write to ``path``; None when nothing secret is asked for or there, so
        that config without secrets needs no keys."""
        if not secret and not any(
            leaf.sealed and (below(p, path) or below(path, p))
            for p, leaf in document.leaves.items()
        ):
            return None
        keys = await self._keys.keys()
        return Sealing(
            lambda path, text: keys.seal(namespace, path, text),
            lambda path, sealed: keys.open(namespace, path, sealed),
        )

    async def _write(
        self,
        action: Action,
        path: str,
        make: Make,
        expected: int | None,
        by: str,
        namespace: str,
    ) -> int:
        checks.number("expected", expected)
        self._check(namespace, by)
        write = Write(action=action, path=path, author=by, expected=expected, make=make)
        return await self._writer.write(namespace, write)

    def _offer(self, namespace: str, entry: Entry) -> None:
        """Spare the watchers of this process the way through the store."""
        feed = self._feeds.get(namespace)
        if feed is not None:
            feed.offer(entry)

    # -- keys ------------------------------------------------------------------------------------

    async def rotate(self, *, by: str = "") -> Rotation:
        self._check(DEFAULT, by)
        keys = await self._keys.rotate()
        log.info("config key rotated key=%s by=%s", keys.newest, by or "unknown")
        sealed = 0
        for namespace in await self._records.namespaces():
            sealed += await self._writer.reseal(namespace, keys)
        return Rotation(key=keys.newest, sealed=sealed)


def _version(entry: Entry, changes: tuple[Change, ...]) -> Version:
    return Version(
        version=entry.version,
        time=entry.time,
        author=entry.author,
        action=Action(entry.action),
        path=entry.path,
        changes=changes,
    )
