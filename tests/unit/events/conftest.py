"""A clock that passes when told to."""

from __future__ import annotations

import pytest

from tests.fixtures.stores import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
