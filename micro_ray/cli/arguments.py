"""Arguments and options of several commands, as they are typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

from micro_ray.cli.exits import Usage

__all__ = ["Numbers", "duration", "fraction", "pairs", "seconds"]

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_NEGATIVE = re.compile(r"-\.?\d.*", re.ASCII | re.DOTALL)
#: Stands before a negative number while options are read; no argument of a process can have it.
_MARK = "\0"


class Numbers(click.Command):
    """A command whose arguments may be negative numbers; none of its options begins so."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        marked = [_MARK + arg if _NEGATIVE.fullmatch(arg) else arg for arg in args]
        rest = super().parse_args(ctx, marked)
        ctx.params = {name: _unmarked(value) for name, value in ctx.params.items()}
        return rest


def _unmarked(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_unmarked(part) for part in value)
    return value.removeprefix(_MARK) if isinstance(value, str) else value


def duration(text: str) -> float:
    """``1h30m`` in seconds. Raises Usage."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text, re.ASCII)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise Usage("cli", f"{text!r} is no duration, such as 90s, 5m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """An option that is a duration; a bare number is seconds. It must be above zero."""
    if not value:
        return None
    text = value.removeprefix(_MARK)
    took = float(text) if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) else None
    try:
        took = duration(text) if took is None else took
    except Usage as error:
        raise click.BadParameter(error.detail) from None
    if not 0 < took < 1e9:
        raise click.BadParameter(f"{text} is not above zero and within 30 years")
    return took


def fraction(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """An option that is an amount, maybe a fraction."""
    if value is not None and not 0 <= value < float("inf"):
        raise click.BadParameter(f"{value} is not an amount")
    return value


def pairs(rows: Sequence[str], option: str, *, fold: bool = False) -> dict[str, str]:
    """``K=V`` of an option that may be given several times; names in lower case with ``fold``."""
    found = {}
    for row in rows:
        name, sign, value = row.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{row!r} is not like K=V", param_hint=option)
        found[name.lower() if fold else name] = value
    return found
