"""The parent of one local process: ``python -m micro_ray.runtime.shim`` with a JSON job on stdin.

It outlives the runtime that started it and is found again by its status file. It writes the
process's output to a bounded log and sees to it that nothing of the process is left:

- TERM passes TERM on to the process's group, and KILL to all its descendants after the grace; QUIT
  does so at once. The same happens when the platform (the anchor process) ends.
- When the process ends, by itself or because it was asked to, descendants that are left get TERM if
  they have not had it, what remains of the grace, and KILL. Daemons are descendants too: orphans
  come to the shim, not to init.
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

from micro_ray.runtime.logfile import Lines, LogFile, pump

_SET_CHILD_SUBREAPER = 36
_SET_PDEATHSIG = 1
#: Seconds between TERM and KILL when nobody asked: the platform has ended, or the process has and
#: left others behind.
ORPHAN_GRACE = 5.0
#: Seconds between looks for descendants that are ending.
LOOK = 0.05


def start_time(pid: int) -> int:
    """When a process was started, in clock ticks since boot; 0 when it is not there, or a zombie.
    With the pid it names a process for ever (proc(5), fields 3 and 22 of stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def main() -> None:
    job: dict[str, Any] = json.load(sys.stdin)
    told, tell = os.pipe()
    if os.fork():  # the runtime must not be the parent: it may be restarted
        os.close(tell)
        with os.fdopen(told, "rb") as pipe:
            said = pipe.read()
        sys.stderr.buffer.write(said)
        sys.stderr.flush()
        os._exit(1 if said else 0)
    os.close(told)
    os.setsid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signals = _Signals()
    state = {**job["replica"], "pid": os.getpid(), "start": start_time(os.getpid())}
    try:
        log = LogFile(Path(job["log"]), int(job["log_limit"]))
        _save(Path(job["status"]), state)
    except OSError as error:
        os.write(tell, f"{error.filename}: {error.strerror}".encode())
        return
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(tell)
    why = _run(job, state, log, libc, signals)
    with contextlib.suppress(OSError):  # a full disk: that it ended is seen without it
        _save(Path(job["status"]), {**state, "ended": why})


def _run(
    job: dict[str, Any], state: dict[str, Any], log: LogFile, libc: Any, signals: _Signals
) -> str:
    """Start the process, wait for its end and clear up behind it; how it ended."""
    mine = os.getpid()

    def die_with_the_shim() -> None:
        libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != mine:
            os._exit(1)

    try:
        child = subprocess.Popen(
            job["command"],
            cwd=job["folder"],
            env=job["env"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            preexec_fn=die_with_the_shim,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        why = f"cannot run {job['command'][0]!r}: {reason}"
        log.write("err", [why.encode(errors="replace")])
        return why
    with contextlib.suppress(OSError):
        _save(Path(job["status"]), {**state, "child": child.pid})
    pumps = []
    for pipe, stream in ((child.stdout, "out"), (child.stderr, "err")):
        assert pipe is not None
        lines = Lines(log, stream)
        pumps.append(threading.Thread(target=pump, args=(pipe.fileno(), lines), daemon=True))
        pumps[-1].start()
    why = _wait(child, int(job["anchor"]), float(job["grace"]), signals)
    for thread in pumps:
        thread.join(1.0)
    return why


class _Signals:
    """What was asked for by signals, and a descriptor that wakes a select when one comes."""

    def __init__(self) -> None:
        self.term = self.quit = False
        self.wake, write = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._asked)
        signal.signal(signal.SIGQUIT, self._asked)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
            # Not ignored: what is ignored here would be ignored by the process too.
            signal.signal(number, lambda *_: None)

    def _asked(self, number: int, _frame: object) -> None:
        self.quit = self.quit or number == signal.SIGQUIT
        self.term = True

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.wake, 4096):
                pass


def _wait(child: subprocess.Popen[bytes], anchor: int, grace: float, signals: _Signals) -> str:
    """Until the process has ended and nothing of it is left; how it ended."""
    watched = _pidfd(anchor) if anchor else None
    orphaned = anchor != 0 and watched is None
    why, asked_at = "", 0.0
    group_told, told = False, set[int]()
    while True:
        signals.drain()
        _reap(child)
        ended = child.returncode is not None
        if ended:
            why = why or _said(child.returncode)
        now = time.monotonic()
        if not asked_at and (signals.term or orphaned or ended):
            asked_at = now
            if orphaned or ended:
                grace = min(grace, ORPHAN_GRACE)
            if not ended:
                _kill(-child.pid, signal.SIGTERM)
                group_told = True
        due = asked_at and (signals.quit or now - asked_at >= grace)
        left = _descendants() if ended or due else []
        if ended and not left:
            return why
        if due:
            why = why or "killed: it did not end in time"
            for pid in left:
                _kill(pid, signal.SIGKILL)
        elif ended:
            for pid in set(left) - told:
                # The group had it with the process; daemons have left the group.
                if not group_told or _group(pid) != child.pid:
                    _kill(pid, signal.SIGTERM)
            told.update(left)
        waiting = [signals.wake] + ([watched] if watched is not None else [])
        wait = LOOK if ended or due else asked_at + grace - now if asked_at else None
        ready = select.select(waiting, [], [], wait)[0]
        if watched in ready:
            orphaned, watched = True, None


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Take the exit status of the process, and of orphans that came to us, so that no zombie
    stays."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            child.poll()
            return
        if found is None:
            return
        if found.si_pid == child.pid:
            child.poll()
        else:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(found.si_pid, os.WNOHANG)


def _descendants() -> list[int]:
    """All living processes below this one."""
    parents: dict[int, int] = {}
    for folder in os.listdir("/proc"):
        if folder.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                with open(f"/proc/{folder}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                if fields[0] not in b"ZX":
                    parents[int(folder)] = int(fields[1])
    below = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in below} - below
        if not more:
            return sorted(below - {os.getpid()})
        below |= more


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _kill(pid: int, number: int) -> None:
    """Signal a process, or a group by its negative number."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _said(code: int) -> str:
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _save(path: Path, state: dict[str, Any]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(state))
    os.replace(fresh, path)


if __name__ == "__main__":
    main()
