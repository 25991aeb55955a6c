"""Which backend a setting's URL chooses. One function per noun that has several."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from micro_ray.broker import Broker, Limits
from micro_ray.broker.memory import MemoryBroker
from micro_ray.errors import BadRequest
from micro_ray.events import Events
from micro_ray.events.sqlite import SqliteEvents
from micro_ray.finding import Examined, Finding
from micro_ray.registry import Registry
from micro_ray.registry.memory import MemoryRegistry
from micro_ray.settings import Settings
from micro_ray.store import Store
from micro_ray.store.memory import MemoryStore
from micro_ray.store.sqlite import SqliteStore

POSTGRES = ("postgres", "postgresql", "cockroach", "cockroachdb")

if TYPE_CHECKING:
    from micro_ray.registry.etcd import EtcdRegistry

__all__ = [
    "broker",
    "events",
    "examine",
    "open_broker",
    "open_events",
    "open_registry",
    "open_store",
    "registry",
]


@asynccontextmanager
async def open_registry(settings: Settings) -> AsyncIterator[Registry]:
    """``memory://`` (one actor only), ``etcd://...`` or ``etcds://...``, which need not be there
    yet: verbs say what they wait for."""
    async with registry(settings) as opened:
        yield opened


def registry(settings: Settings) -> MemoryRegistry | EtcdRegistry:
    """The registry that the settings name, not yet entered. Raises BadRequest."""
    given = settings.registry
    if given.url == "memory://":
        return MemoryRegistry()
    if given.url.startswith("memory:"):
        raise BadRequest("settings", "registry.url: nothing follows memory://")
    # Late: a platform without etcd need not load its client.
    from micro_ray.registry.etcd import EtcdRegistry
    from micro_ray.registry.etcd_url import Files, parse, trust

    place = parse(given.url)
    files = Files(authority=given.tls_ca, certificate=given.tls_cert, key=given.tls_key)
    if files != Files() and not place.tls:
        raise BadRequest(
            "settings", "registry.tls_...: files are given, but registry.url is not etcds://"
        )
    return EtcdRegistry(
        place,
        prefix=given.prefix,
        trust=trust(files) if place.tls else None,
        patience=given.patience,
    )


async def examine(settings: Settings) -> list[Finding]:
    """What is found of the servers without which a platform does not start, from here. Raises
    BadRequest."""
    found: list[Finding] = []
    async with registry(settings) as opened:
        if isinstance(opened, Examined):
            found += await opened.examine()
    if settings.store.url.partition("://")[0] in POSTGRES:
        from micro_ray.store.postgres_health import examine_url

        found += await examine_url(settings.store.url, settings.store.isolation)
    return found


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """``sqlite:///folder`` (blank: ``<state>/store``), ``memory://`` (one actor only), or
    ``postgres://``, ``postgresql://``, ``cockroach://`` and ``cockroachdb://`` with user, hosts and
    database, waited for until it is there. The URL may hold a password, and is in no error."""
    scheme, _, place = settings.store.url.partition("://")
    store: Store
    if scheme == "sqlite":
        path = urlsplit(f"sqlite://{place}").path
        store = SqliteStore(Path(path) if path.strip("/") else settings.state / "store")
    elif scheme in POSTGRES:
        # The driver is loaded by the processes that use it: each start of an actor would pay.
        from micro_ray.store.postgres import PostgresStore

        store = PostgresStore(settings.store.url, isolation=settings.store.isolation)
    elif scheme == "memory":
        if settings.pools.store > 1:
            raise BadRequest(
                "settings", "store.url memory:// lives in one process: set pools.store to 1"
            )
        store = MemoryStore()
    else:
        raise BadRequest(
            "settings",
            f"store.url: {scheme[:20]!r} is none of sqlite:///path, memory://, "
            "postgres://user:password@host/database and cockroach://user:password@host/database",
        )
    async with store:
        yield store


@asynccontextmanager
async def open_broker(settings: Settings) -> AsyncIterator[Broker]:
    """``memory://`` (one actor only), ``nats://...`` or ``tls://...``."""
    async with broker(settings) as opened:
        yield opened


def broker(settings: Settings) -> Broker:
    """The broker that the settings name, not yet entered. Raises BadRequest."""
    given = settings.broker
    limits = Limits(
        message=given.max_message,
        subscriptions=given.max_subscriptions,
        waiting=given.max_waiting,
        waiting_bytes=given.max_waiting_bytes,
        namespace_bytes=given.max_namespace_bytes,
    )
    if given.url == "memory://":
        return MemoryBroker(limits=limits)
    if given.url.startswith("memory:"):
        raise BadRequest("settings", "broker.url: nothing follows memory://")
    # Late: a platform without NATS need not load its client.
    from micro_ray.broker.nats import NatsBroker
    from micro_ray.nats_url import parse, tls_context

    place = parse(given.url)
    files = (given.tls_ca, given.tls_cert, given.tls_key)
    tls = tls_context(*files) if place.tls or any(files) else None

    def make(login: Mapping[str, Any]) -> NatsBroker:
        return NatsBroker(
            replace(place, login=login),
            prefix=given.prefix,
            limits=limits,
            tls=tls,
            patience=given.patience,
        )

    if not given.account_key:
        return make({})
    from micro_ray.broker.nats_spaces import NatsSpaces, login
    from micro_ray.nats_users import read

    account = read(given.account_key, given.account, "broker")
    return NatsSpaces(
        lambda namespace: make(login(account, given.prefix, namespace)), most=given.max_connections
    )


@asynccontextmanager
async def open_events(settings: Settings) -> AsyncIterator[Events]:
    """``sqlite:///folder`` (blank: ``<state>/events``), ``nats://...`` or ``tls://...``, which need
    not be there yet."""
    async with events(settings) as opened:
        yield opened


def events(settings: Settings) -> Events:
    """The events that the settings name, not yet entered. Raises BadRequest; the URL may hold a
    password, and is in no error."""
    given = settings.events
    ttl, max_size = given.ttl or None, given.max_size or None
    scheme, _, place = given.url.partition("://")
    if scheme == "sqlite":
        path = urlsplit(f"sqlite://{place}").path
        folder = Path(path) if path.strip("/") else settings.state / "events"
        return SqliteEvents(folder, ttl=ttl, max_size=max_size)
    if scheme not in ("nats", "tls"):
        raise BadRequest(
            "settings",
            f"events.url: {scheme[:20]!r} is none of sqlite:///path, "
            "nats://user:password@host:4222 and tls://user:password@host:4222",
        )
    # Late, as the broker's.
    from micro_ray.events.jetstream import JetStreamEvents
    from micro_ray.nats_url import parse, tls_context

    servers = parse(given.url, "events.url")
    if given.account_key:
        from micro_ray.events.jetstream_api import Names
        from micro_ray.nats_users import read

        account = read(given.account_key, given.account, "events")
        servers = replace(servers, login=Names(given.prefix).login(account))
    files = (given.tls_ca, given.tls_cert, given.tls_key)
    return JetStreamEvents(
        servers,
        prefix=given.prefix,
        replicas=given.replicas,
        ttl=ttl,
        max_size=max_size,
        tls=tls_context(*files, noun="events") if servers.tls or any(files) else None,
        patience=given.patience,
    )
