"""Tables for people, JSON for programs.

What a service or a user has named (keys, names, metadata, errors) is shown with its control
characters made visible, so that it cannot drive a terminal or break a line. Values and log lines
are given as they came; on a terminal only colours, tabs and line ends go through.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click

__all__ = [
    "Form",
    "ago",
    "as_json",
    "bytes_out",
    "columns",
    "encoded",
    "json_line",
    "lines",
    "output",
    "pretty",
    "raw",
    "size",
    "visible",
]


def output(*more: str, default: str = "table") -> Callable[[Any], Any]:
    """The option ``-o`` of a command, beside the one before its name; ``more`` are further forms.
    The session's ``output`` says what was chosen."""
    forms = [*dict.fromkeys((default, "json", *more))]
    return click.option(
        "-o",
        "--output",
        type=Form(forms),
        callback=_chosen,
        expose_value=False,
        help=f"How to print (default: {default}).",
    )


class Form(click.Choice[str]):
    """A form of output; ``-o=json`` is taken as ``-o json`` and ``-ojson`` are."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(value.removeprefix("="), param, ctx)


def _chosen(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None and ctx.obj is not None:
        ctx.obj.output = value


# -- JSON ------------------------------------------------------------------------------------------


def as_json(value: Any) -> None:
    """Print a value as JSON indented with a tab."""
    raw(
        json.dumps(value, indent="\t", ensure_ascii=False).encode("utf-8", "backslashreplace")
        + b"\n"
    )


def json_line(value: Any, *, err: bool = False) -> None:
    """Print a value as JSON on one line, at once; on standard error with ``err``."""
    line = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    if err:
        click.echo(line, err=True, nl=False)
    else:
        raw(line)


def pretty(body: bytes, *, line: bool = False) -> bytes | None:
    """JSON as it came, numbers untouched, indented with a tab or on one ``line``; None when it is
    not JSON."""
    import msgspec

    try:
        if line:
            return msgspec.json.format(body, indent=0) + b"\n"
        rows = msgspec.json.format(body, indent=1).split(b"\n")
    except (msgspec.DecodeError, RecursionError):
        return None
    # No line end is within a string of JSON, so the spaces at the left are the indentation.
    indented = (b"\t" * (len(row) - len(row.lstrip(b" "))) + row.lstrip(b" ") for row in rows)
    return b"\n".join(indented) + b"\n"


def encoded(body: bytes) -> dict[str, str]:
    """Bytes as a value of JSON, the way the store gives them."""
    try:
        return {"value": body.decode(), "encoding": "text"}
    except UnicodeDecodeError:
        return {"value": base64.b64encode(body).decode(), "encoding": "base64"}


# -- text ------------------------------------------------------------------------------------------


def raw(data: bytes) -> None:
    """Write bytes to standard output as they are, at once."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def bytes_out(data: bytes, end: bytes = b"") -> None:
    """A value or a log line: as it came, or harmless on a terminal."""
    if sys.stdout.isatty():
        text = visible(data.decode("utf-8", "backslashreplace"), "\n\t", colours=True)
        data = text.encode("utf-8", "backslashreplace")
    raw(data + end)


def visible(text: str, kept: str = "", *, colours: bool = False) -> str:
    """``text`` with its control characters (and others that do not show: bidirectional overrides,
    lone surrogates) as escapes, but for those of ``kept``, and for colours if they may be."""
    if text.isprintable():
        return text
    if colours and "\x1b[" in text:
        import re

        parts = re.split(r"(\x1b\[[0-9;:]*m)", text)
        shown = [visible(part, kept) for part in parts[::2]]
        pairs = zip(shown, [*parts[1::2], ""], strict=True)
        return "".join(part for pair in pairs for part in pair) + "\x1b[0m"
    return "".join(c if c.isprintable() or c in kept else _escape(c) for c in text)


def _escape(char: str) -> str:
    if char.isspace() and ord(char) > 0x9F and char not in "\u2028\u2029":
        return char  # a space of another width
    return char.encode("unicode_escape").decode()


def _width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    import unicodedata

    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def lines(names: Sequence[str]) -> None:
    """Print names, one a line."""
    for name in names:
        click.echo(visible(name))


def columns(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns; blanks are shown as n/a."""
    table = [
        list(head),
        *(
            [visible(str(cell)) if cell not in ("", None) else "n/a" for cell in row]
            for row in rows
        ),
    ]
    widths = [max(_width(row[i]) for row in table) for i in range(len(head))]
    for row in table:
        padded = (c + " " * (width - _width(c)) for c, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def ago(at: float | None) -> str:
    """``15s ago``, ``1m15s ago``, ``1h15m32s ago``, ``11d15h33m20s ago``; blank when unknown."""
    if not at:
        return ""
    seconds = max(0, int(time.time() - at))
    text = ""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length or text:
            text += f"{seconds // length}{unit}"
            seconds %= length
    return f"{text}{seconds}s ago"


def size(count: float | None) -> str:
    """``12.50mb``; blank when unknown."""
    return "" if count is None else f"{count / 2**20:.2f}mb"
