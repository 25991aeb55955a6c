"""Events by the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from micro_ray.events import DeadLetter, Delivery, Event, Events, Group, Published, Topic, Usage
from micro_ray.wire.event_records import payload_of
from tests.faces.rows import Rows, lacks
from tests.faces.terminal import Shell

__all__ = ["ROWS", "TerminalEvents"]

_SPACE = "a terminal speaks for the namespace of its platform"
_MANY = "hundreds of commands; the backend's own, and tried over frames"
_LARGE = "megabytes, the backend's own to count"
_RULES = "consume has the options of people, not backoff, prefetch and pending"
_MINUS = "a number below zero is no place; the terminal says so before it asks"

ROWS = Rows(
    verbs={"close": "what a command has opened it closes at its end"},
    fail={
        "test_where_a_group_begins": "a place that is none is refused before it is asked for",
        "test_bad_pages[options5]": _MINUS,
        "test_bad_rules[sequence-values6]": _MINUS,
    },
    dear={
        "test_an_answer_is_bounded": _LARGE,
        "test_members_share": _MANY,
        "test_giving_back": _MANY,
        "test_expiry_counts_as_a_failure": "seconds, and no command but one; tried over frames",
        "test_retries_without_a_limit": _MANY,
        "test_a_topic_has_a_most_of_groups": _MANY,
        "test_no_dead_letter_is_dropped_for_want_of_room": _MANY,
        "test_leaving_leaves_nothing": "tasks are those of a process that has ended",
    },
)


class TerminalEvents(Events):
    """The interface over ``micro events``."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def _run(self, verb: str, *words: str, namespace: str, **options: Any) -> Any:
        return await self._shell.value("events", verb, *_options(options, namespace), "--", *words)

    async def close(self) -> None:
        ROWS.lacks("close")

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        id: str = "",
        expected: int | None = None,
        namespace: str = "micro",
    ) -> Published:
        words = _options({"id": id or None, "expected": expected}, namespace)
        words += [f"--metadata={name}={text}" for name, text in (metadata or {}).items()]
        row = await self._shell.value("events", "publish", *words, "--", topic, "-", stdin=payload)
        return Published(**row)

    async def consume(
        self,
        topic: str,
        group: str = "",
        *,
        auto_ack: bool = True,
        ack_wait: float = 30.0,
        retry_limit: int = 10,
        namespace: str = "micro",
        **place: Any,
    ) -> AsyncIterator[Delivery]:
        words = [*_options({"retry-limit": retry_limit}, namespace), f"--ack-wait={ack_wait:f}s"]
        words += [*_place(place), *([] if auto_ack else ["--no-ack"])]
        if place:
            lacks(_RULES)
        words += [f"--group={group}"] if group else []
        async for row in self._shell.lines("events", "consume", *words, "--", topic):
            yield _delivery(row)

    async def fetch(
        self, topic: str, group: str, *, namespace: str = "micro", **options: Any
    ) -> list[Delivery]:
        words = [*_place(options), *_options(options, namespace)]
        rows = await self._shell.value("events", "fetch", *words, "--", topic, group)
        return [_delivery(row) for row in rows]

    async def _settle(self, verb: str, *tokens: str, **options: Any) -> int:
        done = await self._run(verb, *tokens, **options)
        return done["count"]

    async def ack(self, *tokens: str, namespace: str = "micro") -> int:
        return await self._settle("ack", *tokens, namespace=namespace)

    async def nack(self, *tokens: str, delay: float | None = None, namespace: str = "micro") -> int:
        return await self._settle("nack", *tokens, delay=delay, namespace=namespace)

    async def progress(self, *tokens: str, namespace: str = "micro") -> int:
        return await self._settle("progress", *tokens, namespace=namespace)

    async def read(self, topic: str, *, namespace: str = "micro", **options: Any) -> list[Event]:
        words = [*_place(options), *_options(options, namespace)]
        return [
            _event(row) for row in await self._shell.value("events", "read", *words, "--", topic)
        ]

    async def replay(
        self, topic: str, *, namespace: str = "micro", **options: Any
    ) -> AsyncIterator[Event]:
        if {"sleep", "now"} & set(options):
            lacks("the clock of a command is the machine's")
        words = [*_place(options), *_options(options, namespace)]
        async for row in self._shell.lines("events", "replay", *words, "--", topic):
            yield _event(row)

    async def topics(self, *, namespace: str = "micro") -> list[Topic]:
        return [Topic(**row) for row in await self._run("topics", namespace=namespace)]

    async def usage(self, *, namespace: str = "micro") -> Usage:
        return Usage(**await self._run("usage", namespace=namespace))

    async def retain(
        self,
        topic: str,
        *,
        ttl: float | None = None,
        max_size: int | None = None,
        namespace: str = "micro",
    ) -> Topic:
        kept = None if ttl is None else f"{ttl:f}s"
        row = await self._run("retain", topic, ttl=kept, max_size=max_size, namespace=namespace)
        return Topic(**row)

    async def delete(self, topic: str, *, namespace: str = "micro") -> bool:
        done = await self._run("delete", topic, namespace=namespace)
        return done["deleted"]

    async def groups(self, topic: str, *, namespace: str = "micro") -> list[Group]:
        return [Group(**row) for row in await self._run("groups", topic, namespace=namespace)]

    async def delete_group(self, topic: str, group: str, *, namespace: str = "micro") -> bool:
        done = await self._run("delete", topic, group=group, namespace=namespace)
        return done["deleted"]

    async def dead(
        self, topic: str, group: str, *, namespace: str = "micro", **page: Any
    ) -> list[DeadLetter]:
        rows = await self._run("dead", topic, group, namespace=namespace, **page)
        return [
            DeadLetter(event=_event(row), attempts=row["attempts"], time=row["given_up"])
            for row in rows
        ]

    async def requeue(
        self, topic: str, group: str, sequences: Sequence[int] = (), *, namespace: str = "micro"
    ) -> int:
        numbers = map(str, sequences)
        return await self._settle("requeue", topic, group, *numbers, namespace=namespace)

    async def discard(
        self, topic: str, group: str, sequences: Sequence[int] = (), *, namespace: str = "micro"
    ) -> int:
        numbers = map(str, sequences)
        return await self._settle("discard", topic, group, *numbers, namespace=namespace)


def _options(options: Mapping[str, Any], namespace: str) -> list[str]:
    if namespace != "micro":
        lacks(_SPACE)
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def _place(options: dict[str, Any]) -> list[str]:
    """Where to begin and to end, taken out of ``options``."""
    start, sequence = options.pop("start", None), options.pop("sequence", None)
    since, until = options.pop("since", None), options.pop("until", None)
    given = [str(part) for part in (start, sequence) if part is not None]
    given += [] if since is None else [_time(since)]
    if len(given) > 1:
        lacks("--from is one place")
    words = [f"--from={place}" for place in given]
    return words if until is None else [*words, f"--until={_time(until)}"]


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def _event(row: Mapping[str, Any]) -> Event:
    return Event(
        topic=row["topic"],
        sequence=row["sequence"],
        id=row["id"],
        time=row["time"],
        payload=payload_of(row["payload"], row["encoding"]),
        metadata=row["metadata"],
    )


def _delivery(row: Mapping[str, Any]) -> Delivery:
    return Delivery(event=_event(row), token=row["token"], attempt=row["attempt"])
