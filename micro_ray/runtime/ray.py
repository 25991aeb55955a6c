"""Replicas as Ray actors: Python services of trusted namespaces. The one file below ``actors/``
that knows Ray."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from micro_ray.errors import BadRequest, MicroError, Unavailable
from micro_ray.runtime import Driver, State, Workload, logs
from micro_ray.runtime import Replica as ReplicaState
from micro_ray.runtime.folders import log_folder, source_folder
from micro_ray.runtime.leftovers import INSTANCE, sweep
from micro_ray.runtime.logfile import Capture, LogFile
from micro_ray.settings import Bootstrap, socket_path

__all__ = ["RayDriver", "Replica"]

RAY_NAMESPACE = "micro"
PREFIX = "replica:"
ENTRY = "main.py"
STOPPED = "it was stopped"
#: Seconds after which a replica that has no place yet is looked at.
PLACE = 5.0
#: Seconds that a replica of an earlier life of the runtime has to say what it is.
ANSWERS = 10.0


class Replica:
    """The actor: imports the user's ``main.py``, starts the one Service in it on this actor's own
    loop. Its output goes to the replica's log."""

    async def __init__(self, state: Path, log_limit: int) -> None:  # type: ignore[misc]  # awaited by Ray
        self._state = state
        self._log_limit = log_limit
        self._service: Any = None
        self._ended = asyncio.Event()
        self._described: ReplicaState | None = None

    async def start(self, replica: ReplicaState, workload: Workload, boot: Bootstrap) -> int:
        """Import and start; the pid. Raises BadRequest with the user's own traceback."""
        path = log_folder(self._state, workload.namespace, workload.name) / f"{replica.id}.log"
        Capture(LogFile(path, self._log_limit))
        _log_to_stderr()
        os.environ.update(workload.env)
        # What this process starts is known by it.
        os.environ[INSTANCE] = replica.id
        folder = source_folder(self._state, workload.namespace, workload.digest)
        try:
            module = _load(folder)
            service = _service_of(module)
            await service.start(boot, replica.id)
        except MicroError:
            traceback.print_exc()
            raise
        except BaseException as error:
            text = _own_traceback(error, folder)
            sys.stderr.write(text)
            sys.stderr.flush()
            raise BadRequest("runtime", text) from None
        self._service = service
        self._described = replace(
            replica, state=State.RUNNING, pid=os.getpid(), started=time.time()
        )
        return os.getpid()

    async def describe(self) -> ReplicaState | None:
        """What this replica is; None before it has started and once it has stopped."""
        return None if self._ended.is_set() else self._described

    async def wait(self) -> None:
        """Return when the replica has been stopped; a death is told by Ray instead."""
        await self._ended.wait()

    async def stop(self) -> None:
        """Leave the registry, finish what is served."""
        if self._service is not None:
            await self._service.stop()
        self._ended.set()


