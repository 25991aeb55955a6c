"""The config's face on frames, and the interface over a caller."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from micro_ray.config import (
    DEFAULT,
    Change,
    Config,
    Item,
    Rotation,
    Value,
    Version,
    checks,
)
from micro_ray.context import current
from micro_ray.errors import BadGateway, GatewayTimeout, NotFound, Unauthorized, Unavailable
from micro_ray.wire.closing import closing
from micro_ray.wire.config_kept import Kept, only
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.remote import LIVED, Caller, from_json, to_json

__all__ = ["RemoteConfig", "endpoints"]

NAME = "config"

#: Seconds that a watch looks for another node of config when the one it had has gone.
PATIENCE = 60.0
#: Seconds between its attempts: first, and at most.
BACKOFF = (0.02, 1.0)
#: What is checked before a value crosses; the service has the limit that counts.
_DEPTH = 64


def _by(claimed: str) -> str:
    """Who does it: the calling service, or whoever the caller says (accounts come later)."""
    return current().caller or claimed


class _Face:
    """The endpoints as methods; the namespace is the caller's."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._kept = Kept(config)

    async def get(
        self, path: str = "", at: int = 0, secret: bool = False, default: Any = None, by: str = ""
    ) -> Value:
        """What is at a path. With a default, that is given (version 0) when nothing is there."""
        space = current().namespace
        try:
            return await self._config.read(path, at=at, secret=secret, by=_by(by), namespace=space)
        except NotFound:
            if default is None:
                raise
        document = await self._config.version(namespace=space)
        return Value(path=path, data=default, version=0, document=document)

    async def list(self, path: str = "", secret: bool = False, by: str = "") -> dict[str, Any]:
        """The items at and below a path."""
        items = await self._config.items(
            path, secret=secret, by=_by(by), namespace=current().namespace
        )
        return {"items": items}

    async def set(
        self,
        path: str,
        value: Any,
        secret: bool = False,
        expected: int | None = None,
        by: str = "",
    ) -> dict[str, int]:
        """Put a value at a path. With expected only over that version of it (0: nothing)."""
        expected = only(expected, await self._kept.set(path, value))
        version = await self._config.set(
            path,
            value,
            secret=secret,
            expected=expected,
            by=_by(by),
            namespace=current().namespace,
        )
        return {"version": version}

    async def delete(self, path: str, expected: int | None = None, by: str = "") -> dict[str, int]:
        """Remove what is at a path."""
        expected = only(expected, await self._kept.delete(path))
        version = await self._config.delete(
            path, expected=expected, by=_by(by), namespace=current().namespace
        )
        return {"version": version}

    async def merge(
        self,
        value: Any,
        path: str = "",
        secret: bool = False,
        expected: int | None = None,
        by: str = "",
    ) -> dict[str, int]:
        """Merge a patch into what is at a path; null removes."""
        expected = only(expected, await self._kept.merge(path, value))
        version = await self._config.merge(
            path,
            value,
            secret=secret,
            expected=expected,
            by=_by(by),
            namespace=current().namespace,
        )
        return {"version": version}

    async def version(self) -> dict[str, int]:
        """The version of the document."""
        return {"version": await self._config.version(namespace=current().namespace)}

    async def history(
        self,
        path: str = "",
        limit: int = 100,
        before: int = 0,
        secret: bool = False,
        by: str = "",
    ) -> dict[str, Any]:
        """The newest versions that changed something at or below a path, newest first."""
        versions = await self._config.history(
            path,
            limit=limit,
            before=before,
            secret=secret,
            by=_by(by),
            namespace=current().namespace,
        )
        return {"versions": versions}

    async def diff(
        self, old: int, new: int = 0, path: str = "", secret: bool = False, by: str = ""
    ) -> dict[str, Any]:
        """What became of an old version in a new one (0: now)."""
        changes = await self._config.diff(
            old, new, path=path, secret=secret, by=_by(by), namespace=current().namespace
        )
        return {"changes": changes}

    async def rollback(
        self, version: int, path: str = "", expected: int | None = None, by: str = ""
    ) -> dict[str, int]:
        """Make what is at a path as it was in a version."""
        expected = only(expected, await self._kept.rollback(version, path))
        number = await self._config.rollback(
            version, path=path, expected=expected, by=_by(by), namespace=current().namespace
        )
        return {"version": number}

    async def watch(
        self, path: str = "", version: int = -1, secret: bool = False, by: str = ""
    ) -> AsyncIterator[Version]:
        """The versions after one (-1: from now on) that change something at or below a path."""
        watch = self._config.watch(
            path,
            version=None if version < 0 else version,
            secret=secret,
            by=_by(by),
            namespace=current().namespace,
        )
        async with closing(watch) as versions:
            async for item in versions:
                yield item

    async def rotate(self, by: str = "") -> Rotation:
        """Make a new key and seal all secrets with it. For the platform."""
        current().within("*")
        return await self._config.rotate(by=_by(by))


