"""Events by their actor's handle."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from micro_ray.events import DeadLetter, Delivery, Event, Events, Group, Published, Topic, Usage
from tests.faces.handle import Handle
from tests.faces.rows import Rows, lacks

__all__ = ["ROWS", "HandleEvents"]

_CLOCK = "the clock of an actor is the machine's"
_COUNT = "thousands of calls, the backend's own to count"

ROWS = Rows(
    verbs={"close": "the actor is shared, it is not one test's to close"},
    fail={
        "test_an_event_is_read_as_it_was_published": _CLOCK,
        "test_reading_by_number_and_time": _CLOCK,
        "test_replay": _CLOCK,
        "test_topics": "a topic of a platform keeps what its settings say",
        "test_time_never_falls": _CLOCK,
        "test_what_is_too_old_is_not_kept": _CLOCK,
        "test_where_a_group_begins": _CLOCK,
        "test_what_is_not_settled_in_time_is_given_again": _CLOCK,
        "test_the_clock_may_go_back": _CLOCK,
        "test_one_at_a_time": _CLOCK,
        "test_what_fails_too_often_is_a_dead_letter": _CLOCK,
        "test_dead_letters_are_requeued": _CLOCK,
    },
    dear={
        "test_a_consumer_waits_for_what_is_due": _CLOCK + ", and it is waited for",
        "test_giving_back": _CLOCK + ", and it is waited for",
        "test_expiry_counts_as_a_failure": _CLOCK + ", and it is waited for",
        "test_an_answer_is_bounded": "megabytes, the backend's own to count",
        "test_a_topic_has_a_most_of_groups": _COUNT,
        "test_no_dead_letter_is_dropped_for_want_of_room": _COUNT,
    },
)


class HandleEvents(Events):
    """The interface over ``ray.get_actor("events", namespace="micro")``."""

    def __init__(self) -> None:
        self._handle = Handle("events")

    async def _call(self, verb: str, *args: Any, namespace: str = "micro", **options: Any) -> Any:
        space = self._handle.space.to(namespace)
        return await self._handle.call(verb, *args, namespace=space, **options)

    async def close(self) -> None:
        ROWS.lacks("close")

    async def publish(self, topic: str, payload: bytes, **options: Any) -> Published:
        return await self._call("publish", topic, payload, **options)

    def consume(
        self, topic: str, group: str = "", *, namespace: str = "micro", **options: Any
    ) -> AsyncIterator[Delivery]:
        space = self._handle.space.to(namespace)
        return self._handle.stream("consume", topic, group, namespace=space, **options)

    async def fetch(self, topic: str, group: str, **options: Any) -> list[Delivery]:
        return await self._call("fetch", topic, group, **options)

    async def ack(self, *tokens: str, **options: Any) -> int:
        return await self._call("ack", *tokens, **options)

    async def nack(self, *tokens: str, **options: Any) -> int:
        return await self._call("nack", *tokens, **options)

    async def progress(self, *tokens: str, **options: Any) -> int:
        return await self._call("progress", *tokens, **options)

    async def read(self, topic: str, **options: Any) -> list[Event]:
        return await self._call("read", topic, **options)

    def replay(
        self, topic: str, *, namespace: str = "micro", **options: Any
    ) -> AsyncIterator[Event]:
        if {"sleep", "now"} & set(options):
            lacks(_CLOCK)
        space = self._handle.space.to(namespace)
        return self._handle.stream("replay", topic, namespace=space, **options)

    async def topics(self, **options: Any) -> list[Topic]:
        return await self._call("topics", **options)

    async def usage(self, **options: Any) -> Usage:
        return await self._call("usage", **options)

    async def retain(self, topic: str, **options: Any) -> Topic:
        return await self._call("retain", topic, **options)

    async def delete(self, topic: str, **options: Any) -> bool:
        return await self._call("delete", topic, **options)

    async def groups(self, topic: str, **options: Any) -> list[Group]:
        return await self._call("groups", topic, **options)

    async def delete_group(self, topic: str, group: str, **options: Any) -> bool:
        return await self._call("delete_group", topic, group, **options)

    async def dead(self, topic: str, group: str, **options: Any) -> list[DeadLetter]:
        return await self._call("dead", topic, group, **options)

    async def requeue(
        self, topic: str, group: str, sequences: Sequence[int] = (), **options: Any
    ) -> int:
        return await self._call("requeue", topic, group, sequences, **options)

    async def discard(
        self, topic: str, group: str, sequences: Sequence[int] = (), **options: Any
    ) -> int:
        return await self._call("discard", topic, group, sequences, **options)
