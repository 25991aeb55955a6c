"""How much of the drain timeout a door uses, and how much it leaves to Serve."""

from __future__ import annotations

import pytest

from micro_ray.serve.listener import drain_of


@pytest.mark.parametrize(
    ("timeout", "drain", "killed"),
    [(0, 0, 3), (0.5, 0, 3), (1, 0, 3), (2, 0, 3), (3, 0, 3), (3.5, 0.5, 3.5), (30, 27, 30)],
)
def test_a_door_is_done_before_it_is_killed(timeout: float, drain: float, killed: float) -> None:
    """Also with no time to finish anything: what it cuts off takes up to two seconds."""
    assert drain_of(timeout) == (drain, killed)
    assert killed - drain >= 3
