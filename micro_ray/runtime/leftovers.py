"""What a replica that was killed could not clear up: processes that it had started, its socket."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from micro_ray.runtime.shim import start_time
from micro_ray.settings import socket_path

__all__ = ["INSTANCE", "sweep"]

#: The variable by which all processes of a replica are known.
INSTANCE = "MICRO_INSTANCE"


def sweep(replica: str, run: Path | None) -> None:
    """Leave nothing of an ended replica on this machine; ``run`` is the folder of sockets. Blocks,
    a second at most."""
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
            break
        time.sleep(0.05)
    if run is not None:
        with contextlib.suppress(OSError):
            socket_path(run, replica).unlink(missing_ok=True)
