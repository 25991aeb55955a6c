"""Twice the load at which a service is saturated: who is let in is served as promptly as ever, the
others are refused at once, and when it is over all is as before.

The short form runs for 3 s and asks for what does not depend on the speed of the machine; the long
form, ``./scripts/overload [SECONDS]`` (default 60), is for one that has nothing else to do, and
asks for the figures.
"""

from __future__ import annotations

import os

import pytest

from tests.chaos.overload import overload

SECONDS = float(os.environ.get("MICRO_CHAOS_OVERLOAD", "3"))


@pytest.mark.timeout(SECONDS + 120)
async def test_twice_the_saturation() -> None:
    outcome = await overload(SECONDS)
    print(f"\n{outcome}")
    assert set(outcome.codes) == {200, 429}
    assert outcome.served >= 0.5 * outcome.saturation
    assert outcome.recovery <= 15
    if SECONDS >= 30:
        assert outcome.served >= 0.9 * outcome.saturation
        assert outcome.p99_served <= 0.25
        assert outcome.p99_refused <= 0.1
        assert outcome.recovery <= 5
