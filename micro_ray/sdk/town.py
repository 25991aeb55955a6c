"""A platform for tests that are not async: the one of ``testing.py`` on a loop of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from micro_ray.sdk.blocking import Client
from micro_ray.sdk.loop import Loop
from micro_ray.sdk.service import Service
from micro_ray.sdk.testing import Here, knows, platform
from micro_ray.settings import Bootstrap

__all__ = ["Town"]

T = TypeVar("T")

#: Seconds that starting and stopping may take.
WAIT = 30.0


class Town:
    """A ``with``: entered, the platform is up; left, its services have stopped and it is gone.
    ``client`` is a blocking client of it. Tests may be async too: it has a thread of its own."""

    client: Client

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()

    def __enter__(self) -> Town:
        self._loop = Loop("platform")
        try:
            self._here = self._loop.run(self._stack.enter_async_context(platform()), WAIT)
        except BaseException:
            self._loop.close(self._stack.aclose)
            raise
        self.client = Client(self._here.bootstrap)
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        try:
            self._loop.run(self._stack.aclose(), WAIT)
        finally:
            self._loop.close()

    @property
    def bootstrap(self) -> Bootstrap:
        """Where this platform is, for a :class:`Client` or a :class:`Service` of one's own."""
        return self._here.bootstrap

    def serve(self, service: Service, instance: str = "") -> None:
        """Start a service; it is stopped with the platform. Returns when callers know it; raises
        what keeps it from starting."""
        self._loop.run(self._here.serve(service, instance), WAIT)
        namespace, node = self.bootstrap.namespace, service.node
        # It has a table of its own, which may be behind that of the platform's client.
        self.client.run(lambda client: knows(client, namespace, service.name, node))

    def call(self, service: str, endpoint: str = "call", value: Any = None, **options: Any) -> Any:
        """See :meth:`micro_ray.Client.call`."""
        return self.client.call(service, endpoint, value, **options)

    def stream(
        self, service: str, endpoint: str, value: Any = None, **options: Any
    ) -> Iterator[Any]:
        """See :meth:`micro_ray.Client.stream`."""
        return self.client.stream(service, endpoint, value, **options)

    def run(self, work: Callable[[Here], Awaitable[T]]) -> T:
        """Run ``work(here)`` on the platform's loop, for what has no verb of its own here."""
        return self._loop.run(work(self._here))
