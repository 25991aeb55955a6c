"""What every backend refuses, said in one place."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from micro_ray.errors import BadRequest, Conflict, TooLarge
from micro_ray.events import (
    MAX_ACK_WAIT,
    MAX_ANSWER,
    MAX_DELAY,
    MAX_EVENTS,
    MAX_GROUP,
    MAX_ID,
    MAX_METADATA,
    MAX_METADATA_BYTES,
    MAX_PAYLOAD,
    MAX_PENDING,
    MAX_PREFETCH,
    MAX_RETRIES,
    MAX_TOKENS,
    MAX_TOPIC,
    MAX_WAIT,
    DeadLetter,
    Event,
    Start,
)

__all__ = [
    "Reading",
    "answer",
    "conflict",
    "delay",
    "fetching",
    "group",
    "namespace",
    "page",
    "publish",
    "reading",
    "retention",
    "sequences",
    "tokens",
    "topic",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ID = re.compile(r"[\x21-\x7e]+")
_MAX_INT = 2**63

T = TypeVar("T", Event, DeadLetter)


def _name(what: str, value: str, most: int) -> None:
    if len(value) > most or not _NAME.fullmatch(value):
        raise BadRequest(
            "events",
            f"{what} {value[:80]!r}: letters, digits, '.', '_', '-', at most {most} characters",
        )


def topic(value: str) -> None:
    _name("topic", value, MAX_TOPIC)


def group(value: str) -> None:
    _name("group", value, MAX_GROUP)


def namespace(value: str) -> None:
    _name("namespace", value, MAX_GROUP)


def _size(what: str, value: object) -> int:
    if not isinstance(value, str):
        raise BadRequest("events", f"{what} is {type(value).__name__}, not text")
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise BadRequest("events", f"{what} is not valid Unicode") from None


def publish(
    name: str, payload: bytes, metadata: Mapping[str, str], id: str, expected: int | None
) -> int:
    """The size of an event: its payload and metadata in bytes."""
    topic(name)
    if not isinstance(payload, bytes):
        raise BadRequest("events", f"payload is {type(payload).__name__}; bytes are published")
    if len(payload) > MAX_PAYLOAD:
        raise TooLarge(
            "events",
            f"payload of {len(payload)} bytes; {MAX_PAYLOAD} allowed (put it in a blob of the "
            "store and publish its key)",
        )
    size = sum(_size("metadata", text) for item in metadata.items() for text in item)
    if len(metadata) > MAX_METADATA or size > MAX_METADATA_BYTES:
        raise TooLarge(
            "events", f"metadata over {MAX_METADATA} entries or {MAX_METADATA_BYTES} bytes"
        )
    if id and len(id) > MAX_ID:
        raise TooLarge("events", f"id of {len(id)} characters; {MAX_ID} allowed")
    if id and not _ID.fullmatch(id):
        raise BadRequest("events", f"id {id[:80]!r}: printable ASCII without spaces")
    if expected is not None and not 0 <= expected < _MAX_INT:
        raise BadRequest("events", f"expected {expected} is no number of an event")
    return len(payload) + size


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a group reads: where it begins when it is new, and its rules."""

    start: str = Start.NOW
    sequence: int = 0
    since: float | None = None
    ack_wait: float = 30.0
    retry_limit: int = 10
    backoff: float = 1.0
    pending: int = 1_000


def reading(how: Reading, prefetch: int = 1) -> None:
    if how.start not in list(Start):
        raise BadRequest(
            "events", f"start {str(how.start)[:80]!r} is neither 'now' nor 'beginning'"
        )
    _time("since", how.since)
    _number("sequence", how.sequence, 0, _MAX_INT - 1)
    if (how.start != Start.NOW) + bool(how.sequence) + (how.since is not None) > 1:
        raise BadRequest("events", "give one of start, sequence and since")
    _number("ack_wait", how.ack_wait, 0.01, MAX_ACK_WAIT)
    _number("retry_limit", how.retry_limit, -1, MAX_RETRIES)
    _number("backoff", how.backoff, 0, MAX_DELAY)
    _number("prefetch", prefetch, 1, MAX_PREFETCH)
    _number("pending", how.pending, 1, MAX_PENDING)


def _number(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise BadRequest("events", f"{what} {value} is not from {low} to {high:g}")


def _time(what: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise BadRequest("events", f"{what} {value} is no time in seconds since 1970")


def delay(value: float | None) -> None:
    if value is not None:
        _number("delay", value, 0, MAX_DELAY)


def fetching(limit: int, wait: float) -> None:
    _number("limit", limit, 1, MAX_PREFETCH)
    _number("wait", wait, 0, MAX_WAIT)


def page(
    limit: int,
    offset: int,
    sequence: int = 0,
    since: float | None = None,
    until: float | None = None,
) -> None:
    _number("limit", limit, 1, MAX_EVENTS)
    _number("offset", offset, 0, _MAX_INT - 1)
    _number("sequence", sequence, 0, _MAX_INT - 1)
    _time("since", since)
    _time("until", until)


def retention(ttl: float | None, max_size: int | None) -> None:
    if ttl is not None and not 0 < ttl < 10**10:
        raise BadRequest("events", f"ttl {ttl:g} s is not over 0 and below 1e10")
    if max_size is not None and not 0 < max_size < _MAX_INT:
        raise BadRequest("events", f"max_size {max_size} is not over 0")


def tokens(rows: Sequence[str]) -> list[tuple[int, int, int]]:
    """Group, number and lease of each."""
    if len(rows) > MAX_TOKENS:
        raise TooLarge("events", f"{len(rows)} tokens; {MAX_TOKENS} allowed")
    found = []
    for row in rows:
        parts = row.split(".") if isinstance(row, str) and len(row) < 64 and row.isascii() else []
        if len(parts) != 3 or not all(part.isdigit() and len(part) < 19 for part in parts):
            raise BadRequest("events", f"token {str(row)[:80]!r} is none that came with an event")
        found.append((int(parts[0]), int(parts[1]), int(parts[2])))
    return found


def sequences(rows: Sequence[int]) -> None:
    if len(rows) > MAX_EVENTS:
        raise TooLarge("events", f"{len(rows)} numbers; {MAX_EVENTS} allowed")
    for row in rows:
        _number("sequence", row, 1, _MAX_INT - 1)


def answer(rows: Iterable[T]) -> list[T]:
    """The rows as a list. Raises TooLarge as soon as they are too many for one answer: what is
    beyond it is never held."""
    kept: list[T] = []
    size = 0
    for row in rows:
        event = row.event if isinstance(row, DeadLetter) else row
        size += len(event.payload) + sum(
            len(text.encode()) for item in event.metadata.items() for text in item
        )
        if size > MAX_ANSWER:
            raise TooLarge("events", f"over {MAX_ANSWER} bytes; set a lower limit")
        kept.append(row)
    return kept


def conflict(name: str, expected: int, last: int) -> Conflict:
    return Conflict(
        "events", f"{name}: last event {expected} expected, {last} found; read on and try again"
    )
