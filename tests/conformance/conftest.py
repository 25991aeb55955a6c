"""The subjects of the suites: every backend and every way to it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from micro_ray.config import Config
from micro_ray.registry import Registry
from micro_ray.store import Store
from tests.fixtures import configs, registries
from tests.fixtures.stores import OPENERS, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=sorted(OPENERS))
async def store(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Store]:
    # Not tmp_path: the name of a Unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="st-") as folder:
        async with OPENERS[request.param](Path(folder), clock) as opened:
            yield opened


@pytest.fixture(params=sorted(configs.OPENERS))
async def config(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Config]:
    with tempfile.TemporaryDirectory(prefix="cf-") as folder:
        async with configs.OPENERS[request.param](Path(folder), clock) as opened:
            yield opened


@pytest.fixture
def ticks() -> registries.Clock:
    return registries.Clock()


@pytest.fixture(params=sorted(registries.OPENERS))
async def registry(
    request: pytest.FixtureRequest, ticks: registries.Clock
) -> AsyncIterator[Registry]:
    with tempfile.TemporaryDirectory(prefix="rg-") as folder:
        async with registries.OPENERS[request.param](Path(folder), ticks) as opened:
            yield opened
