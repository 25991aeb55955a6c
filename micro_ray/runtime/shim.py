"""The parent of one local process: ``python -m micro_ray.runtime.shim`` with a JSON job on stdin.

It outlives the runtime that started it and is found again by its status file. It writes the
process's output to a bounded log, passes TERM on to the whole group (KILL after the grace), and
ends the group when the platform (the anchor process) ends: nothing leaks.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from micro_ray.runtime.logs import MAX_LINE, LogFile

_SET_CHILD_SUBREAPER = 36
_SET_PDEATHSIG = 1
#: Seconds between TERM and KILL when the platform has ended.
ORPHAN_GRACE = 5.0


def start_time(pid: int) -> int:
    """When a process was started, in clock ticks since boot; 0 when it is not there. With the pid
    it names a process for ever (proc(5), field 22 of stat)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def main() -> None:
    job: dict[str, Any] = json.load(sys.stdin)
    if os.fork():  # the runtime must not be the parent: it may be restarted
        os._exit(0)
    os.setsid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    log = LogFile(Path(job["log"]), int(job["log_limit"]))
    status = Path(job["status"])
    state = {**job["replica"], "pid": os.getpid(), "start": start_time(os.getpid())}
    try:
        child = subprocess.Popen(
            job["command"],
            cwd=job["folder"],
            env=job["env"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            preexec_fn=lambda: libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        )
    except OSError as error:
        why = f"cannot run {job['command'][0]!r}: {error.strerror or error}"
        log.write("err", why.encode())
        _save(status, {**state, "ended": why})
        return
    _save(status, {**state, "child": child.pid})
    pumps = [
        threading.Thread(target=_pump, args=(pipe, stream, log), daemon=True)
        for pipe, stream in ((child.stdout, "out"), (child.stderr, "err"))
    ]
    for pump in pumps:
        pump.start()
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    why = _wait(child, int(job["anchor"]), float(job["grace"]), asked)
    _kill(child, signal.SIGKILL)  # what the group has left behind
    for pump in pumps:
        pump.join(1.0)
    _save(status, {**state, "ended": why})


def _wait(child: subprocess.Popen[bytes], anchor: int, grace: float, asked: threading.Event) -> str:
    """Until the child ends, or must."""
    watched = _pidfd(anchor) if anchor else None
    mine = os.pidfd_open(child.pid)
    asked_at = 0.0
    while True:
        waiting = [mine] + ([watched] if watched is not None else [])
        try:
            ready = select.select(waiting, [], [], 0.1)[0]
        except InterruptedError:
            ready = []
        if child.poll() is not None:
            return _said(child.returncode)
        gone = anchor and (watched is None or watched in ready)
        if (asked.is_set() or gone) and not asked_at:
            asked_at = time.monotonic()
            _kill(child, signal.SIGTERM)
            if gone:
                grace, anchor, watched = min(grace, ORPHAN_GRACE), 0, None
        if asked_at and time.monotonic() - asked_at > grace:
            _kill(child, signal.SIGKILL)
            child.wait()
            return "killed: it did not end in time"


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _kill(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _said(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exited with status {code}"


def _pump(pipe: Any, stream: str, log: LogFile) -> None:
    rest = b""
    while data := os.read(pipe.fileno(), 65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            log.write(stream, line)
        if len(rest) > MAX_LINE:
            log.write(stream, rest)
            rest = b""
    if rest:
        log.write(stream, rest)


def _save(path: Path, state: dict[str, Any]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(state))
    os.replace(fresh, path)


if __name__ == "__main__":
    main()
