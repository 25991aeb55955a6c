"""The room of the terminal: ``micro``. One file per noun, loaded when its command is used, so that
it starts fast; Ray is loaded by ``server`` alone.

Exit codes: 0 good; 1 failed, timed out or not found; 2 wrong usage or not allowed; 3 malformed
endpoint; 4 service not found or no server; 5 endpoint not found; 127 another error of a service;
128 anything else; 130 interrupted.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """The console script."""
    from micro_ray.cli.app import run

    sys.exit(run(sys.argv[1:]))
