"""Fixtures of all tests. ``server`` is one platform on Ray, shared by the tests marked ``cluster``
that leave it as they found it; ``here`` is a platform inside the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from bench import stack
from micro_ray.sdk.testing import Here, platform
from tests.fixtures import postgres as servers


@pytest.fixture(scope="session")
def server() -> Iterator[stack.Server]:
    with stack.server() as up:
        yield up


@pytest.fixture
async def here() -> AsyncIterator[Here]:
    async with platform() as up:
        yield up


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    """One PostgreSQL for the tests that leave it running and their schemas apart."""
    with servers.server() as up:
        yield up
