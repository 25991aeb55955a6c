"""The platform with a service that has one of everything."""

from __future__ import annotations

import pytest

from micro_ray.sdk.testing import Here
from tests.unit.sdk.services import Everything


@pytest.fixture
async def every(here: Here) -> Everything:
    every = Everything()
    await here.serve(every.service, "node-1")
    return every
