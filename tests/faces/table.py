"""Every row of every face, by noun and way."""

from __future__ import annotations

from collections.abc import Mapping

from tests.faces import (
    broker_handle,
    broker_terminal,
    config_handle,
    config_terminal,
    events_handle,
    events_terminal,
    registry_handle,
    registry_terminal,
    store_handle,
    store_terminal,
)
from tests.faces.rows import Rows

__all__ = ["FACES"]

_CALLER = "the caller of a remote one is not its own to close"
_FRAMES = Rows(dear={"test_closing_ends_watchers": _CALLER, "test_closing_ends_watches": _CALLER})

FACES: Mapping[tuple[str, str], Rows] = {
    ("store", "frames"): _FRAMES,
    ("store", "postgres-frames"): _FRAMES,
    ("store", "handle"): store_handle.ROWS,
    ("store", "terminal"): store_terminal.ROWS,
    ("broker", "handle"): broker_handle.ROWS,
    ("broker", "terminal"): broker_terminal.ROWS,
    ("registry", "handle"): registry_handle.ROWS,
    ("registry", "terminal"): registry_terminal.ROWS,
    ("events", "handle"): events_handle.ROWS,
    ("events", "terminal"): events_terminal.ROWS,
    ("config", "handle"): config_handle.ROWS,
    ("config", "terminal"): config_terminal.ROWS,
    ("config", "frames"): _FRAMES,
}