def endpoints(config: Config) -> Endpoints:
    """Service ``config``."""
    face, table = _Face(config), Endpoints(NAME)
    for name in (
        "get", "list", "set", "delete", "merge", "version", "history", "diff", "rollback",
        "watch", "rotate",
    ):  # fmt: skip
        table.add(f"Config.{name.title()}", getattr(face, name))
    return table


class RemoteConfig(Config):
    """The interface over a caller. Reads may be tried again on another node; writes only when they
    were surely not executed. A watch goes on at another node when its own has gone, and
    ends when it has found none for ``patience`` seconds."""

    def __init__(self, caller: Caller, *, patience: float = PATIENCE) -> None:
        self._caller = caller
        self._patience = patience

    async def _call(
        self, endpoint: str, request: Mapping[str, Any], namespace: str, *, safe: bool = False
    ) -> bytes:
        return await self._caller.call(
            NAME,
            f"Config.{endpoint}",
            to_json(request),
            metadata={"micro-namespace": namespace},
            idempotent=safe,
        )

    async def _write(self, endpoint: str, request: Mapping[str, Any], namespace: str) -> int:
        body = await self._call(endpoint, request, namespace)
        return from_json(body, dict[str, int], NAME)["version"]

    async def close(self) -> None:
        """The caller is not ours."""

    async def read(
        self,
        path: str = "",
        *,
        at: int = 0,
        secret: bool = False,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> Value:
        request = {"path": path, "at": at, "secret": secret, "by": by}
        return from_json(await self._call("Get", request, namespace, safe=True), Value, NAME)

    async def items(
        self, path: str = "", *, secret: bool = False, by: str = "", namespace: str = DEFAULT
    ) -> list[Item]:
        request = {"path": path, "secret": secret, "by": by}
        body = await self._call("List", request, namespace, safe=True)
        return from_json(body, dict[str, list[Item]], NAME)["items"]

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
        checks.data(data, checks.path(path), _DEPTH)
        request = {"path": path, "value": data, "secret": secret, "expected": expected, "by": by}
        return await self._write("Set", request, namespace)

    async def delete(
        self, path: str, *, expected: int | None = None, by: str = "", namespace: str = DEFAULT
    ) -> int:
        request = {"path": path, "expected": expected, "by": by}
        return await self._write("Delete", request, namespace)

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
        checks.data(patch, checks.path(path), _DEPTH)
        request = {"path": path, "value": patch, "secret": secret, "expected": expected, "by": by}
        return await self._write("Merge", request, namespace)

    async def version(self, *, namespace: str = DEFAULT) -> int:
        body = await self._call("Version", {}, namespace, safe=True)
        return from_json(body, dict[str, int], NAME)["version"]

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
        request = {"path": path, "limit": limit, "before": before, "secret": secret, "by": by}
        body = await self._call("History", request, namespace, safe=True)
        return from_json(body, dict[str, list[Version]], NAME)["versions"]

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
        request = {"old": old, "new": new, "path": path, "secret": secret, "by": by}
        body = await self._call("Diff", request, namespace, safe=True)
        return from_json(body, dict[str, list[Change]], NAME)["changes"]

    async def rollback(
        self,
        version: int,
        *,
        path: str = "",
        expected: int | None = None,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> int:
        request = {"version": version, "path": path, "expected": expected, "by": by}
        return await self._write("Rollback", request, namespace)

    async def watch(
        self,
        path: str = "",
        *,
        version: int | None = None,
        secret: bool = False,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> AsyncIterator[Version]:
        checks.number("version", version)
        if version is None:
            version = await self.version(namespace=namespace)
        failing, pause = 0.0, BACKOFF[0]
        while True:
            request = {"path": path, "version": version, "secret": secret, "by": by}
            begun = time.monotonic()
            try:
                async with contextlib.aclosing(self._watch(request, namespace)) as versions:
                    async for item in versions:
                        failing, pause, version = 0.0, BACKOFF[0], item.version
                        yield item
            except Unauthorized:
                if time.monotonic() < begun + LIVED:
                    raise  # the stream before ended with its token, and there is no other
                continue
            except (BadGateway, GatewayTimeout, Unavailable):
                failing = failing or time.monotonic()
                if time.monotonic() > failing + self._patience:
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, BACKOFF[1])

    async def _watch(
        self, request: Mapping[str, Any], namespace: str
    ) -> AsyncGenerator[Version, None]:
        """The versions as one node tells them."""
        opened = await self._caller.open(
            NAME, "Config.Watch", metadata={"micro-namespace": namespace}
        )
        async with opened as stream:
            await stream.send(to_json(request))
            await stream.end()
            while (message := await stream.receive()) is not None:
                yield from_json(message, Version, NAME)

    async def rotate(self, *, by: str = "") -> Rotation:
        return from_json(await self._call("Rotate", {"by": by}, DEFAULT), Rotation, NAME)
