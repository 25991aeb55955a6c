"""The one who reads our output, while there is nothing to write.

A pipe tells a writer that its reader has gone with the next thing that is written. A stream may be
silent for hours, and ``micro logs -f x | head -1`` should end when ``head`` does.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Iterator

__all__ = ["Reader"]

#: Milliseconds between looks at whether the watch is over.
LOOK = 200


class Reader:
    """``gone`` is whether the reader went away while it was watched."""

    def __init__(self) -> None:
        self.gone = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within it, the end of the reader interrupts the main thread, as Ctrl-C would. Only pipes
        and sockets have an end, and only the main thread can be interrupted."""
        output = _pipe()
        if output is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        over = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(output, over), name="reader", daemon=True
        )
        watch.start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, output: int, over: threading.Event) -> None:
        poll = select.poll()
        poll.register(output, 0)  # errors and hang-ups are told whatever is asked for
        while not over.is_set():
            if poll.poll(LOOK) and not over.is_set():
                self.gone = True
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, signal.SIGINT)
                return


def _pipe() -> int | None:
    """The descriptor of standard output if it leads to somebody who may go away."""
    try:
        output = sys.stdout.fileno()
        mode = os.fstat(output).st_mode
    except (OSError, ValueError):
        return None
    return output if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None
