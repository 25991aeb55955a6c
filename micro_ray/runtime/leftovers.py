"""Processes that a replica had started, and could not end because it was killed itself."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from micro_ray.runtime.shim import start_time

__all__ = ["INSTANCE", "sweep"]

#: The variable by which all processes of a replica are known.
INSTANCE = "MICRO_INSTANCE"


def sweep(replica: str) -> None:
    """KILL every process on this machine that a replica has started. Blocks, a second at most."""
    mark = f"{INSTANCE}={replica}".encode()
    for _ in range(20):
        found = False
        for folder in Path("/proc").iterdir():
            pid = int(folder.name) if folder.name.isdigit() else 0
            if not pid or pid == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found = start_time(pid) > 0 or found
                    os.kill(pid, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.05)
