"""Settings: frozen values with their defaults, and the only place that reads the environment and
``micro.toml``.

Order, later wins: the defaults here, ``micro.toml`` (``./micro.toml``, else
``<state>/micro.toml``, or the file named by ``MICRO_CONFIG``), environment variables
``MICRO_<SECTION>_<FIELD>`` (``MICRO_API_PORT=9000``; ``MICRO_<FIELD>`` for the top level; a blank
one is as good as none), and what the command line passes to :func:`load`.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import math
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from micro_ray.errors import BadRequest

__all__ = [
    "PLATFORM",
    "RAY_NAMESPACE",
    "Api",
    "Bootstrap",
    "Broker",
    "Certs",
    "Config",
    "Events",
    "Limits",
    "Network",
    "Pools",
    "Proxy",
    "Ray",
    "Registry",
    "Runtime",
    "Settings",
    "Store",
    "Wire",
    "bootstrap",
    "here",
    "load",
    "service_environ",
    "socket_path",
]

#: The namespace of Ray in which every actor of the platform has its name.
RAY_NAMESPACE = "micro"
#: Longest path of a Unix socket on Linux (``sun_path`` of 108 bytes less the final zero).
MAX_SOCKET_PATH = 107
#: The file under ``run`` with the public half of the platform's key.
PLATFORM_FILE = "platform.pub"
#: Where frames listen whom only this machine calls.
LOOPBACK = "127.0.0.1"

#: What numbers may be, both ends included; others from 0 to :data:`LARGEST`.
RANGES: Mapping[str, tuple[float, float]] = {
    "api.port": (1, 65_535),
    "api.serve_port": (0, 65_535),
    "api.replicas": (1, 1_000),
    "api.max_body": (1, 2**40),
    "api.max_headers": (1024, 2**24),
    "proxy.port": (0, 65_535),
    "proxy.replicas": (1, 1_000),
    "proxy.max_message": (1, 2**30),
    "proxy.max_metadata": (1024, 2**24),
    "proxy.max_streams": (1, 2**20),
    "proxy.max_in_flight": (1, 2**20),
    "proxy.timeout": (0.001, 30 * 86_400),
    "api.timeout": (0.001, 30 * 86_400),
    "api.max_in_flight": (1, 2**20),
    "api.header_timeout": (0.001, 86_400),
    "registry.ttl": (1, 3_600),
    "registry.patience": (0.1, 60),
    "store.max_value": (1, 2**30),
    "store.max_key": (1, 65_536),
    "broker.max_message": (1, 8 * 2**20),
    "broker.max_subscriptions": (1, 100_000),
    "broker.max_waiting": (1, 2**20),
    "broker.max_waiting_bytes": (1024, 2**30),
    "broker.max_namespace_bytes": (1024, 2**36),
    "broker.patience": (0, 60),
    "events.ttl": (0, 10**9),
    "events.max_size": (0, 2**50),
    "events.replicas": (0, 5),
    "events.patience": (0, 60),
    "config.max_value": (1, 2**20),
    "config.max_document": (1024, 2**21),
    "config.max_keys": (1, 20_000),
    "config.max_depth": (1, 32),
    "config.history": (1, 100_000),
    "auth.publish": (0, 3_600),
    "auth.password_memory": (8, 2**20),
    "auth.password_passes": (1, 100),
    "limits.rate": (0, 1_000_000),
    "limits.burst": (0, 10_000_000),
    "limits.concurrency": (0, 1_000_000),
    "limits.memory": (0.01, 1),
    "network.timeout": (0.001, 30 * 86_400),
    "network.dial_timeout": (0.001, 3_600),
    "network.retry_budget": (0, 10),
    "network.registry_port": (1, 65_472),
    "network.router_port": (1, 65_472),
    "network.auth_port": (1, 65_472),
    "network.certs_port": (1, 65_535),
    "certs.ttl": (60, 30 * 86_400),
    "certs.ticket_ttl": (10, 3_600),
    "wire.max_frame": (1024, 2**30),
    "wire.max_message": (1024, 2**31),
    "wire.max_header": (1024, 2**16),
    "wire.window": (1024, 2**31 - 1),
    "wire.max_streams": (1, 2**20),
    "wire.keepalive": (0.01, 3_600),
    "pools.certs": (1, 1),
    "pools.registry": (1, 64),
    "pools.router": (1, 64),
    "pools.network": (1, 64),
    "pools.store": (1, 64),
    "pools.broker": (1, 64),
    "pools.events": (1, 64),
    "pools.config": (1, 64),
    "pools.auth": (1, 64),
    "pools.authcache": (1, 64),
    "pools.limits": (1, 1),
    "pools.runtime": (1, 64),
    "runtime.max_source": (1, 2**40),
    "runtime.max_replicas": (1, 100_000),
    "runtime.start_timeout": (0.1, 86_400),
    "runtime.drain_timeout": (0, 86_400),
    "runtime.log_bytes": (4096, 2**40),
}
LARGEST = 2**53
#: What words may be.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "runtime.driver": ("ray", "process"),
    "ray.auth": ("token", "disabled"),
    "auth.mode": ("on", "off"),
    "network.tls": ("auto", "always", "never"),
    "store.isolation": ("auto", "server", "query"),
}

T = TypeVar("T", "Settings", "Bootstrap")

_NAMESPACE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The HTTP door. ``serve_port`` is Ray Serve's own HTTP route to the same app (0: none).

    ``max_headers`` are bytes of a request's head, which has ``header_timeout`` seconds to arrive;
    ``timeout`` bounds the body's arrival and a unary call. A client that takes nothing of its
    answer for ``stall_timeout`` seconds is cut off; a silent event stream says so every
    ``heartbeat`` seconds. Of hosts below ``domain`` the first label names the namespace
    (``acme.example.org``). ``cors_origins`` are the origins whose pages may call ("*": any).
    """

    host: str = "127.0.0.1"
    port: int = 8080
    serve_port: int = 8000
    replicas: int = 2
    max_body: int = 16 * 2**20
    max_headers: int = 64 * 2**10
    timeout: float = 30.0
    max_in_flight: int = 5000
    max_connections: int = 10_000
    header_timeout: float = 10.0
    stall_timeout: float = 60.0
    heartbeat: float = 15.0
    domain: str = ""
    cors_origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """The gRPC door, ``port`` 0: none. ``max_message`` and ``max_metadata`` are bytes of a message
    and of a call's metadata; ``max_streams`` are calls under way on one connection,
    ``max_in_flight`` on one replica; ``timeout`` bounds a unary call, in seconds."""

    host: str = "127.0.0.1"
    port: int = 8081
    replicas: int = 2
    max_message: int = 16 * 2**20
    max_metadata: int = 32 * 2**10
    max_streams: int = 1000
    max_in_flight: int = 5000
    timeout: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """``url``: ``memory://``, ``etcd://user:password@a:2379,b:2379`` or ``etcds://...`` (TLS);
    ``prefix`` is that of the keys there, ``tls_...`` are files (blank: what the system trusts).
    ``ttl``: seconds that a node is known without a sign of life; ``patience``: seconds that a verb
    waits for etcd."""

    url: str = "memory://"
    ttl: float = 30.0
    prefix: str = "micro"
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    patience: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """``url``: ``sqlite:///path`` (blank path: ``<state>/store``), ``memory://``,
    ``postgres://user:password@host:port/database`` or ``cockroach://...`` the same. ``isolation``
    of those two: "server" has the database keep namespaces apart by row level security, "query"
    leaves it to the queries, "auto" is the first where PostgreSQL can and the second elsewhere."""

    url: str = "sqlite://"
    isolation: str = "auto"
    max_value: int = 8 * 2**20
    max_key: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """``url``: ``memory://``, ``nats://user:password@a:4222,b:4222`` or ``tls://...``; ``prefix``
    is the first word of the subjects there, ``tls_...`` are files (blank: what the system trusts).
    ``account_key`` is the file of the key by which NATS is told who may what, namespace by
    namespace (blank: all are one user), and ``account`` whose it is, if it is not the account's
    own; a member has ``max_connections`` to NATS then, one for each namespace.

    ``max_message`` are bytes of a body. Each namespace has ``max_subscriptions`` at each member;
    for one that does not read wait ``max_waiting`` messages and ``max_waiting_bytes``, for all of
    a namespace ``max_namespace_bytes``. ``patience``: seconds that a verb waits for NATS.
    """

    url: str = "memory://"
    prefix: str = "micro"
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    account_key: str = ""
    account: str = ""
    max_connections: int = 1000
    max_message: int = 1_000_000
    max_subscriptions: int = 1000
    max_waiting: int = 10_000
    max_waiting_bytes: int = 8 * 2**20
    max_namespace_bytes: int = 64 * 2**20
    patience: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """``url``: ``sqlite:///path`` (blank path: ``<state>/events``), or
    ``nats://user:password@a:4222,b:4222`` or ``tls://...`` for JetStream there. ``ttl`` in seconds
    and ``max_size`` in bytes are what a topic keeps that has no retention of its own (0: for ever,
    any amount).

    On JetStream: ``prefix`` is the first word of streams and subjects, ``tls_...`` are files
    (blank: what the system trusts), ``account_key`` and ``account`` as the broker's, for one user
    for all namespaces, ``replicas`` of each stream (0: three in a cluster, else one);
    ``patience``: seconds that a verb waits for a connection.
    """

    url: str = "sqlite://"
    ttl: float = 7 * 86_400.0
    max_size: int = 2**30
    prefix: str = "micro"
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    account_key: str = ""
    account: str = ""
    replicas: int = 0
    patience: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """``key_file`` holds the keys of secrets (blank: ``<state>/config.keys``). A value has
    ``max_value`` bytes as JSON at most, a document ``max_document`` with its paths, ``max_keys``
    names and ``max_depth`` levels; ``history`` versions of it are kept."""

    key_file: Path = Path()
    max_value: int = 64 * 2**10
    max_document: int = 2**20
    max_keys: int = 10_000
    max_depth: int = 16
    history: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """``issuer`` and ``audience`` are ``iss`` and ``aud`` of tokens. Access tokens of accounts live
    ``access_ttl`` seconds, those of processes ``process_ttl``, and a session that is not used
    ``refresh_ttl``. Keys that sign are replaced after ``key_ttl``; ``key_file`` holds the keys that
    they are sealed with (blank: ``<state>/auth.keys``). After ``attempts`` failed logins an account
    waits, longer each time. A key signs once it has been published for ``publish`` seconds.
    ``password_memory`` (KiB) and ``password_passes`` are what hashing a secret costs; what was
    hashed at another cost is hashed anew at the next login. ``mode`` "off" lets everybody do
    everything, and keeps the doors to this machine."""

    mode: str = "on"
    issuer: str = "micro"
    audience: str = "micro"
    access_ttl: float = 900.0
    process_ttl: float = 3600.0
    refresh_ttl: float = 30 * 86_400.0
    key_ttl: float = 90 * 86_400.0
    key_file: Path = Path()
    attempts: int = 5
    publish: float = 10.0
    password_memory: int = 19_456
    password_passes: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Certs:
    """Certificates of processes live ``ttl`` seconds, and are renewed when a third of that is left;
    a process that is being started has ``ticket_ttl`` seconds to ask for its first."""

    ttl: float = 3600.0
    ticket_ttl: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a namespace may ask for that has set no limit of its own in config: ``rate`` in requests
    per second, ``burst`` of them at once (0: a second's), ``concurrency`` under way (0: no limit).
    A door that finds over ``memory`` of its machine's or its control group's memory in use refuses
    requests with 503 until there is more (1: never)."""

    rate: float = 0.0
    burst: int = 0
    concurrency: int = 0
    memory: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """``timeout`` covers all attempts of a call that says none, ``dial_timeout`` one connection;
    ``retry_budget`` is the share of calls that may be tried again. ``tls`` says where frames over
    TCP are mutual TLS: "auto" on every address but loopback, "always", or "never". The same for all
    processes of a platform.

    On a Ray of several machines member i of the registry listens on ``registry_port`` + i of its
    machine, member i of the routers on ``router_port`` + i, of auth on ``auth_port`` + i, certs on
    ``certs_port``, so that others can begin there. The server fills in the addresses, member by
    member.
    """

    timeout: float = 30.0
    dial_timeout: float = 2.0
    retry_budget: float = 0.1
    registry_port: int = 7400
    router_port: int = 7500
    certs_port: int = 7600
    auth_port: int = 7700
    tls: str = "auto"
    registry_addresses: tuple[str, ...] = ()
    router_addresses: tuple[str, ...] = ()
    certs_addresses: tuple[str, ...] = ()
    auth_addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """The limits of frames (docs/wire.md). Sizes in bytes, ``keepalive`` in seconds."""

    max_frame: int = 2**20
    max_message: int = 16 * 2**20
    max_header: int = 64 * 2**10
    window: int = 256 * 2**10
    max_streams: int = 10_000
    keepalive: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """How many actors each platform service has. A registry or a broker in memory is one process,
    so that pool is one, and so are those of the limits, which all doors borrow from, and of certs,
    whose book one process writes; everything else may be larger. On a Ray of several machines there
    are as many of ``authcache`` as machines, at least."""

    certs: int = 1
    registry: int = 1
    router: int = 2
    network: int = 1
    store: int = 2
    broker: int = 1
    events: int = 2
    config: int = 2
    auth: int = 1
    authcache: int = 1
    limits: int = 1
    runtime: int = 1


#: The platform's own services, which are of the namespace ``micro``, and of no other.
PLATFORM = frozenset({"api", "proxy", *(item.name for item in fields(Pools))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """``driver``: "ray" (actors) or "process", for workloads that do not say. ``max_source`` and
    ``log_bytes`` are bytes of a source archive and of one replica's log. ``drain_timeout`` is how
    many seconds a replica has to finish when it is stopped (0: it is killed at once); a door has
    three less (3 or below: it answers what is under way with 502 at once)."""

    driver: str = "ray"
    max_source: int = 64 * 2**20
    max_replicas: int = 100
    start_timeout: float = 60.0
    drain_timeout: float = 30.0
    log_bytes: int = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ray:
    """``address``: "local" starts a Ray of our own, "auto" or ``host:port`` joins one."""

    address: str = "local"
    num_cpus: float = 0.0
    object_store_memory: int = 100 * 2**20
    auth: str = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything. ``state`` is the folder that survives (databases, sources, logs); ``run`` holds
    the sockets of what runs now and must be short (Unix socket paths end at 107 bytes; default:
    ``<state>/run``). ``credentials`` is the file of who commands are logged in as (blank:
    ``~/.micro/credentials.json``). ``host`` names this machine (blank: its host name); ``address``
    is its IP address on which frames listen for other machines (blank: 127.0.0.1, or the node's own
    on a Ray that was joined; let it be a private network's: who may call is known by TLS there).
    ``anchor`` is the pid of the server process, whose end ends what it started (0: none). ``key``
    is the private key by which the platform's processes know each other; the server makes it.
    ``env`` names the environment that commands and clients go to (blank: the current one, and this
    machine)."""

    namespace: str = "micro"
    state: Path = Path("~/.micro/server")
    credentials: Path = Path()
    run: Path = Path()
    host: str = ""
    address: str = ""
    anchor: int = 0
    key: str = field(default="", repr=False)
    env: str = ""
    api: Api = Api()
    proxy: Proxy = Proxy()
    registry: Registry = Registry()
    store: Store = Store()
    broker: Broker = Broker()
    events: Events = Events()
    config: Config = Config()
    auth: Auth = Auth()
    certs: Certs = Certs()
    limits: Limits = Limits()
    network: Network = Network()
    wire: Wire = Wire()
    pools: Pools = Pools()
    runtime: Runtime = Runtime()
    ray: Ray = Ray()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """What a process needs to join: where registries, routers, certs, and auth (its caches, then
    itself) listen, who and where it is (the name of its machine and the IP address on which it
    listens there), how long it is known without a sign of life, how it calls, and the limits of its
    frames. ``ticket`` is good for one certificate, at who shows one that ``roots`` (PEM) have
    signed. ``platform`` is the public half of the platform's key (blank: nobody is asked who he
    is), ``identity`` who a replica is. A client is whose access token ``token`` is, or who is
    logged in at ``place`` by the file ``credentials``. One with a ``door`` (``grpc://host:port``,
    ``grpcs://host:port``) calls through that, and trusts the certificates of the file ``ca``
    (blank: those of the system)."""

    registry: tuple[str, ...]
    routers: tuple[str, ...]
    namespace: str
    host: str
    run: Path
    auths: tuple[str, ...] = ()
    address: str = LOOPBACK
    instance: str = ""
    version: str = ""
    ttl: float = 30.0
    platform: str = ""
    identity: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    credentials: Path = Path()
    place: str = ""
    auth: Auth = Auth()
    network: Network = Network()
    wire: Wire = Wire()
    certs: tuple[str, ...] = ()
    ticket: str = field(default="", repr=False)
    roots: str = field(default="", repr=False)
    door: str = ""
    ca: str = ""


def load(
    environ: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Read the settings. ``overrides`` are dotted names (``{"api.port": 9000}``).

    Raises BadRequest that names the variable, or the file and the key, for values that cannot be,
    for names in ``micro.toml`` that there are not, and for variables that begin like those of a
    section (``MICRO_API_PROT``) and are none.
    """
    environ = os.environ if environ is None else environ
    overrides = overrides or {}
    settings = Settings()
    for name, value in _from_file(settings, environ, overrides).items():
        settings = _set(settings, name, *value)
    for name, value in _from_environ(settings, environ).items():
        settings = _set(settings, name, *value)
    for name, value in overrides.items():
        settings = _set(settings, name, value, name)
    return _settle(settings)


def _settle(settings: Settings) -> Settings:
    """What follows from other settings, and what must be true of several."""
    state = _expand(settings.state, "MICRO_STATE").resolve()
    run = settings.run
    run = state / "run" if run == Path() else _expand(run, "MICRO_RUN").absolute()
    keys = settings.config.key_file
    keys = state / "config.keys" if keys == Path() else _expand(keys, "MICRO_CONFIG_KEY_FILE")
    sealing = settings.auth.key_file
    sealing = state / "auth.keys" if sealing == Path() else _expand(sealing, "MICRO_AUTH_KEY_FILE")
    settings = replace(
        settings,
        state=state,
        credentials=_credentials(settings.credentials, state),
        run=run,
        host=settings.host or socket.gethostname(),
        config=replace(settings.config, key_file=keys.absolute()),
        auth=replace(settings.auth, key_file=sealing.absolute()),
    )
    longest = len(os.fsencode(run)) + len("/replica-0123456789abcdef.sock")
    if longest > MAX_SOCKET_PATH:
        raise BadRequest(
            "settings",
            f"run folder {run} is too long for Unix sockets "
            f"({longest} > {MAX_SOCKET_PATH} bytes): set MICRO_RUN to a shorter one",
        )
    _check_address(settings.address)
    if not _NAMESPACE.fullmatch(settings.namespace):
        raise BadRequest(
            "settings", f"namespace {settings.namespace[:80]!r}: letters, digits, '.', '_' and '-'"
        )
    if settings.wire.max_message < settings.wire.max_frame:
        raise BadRequest("settings", "wire.max_message is less than wire.max_frame")
    if settings.pools.registry > 1 and settings.registry.url.startswith("memory:"):
        raise BadRequest(
            "settings", "registry.url memory:// lives in one process: set pools.registry to 1"
        )
    if settings.pools.broker > 1 and settings.broker.url.startswith("memory:"):
        raise BadRequest(
            "settings", "broker.url memory:// lives in one process: set pools.broker to 1"
        )
    return settings


def _credentials(given: Path, state: Path) -> Path:
    if given != Path():
        return _expand(given, "MICRO_CREDENTIALS").absolute()
    try:
        return Path("~/.micro/credentials.json").expanduser()
    except RuntimeError:  # a user without a home
        return state / "credentials.json"


def _check_address(address: str) -> None:
    try:
        given = ipaddress.ip_address(address or LOOPBACK)
    except ValueError:
        given = None
    if given is None or given.is_unspecified or given.is_multicast:
        raise BadRequest(
            "settings",
            f"address {address[:80]!r} is no IP address of this machine that others can call",
        )


def here(where: T, address: str, environ: Mapping[str, str] | None = None) -> T:
    """Settings or a Bootstrap that came from another machine, as they are on this one, whose IP
    address there is ``address``: ``MICRO_HOST`` and ``MICRO_ADDRESS`` of this process win over it
    and over this machine's name."""
    environ = os.environ if environ is None else environ
    host = environ.get("MICRO_HOST") or socket.gethostname()
    _check_address(environ.get("MICRO_ADDRESS", ""))
    return replace(where, host=host, address=environ.get("MICRO_ADDRESS") or address)


def _expand(path: Path, variable: str) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise BadRequest("settings", f"{path}: {error}; set {variable}") from None


def socket_path(run: Path, node: str) -> Path:
    """Where a node listens on its machine: a file of its own name, or of a name made from it where
    that would be too long for Linux."""
    path = run / f"{node}.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        path = run / f"replica-{hashlib.sha256(node.encode()).hexdigest()[:16]}.sock"
    return path


def bootstrap(settings: Settings, environ: Mapping[str, str] | None = None) -> Bootstrap:
    """Where the platform is. ``MICRO_REGISTRY``, ``MICRO_ROUTER``, ``MICRO_ENROL`` and
    ``MICRO_AUTHS`` (comma lists
    of addresses, set by the runtime for what it starts) win over the sockets under ``run`` and, for
    other machines, the addresses of the settings. Raises BadRequest that names the variable for
    what is no address."""
    environ = os.environ if environ is None else environ

    def addresses(variable: str, others: tuple[str, ...], **counts: int) -> tuple[str, ...]:
        given = [part.strip() for part in environ.get(variable, "").split(",") if part.strip()]
        for address in given:
            if not address.startswith(("unix:/", "tcp:")):
                raise BadRequest(
                    "settings", f"{variable}: {address!r} is neither unix:/path nor tcp:host:port"
                )
        here = (
            f"unix:{settings.run}/{service}-{i}.sock"
            for service, count in counts.items()
            for i in range(count)
        )
        return tuple(given or (*here, *others))

    pools, network = settings.pools, settings.network
    return Bootstrap(
        registry=addresses("MICRO_REGISTRY", network.registry_addresses, registry=pools.registry),
        routers=addresses("MICRO_ROUTER", network.router_addresses, router=pools.router),
        auths=addresses(
            "MICRO_AUTHS", network.auth_addresses, authcache=pools.authcache, auth=pools.auth
        ),
        namespace=settings.namespace,
        host=settings.host,
        address=settings.address or LOOPBACK,
        run=settings.run,
        instance=environ.get("MICRO_INSTANCE", ""),
        version=environ.get("MICRO_SERVICE_VERSION", ""),
        ttl=settings.registry.ttl,
        platform=environ.get("MICRO_PLATFORM", "") or _platform(settings.run),
        identity=environ.get("MICRO_IDENTITY", ""),
        token=environ.get("MICRO_TOKEN", ""),
        credentials=settings.credentials,
        place=str(settings.state),
        auth=settings.auth,
        network=settings.network,
        wire=settings.wire,
        certs=addresses("MICRO_ENROL", network.certs_addresses, certs=pools.certs),
        ticket=environ.get("MICRO_TICKET", ""),
        roots=environ.get("MICRO_ROOTS", ""),
    )


def _platform(run: Path) -> str:
    """The public half of the key of the platform that runs here, blank where it asks nobody."""
    try:
        return (run / PLATFORM_FILE).read_text().strip()
    except OSError:
        return ""


#: A setting by its dotted name: what was given, and by whom.
Given = Mapping[str, tuple[Any, str]]


def _from_file(
    settings: Settings, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> Given:
    named = environ.get("MICRO_CONFIG", "")
    if named:
        places = [_expand(Path(named), "MICRO_CONFIG")]
    else:
        state = overrides.get("state") or environ.get("MICRO_STATE") or settings.state
        places = [Path("micro.toml"), _expand(Path(state), "MICRO_STATE") / "micro.toml"]
    for path in places:
        try:
            tree = tomllib.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
        except OSError as error:
            raise BadRequest("settings", f"{path} cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest("settings", f"{path}: {error}") from None
        given: dict[str, tuple[Any, str]] = {}
        for name, value in tree.items():
            if is_dataclass(getattr(settings, name, None)) and isinstance(value, dict):
                for inner, leaf in value.items():
                    given[f"{name}.{inner}"] = (leaf, f"{path}: {name}.{inner}")
            else:
                given[name] = (value, f"{path}: {name}")
        return given
    if named:
        raise BadRequest("settings", f"MICRO_CONFIG names {places[0]}, which is not a file")
    return {}


def _from_environ(settings: Settings, environ: Mapping[str, str]) -> Given:
    known: dict[str, str] = {}
    sections: list[str] = []
    for item in fields(settings):
        value = getattr(settings, item.name)
        variable = f"MICRO_{item.name}".upper()
        if is_dataclass(value):
            sections.append(variable + "_")
            for inner in fields(value):
                known[f"{variable}_{inner.name}".upper()] = f"{item.name}.{inner.name}"
        else:
            known[variable] = item.name
    for variable in environ:
        if variable.startswith(tuple(sections)) and variable not in known:
            near = difflib.get_close_matches(variable, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise BadRequest("settings", f"{variable}: there is no such setting{hint}")
    return {
        name: (environ[variable], variable)
        for variable, name in known.items()
        if environ.get(variable)
    }


def _set(settings: Settings, name: str, value: Any, origin: str) -> Settings:
    """Raises BadRequest that names ``origin``."""
    section, _, inner = name.rpartition(".")
    target: Any = getattr(settings, section, None) if section else settings
    kind = get_type_hints(type(target)).get(inner) if is_dataclass(target) else None
    if kind is None:
        have = get_type_hints(type(target if is_dataclass(target) else settings))
        raise BadRequest(
            "settings", f"{origin}: there is no setting {name!r} (have: {', '.join(sorted(have))})"
        )
    if is_dataclass(kind):
        raise BadRequest("settings", f"{origin}: {name} is a section, [{name}] in micro.toml")
    changed: Any = replace(target, **{inner: _convert(name, kind, value, origin)})
    return replace(settings, **{section: changed}) if section else changed


def _convert(name: str, kind: Any, value: Any, origin: str) -> Any:
    try:
        if kind in (int, float):
            return _number(name, kind, value)
        if kind == tuple[str, ...]:
            parts = value.split(",") if isinstance(value, str) else value
            if not isinstance(parts, list | tuple) or not all(isinstance(p, str) for p in parts):
                raise ValueError("a list of words")
            return tuple(part.strip() for part in parts if part.strip())
        if not isinstance(value, str | Path if kind is Path else str) or "\0" in str(value):
            raise ValueError("a path" if kind is Path else "a word, in quotes")
        if name in CHOICES and value not in CHOICES[name]:
            raise ValueError(" or ".join(CHOICES[name]))
        return kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:79] + "…"
        raise BadRequest("settings", f"{origin}: {shown} is not {error}") from None


def _number(name: str, kind: Any, value: Any) -> int | float:
    low, high = RANGES.get(name, (0, LARGEST))
    what = "a whole number" if kind is int else "a number"
    wanted = ValueError(f"{what} from {low} to {high}")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wanted
    if kind is int and isinstance(value, float):
        raise wanted
    try:
        number: int | float = kind(value)
    except (ValueError, OverflowError):
        raise wanted from None
    if not math.isfinite(number) or not low <= number <= high:
        raise wanted
    return number


def service_environ(boot: Bootstrap, settings: Settings) -> dict[str, str]:
    """The variables with which a started process finds the platform, over a clean base: nothing
    of the platform's own environment (Ray's addresses and token, for one) goes along."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
    environ = {name: os.environ[name] for name in kept if name in os.environ}
    return environ | {
        "PYTHONUNBUFFERED": "1",
        "MICRO_REGISTRY": ",".join(boot.registry),
        "MICRO_REGISTRY_TTL": repr(boot.ttl),
        "MICRO_ROUTER": ",".join(boot.routers),
        "MICRO_AUTHS": ",".join(boot.auths),
        "MICRO_ENROL": ",".join(boot.certs),
        "MICRO_NAMESPACE": boot.namespace,
        "MICRO_HOST": boot.host,
        "MICRO_ADDRESS": boot.address,
        "MICRO_RUN": str(boot.run),
        "MICRO_STATE": str(settings.state),
        "MICRO_PLATFORM": boot.platform,
        "MICRO_AUTH_ISSUER": boot.auth.issuer,
        "MICRO_AUTH_AUDIENCE": boot.auth.audience,
        **_variables("network", boot.network),
        **_variables("wire", boot.wire),
    }


def _variables(section: str, values: Any) -> dict[str, str]:
    """The variables of a whole section."""
    found = {}
    for item in fields(values):
        value = getattr(values, item.name)
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        found[f"MICRO_{section}_{item.name}".upper()] = text
    return found
