"""Replicas as local processes: any command, or ``python main.py`` for a Python folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from micro_ray.errors import BadRequest, InternalError, Unavailable
from micro_ray.runtime import Driver, Replica, State, Workload, logs
from micro_ray.runtime.admission import Admit, variables
from micro_ray.runtime.folders import log_folder, source_folder, work_folder
from micro_ray.runtime.leftovers import INSTANCE, sweep
from micro_ray.runtime.machine import Amount, Machine, here
from micro_ray.runtime.shim import start_time
from micro_ray.runtime.waiting import to_its_end
from micro_ray.settings import socket_path

__all__ = ["ProcessDriver"]

#: The namespace and the name of a workload.
Place = tuple[str, str]

#: Seconds after which a command that has not registered, and need not, counts as running; and after
#: which one does of which earlier replicas had registered.
LIVES = 2.0
REGISTERS = 15.0
POLL = 0.02
#: Seconds for a shim to clear up when it must at once.
QUIT = 2.0


class ProcessDriver(Driver):
    """``state`` has the folders of sources, logs and status files. ``environ`` is what every
    process gets; ``known(namespace, id)`` says whether a replica has registered; ``anchor`` is the
    pid whose end ends all (0: none). ``machine`` keeps the books of cores, GPUs and memory;
    ``admit`` is where the identity of a replica begins, if it needs one."""

    def __init__(
        self,
        state: Path,
        *,
        environ: Mapping[str, str],
        known: Callable[[str, str], bool],
        anchor: int = 0,
        grace: float = 30.0,
        log_limit: int = 16 * 2**20,
        machine: Machine | None = None,
        admit: Admit | None = None,
    ) -> None:
        self._state = state
        self._environ = dict(environ)
        self._known = known
        self._anchor = anchor
        self._grace = grace
        self._log_limit = log_limit
        self._machine = machine or here()
        self._admit = admit
        self._folder = state / "processes"
        #: The replicas of workloads, and those workloads of which one has registered: the next one
        #: must too.
        self._started: dict[Place, set[str]] = {}
        self._registering: set[Place] = set()

    async def start(self, replica: Replica, workload: Workload) -> Replica:
        amount = Amount(cpu=workload.cpu, gpu=workload.gpu, memory=workload.memory)
        given = self._machine.take(replica.id, amount)
        try:
            secrets = await variables(replica, self._admit)
            job = await asyncio.to_thread(self._job, replica, workload, given, secrets)
            # Whatever happens, the shim must be known before it can be stopped.
            spawning = asyncio.ensure_future(self._spawn(job))
            try:
                await asyncio.shield(spawning)
            except asyncio.CancelledError:
                await to_its_end(spawning)
                raise
            return await self._up(replica, workload)
        except BaseException:
            await to_its_end(asyncio.ensure_future(self.stop(replica, 0)))
            raise

    def _job(
        self, replica: Replica, workload: Workload, given: Amount, secrets: Mapping[str, str]
    ) -> dict[str, Any]:
        """What the shim is told. Blocks."""
        namespace, name = workload.namespace, workload.name
        if workload.digest:
            folder = source_folder(self._state, namespace, workload.digest)
            if not workload.command and not (folder / "main.py").is_file():
                raise BadRequest("runtime", "no main.py in the source; a service needs one")
        else:
            folder = work_folder(self._state, namespace, name)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        environ = self._environ | dict(workload.env)
        bin_folder = str(Path(sys.executable).parent)
        environ["PATH"] = f"{bin_folder}{os.pathsep}{environ.get('PATH', os.defpath)}"
        environ |= {
            INSTANCE: replica.id,
            "MICRO_NAMESPACE": namespace,
            "MICRO_SERVICE_NAME": name,
            "MICRO_SERVICE_VERSION": workload.version,
            **secrets,
        }
        if given.devices:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, given.devices))
        return {
            "replica": {
                "id": replica.id,
                "namespace": namespace,
                "workload": name,
                "generation": replica.generation,
                "anchor": self._anchor,
                "amount": asdict(given),
            },
            "command": list(workload.command) or [sys.executable, "main.py"],
            "folder": str(folder),
            "env": environ,
            "log": str(log_folder(self._state, namespace, name) / f"{replica.id}.log"),
            "log_limit": self._log_limit,
            "status": str(self._status(replica)),
            "anchor": self._anchor,
            "grace": self._grace,
        }

    async def _spawn(self, job: Mapping[str, Any]) -> None:
        # In a thread: the loop of a Ray actor is not told of the end of its children.
        shim = await asyncio.to_thread(
            subprocess.run,
            # -P: not what lies in the folder that we happen to be in.
            [sys.executable, "-P", "-m", "micro_ray.runtime.shim"],
            input=json.dumps(job).encode(),
            capture_output=True,
            env={k: v for k, v in self._environ.items() if k != "PYTHONPATH"},
            check=False,
        )
        if shim.returncode:
            raise InternalError(
                "runtime", f"the shim failed: {shim.stderr.decode(errors='replace')[-500:]}"
            )

    async def _up(self, replica: Replica, workload: Workload) -> Replica:
        """Wait until it has registered; a command need not, if it lives on."""
        begun = time.monotonic()
        place = (replica.namespace, replica.workload)
        while True:
            status = await asyncio.to_thread(self._read, replica)
            if "ended" in status or not _lives(status):
                status = await asyncio.to_thread(self._read, replica)  # its last word
                raise Unavailable("runtime", await self._why(replica, _ending(status)))
            known = self._known(replica.namespace, replica.id)
            lived = time.monotonic() - begun
            enough = lived >= (REGISTERS if self._registers(place) else LIVES)
            if known or (workload.command and "child" in status and enough):
                self._started.setdefault(place, set()).add(replica.id)
                await asyncio.to_thread(self._mark(replica).touch)
                return replace(
                    replica, state=State.RUNNING, pid=status.get("child", 0), started=time.time()
                )
            await asyncio.sleep(POLL)

    def _registers(self, place: Place) -> bool:
        """Whether a replica of a workload is registered, or was."""
        if any(self._known(place[0], id) for id in self._started.get(place, ())):
            self._registering.add(place)
        return place in self._registering

    async def _why(self, replica: Replica, ended: str) -> str:
        """How it ended, with the last it said."""
        folder = log_folder(self._state, replica.namespace, replica.workload)
        lines = await asyncio.to_thread(logs.Reader(folder, replica.id).tail, 30)
        return "\n".join([*(line.text for line in lines), ended])

    async def ended(self, replica: Replica) -> str:
        status = await asyncio.to_thread(self._read, replica)
        if _lives(status):
            await _pid_ended(int(status["pid"]))
        status = await asyncio.to_thread(self._read, replica)
        why = await self._why(replica, _ending(status))
        await asyncio.to_thread(self._clear, replica, status)
        return why

    async def stop(self, replica: Replica, grace: float) -> None:
        status = await asyncio.to_thread(self._read, replica)
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGQUIT, QUIT)):
            if _lives(status) and patience:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(status["pid"]), number)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await _pid_ended(int(status["pid"]))
        if _lives(status):
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                os.kill(int(status["pid"]), signal.SIGKILL)
                async with asyncio.timeout(QUIT):
                    await _pid_ended(int(status["pid"]))
        status = await asyncio.to_thread(self._read, replica)
        await asyncio.to_thread(self._clear, replica, status)

    async def adopt(self) -> list[Replica]:
        found = []
        for path in await asyncio.to_thread(lambda: sorted(self._folder.glob("*.json"))):
            status = await asyncio.to_thread(_load, path)
            try:
                replica = Replica(
                    id=status["id"],
                    namespace=status["namespace"],
                    workload=status["workload"],
                    generation=status["generation"],
                    state=State.RUNNING,
                    pid=status.get("child", 0),
                    started=(await asyncio.to_thread(path.stat)).st_mtime,
                )
                amount = Amount(**{**status["amount"], "devices": (*status["amount"]["devices"],)})
            except (KeyError, TypeError, OSError):
                await asyncio.to_thread(path.unlink, missing_ok=True)
                continue
            up = _lives(status) and await asyncio.to_thread(self._mark(replica).exists)
            if not up or status["anchor"] != self._anchor:
                # It was being started, has ended, or belongs to a platform that has ended.
                await self.stop(replica, 0)
                continue
            self._machine.has(replica.id, amount)
            self._started.setdefault((replica.namespace, replica.workload), set()).add(replica.id)
            found.append(replica)
        return found

    async def close(self) -> None:
        """The shims go on."""

    def _status(self, replica: Replica) -> Path:
        return self._folder / f"{replica.id}.json"

    def _mark(self, replica: Replica) -> Path:
        """Is there once a replica has come up."""
        return self._folder / f"{replica.id}.up"

    def _read(self, replica: Replica) -> dict[str, Any]:
        return _load(self._status(replica))

    def _clear(self, replica: Replica, status: Mapping[str, Any]) -> None:
        """Leave nothing of a replica whose shim has ended. Blocks."""
        if "ended" not in status:
            sweep(replica.id)  # the shim was killed and could not clear up
        if run := self._environ.get("MICRO_RUN"):
            socket_path(Path(run), replica.id).unlink(missing_ok=True)
        self._machine.give_back(replica.id)
        place = (replica.namespace, replica.workload)
        self._registers(place)
        self._started.get(place, set()).discard(replica.id)
        for path in (
            self._mark(replica),
            self._status(replica).with_suffix(".new"),
            self._status(replica),
        ):
            path.unlink(missing_ok=True)


def _lives(status: Mapping[str, Any]) -> bool:
    """Whether the shim of a replica is there."""
    pid = int(status.get("pid", 0))
    return pid > 0 and start_time(pid) == status.get("start")


def _ending(status: Mapping[str, Any]) -> str:
    return str(status.get("ended", "the shim was killed"))


def _load(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


async def _pid_ended(pid: int) -> None:
    """Wait for the end of a process that need not be our child (pidfd_open(2))."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(handle, _settle, ended)
    try:
        await ended
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def _settle(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)
