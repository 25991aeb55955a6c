"""Settings: frozen values with their defaults, and the only place that reads the environment and
``micro.toml``.

Order, later wins: the defaults here, ``micro.toml`` (``./micro.toml``, else
``<state>/micro.toml``, or the file named by ``MICRO_CONFIG``), environment variables
``MICRO_<SECTION>_<FIELD>`` (``MICRO_API_PORT=9000``; ``MICRO_<FIELD>`` for the top level), and what
the command line passes to :func:`load`.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from micro_ray.errors import BadRequest

__all__ = [
    "Api",
    "Bootstrap",
    "Network",
    "Pools",
    "Ray",
    "Registry",
    "Runtime",
    "Settings",
    "Store",
    "Wire",
    "bootstrap",
    "load",
    "service_environ",
]

#: Longest path of a Unix socket on Linux (``sun_path`` of 108 bytes less the final zero).
MAX_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The HTTP door. ``serve_port`` is Ray Serve's own HTTP route to the same app (0: none)."""

    host: str = "127.0.0.1"
    port: int = 8080
    serve_port: int = 8000
    replicas: int = 2
    max_body: int = 16 * 2**20
    max_headers: int = 64 * 2**10
    timeout: float = 30.0
    max_in_flight: int = 5000
    header_timeout: float = 10.0
    cors_origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    url: str = "memory://"
    ttl: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """``url``: ``sqlite:///path`` (blank path: ``<state>/store``) or ``memory://``."""

    url: str = "sqlite://"
    max_value: int = 8 * 2**20
    max_key: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    timeout: float = 30.0
    dial_timeout: float = 2.0
    retry_budget: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    max_frame: int = 2**20
    max_message: int = 16 * 2**20
    max_header: int = 64 * 2**10
    window: int = 256 * 2**10
    max_streams: int = 10_000
    keepalive: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """How many actors each platform service has. Memory registries hold their state in one
    process, so that pool is one; everything else may be larger."""

    registry: int = 1
    router: int = 2
    network: int = 1
    store: int = 2
    runtime: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
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
    the sockets of what runs now and must be short (Unix socket paths end at 107 bytes). ``host``
    names this machine (blank: its host name). ``anchor`` is the pid of the server process, whose
    end ends what it started (0: none)."""

    namespace: str = "micro"
    state: Path = field(default_factory=lambda: Path.home() / ".micro" / "server")
    run: Path = field(default_factory=lambda: Path("/"))
    host: str = ""
    anchor: int = 0
    api: Api = Api()
    registry: Registry = Registry()
    store: Store = Store()
    network: Network = Network()
    wire: Wire = Wire()
    pools: Pools = Pools()
    runtime: Runtime = Runtime()
    ray: Ray = Ray()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """What a process needs to join: where registries and routers listen, who and where it is."""

    registry: tuple[str, ...]
    routers: tuple[str, ...]
    namespace: str
    host: str
    run: Path
    instance: str = ""
    version: str = ""


def load(
    environ: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Read the settings. ``overrides`` are dotted names (``{"api.port": 9000}``).

    Raises BadRequest that names the variable or the line for values that do not parse, and for
    unknown names in ``micro.toml``.
    """
    environ = os.environ if environ is None else environ
    settings = _with_file(Settings(), environ)
    settings = _with_environ(settings, environ)
    for name, value in (overrides or {}).items():
        settings = _set(settings, name.split("."), value, name)
    if settings.run == Path("/"):
        settings = replace(settings, run=settings.state / "run")
    if not settings.host:
        settings = replace(settings, host=socket.gethostname())
    settings = replace(settings, state=settings.state.expanduser().resolve())
    settings = replace(settings, run=settings.run.expanduser().absolute())
    longest = len(os.fsencode(settings.run)) + len("/replica-0123456789abcdef.sock")
    if longest > MAX_SOCKET_PATH:
        raise BadRequest(
            "settings",
            f"run folder {settings.run} is too long for Unix sockets "
            f"({longest} > {MAX_SOCKET_PATH} bytes): set MICRO_RUN to a shorter one",
        )
    return settings


