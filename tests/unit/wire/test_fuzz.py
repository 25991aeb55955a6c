"""Whole connections fed with anything: they never raise, never break the rules themselves, and
leave nothing behind (tests/fuzz)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import guided
from tests.fuzz.run import MACHINES, Inputs


@pytest.fixture(scope="module")
def inputs() -> Iterator[Inputs]:
    with Inputs() as opened:
        yield opened


@pytest.mark.parametrize("name", MACHINES)
@given(data=st.binary(max_size=400))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_connection_survives_anything(inputs: Inputs, name: str, data: bytes) -> None:
    inputs.run(name, data)


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed: pip install -e '.[fuzz]' (./scripts/fuzz runs for longer)",
)
@pytest.mark.parametrize("name", MACHINES)
def test_a_short_guided_run(name: str) -> None:
    assert "edges covered" in guided(name, 1)
