"""The composition root: settings -> Ray -> actors -> doors, one ladder of ``async with``.

:func:`serve` is what ``micro server`` runs. Everything that is opened here is closed here, in the
reverse order. What must outlive this process (databases, sources, logs, desired state) is under
``settings.state``; what belongs to this life (sockets) under ``settings.run``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import ipaddress
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from micro_ray.actors.backends import broker, events, registry
from micro_ray.actors.placement import Machine, with_addresses
from micro_ray.auth.passes import PrivateKey
from micro_ray.errors import BadRequest, Conflict, MicroError, Unavailable
from micro_ray.files import replace_file
from micro_ray.runtime.waiting import in_thread
from micro_ray.settings import PLATFORM_FILE, RAY_NAMESPACE, Settings, here

__all__ = ["Platform", "platform", "serve"]

Report = Callable[[str], None]

#: Marks the environment of every process that a platform of our own Ray consists of.
LIFE = "MICRO_LIFE"
#: Set to 0, Ray and whoever joins it take 127.0.0.1 as it is given, and not an outward address.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
#: Longest folder for Ray's own sockets: Ray adds up to 62 characters, Linux allows 107.
MAX_RAY_TEMP = 45
#: The platform's key, under ``state``.
KEY_FILE = "platform.key"
#: Seconds between taking the signals while Ray starts.
TAKEN = 0.02
#: Seconds that the first account is waited for before the platform is said to be ready.
ADMIN = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What is up: where Ray and the doors are, and the settings in force."""

    settings: Settings
    ray_address: str
    api_url: str


async def serve(settings: Settings, report: Report) -> bool:
    """Run the platform until SIGINT or SIGTERM; one line to ``report`` per part as it comes up.
    Whether it was up: a signal that comes earlier ends what was started till then, in order.

    Raises Conflict when another server runs on the same state or a port is taken, BadRequest for
    settings that cannot work.
    """
    async with contextlib.AsyncExitStack() as stack:
        starting = asyncio.create_task(stack.enter_async_context(platform(settings, report)))
        asked = asyncio.create_task(_asked(starting))
        try:
            await asyncio.wait([asked, starting], return_when=asyncio.FIRST_COMPLETED)
            was_up = starting.done()
            if was_up:
                url = starting.result().api_url
                off = settings.auth.mode == "off"
                report(f"ready     {url}{'  (auth is off: everybody may do everything)' * off}")
                await asked
        finally:
            asked.cancel()
        report("stopping")
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
    report("stopped")
    return was_up


async def _asked(starting: asyncio.Task[Any]) -> None:
    """Wait for SIGINT or SIGTERM. While Ray starts they are taken again and again: its core takes
    them over when it is loaded, and would end this process with a stack of its own."""
    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    while not ending.is_set():
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ending.set)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if starting.done() else TAKEN):
                await ending.wait()
    signal.alarm(0)  # Ray's core, where it came first, has set one to abort this process


@asynccontextmanager
async def platform(settings: Settings, report: Report) -> AsyncIterator[Platform]:
    """The whole platform inside ``async with``."""
    begun = time.monotonic()

    def timed(line: str) -> None:
        report(f"{time.monotonic() - begun:5.1f} s  {line}")

    async with contextlib.AsyncExitStack() as ladder:
        ladder.enter_context(_lock(settings))
        if settings.ray.address == "local":
            await in_thread(_end_leftovers, settings)
            ladder.push_async_callback(in_thread, _end_leftovers, settings)
        _check(settings)
        settings = replace(settings, anchor=os.getpid(), key=_key(settings))
        address = await ladder.enter_async_context(_ray(settings))
        timed(f"ray       up  {address}")
        await _external_registry(settings, timed)
        # Imported late: Ray and Serve read the environment that _ray() has just set.
        await in_thread(import_module, "micro_ray.serve.doors")
        from micro_ray.actors.launch import Supervisor
        from micro_ray.serve.doors import doors

        _as_loud_as_we_are("ray.serve")
        machines = [] if settings.ray.address == "local" else await asyncio.to_thread(_machines)
        if machines:
            settings = with_addresses(here(settings, machines[0].address), machines)
            how = "plain" if settings.network.tls == "never" else "mutual TLS"
            report(f"frames    on  {settings.address}  {how}")
        supervisor = await ladder.enter_async_context(
            Supervisor(settings, report=timed, machines=machines)
        )
        pools = asyncio.create_task(supervisor.ready(timeout=settings.runtime.start_timeout))
        try:
            url = await ladder.enter_async_context(doors(settings, timed, bool(machines)))
            await pools
            admin = asyncio.create_task(_first_admin(timed))
            ladder.callback(admin.cancel)
            await asyncio.wait([admin], timeout=ADMIN)
        finally:
            pools.cancel()
            await asyncio.gather(pools, return_exceptions=True)
        yield Platform(settings=settings, ray_address=address, api_url=url)


