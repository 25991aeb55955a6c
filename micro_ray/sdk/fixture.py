"""The pytest plugin: fixture ``micro`` is a platform of the test's own, for code without ``await``.

It is loaded with pytest wherever micro-ray is installed, so it imports nothing before a test asks
for the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from micro_ray.sdk.town import Town

__all__ = ["micro"]


@pytest.fixture
def micro() -> Iterator[Town]:
    """A whole platform in this process, gone with the test: ``micro.serve(service)`` starts a
    service on it, ``micro.call(service, endpoint, value)`` and ``micro.client`` call it."""
    from micro_ray.sdk.town import Town

    with Town() as town:
        yield town
