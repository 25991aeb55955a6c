"""The part of a namespace's config that its own administrators may read and not change: the limits
and quotas of the namespace as a whole (``limits.namespace``, ``limits.store``, ...)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from micro_ray.config import Config
from micro_ray.context import current
from micro_ray.errors import Conflict, Forbidden, NotFound
from micro_ray.limits import WHOLE
from micro_ray.limits.rules import ROOT

__all__ = ["Kept", "only"]


class Kept:
    """Asked before each write by who does not act in every namespace. Each raises Forbidden for one
    that would change what is kept, and gives the version that is to be expected at the path, where
    the write is allowed for what is there now alone."""

    def __init__(self, config: Config) -> None:
        self._config = config

    async def set(self, path: str, value: Any) -> int | None:
        if not self._above(path):
            return None
        if path == "":
            value = value.get(ROOT) if isinstance(value, Mapping) else None
        return await self._same(path, _kept(value))

    async def merge(self, path: str, patch: Any) -> int | None:
        if not self._above(path):
            return None
        if path == "" and isinstance(patch, Mapping):
            patch = patch.get(ROOT, {})
        if not isinstance(patch, Mapping):
            return await self._same(path, {})
        for word in _kept(patch):
            _refuse(word)
        return None

    async def delete(self, path: str) -> int | None:
        return await self._same(path, {}) if self._above(path) else None

    async def rollback(self, version: int, path: str) -> int | None:
        if not self._above(path):
            return None
        if version == 0:  # before the first
            return await self._same(path, {})
        try:
            then = await self._config.read(ROOT, at=version, namespace=current().namespace)
        except NotFound:
            return await self._same(path, {})
        return await self._same(path, _kept(then.data))

    def _above(self, path: str) -> bool:
        """Whether a write at a path, by who is bound, may reach what is kept from above. Raises
        Forbidden for one that does so from within."""
        if current().whose is None:
            return False
        root, _, rest = path.partition(".")
        word = rest.partition(".")[0]
        if root == ROOT and word in WHOLE:
            _refuse(word)
        return path in ("", ROOT)

    async def _same(self, path: str, after: Mapping[str, Any]) -> int:
        """The version at a path at which what is kept stays as it is."""
        try:
            found = await self._config.read(path, namespace=current().namespace)
        except NotFound:
            found = None
        data = None if found is None else found.data
        if path == "":
            data = data.get(ROOT) if isinstance(data, Mapping) else None
        before = _kept(data)
        for word in {**before, **after}:
            if before.get(word) != after.get(word):
                _refuse(word)
        return 0 if found is None else found.version


def only(asked: int | None, found: int | None) -> int | None:
    """The version to expect where the caller asks for one and the write was allowed over one.
    Raises Conflict when they are not the same."""
    if found is None or asked is None or asked == found:
        return asked if found is None else found
    raise Conflict("config", f"version {asked} is expected and {found} is there")


def _refuse(word: str) -> NoReturn:
    raise Forbidden("config", f"{ROOT}.{word} is set by who keeps the platform")


def _kept(limits: Any) -> dict[str, Any]:
    """Of what is at ``limits`` that which is kept."""
    if not isinstance(limits, Mapping):
        return {}
    return {word: value for word, value in limits.items() if word in WHOLE}