def bootstrap(settings: Settings, environ: Mapping[str, str] | None = None) -> Bootstrap:
    """Where the platform is. ``MICRO_REGISTRY``/``MICRO_ROUTER`` (comma lists of addresses, set by
    the runtime for what it starts) win over the sockets under ``run``."""
    environ = os.environ if environ is None else environ

    def addresses(variable: str, service: str, count: int) -> tuple[str, ...]:
        given = environ.get(variable, "")
        if given:
            return tuple(part.strip() for part in given.split(",") if part.strip())
        return tuple(f"unix:{settings.run}/{service}-{i}.sock" for i in range(count))

    return Bootstrap(
        registry=addresses("MICRO_REGISTRY", "registry", settings.pools.registry),
        routers=addresses("MICRO_ROUTER", "router", settings.pools.router),
        namespace=settings.namespace,
        host=settings.host,
        run=settings.run,
        instance=environ.get("MICRO_INSTANCE", ""),
        version=environ.get("MICRO_SERVICE_VERSION", ""),
    )


def _with_file(settings: Settings, environ: Mapping[str, str]) -> Settings:
    named = environ.get("MICRO_CONFIG", "")
    state = Path(environ.get("MICRO_STATE", "") or settings.state).expanduser()
    for path in [Path(named)] if named else [Path("micro.toml"), state / "micro.toml"]:
        if not path.is_file():
            if named:
                raise BadRequest("settings", f"MICRO_CONFIG names {path}, which is not a file")
            continue
        try:
            tree = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadRequest("settings", f"{path}: {error}") from error
        for name, value in tree.items():
            if isinstance(value, dict):
                for inner, leaf in value.items():
                    settings = _set(settings, [name, inner], leaf, f"{path}: {name}.{inner}")
            else:
                settings = _set(settings, [name], value, f"{path}: {name}")
        break
    return settings


def _with_environ(settings: Settings, environ: Mapping[str, str]) -> Settings:
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value):
            for inner in fields(value):
                variable = f"MICRO_{item.name}_{inner.name}".upper()
                if environ.get(variable):
                    settings = _set(settings, [item.name, inner.name], environ[variable], variable)
        else:
            variable = f"MICRO_{item.name}".upper()
            if environ.get(variable):
                settings = _set(settings, [item.name], environ[variable], variable)
    return settings


def _set(settings: Any, path: list[str], value: Any, origin: str) -> Any:
    head, rest = path[0], path[1:]
    hints = get_type_hints(type(settings))
    if head not in hints or bool(rest) != is_dataclass(getattr(settings, head)):
        known = ", ".join(sorted(hints))
        raise BadRequest("settings", f"{origin}: there is no setting {head!r} (have: {known})")
    if rest:
        inner = _set(getattr(settings, head), rest, value, origin)
        return replace(settings, **{head: inner})
    return replace(settings, **{head: _convert(hints[head], value, origin)})


def _convert(kind: Any, value: Any, origin: str) -> Any:
    try:
        if kind is Path:
            return Path(value)
        if kind == tuple[str, ...]:
            parts = value.split(",") if isinstance(value, str) else list(value)
            return tuple(str(part).strip() for part in parts if str(part).strip())
        if kind in (int, float):
            number = kind(value)
            if number < 0 or isinstance(value, bool):
                raise ValueError("must not be negative")
            return number
        return kind(value)
    except (TypeError, ValueError) as error:
        raise BadRequest(
            "settings", f"{origin}: {value!r} is not a valid {getattr(kind, '__name__', kind)}"
        ) from error


def service_environ(boot: Bootstrap, settings: Settings) -> dict[str, str]:
    """The variables with which a started process finds the platform, over a clean base: nothing
    of the platform's own environment (Ray's addresses and token, for one) goes along."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
    environ = {name: os.environ[name] for name in kept if name in os.environ}
    return environ | {
        "PYTHONUNBUFFERED": "1",
        "MICRO_REGISTRY": ",".join(boot.registry),
        "MICRO_ROUTER": ",".join(boot.routers),
        "MICRO_NAMESPACE": boot.namespace,
        "MICRO_HOST": boot.host,
        "MICRO_RUN": str(boot.run),
        "MICRO_STATE": str(settings.state),
    }
