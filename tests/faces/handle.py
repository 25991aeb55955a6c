"""Verbs on a Ray handle, and a world for each test: an actor is shared, so namespaces of a test are
others at the actor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import ray
from ray.exceptions import RayError, RayTaskError

from micro_ray.errors import MicroError, make

__all__ = ["Handle"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: Longest name that is mapped: a longer one is refused as it is.
_LONGEST = 50
#: Seconds within which a stream that is left must have ended.
LEAVING = 5.0


class Space:
    """Namespaces of a test at the actor, and back. What is no name of a namespace stays what it
    is, to be refused."""

    def __init__(self) -> None:
        self.mark = f"t{os.urandom(4).hex()}-"

    def to(self, namespace: str) -> str:
        if len(namespace) > _LONGEST or not _NAME.fullmatch(namespace):
            return namespace
        return self.mark + namespace

    def back(self, error: RayTaskError) -> BaseException:
        """What an actor raised, in the words of the test."""
        cause = error.cause
        match cause:
            case MicroError():
                detail = cause.detail.replace(self.mark, "")
                return make(cause.code, cause.id, detail, cause.retry_after)
            case BaseException():
                return cause
        return error


class Handle:
    """The verbs of an actor of the platform that this process has joined. Errors are the
    platform's own, as the actor raised them. ``credential`` gives the access token of who calls,
    and is set when the process joins."""

    credential: ClassVar[Callable[[], str]]

    def __init__(self, name: str) -> None:
        self.space = Space()
        self._actor = ray.get_actor(name, namespace="micro")

    def _remote(self, verb: str, *args: Any, **options: Any) -> Any:
        options["credential"] = Handle.credential()
        return getattr(self._actor, verb).remote(*args, **options)

    async def call(self, verb: str, *args: Any, **options: Any) -> Any:
        try:
            return await self._remote(verb, *args, **options)
        except RayTaskError as error:
            raise self.space.back(error) from None

    async def stream(self, verb: str, *args: Any, **options: Any) -> AsyncIterator[Any]:
        """The items of a verb that streams; it has ended when this is left."""
        items = self._remote(verb, *args, **options)
        try:
            async for item in items:
                yield await item
        except RayTaskError as error:
            raise self.space.back(error) from None
        finally:
            ray.cancel(items)
            # What the verb held is given back by its end, which comes after the answer to this.
            with contextlib.suppress(RayError, TimeoutError):
                async with asyncio.timeout(LEAVING):
                    async for _ in items:
                        pass
