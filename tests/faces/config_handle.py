"""Config by its actor's handle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from micro_ray.config import Change, Config, Item, Rotation, Value, Version
from tests.faces.handle import Handle
from tests.faces.rows import Rows

__all__ = ["ROWS", "HandleConfig"]

_LIMITS = "the limits of a platform are its settings'"
_WHO = "who does it is who calls, whatever he says"

ROWS = Rows(
    verbs={"close": "the actor is shared, it is not one test's to close"},
    fail={
        "test_every_write_is_told": "the clock of an actor is the machine's",
        "test_bad_authors": _WHO,
        "test_who_did_it_is_told": _WHO,
        "test_sizes": _LIMITS,
        "test_the_longest_path": _LIMITS,
        "test_the_history_is_bounded": _LIMITS,
        "test_every_opening_is_logged": "the log of an actor is another process's",
    },
    dear={
        "test_rotation": "the secrets of every namespace are counted, also of other tests'",
        "test_no_update_is_lost": "many tries of a slow store; tried over frames",
    },
)


class HandleConfig(Config):
    """The interface over ``ray.get_actor("config", namespace="micro")``."""

    def __init__(self) -> None:
        self._handle = Handle("config")

    async def _call(self, verb: str, *args: Any, namespace: str = "micro", **options: Any) -> Any:
        space = self._handle.space.to(namespace)
        return await self._handle.call(verb, *args, namespace=space, **options)

    async def close(self) -> None:
        ROWS.lacks("close")

    async def get(self, path: str = "", default: Any = None, **options: Any) -> Any:
        return await self._call("get", path, default, **options)

    async def read(self, path: str = "", **options: Any) -> Value:
        return await self._call("read", path, **options)

    async def items(self, path: str = "", **options: Any) -> list[Item]:
        return await self._call("items", path, **options)

    async def set(self, path: str, data: Any, **options: Any) -> int:
        return await self._call("set", path, data, **options)

    async def delete(self, path: str, **options: Any) -> int:
        return await self._call("delete", path, **options)

    async def merge(self, path: str, patch: Any, **options: Any) -> int:
        return await self._call("merge", path, patch, **options)

    async def version(self, **options: Any) -> int:
        return await self._call("version", **options)

    async def history(self, path: str = "", **options: Any) -> list[Version]:
        return await self._call("history", path, **options)

    async def diff(self, old: int, new: int = 0, **options: Any) -> list[Change]:
        return await self._call("diff", old, new, **options)

    async def rollback(self, version: int, **options: Any) -> int:
        return await self._call("rollback", version, **options)

    def watch(
        self, path: str = "", *, namespace: str = "micro", **options: Any
    ) -> AsyncIterator[Version]:
        space = self._handle.space.to(namespace)
        return self._handle.stream("watch", path, namespace=space, **options)

    async def rotate(self, *, by: str = "") -> Rotation:
        return await self._handle.call("rotate", by=by)
