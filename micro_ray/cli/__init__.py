"""The room of the terminal: ``micro``. One file per noun, loaded when its command is used, so that
it starts fast; Ray is loaded by ``server`` alone.

What a command prints is on standard output, what went wrong on standard error. With ``-o json``,
before or after the command's name, standard output is JSON and nothing else (one value; one a line
where values come as a stream), and an error is ``{"id", "code", "detail", "status"}``.

Exit codes: 0 good (also when the reader of our output has gone); 1 failed, refused, timed out or
not found, also an unknown command; 2 wrong usage or not allowed; 3 malformed endpoint; 4 service
not found, or nobody there to ask; 5 endpoint not found; 127 another error of a service; 128
anything else; 130 interrupted, as `micro server` is by SIGINT and SIGTERM before it is up.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """The console script."""
    try:
        from micro_ray.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before there was anything to interrupt
        code = 130
    sys.exit(code)
