"""The broker by the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from micro_ray.broker import Broker, Message, Subscription
from micro_ray.wire.store_records import from_text
from tests.faces.rows import Rows, lacks
from tests.faces.subscriptions import Taken
from tests.faces.terminal import Shell

__all__ = ["ROWS", "TerminalBroker"]

_SPACE = "a terminal speaks for the namespace of its platform"
_MANY = "hundreds of commands; the backend's own, and tried over frames"

ROWS = Rows(
    verbs={"close": "what a command has opened it closes at its end"},
    dear={
        "test_in_order_and_each_once": _MANY,
        "test_a_group_shares": _MANY,
        "test_groups_do_not_collide": _MANY,
        "test_who_leaves_a_group_gets_nothing_more": _MANY,
        "test_who_does_not_read_loses_the_oldest_and_learns_it": _MANY,
        "test_what_waits_is_bounded_in_bytes": "the backend's alone, and tried on it",
        "test_namespaces_that_cannot_be": "the backend's alone, and tried on it",
        "test_bodies_are_bytes": "standard input is bytes",
    },
)


class TerminalBroker(Broker):
    """The interface over ``micro publish``, ``subscribe`` and ``health``."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def close(self) -> None:
        ROWS.lacks("close")

    async def check(self) -> None:
        await self._shell.value("call", "broker", "Debug.Health")

    async def publish(
        self,
        topic: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        namespace: str = "micro",
    ) -> None:
        _own(namespace)
        words = [f"--header={name}={text}" for name, text in (headers or {}).items()]
        await self._shell.value("publish", *words, "--", topic, "-", stdin=body)

    def subscribe(self, topic: str, *, queue: str = "", namespace: str = "micro") -> Subscription:
        _own(namespace)
        return Taken(self._messages(topic, queue))

    async def _messages(self, topic: str, queue: str) -> AsyncIterator[Message]:
        words = [f"--queue={queue}"] if queue else []
        async for row in self._shell.lines(
            "subscribe", *words, "--", topic, begins=b'{"subscribed":'
        ):
            if row is None:
                yield Message(topic=topic)
                continue
            yield Message(
                topic=row["topic"],
                body=from_text(row["body"], row["encoding"]),
                headers=row["headers"],
                dropped=row["dropped"],
            )


def _own(namespace: str) -> None:
    if namespace != "micro":
        lacks(_SPACE)
