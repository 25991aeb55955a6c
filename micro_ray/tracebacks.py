"""What the author of a service is shown of an error."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

__all__ = ["own_traceback"]


def own_traceback(error: BaseException, folder: Path | None = None) -> str:
    """The traceback of an error, and of those it came from, without the frames of the platform and
    of the event loop, who are not to blame; only what was raised, where nobody else had a part in
    it.

    With the ``folder`` of the author's source it begins at the first frame there, and names files
    as they are called in it."""
    told = traceback.TracebackException.from_exception(error)
    theirs = _theirs()
    for each in _chain(told):
        frames = [f for f in each.stack if not f.filename.startswith(theirs)]
        if folder is not None:
            own = (i for i, frame in enumerate(frames) if _within(frame.filename, folder))
            frames = frames[next(own, len(frames)) :]
        # Without frames there is nothing to head with "Traceback".
        each.stack = traceback.StackSummary.from_list(frames) if frames else None  # type: ignore[assignment]
    text = "".join(told.format())
    return text if folder is None else text.replace(f"{folder}/", "")


def _chain(told: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    """An error, those it came from and, of a group, its members."""
    waiting = [told]
    while waiting:
        each = waiting.pop()
        yield each
        others = (each.__cause__, each.__context__, *(each.exceptions or ()))
        waiting += [other for other in others if other is not None]


def _theirs() -> tuple[str, ...]:
    """How the file names begin of whoever is not to blame."""
    modules = [sys.modules.get(name) for name in ("asyncio", "uvloop")]
    folders = [os.path.dirname(__file__), *(os.path.dirname(str(m.__file__)) for m in modules if m)]
    return (*(f"{folder}{os.sep}" for folder in folders), contextlib.__file__, "uvloop")


def _within(file: str, folder: Path) -> bool:
    return file.startswith(f"{folder}{os.sep}")
