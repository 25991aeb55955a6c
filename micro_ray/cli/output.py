"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click

__all__ = ["ago", "as_json", "columns", "size"]


def as_json(value: Any) -> None:
    """Print a value as JSON indented with a tab."""
    click.echo(json.dumps(value, indent="\t", ensure_ascii=False))


def columns(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns; blanks are shown as n/a."""
    table = [
        list(head),
        *([str(cell) if cell not in ("", None) else "n/a" for cell in row] for row in rows),
    ]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def ago(at: float) -> str:
    """``15s ago``, ``1m15s ago``, ``1h15m32s ago``, ``11d15h33m20s ago``."""
    if not at:
        return ""
    seconds = max(0, int(time.time() - at))
    text = ""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length or text:
            text += f"{seconds // length}{unit}"
            seconds %= length
    return f"{text}{seconds}s ago"


def size(count: float) -> str:
    return f"{count / 2**20:.2f}mb"
