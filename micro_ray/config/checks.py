"""What is refused, whatever keeps the config: paths, values, names."""

from __future__ import annotations

import math
import re
from typing import Any

from micro_ray.config import MASK, MAX_AUTHOR, MAX_LISTED, MAX_PART, MAX_PATH
from micro_ray.errors import BadRequest, TooLarge

__all__ = ["author", "data", "namespace", "number", "page", "path"]

_PART = re.compile(r"[A-Za-z0-9_-]+")
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LOW, _HIGH = -(2**63), 2**64


def path(value: str) -> tuple[str, ...]:
    """The parts of a path; none for the blank one."""
    if not isinstance(value, str):
        raise BadRequest("config", f"path is {type(value).__name__}; a text is needed")
    if not value:
        return ()
    if len(value) > MAX_PATH:
        raise TooLarge("config", f"path of {len(value)} characters; {MAX_PATH} allowed")
    parts = tuple(value.split("."))
    for part in parts:
        _part(part, f"path {value[:80]!r}")
    return parts


def _part(part: Any, where: str) -> None:
    if not isinstance(part, str) or not _PART.fullmatch(part):
        raise BadRequest(
            "config",
            f"{where}: {str(part)[:80]!r} is no part of a path; letters, digits, '_' and '-' are, "
            "and dots go between them",
        )
    if len(part) > MAX_PART:
        raise TooLarge("config", f"{where}: a part of {len(part)} characters; {MAX_PART} allowed")


def namespace(value: str) -> None:
    if not _NAMESPACE.fullmatch(value):
        raise BadRequest(
            "config",
            f"namespace {value[:80]!r}: letters, digits, '.', '_', '-', at most 63 characters",
        )


def author(value: str) -> None:
    if len(value) > MAX_AUTHOR or not value.isprintable():
        raise BadRequest(
            "config",
            f"by (who does it) {value[:80]!r}: at most {MAX_AUTHOR} characters that can be shown",
        )


def number(what: str, value: int | None) -> None:
    """A version, which may be left out."""
    if value is not None and not 0 <= value < 2**63:
        raise BadRequest("config", f"{what} {value} is no version: 0 or more, below 2**63")


def page(limit: int, before: int) -> None:
    number("before", before)
    if not 1 <= limit <= MAX_LISTED:
        raise BadRequest("config", f"limit {limit} is not from 1 to {MAX_LISTED}")


def data(value: Any, at: tuple[str, ...], max_depth: int) -> None:
    """JSON that can be kept at a path: members of objects are addressable, and all is of a depth
    that everybody can read."""
    _data(value, ".".join(at) or "the document", len(at), max_depth, True)


def _data(value: Any, where: str, depth: int, most: int, addressed: bool) -> None:
    """``addressed`` until an array is on the way: what is in one has no path of its own."""
    if depth > most:
        raise TooLarge("config", f"{where[:80]}: over {most} levels deep")
    if isinstance(value, dict):
        for name, member in value.items():
            if addressed:
                _part(name, where)
            elif not isinstance(name, str):
                raise BadRequest("config", f"{where[:80]}: the key {name!r} is no text")
            else:
                _text(name, where)
            _data(member, f"{where}.{name}", depth + 1, most, addressed)
    elif isinstance(value, list | tuple):
        for member in value:
            _data(member, where, depth + 1, most, False)
    else:
        _scalar(value, where)


def _scalar(value: Any, where: str) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        if not _LOW <= value < _HIGH:
            raise BadRequest("config", f"{where[:80]}: a number beyond 64 bits; write it as a text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise BadRequest("config", f"{where[:80]}: {value} is no number of JSON")
    elif isinstance(value, str):
        _text(value, where)
        if value == MASK:
            raise BadRequest(
                "config",
                f"{where[:80]}: {MASK} is what a secret is shown as, not a value; leave it out, or "
                "read it with its secrets",
            )
    else:
        raise BadRequest("config", f"{where[:80]}: {type(value).__name__} is not of JSON")


def _text(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequest("config", f"{where[:80]}: a text is not valid Unicode") from None
