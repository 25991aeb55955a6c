"""The command line in processes that start at once: one that has loaded it forks for each command.

A connection is a command: JSON of its arguments, environment and folder comes in with the three
standard streams; its process id and then its exit code go out, a line each. A process that is
killed gives no code.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

#: Loaded before the first command, as it would be by any.
_LOADED = (
    "micro_ray.cli.store", "micro_ray.cli.config", "micro_ray.cli.events", "micro_ray.cli.broker",
    "micro_ray.cli.registry", "micro_ray.sdk.blocking", "micro_ray.settings",
    "micro_ray.wire.address", "micro_ray.wire.broker", "uvloop",
)  # fmt: skip
LARGEST = 2**20


def serve(path: str) -> None:
    """Until standard input ends: whoever started this has gone."""
    for module in _LOADED:
        __import__(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(128)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            line, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _command(line)
            line.close()


def _command(line: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    body, streams, _, _ = socket.recv_fds(line, LARGEST, 3)
    while not body.endswith(b"\n"):
        body += line.recv(LARGEST)
    asked: dict[str, Any] = json.loads(body)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(asked["environ"])
    os.chdir(asked["folder"])
    line.sendall(b"%d\n" % os.getpid())
    code = 128
    try:
        from micro_ray.cli.app import run

        code = run(asked["args"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        line.sendall(b"%d\n" % code)
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
