"""config: one JSON document per namespace, addressed by dotted paths, with all its versions.

``git.credentials.github`` is a member of a member of a member; the blank path is the whole
document, which is always an object. Every write that changes something makes a **version** of the
document, numbered 1, 2, 3, ... Every path has a version too: the one that last changed something at
or below it. That is what compare-and-set compares, so writers of different paths do not hinder each
other.

A value may be **secret**: it is sealed before it is kept and is shown as :data:`MASK` wherever it
would appear, unless the caller asks for it; each such opening is logged. What is secret stays so
when it is written again, until it is deleted.

``stored.py`` keeps it in a store; ``sealing.py`` seals.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from micro_ray.errors import NotFound

__all__ = [
    "Action",
    "Change",
    "Config",
    "Item",
    "Kind",
    "Rotation",
    "Value",
    "Version",
]

DEFAULT = "micro"
#: What a secret is shown as.
MASK = "[secret]"
#: Characters of a path, and of one of its parts.
MAX_PATH = 512
MAX_PART = 64
#: Characters of the name of an author.
MAX_AUTHOR = 200
#: Versions in one answer of :meth:`Config.history`.
MAX_LISTED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What is at a path. ``version`` is the path's, to compare and set; ``document`` the
    document's, to watch from; both are the version asked for when an older one was.
    ``secrets`` are the paths in it that are secret."""

    path: str
    data: Any
    version: int
    document: int
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One value that is not an object with members (arrays are values)."""

    path: str
    data: Any
    version: int
    secret: bool = False


class Kind(StrEnum):
    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One item that is another than before; ``old`` is None where it was ADDED, ``new`` where it
    was REMOVED. ``secret`` if either is."""

    path: str
    kind: Kind
    old: Any = None
    new: Any = None
    secret: bool = False


class Action(StrEnum):
    SET = "set"
    DELETE = "delete"
    MERGE = "merge"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One write: ``time`` in seconds since 1970, ``path`` as it was given, ``changes`` by path."""

    version: int
    time: float
    author: str
    action: Action
    path: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """The id of the new key, and how many secrets are sealed with it now."""

    key: str
    sealed: int


class Config(abc.ABC):
    """The interface.

    Common to all verbs: BadRequest for paths whose parts are not letters, digits, ``_`` and ``-``
    between single dots, and for values that are not JSON; TooLarge for paths, values and documents
    over their limits, naming the limit; Unavailable when what keeps it does not answer.

    ``by`` is who does it, for the history and the log. ``expected`` compares before a write: None
    writes whatever is there, 0 only when nothing is, another number only over that version of the
    path; Conflict otherwise. Writes give the version of the document, also when it was as they
    wanted it and no version was made. A write may be made over one that another made meanwhile
    elsewhere in the document; Conflict with ``retry_after`` when too many others came first.

    ``secret`` of what reads opens the secrets. PreconditionFailed when the key of one is not there.
    """

    async def __aenter__(self) -> Config:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @abc.abstractmethod
    async def close(self) -> None:
        """End the watches; what was acknowledged is kept."""

    @abc.abstractmethod
    async def read(
        self,
        path: str = "",
        *,
        at: int = 0,
        secret: bool = False,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> Value:
        """What is at a path now, or was in version ``at``. Raises NotFound; the blank path is
        always there."""

    @abc.abstractmethod
    async def items(
        self, path: str = "", *, secret: bool = False, by: str = "", namespace: str = DEFAULT
    ) -> list[Item]:
        """The items at and below a path, by path. Empty when nothing is there."""

    @abc.abstractmethod
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
        """Put a value at a path in place of what is there; objects on the way are made. Raises
        PreconditionFailed when a value that is no object is on the way."""

    @abc.abstractmethod
    async def delete(
        self, path: str, *, expected: int | None = None, by: str = "", namespace: str = DEFAULT
    ) -> int:
        """Remove what is at a path. Not an error when nothing is, unless a version is expected."""

    @abc.abstractmethod
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
        """Merge a patch into what is at a path as JSON Merge Patch (RFC 7396) does: members of
        objects one by one, null removes, anything else replaces. ``secret`` is for what the
        patch brings."""

    @abc.abstractmethod
    async def version(self, *, namespace: str = DEFAULT) -> int:
        """The version of the document; 0 before the first write."""

    @abc.abstractmethod
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
        """The newest versions that changed something at or below a path, newest first: at most
        ``limit``, those below ``before`` if it is given, as far back as they are kept."""

    @abc.abstractmethod
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
        """What became of version ``old`` in version ``new`` (0: now), by path. Version 0 as the old
        one is the empty document. Raises NotFound for a version that has not been, Conflict for one
        that is no longer kept."""

    @abc.abstractmethod
    async def rollback(
        self,
        version: int,
        *,
        path: str = "",
        expected: int | None = None,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> int:
        """Make what is at a path as it was in a version, secrets too. It is a write like any other:
        what was between stays in the history. Raises as :meth:`diff`."""

    @abc.abstractmethod
    def watch(
        self,
        path: str = "",
        *,
        version: int | None = None,
        secret: bool = False,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> AsyncIterator[Version]:
        """The versions after ``version`` (None: after the newest) that change something at or below
        a path, with those changes: in order, each once, for ever, also through a restart of what
        keeps them. Raises Conflict when that version is no longer kept, or was never given: read
        all and watch from there."""

    @abc.abstractmethod
    async def rotate(self, *, by: str = "") -> Rotation:
        """Make a new key and seal the secrets of every namespace's document with it. Older versions
        stay sealed with the keys they were sealed with, which are kept."""

    # -- in terms of the above -------------------------------------------------------------------

    async def get(
        self,
        path: str = "",
        default: Any = None,
        *,
        secret: bool = False,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> Any:
        """The data at a path, ``default`` when nothing is there."""
        try:
            found = await self.read(path, secret=secret, by=by, namespace=namespace)
        except NotFound:
            return default
        return found.data
