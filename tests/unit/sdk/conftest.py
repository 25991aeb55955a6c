"""The platform with a service that has one of everything."""

from __future__ import annotations

import pytest

from micro_ray.sdk.testing import Here
from tests.unit.sdk.services import Everything


@pytest.fixture
def leaving() -> float:
    """How long a node that has left is called still; tests that lose calls otherwise say so."""
    return 0.001


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, leaving: float) -> None:
    monkeypatch.setattr("micro_ray.wire.host.LEAVING", leaving)


@pytest.fixture
async def every(here: Here) -> Everything:
    every = Everything()
    await here.serve(every.service, "node-1")
    return every
