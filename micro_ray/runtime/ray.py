"""Replicas as Ray actors: Python services of trusted namespaces. The one file below ``actors/``
that knows Ray."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from micro_ray.errors import BadRequest, MicroError, Unavailable
from micro_ray.runtime import Driver, LogLine, State, Workload, logs, source
from micro_ray.runtime import Replica as ReplicaState
from micro_ray.runtime.admission import Admit, admitted
from micro_ray.runtime.folders import log_folder, source_folder
from micro_ray.runtime.leftovers import INSTANCE, sweep
from micro_ray.runtime.logfile import Capture, LogFile
from micro_ray.runtime.waiting import to_its_end
from micro_ray.settings import RAY_NAMESPACE, Bootstrap, here, socket_path
from micro_ray.tracebacks import own_traceback

__all__ = ["RayDriver", "Replica"]

PREFIX = "replica:"
ENTRY = "main.py"
STOPPED = "it was stopped"
#: Seconds after which a replica that has no place yet is looked at.
PLACE = 5.0
#: Seconds that a replica of an earlier life of the runtime has to say what it is.
ANSWERS = 10.0
#: Lines of a log elsewhere that are copied from before.
TAIL = 10_000


class Replica:
    """The actor: imports the user's ``main.py``, starts the one Service in it on this actor's own
    loop. Its output goes to the replica's log."""

    async def __init__(self, state: Path, log_limit: int) -> None:  # type: ignore[misc]  # awaited by Ray
        self._state = state
        self._log_limit = log_limit
        self._service: Any = None
        self._ended = asyncio.Event()
        self._described: ReplicaState | None = None

    async def node(self) -> str:
        """The id of Ray's node where this is."""
        return _own_node()

    async def has_source(self, workload: Workload) -> bool:
        """Whether the workload's source is where this is."""
        return source_folder(self._state, workload.namespace, workload.digest).is_dir()

    async def unpack(self, workload: Workload, archive: bytes) -> None:
        """Put the workload's source where this is."""
        folder = source_folder(self._state, workload.namespace, workload.digest)
        await asyncio.to_thread(source.unpack, archive, folder)

    async def log(self, replica: ReplicaState, after: float) -> AsyncGenerator[list[LogLine], None]:
        """The lines of its log that are newer than ``after``, and those to come."""
        reader = logs.Reader(
            log_folder(self._state, replica.namespace, replica.workload), replica.id
        )
        lines = await asyncio.to_thread(reader.tail, TAIL)
        yield [line for line in lines if line.at > after]
        async for lines in reader.batches():
            yield lines

    async def start(
        self, replica: ReplicaState, workload: Workload, boot: Bootstrap, home: str
    ) -> ReplicaState:
        """Import and start; ``boot`` is true on the node ``home``. Raises BadRequest with the
        user's own traceback."""
        path = log_folder(self._state, workload.namespace, workload.name) / f"{replica.id}.log"
        Capture(LogFile(path, self._log_limit))
        _log_to_stderr()
        os.environ.update(workload.env)
        # What this process starts is known by it.
        os.environ[INSTANCE] = replica.id
        folder = source_folder(self._state, workload.namespace, workload.digest)
        if _own_node() != home:
            boot = here(boot, ray.util.get_node_ip_address())
        replica = replace(replica, host=boot.host)
        boot.run.mkdir(mode=0o700, parents=True, exist_ok=True)  # another machine may have none
        try:
            module = _load(folder)
            service = _service_of(module)
            await service.start(boot, replica.id)
        except MicroError:
            traceback.print_exc()
            raise
        except BaseException as error:
            text = own_traceback(error, folder)
            sys.stderr.write(text)
            sys.stderr.flush()
            raise BadRequest("runtime", text) from None
        self._service = service
        self._described = replace(
            replica, state=State.RUNNING, pid=os.getpid(), started=time.time()
        )
        return self._described

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
    on a loop whose process has joined Ray.

    A replica may be placed on another machine. Then it gets its source from here, by ``archive``
    (namespace and digest -> bytes), and its log is copied to this machine while it is written.
    ``admit`` is where its identity begins, if it needs one.
    """

    def __init__(
        self,
        state: Path,
        boot: Bootstrap,
        *,
        archive: Callable[[str, str], Awaitable[bytes]],
        admit: Admit | None = None,
        log_limit: int = 16 * 2**20,
    ) -> None:
        self._state = state
        self._boot = boot
        self._archive = archive
        self._admit = admit
        self._log_limit = log_limit
        self._actors: dict[str, Any] = {}
        #: Of the replicas on other machines: the nodes there, and who copies their logs.
        self._away: dict[str, str] = {}
        self._copying: dict[str, asyncio.Task[None]] = {}

    async def start(self, replica: ReplicaState, workload: Workload) -> ReplicaState:
        creating = asyncio.ensure_future(asyncio.to_thread(self._create, replica, workload))
        try:
            actor = await asyncio.shield(creating)
        except asyncio.CancelledError:
            await to_its_end(asyncio.ensure_future(self._discard(replica, creating)))
            raise
        self._actors[replica.id] = actor
        boot = replace(self._boot, namespace=workload.namespace, version=workload.version)
        try:
            await self._placed(replica, actor, workload)
            boot = await admitted(boot, replica, self._admit)
            started: ReplicaState = await actor.start.remote(replica, workload, boot, _own_node())
        except RayTaskError as error:
            if replica.id in self._away:
                await asyncio.sleep(2 * logs.POLL)  # what it said is on its way
            await self._kill(replica, actor)
            cause = error.cause
            raise (cause if isinstance(cause, MicroError) else _broken(error)) from None
        except RayActorError as error:
            await self._kill(replica, actor)
            raise Unavailable("runtime", await self._why(replica, _short(error))) from None
        except BaseException:
            await self._kill(replica, actor)
            raise
        return started

    async def _placed(self, replica: ReplicaState, actor: Any, workload: Workload) -> None:
        """Wait for a place, and for the source to be there. Raises Unavailable when Ray has found
        none after a while and no node that there is could give one; a cluster that grows has seen
        the demand by then."""
        try:
            async with asyncio.timeout(PLACE):
                node = await actor.node.remote()
        except TimeoutError:
            await self._check_room(workload)
            node = await actor.node.remote()
        if node == _own_node():
            return
        self._is_away(replica, actor, node, 0.0)
        if workload.digest and not await actor.has_source.remote(workload):
            archive = await self._archive(workload.namespace, workload.digest)
            await actor.unpack.remote(workload, archive)

    async def _check_room(self, workload: Workload) -> None:
        """Raises Unavailable when no node that there is could give the workload its place."""
        have = await asyncio.to_thread(ray.cluster_resources)
        for name, asked in (
            ("CPU", workload.cpu), ("GPU", workload.gpu), ("memory", workload.memory),
        ):  # fmt: skip
            if asked > have.get(name, 0):
                raise Unavailable(
                    "runtime",
                    f"{asked:g} {name} asked for; the cluster has {have.get(name, 0):g}",
                )

    def _is_away(self, replica: ReplicaState, actor: Any, node: str, after: float) -> None:
        """Note that a replica is on another machine, and copy its log from ``after`` on."""
        self._away[replica.id] = node
        self._copying[replica.id] = asyncio.create_task(self._copy(replica, actor, after))

    async def _copy(self, replica: ReplicaState, actor: Any, after: float) -> None:
        """The log of a replica elsewhere into a file here, until it ends."""
        folder = log_folder(self._state, replica.namespace, replica.workload)
        file = LogFile(folder / f"{replica.id}.log", self._log_limit)
        batches = actor.log.remote(replica, after)
        try:
            with contextlib.suppress(RayError):
                async for batch in batches:
                    await asyncio.to_thread(_append, file, await batch)
        finally:
            ray.cancel(batches)
            file.close()

    async def _discard(self, replica: ReplicaState, creating: asyncio.Future[Any]) -> None:
        await asyncio.wait([creating])  # it must be known before it can be ended
        if creating.exception() is None:
            await self._kill(replica, creating.result())

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
                scheduling_strategy="SPREAD",
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
        copying = self._copying.pop(replica.id, None)
        if copying is not None:
            await asyncio.wait([copying], timeout=ANSWERS)  # it ends with the actor
            copying.cancel()
        node = self._away.pop(replica.id, "")
        if not node:
            await asyncio.to_thread(_clear, self._boot.run, replica.id)
            return
        with contextlib.suppress(RayError, TimeoutError):  # the node may be gone
            async with asyncio.timeout(ANSWERS):
                await self._clear_there(replica, node)

    async def _clear_there(self, replica: ReplicaState, node: str) -> None:
        folder = log_folder(self._state, replica.namespace, replica.workload)
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        clear = ray.remote(_clear).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        await clear.remote(self._boot.run, replica.id, folder)

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
                node = await actor.node.remote()
                if node != _own_node():
                    self._is_away(described, actor, node, await self._copied(described))
        return found

    async def _copied(self, replica: ReplicaState) -> float:
        """The time of the last line that is here of a log elsewhere."""
        folder = log_folder(self._state, replica.namespace, replica.workload)
        lines = await asyncio.to_thread(logs.Reader(folder, replica.id).tail, 1)
        return lines[-1].at if lines else 0.0

    async def close(self) -> None:
        self._actors.clear()
        copying = list(self._copying.values())
        self._copying.clear()
        for task in copying:
            task.cancel()
        await asyncio.gather(*copying, return_exceptions=True)

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


def _own_node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _append(file: LogFile, lines: Sequence[LogLine]) -> None:
    """Lines of a log elsewhere, as they are there. Blocks."""
    for (stream, at), group in itertools.groupby(lines, lambda line: (line.stream, line.at)):
        file.write(stream, [line.text.encode() for line in group], at)


def _clear(run: Path, replica: str, folder: Path | None = None) -> None:
    """What a process that was killed has left on this machine, and its log in ``folder``, of which
    there is a copy elsewhere. Blocks."""
    sweep(replica)
    socket_path(run, replica).unlink(missing_ok=True)
    for log in folder.glob(f"{replica}.log*") if folder else ():
        log.unlink(missing_ok=True)


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


def _short(error: BaseException) -> str:
    text = str(error).strip()
    for sign in ("Worker exit detail:", "Worker exit type:"):
        if sign in text:
            return "the process ended: " + text.partition(sign)[2].strip().partition("\n")[0][:300]
    return text.partition("\n")[0][:300]


def _broken(error: BaseException) -> MicroError:
    return Unavailable("runtime", _short(error))