class RayDriver(Driver):
    """``boot`` says where the platform is; actors get the environment that Ray's workers have. Runs
    on a loop whose process has joined Ray."""

    def __init__(self, state: Path, boot: Bootstrap, *, log_limit: int = 16 * 2**20) -> None:
        self._state = state
        self._boot = boot
        self._log_limit = log_limit
        self._actors: dict[str, Any] = {}

    async def start(self, replica: ReplicaState, workload: Workload) -> ReplicaState:
        creating = asyncio.ensure_future(asyncio.to_thread(self._create, replica, workload))
        try:
            actor = await asyncio.shield(creating)
        except asyncio.CancelledError:
            await asyncio.wait([creating])  # it must be known before it can be ended
            if creating.exception() is None:
                await self._kill(replica, creating.result())
            raise
        self._actors[replica.id] = actor
        boot = replace(self._boot, namespace=workload.namespace, version=workload.version)
        try:
            await self._placed(actor, workload)
            pid = await actor.start.remote(replica, workload, boot)
        except RayTaskError as error:
            await self._kill(replica, actor)
            cause = error.cause
            raise (cause if isinstance(cause, MicroError) else _broken(error)) from None
        except RayActorError as error:
            await self._kill(replica, actor)
            raise Unavailable("runtime", await self._why(replica, _short(error))) from None
        except BaseException:
            await self._kill(replica, actor)
            raise
        return replace(replica, state=State.RUNNING, pid=pid, started=time.time())

    async def _placed(self, actor: Any, workload: Workload) -> None:
        """Wait for a place. Raises Unavailable when Ray has found none after a while and no node
        that there is could give one; a cluster that grows has seen the demand by then."""
        try:
            async with asyncio.timeout(PLACE):
                await actor.describe.remote()
        except TimeoutError:
            have = await asyncio.to_thread(ray.cluster_resources)
            for name, asked in (
                ("CPU", workload.cpu), ("GPU", workload.gpu), ("memory", workload.memory),
            ):  # fmt: skip
                if asked > have.get(name, 0):
                    raise Unavailable(
                        "runtime",
                        f"{asked:g} {name} asked for; the cluster has {have.get(name, 0):g}",
                    ) from None

    def _create(self, replica: ReplicaState, workload: Workload) -> Any:
        options: dict[str, Any] = {"num_cpus": workload.cpu}
        if workload.gpu:
            options["num_gpus"] = workload.gpu
        if workload.memory:
            options["memory"] = workload.memory
        return (
            ray.remote(Replica)
            .options(
                name=f"{PREFIX}{replica.namespace}:{replica.workload}:{replica.id}",
                namespace=RAY_NAMESPACE,
                lifetime="detached",
                max_restarts=0,
                max_concurrency=1000,
                enable_task_events=False,
                **options,
            )
            .remote(self._state, self._log_limit)
        )

    async def ended(self, replica: ReplicaState) -> str:
        actor = self._actors.get(replica.id)
        if actor is None:
            return "it is not known here"
        why = STOPPED
        while True:
            try:
                await actor.wait.remote()
            except RayTaskError as error:
                why = _short(error)
            except ray.exceptions.ActorUnavailableError:
                await asyncio.sleep(0.1)  # Ray's own trouble: the actor may live
                continue
            except RayError as error:
                why = await self._why(replica, _short(error))
            break
        # Also one that has stopped in good order is a process still: whoever stopped it may have
        # died before it could end it.
        await self._kill(replica, actor)
        return why

    async def stop(self, replica: ReplicaState, grace: float) -> None:
        actor = self._actors.get(replica.id)
        if actor is None:
            return
        if grace > 0:
            with contextlib.suppress(RayError, TimeoutError):
                async with asyncio.timeout(grace):
                    await actor.stop.remote()
        await self._kill(replica, actor)

    async def _kill(self, replica: ReplicaState, actor: Any) -> None:
        """End it, and what it has left: also one that has stopped serving is a process still."""
        self._actors.pop(replica.id, None)
        with contextlib.suppress(RayError):
            await asyncio.to_thread(ray.kill, actor, no_restart=True)
        await asyncio.to_thread(self._clear, replica)

    def _clear(self, replica: ReplicaState) -> None:
        """What a process that was killed has left on this machine. Blocks."""
        sweep(replica.id)
        socket_path(self._boot.run, replica.id).unlink(missing_ok=True)

    async def adopt(self) -> list[ReplicaState]:
        named = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
        found = []
        for row in named:
            if row["namespace"] != RAY_NAMESPACE or not row["name"].startswith(PREFIX):
                continue
            with contextlib.suppress(RayError, ValueError):
                actor = await asyncio.to_thread(ray.get_actor, row["name"], namespace=RAY_NAMESPACE)
                described = await _described(actor)
                if described is None:
                    await self._kill(_named(row["name"]), actor)
                    continue
                self._actors[described.id] = actor
                found.append(described)
        return found

    async def close(self) -> None:
        self._actors.clear()

    async def _why(self, replica: ReplicaState, ended: str) -> str:
        """How it ended, with the last that it said."""
        folder = log_folder(self._state, replica.namespace, replica.workload)
        lines = await asyncio.to_thread(logs.Reader(folder, replica.id).tail, 20)
        return "\n".join([*(line.text for line in lines), ended])


async def _described(actor: Any) -> ReplicaState | None:
    """What an actor is; None for one to be ended: it was being started when the runtime died, has
    stopped, or does not answer. Left alone, the last would serve for ever beside its successor."""
    try:
        async with asyncio.timeout(ANSWERS):
            described: ReplicaState | None = await actor.describe.remote()
    except TimeoutError:
        return None
    return described


def _named(name: str) -> ReplicaState:
    """What the name of an actor says of its replica."""
    namespace, workload, id = name.removeprefix(PREFIX).split(":")
    return ReplicaState(
        id=id, namespace=namespace, workload=workload, generation=0, state=State.STOPPING
    )


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(
        level=logging.INFO,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )


def _load(folder: Path) -> ModuleType:
    """The user's module, with its folder first on the path and as the working folder."""
    path = folder / ENTRY
    if not path.is_file():
        raise BadRequest("runtime", f"no {ENTRY} in the source; a service needs one")
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("main", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["main"] = module
    spec.loader.exec_module(module)
    return module


def _service_of(module: ModuleType) -> Any:
    """The one Service among a module's names."""
    found: Mapping[int, Any] = {
        id(value): value
        for value in vars(module).values()
        if all(hasattr(value, name) for name in ("start", "stop", "name", "endpoint"))
        and not isinstance(value, type)
    }
    if len(found) != 1:
        names = ", ".join(sorted(value.name for value in found.values())) or "none"
        raise BadRequest(
            "runtime", f"{ENTRY} must have one micro_ray.Service at its top level; it has: {names}"
        )
    return next(iter(found.values()))


def _own_traceback(error: BaseException, folder: Path) -> str:
    """The traceback from the user's first frame on, without what this project does under it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [i for i, frame in enumerate(frames) if frame.filename.startswith(str(folder))]
    ours = str(Path(__file__).parent.parent)
    kept = [f for f in frames[own[0] :] if not f.filename.startswith(ours)] if own else []
    lines = traceback.format_exception_only(error)
    if kept:
        lines = ["Traceback (most recent call last):\n", *traceback.format_list(kept), *lines]
    return "".join(lines).replace(f"{folder}/", "")


def _short(error: BaseException) -> str:
    text = str(error).strip()
    for sign in ("Worker exit detail:", "Worker exit type:"):
        if sign in text:
            return "the process ended: " + text.partition(sign)[2].strip().partition("\n")[0][:300]
    return text.partition("\n")[0][:300]


def _broken(error: BaseException) -> MicroError:
    return Unavailable("runtime", _short(error))
