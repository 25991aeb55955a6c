"""Events as they cross: payloads as text when they are text, else as base64; ``encoding`` says
which. Publishers may send any JSON as the payload: what is not text is kept as its JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from micro_ray.events import DeadLetter, Delivery, Event, Start
from micro_ray.wire.store_records import from_text, to_text

__all__ = [
    "Consume",
    "Fetch",
    "WireDeadLetter",
    "WireDelivery",
    "WireEvent",
    "from_delivery",
    "from_event",
    "from_letter",
    "payload_of",
    "to_delivery",
    "to_event",
    "to_letter",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Consume:
    """Whose events are asked for, and how they are given; see the interface."""

    topic: str
    group: str = ""
    start: str = Start.NOW.value
    sequence: int = 0
    since: float | None = None
    auto_ack: bool = True
    ack_wait: float = 30.0
    retry_limit: int = 10
    backoff: float = 1.0
    prefetch: int = 32
    pending: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """The same, once: up to ``limit`` that are there, or come within ``wait`` seconds."""

    topic: str
    group: str
    limit: int = 1
    wait: float = 0.0
    start: str = Start.NOW.value
    sequence: int = 0
    since: float | None = None
    ack_wait: float = 30.0
    retry_limit: int = 10
    backoff: float = 1.0
    pending: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WireEvent:
    topic: str
    sequence: int
    id: str
    time: float
    payload: str = ""
    encoding: str = "text"
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WireDelivery(WireEvent):
    """With what settles it, and how often it was given."""

    token: str
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WireDeadLetter(WireEvent):
    """With how often it was given, and when it was given up."""

    attempts: int
    given_up: float


def payload_of(payload: Any, encoding: str) -> bytes:
    """Raises BadRequest for an encoding that is none or does not fit."""
    if isinstance(payload, str):
        return from_text(payload, encoding, "events")
    return msgspec.json.encode(payload)


def _fields(event: Event) -> dict[str, Any]:
    payload, encoding = to_text(event.payload)
    return {
        "topic": event.topic,
        "sequence": event.sequence,
        "id": event.id,
        "time": event.time,
        "payload": payload,
        "encoding": encoding,
        "metadata": dict(event.metadata),
    }


def to_event(event: Event) -> WireEvent:
    return WireEvent(**_fields(event))


def to_delivery(delivery: Delivery) -> WireDelivery:
    return WireDelivery(**_fields(delivery.event), token=delivery.token, attempt=delivery.attempt)


def to_letter(letter: DeadLetter) -> WireDeadLetter:
    return WireDeadLetter(**_fields(letter.event), attempts=letter.attempts, given_up=letter.time)


def from_event(row: WireEvent) -> Event:
    return Event(
        topic=row.topic,
        sequence=row.sequence,
        id=row.id,
        time=row.time,
        payload=from_text(row.payload, row.encoding, "events"),
        metadata=row.metadata,
    )


def from_delivery(row: WireDelivery) -> Delivery:
    return Delivery(event=from_event(row), token=row.token, attempt=row.attempt)


def from_letter(row: WireDeadLetter) -> DeadLetter:
    return DeadLetter(event=from_event(row), attempts=row.attempts, time=row.given_up)
