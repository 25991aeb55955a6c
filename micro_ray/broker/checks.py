"""What every backend refuses, said in one place; and when a topic matches a pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from micro_ray.broker import (
    MAX_HEADER_NAME,
    MAX_HEADERS,
    MAX_HEADERS_BYTES,
    MAX_NAMESPACE,
    MAX_QUEUE,
    MAX_TOPIC,
    Limits,
)
from micro_ray.errors import BadRequest, TooLarge

__all__ = ["MAX_PREFIX", "content", "matches", "name", "subscription", "target", "topic"]

#: Longest first word of subjects.
MAX_PREFIX = 63

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HEADER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def name(what: str, value: str, most: int) -> None:
    if len(value) > most or not _NAME.fullmatch(value):
        raise BadRequest(
            "broker",
            f"{what} {value[:80]!r}: letters, digits, '.', '_', '-', at most {most} characters",
        )


def topic(value: str, *, pattern: bool = False) -> None:
    """Words separated by dots; with ``pattern`` some of them may be wildcards."""
    size = len(value.encode(errors="replace"))
    if size > MAX_TOPIC:
        raise TooLarge("broker", f"topic of {size} bytes; {MAX_TOPIC} allowed")
    if not value:
        raise BadRequest("broker", "topic is empty")
    if " " in value or not value.isprintable():
        raise BadRequest("broker", f"topic {value!r} contains blanks or control characters")
    words = value.split(".")
    for place, word in enumerate(words, 1):
        if not word:
            raise BadRequest("broker", f"topic {value!r} has an empty word between its dots")
        if "*" not in word and ">" not in word:
            continue
        if not pattern:
            raise BadRequest("broker", f"topic {value!r}: '*' and '>' are for subscribers")
        if word not in ("*", ">"):
            raise BadRequest("broker", f"topic {value!r}: '*' and '>' stand for whole words")
        if word == ">" and place < len(words):
            raise BadRequest("broker", f"topic {value!r}: '>' can only be the last word")


def matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Whether the words of a topic match those of a pattern; both are valid."""
    if pattern[-1] == ">":
        if len(words) < len(pattern):
            return False
        pattern = pattern[:-1]
    elif len(words) != len(pattern):
        return False
    return all(p in ("*", w) for p, w in zip(pattern, words, strict=False))


def subscription(pattern: str, queue: str, namespace: str) -> None:
    topic(pattern, pattern=True)
    if queue:
        name("queue", queue, MAX_QUEUE)
    name("namespace", namespace, MAX_NAMESPACE)


def target(where: str, namespace: str) -> None:
    """Where a message goes."""
    topic(where)
    name("namespace", namespace, MAX_NAMESPACE)


def content(body: bytes, headers: Mapping[str, str] | None, limits: Limits) -> None:
    """What it says."""
    if not isinstance(body, bytes):
        raise BadRequest("broker", f"body is {type(body).__name__}; bytes are sent")
    if len(body) > limits.message:
        raise TooLarge(
            "broker", f"body of {len(body)} bytes; {limits.message} allowed (broker.max_message)"
        )
    if headers:
        _headers(headers)


def _headers(headers: Mapping[str, str]) -> None:
    if len(headers) > MAX_HEADERS:
        raise TooLarge("broker", f"{len(headers)} headers; {MAX_HEADERS} allowed")
    size = 0
    for key, value in headers.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise BadRequest("broker", "headers have names or values that are no text")
        if len(key) > MAX_HEADER_NAME or not _HEADER.fullmatch(key):
            raise BadRequest(
                "broker",
                f"header {key[:80]!r}: letters, digits, '.', '_', '-', "
                f"at most {MAX_HEADER_NAME} characters",
            )
        if key.lower().startswith("nats-"):
            raise BadRequest("broker", f"header {key[:80]!r}: names with 'Nats-' are the servers'")
        if value != value.strip() or _CONTROL.search(value):
            raise BadRequest(
                "broker", f"header {key!r}: control characters, or blanks at an end of its value"
            )
        try:
            size += len(key) + len(value.encode())
        except UnicodeEncodeError:
            raise BadRequest("broker", f"header {key!r} is not valid Unicode") from None
    if size > MAX_HEADERS_BYTES:
        raise TooLarge("broker", f"headers of {size} bytes; {MAX_HEADERS_BYTES} allowed")
