"""The subjects of the suites: every backend and every way to it. What a way cannot do is in its
rows (``tests/faces``)."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from micro_ray.auth import Auth
from micro_ray.broker import Broker
from micro_ray.config import Config
from micro_ray.events import Events
from micro_ray.registry import Registry
from micro_ray.store import Store
from tests.faces import rows
from tests.faces.table import FACES
from tests.faces.terminal import Zygote, zygote_process
from tests.fixtures import auths, brokers, configs, registries
from tests.fixtures import events as event_ways
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.etcd import server as etcd
from tests.fixtures.nats import NatsServer, jetstream
from tests.fixtures.nats import server as nats
from tests.fixtures.stores import NAMES, Clock, opener


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of a face as the rows of it say."""
    here = Path(__file__).parent
    for item in items:
        if item.path.parent != here or not isinstance(item, pytest.Function):
            continue
        noun = item.path.stem.removeprefix("test_").partition("_")[0]
        for way in rows.ways(item):
            rows.apply(FACES.get((noun, way), rows.Rows()), item, way)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Where the commands of the terminal's face come from."""
    with zygote_process() as up:
        yield up


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=NAMES)
async def store(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Store]:
    # Not tmp_path: the name of a Unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="st-") as folder:
        async with opener(request.param, request)(Path(folder), clock) as opened:
            yield opened


@pytest.fixture(params=auths.NAMES)
async def auth(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Auth]:
    with tempfile.TemporaryDirectory(prefix="au-") as folder:
        async with auths.opened(request.param, request, Path(folder), clock) as opened:
            yield opened


@pytest.fixture(params=configs.NAMES)
async def config(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Config]:
    with tempfile.TemporaryDirectory(prefix="cf-") as folder:
        async with configs.opener(request.param, request)(Path(folder), clock) as opened:
            yield opened


@pytest.fixture
def ticks() -> registries.Clock:
    return registries.Clock()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def etcd_server() -> AsyncIterator[EtcdServer]:
    """One for all tests that leave it as it is."""
    async with etcd() as up:
        yield up


@pytest.fixture
def etcd_behind(request: pytest.FixtureRequest) -> EtcdServer | None:
    """etcd for the ways that lead there; the others do without."""
    if "etcd" not in request.node.callspec.params["way"]:
        return None
    server: EtcdServer = request.getfixturevalue("etcd_server")
    return server


@pytest.fixture(params=registries.NAMES)
async def way(
    request: pytest.FixtureRequest, ticks: registries.Clock, etcd_behind: EtcdServer | None
) -> AsyncIterator[registries.Way]:
    with tempfile.TemporaryDirectory(prefix="rg-") as folder:
        opened = registries.opener(request.param, request)
        async with opened(Path(folder), ticks, etcd_behind) as way:
            yield way


@pytest.fixture
def registry(way: registries.Way) -> Registry:
    return way.registry


@pytest.fixture(params=registries.TIMED)
async def timed(request: pytest.FixtureRequest, ticks: registries.Clock) -> AsyncIterator[Registry]:
    """A registry whose time is ``ticks``."""
    with tempfile.TemporaryDirectory(prefix="rg-") as folder:
        async with registries.OPENERS[request.param](Path(folder), ticks, None) as way:
            yield way.registry


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats_server() -> AsyncIterator[NatsServer]:
    """One for all tests that leave it as it is."""
    async with nats() as up:
        yield up


@pytest.fixture(params=brokers.NAMES)
async def subject(
    request: pytest.FixtureRequest, nats_server: NatsServer
) -> AsyncIterator[brokers.Subject]:
    with tempfile.TemporaryDirectory(prefix="br-") as folder:
        way = brokers.opener(request.param, request)
        async with way(nats_server, Path(folder)) as opened:
            yield opened


@pytest.fixture
def broker(subject: brokers.Subject) -> Broker:
    return subject.broker


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def jet_server() -> AsyncIterator[NatsServer]:
    """One with JetStream for all tests that leave it running."""
    async with jetstream() as up:
        yield up


@pytest.fixture(params=event_ways.NAMES)
async def events(
    request: pytest.FixtureRequest, clock: Clock, jet_server: NatsServer
) -> AsyncIterator[Events]:
    with tempfile.TemporaryDirectory(prefix="ev-") as folder:
        way = event_ways.opener(request.param, request)
        async with way(Path(folder), clock, jet_server) as opened:
            yield opened


@pytest.fixture
def server_sizes(request: pytest.FixtureRequest) -> bool:
    """Whether sizes of topics are what a server counts, and not of payloads and metadata alone."""
    return request.node.callspec.params["events"] in event_ways.SERVER_SIZES
