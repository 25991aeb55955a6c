"""Fixtures of all tests. ``server`` is one platform on Ray, shared by the tests marked ``cluster``
that leave it as they found it; ``here`` is a platform inside the test's own process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from unittest import mock

import pytest

from bench import stack
from micro_ray.sdk.testing import Here, platform
from tests.fixtures import postgres as servers

#: Set to 0, Ray takes 127.0.0.1 as it is given.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Ray reads these once, when it is loaded: with them, this process can join a platform's.
with mock.patch.dict(os.environ, {LOOPBACK: "0", "RAY_AUTH_MODE": "token"}):
    import ray


@pytest.fixture(scope="session")
def server() -> Iterator[stack.Server]:
    with stack.server() as up:
        yield up


@pytest.fixture(scope="session")
def joined(server: stack.Server) -> Iterator[None]:
    """This process on the platform's Ray, for calls on handles."""
    with mock.patch.dict(os.environ, stack.joining(server)):
        ray.init(logging_level="error", log_to_driver=False)
    from tests.faces.handle import Handle  # which loads Ray

    Handle.credential = stack.Credential(server)
    yield
    ray.shutdown()


@pytest.fixture
async def here() -> AsyncIterator[Here]:
    async with platform() as up:
        yield up


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    """One PostgreSQL for the tests that leave it running and their schemas apart."""
    with servers.server() as up:
        yield up