async def _first_admin(report: Report) -> None:
    """The account that administers everything, made at the first start; its secret is told here
    and nowhere else. It waits for a store that is away, and says so."""
    import ray
    from ray.exceptions import RayError

    said = ""
    while True:
        try:
            handle = ray.get_actor("auth", namespace=RAY_NAMESPACE)
            secret = await handle.ensure_admin.remote()
            break
        except (RayError, MicroError, ValueError) as error:  # ValueError: it is being made anew
            cause = getattr(error, "cause", error)
            why = cause.detail if isinstance(cause, MicroError) else type(error).__name__
            if why != said:
                said = why
                report(f"admin     waits: {why}")
            await asyncio.sleep(1)
    if secret:
        report(f"admin     made; its password, shown this once: {secret}")


def _key(settings: Settings) -> str:
    """The key by which the platform's processes know each other, made at the first start; its
    public half is told to what runs on this machine. Blank where nobody is asked who he is."""
    told = settings.run / PLATFORM_FILE
    told.unlink(missing_ok=True)
    if settings.auth.mode == "off":
        return ""
    key = PrivateKey(settings.key) if settings.key else PrivateKey.kept(settings.state / KEY_FILE)
    told.write_text(key.public)
    return key.text


def _check(settings: Settings) -> None:
    """Refuse what cannot work before anything is started."""
    api, proxy = settings.api, settings.proxy
    taken: dict[int, str] = {}
    for name, host, port, least in (
        ("api.port", api.host, api.port, 1),
        ("api.serve_port", api.host, api.serve_port, 0),
        ("proxy.port", proxy.host, proxy.port, 0),
    ):
        if settings.auth.mode == "off" and not _is_loopback(host):
            raise BadRequest(
                "settings",
                f"{name.partition('.')[0]}.host {host!r} is not a loopback address, and auth.mode "
                "is off: everybody who reaches it could do everything. Use 127.0.0.1, or set "
                "auth.mode to on.",
            )
        if not least <= port <= 65535:
            raise BadRequest("settings", f"{name} {port} is not a port ({least} to 65535)")
        if port in taken:
            raise BadRequest("settings", f"{taken[port]} and {name} are both {port}")
        if port:
            taken[port] = name
            _free(host, port, name)
    if settings.pools.registry > 1 and settings.registry.url.startswith("memory:"):
        raise BadRequest(
            "settings", "registry.url memory:// lives in one process: set pools.registry to 1"
        )
    broker(settings)
    registry(settings)
    events(settings)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _external_registry(settings: Settings, report: Report) -> None:
    """Wait for a registry that outlives this platform, saying for what; take out of it the nodes of
    an earlier life of everything on this machine: none of them lives."""
    if settings.registry.url.startswith("memory:"):
        return
    said = ""
    async with registry(settings) as opened:
        while True:
            try:
                snapshot = await opened.snapshot()
                break
            except Unavailable as error:
                if error.detail != said:
                    said = error.detail
                    report(f"registry  {said}")
                await asyncio.sleep(0.2)
        if settings.ray.address != "local":
            return
        ours = f"unix:{settings.run}/"
        for instance in snapshot.instances:
            node = instance.node
            if node.host == settings.host and any(a.startswith(ours) for a in node.addresses):
                await opened.deregister(instance.namespace, node.id)


def _free(host: str, port: int, name: str) -> None:
    # Not by SO_REUSEPORT, as the doors: with it, a port that another shares would seem free.
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                variable = f"MICRO_{name.replace('.', '_').upper()}"
                raise Conflict(
                    "server",
                    f"{name} {port} on {host}: {os.strerror(error.errno).lower()}. "
                    f"Stop what listens there or choose another with {variable}.",
                ) from None
            raise


@contextlib.contextmanager
def _lock(settings: Settings) -> Any:
    """One server per state folder and run folder. A lock goes with its process, however that
    ends."""
    for folder in (settings.state, settings.run):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable("server", f"cannot make {folder}: {error.strerror}") from error
    with contextlib.ExitStack() as locks:
        locks.enter_context(_locked(settings.state, "MICRO_STATE"))
        # The sockets of an earlier life are removed: they must not be another server's.
        locks.enter_context(_locked(settings.run, "MICRO_RUN"))
        yield


