"""What the tests of the broker share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fixtures.nats import Cluster, cluster


@pytest.fixture
async def three() -> AsyncIterator[Cluster]:
    """Three servers of a test's own, which it may kill."""
    async with cluster() as up:
        yield up
