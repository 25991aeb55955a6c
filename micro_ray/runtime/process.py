"""Replicas as local processes: any command, or ``python main.py`` for a Python folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from micro_ray.errors import InternalError, Unavailable
from micro_ray.runtime import Driver, Replica, State, Workload, logs
from micro_ray.runtime.shim import start_time

__all__ = ["ProcessDriver"]

#: Seconds after which a command that has not registered, and need not, counts as running.
LIVES = 2.0
POLL = 0.02


class ProcessDriver(Driver):
    """``state`` has the folders of sources, logs and status files. ``environ`` is what every
    process gets; ``known(id)`` says whether a replica has registered; ``anchor`` is the pid whose
    end ends all (0: none)."""

    def __init__(
        self,
        state: Path,
        *,
        environ: Mapping[str, str],
        known: Callable[[str], bool],
        anchor: int = 0,
        grace: float = 30.0,
        log_limit: int = 16 * 2**20,
    ) -> None:
        self._state = state
        self._environ = dict(environ)
        self._known = known
        self._anchor = anchor
        self._grace = grace
        self._log_limit = log_limit
        self._folder = state / "processes"

    async def start(self, replica: Replica, workload: Workload) -> Replica:
        log = self._state / "logs" / workload.namespace / workload.name / f"{replica.id}.log"
        folder = self._state / "sources" / workload.digest if workload.digest else self._state
        environ = {
            **self._environ,
            "MICRO_INSTANCE": replica.id,
            "MICRO_SERVICE_NAME": workload.name,
            "MICRO_SERVICE_VERSION": workload.version,
            **workload.env,
        }
        bin_folder = str(Path(sys.executable).parent)
        environ["PATH"] = f"{bin_folder}{os.pathsep}{environ.get('PATH', os.defpath)}"
        job = {
            "replica": {
                "id": replica.id,
                "namespace": replica.namespace,
                "workload": replica.workload,
                "generation": replica.generation,
            },
            "command": list(workload.command) or [sys.executable, "main.py"],
            "folder": str(folder),
            "env": environ,
            "log": str(log),
            "log_limit": self._log_limit,
            "status": str(self._status(replica)),
            "anchor": self._anchor,
            "grace": self._grace,
        }
        await self._spawn(job)
        try:
            return await self._up(replica, workload)
        except BaseException:
            await self.stop(replica, 0)
            raise

    async def _spawn(self, job: Mapping[str, Any]) -> None:
        await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        shim = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "micro_ray.runtime.shim",
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={k: v for k, v in self._environ.items() if k != "PYTHONPATH"},
        )
        _, said = await shim.communicate(json.dumps(job).encode())
        if shim.returncode:
            raise InternalError("runtime", f"the shim failed: {said.decode()[-500:]}")

    async def _up(self, replica: Replica, workload: Workload) -> Replica:
        """Wait until it has registered; a command need not, if it lives on."""
        begun = time.monotonic()
        while True:
            status = await asyncio.to_thread(self._read, replica)
            if "ended" in status:
                raise Unavailable("runtime", await self._why(replica, workload, status["ended"]))
            lived = time.monotonic() - begun
            if self._known(replica.id) or (workload.command and status and lived >= LIVES):
                return replace(
                    replica, state=State.RUNNING, pid=status.get("child", 0), started=time.time()
                )
            await asyncio.sleep(POLL)

    async def _why(self, replica: Replica, workload: Workload, ended: str) -> str:
        """How it ended, with the last it said."""
        folder = self._state / "logs" / workload.namespace / workload.name
        lines = await asyncio.to_thread(logs.tail, folder, 200)
        said = [line.text for line in lines if line.replica == replica.id][-30:]
        return "\n".join([*said, ended])

    async def ended(self, replica: Replica) -> str:
        status = await asyncio.to_thread(self._read, replica)
        pid = int(status.get("pid", 0))
        if pid and start_time(pid) == status.get("start"):
            await _pid_ended(pid)
            status = await asyncio.to_thread(self._read, replica)
        why = str(status.get("ended", "the shim was killed"))
        if "ended" not in status:
            self._kill_child(status)
        workload = Workload(name=replica.workload, namespace=replica.namespace)
        why = await self._why(replica, workload, why)
        await asyncio.to_thread(self._status(replica).unlink, missing_ok=True)
        return why

    async def stop(self, replica: Replica, grace: float) -> None:
        status = await asyncio.to_thread(self._read, replica)
        pid = int(status.get("pid", 0))
        if pid and start_time(pid) == status.get("start"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(grace + 1.0 if grace else 1.0):
                    await _pid_ended(pid)
            except TimeoutError:
                self._kill_child(status)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(self._status(replica).unlink, missing_ok=True)

    async def adopt(self) -> list[Replica]:
        found = []
        for path in await asyncio.to_thread(lambda: sorted(self._folder.glob("*.json"))):
            status = await asyncio.to_thread(_load, path)
            pid = int(status.get("pid", 0))
            if not pid or start_time(pid) != status.get("start") or "ended" in status:
                self._kill_child(status)
                await asyncio.to_thread(path.unlink, missing_ok=True)
                continue
            found.append(
                Replica(
                    id=status["id"],
                    namespace=status["namespace"],
                    workload=status["workload"],
                    generation=status["generation"],
                    state=State.RUNNING,
                    pid=status.get("child", 0),
                    started=(await asyncio.to_thread(path.stat)).st_mtime,
                )
            )
        return found

    async def close(self) -> None:
        """The shims go on."""

    def _status(self, replica: Replica) -> Path:
        return self._folder / f"{replica.id}.json"

    def _read(self, replica: Replica) -> dict[str, Any]:
        return _load(self._status(replica))

    def _kill_child(self, status: Mapping[str, Any]) -> None:
        """The group of a shim that was killed: its processes got KILL from the kernel when it died;
        this is for what they had started."""
        child = int(status.get("child", 0))
        if child:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(child) == child:
                    os.killpg(child, signal.SIGKILL)


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