@contextlib.contextmanager
def _locked(folder: Path, variable: str) -> Any:
    with (folder / "server.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise Conflict(
                "server",
                f"another micro server (pid {owner}) runs on {folder}. "
                f"Stop it, or set {variable} to another folder.",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@asynccontextmanager
async def _ray(settings: Settings) -> AsyncIterator[str]:
    """A Ray of our own (``local``), or the one that is named; its address."""
    token = settings.state / "ray_token"
    joining = _environment(settings, token)
    await in_thread(import_module, "ray")  # takes a second, in which signals come
    import ray

    _as_loud_as_we_are("ray")
    if settings.ray.address == "local":
        folder = _ray_folder(settings)
        init = partial(
            ray.init,
            address="local",
            namespace=RAY_NAMESPACE,
            num_cpus=settings.ray.num_cpus or max(4, os.cpu_count() or 1),
            object_store_memory=settings.ray.object_store_memory,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=str(folder),
            _node_ip_address="127.0.0.1",
        )
    else:
        init = partial(
            ray.init,
            address=settings.ray.address,
            namespace=RAY_NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
        )
    path = settings.state / "ray.json"
    try:
        info = await in_thread(init)
        address = str(info.address_info["gcs_address"])
        path.write_text(
            json.dumps({"RAY_ADDRESS": address, "RAY_NAMESPACE": RAY_NAMESPACE, **joining})
        )
        yield address
    finally:
        path.unlink(missing_ok=True)
        await asyncio.to_thread(ray.shutdown)


def _machines() -> list[Machine]:
    """The nodes of the Ray that was joined, this process's own first."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    nodes.sort(key=lambda node: (node["NodeID"] != own, node["NodeID"]))
    return [Machine(id=node["NodeID"], address=node["NodeManagerAddress"]) for node in nodes]


def _environment(settings: Settings, token: Path) -> dict[str, str]:
    """Set what Ray reads from the environment, in this process and in all it starts; of it, what
    another process needs to join."""
    joining = {"RAY_AUTH_MODE": settings.ray.auth}
    os.environ.update(
        RAY_worker_niceness="0",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_enable_metrics_collection="0",
        # Beyond four times of it Ray warns of many workers, on every driver's terminal.
        RAY_worker_maximum_startup_concurrency="8",
        RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE="1000",
        RAY_SERVE_LOG_TO_STDERR="0",
    )
    if settings.ray.address == "local":
        # Ray takes the machine's outward address even when asked for loopback; without clusters of
        # several machines, which a Ray of our own never is, it keeps to loopback.
        joining[LOOPBACK] = "0"
        os.environ[LIFE] = str(settings.state)
    if settings.ray.auth == "token" and settings.ray.address == "local":
        if not token.exists():
            replace_file(token, secrets.token_hex(32).encode())
        joining["RAY_AUTH_TOKEN_PATH"] = str(token)
        os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.update(joining)
    return joining


def _end_leftovers(settings: Settings) -> None:
    """End what an earlier life on this state has left: its server was killed, and Ray's workers
    take some seconds to notice, its agents a minute. We hold the lock, so none of them is
    of use."""
    # No node of it lives.
    for left in (*settings.state.glob("router-*.table"), *settings.run.glob("*.sock")):
        left.unlink(missing_ok=True)
    mark = f"{LIFE}={settings.state}".encode()
    session = os.path.join(os.path.realpath(_ray_path(settings)), "")
    for _ in range(50):
        found = False
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if _is_left(folder, mark, session):
                    found = True
                    os.kill(int(folder.name), signal.SIGKILL)
        if not found:
            return
        time.sleep(0.1)


def _is_left(process: Path, mark: bytes, session: str) -> bool:
    """Whether a process (its folder in /proc) is of a life on our state. They are known by a
    variable in their environment, so nothing that this platform did not start is touched. Ray's
    agents have their titles written over it: these are known by their files in Ray's session."""
    if mark in (process / "environ").read_bytes().split(b"\0"):
        return True
    if not (process / "cmdline").read_bytes().startswith(b"ray::"):
        return False
    return any(os.readlink(fd).startswith(session) for fd in (process / "fd").iterdir())


def _ray_path(settings: Settings) -> Path:
    """Ray's session folder: under the state, or under the system's when that is too long for
    sockets."""
    folder = settings.state / "ray"
    if len(str(folder)) <= MAX_RAY_TEMP:
        return folder
    digest = hashlib.sha256(os.fsencode(settings.state)).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"micro-ray-{os.getuid()}" / digest


def _ray_folder(settings: Settings) -> Path:
    """Ray's session folder, empty: what earlier lives have left there is removed."""
    folder = _ray_path(settings)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _as_loud_as_we_are(name: str) -> None:
    """Ray and Serve give their loggers levels of their own when they are imported."""
    logging.getLogger(name).setLevel(logging.getLogger().getEffectiveLevel())
