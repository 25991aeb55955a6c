"""Events on NATS JetStream: streams of files on one server, or on several that agree (Raft).

A topic is a stream, a group a log of records in its namespace's stream, a dead letter a message
beside it; any number of processes share them, and any of them may die (decision 0011).

**Flushing.** A publish is answered when JetStream has acknowledged it: one server has then written
it to its file, a cluster with R3 to the files of two of three. JetStream flushes files (fsync) by
its ``sync_interval``, two minutes by default. So a killed process loses nothing that was
acknowledged; a power failure of one server alone may lose the last two minutes, of a cluster only
when it strikes most of its servers at a time. ``sync_interval: always`` flushes before each
acknowledgement. The same holds for what consumers have settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from micro_ray.errors import BadRequest, MicroError, NotFound, Unavailable
from micro_ray.events import (
    DEFAULT,
    DeadLetter,
    Delivery,
    Event,
    Events,
    Group,
    Published,
    Start,
    Topic,
    Usage,
    checks,
)
from micro_ray.events import jetstream_groups as logs
from micro_ray.events import jetstream_topics as streams
from micro_ray.events.checks import Reading
from micro_ray.events.jetstream_api import Api, Names
from micro_ray.events.jetstream_members import Members
from micro_ray.events.jetstream_state import State
from micro_ray.events.jetstream_sweep import Sweep, purge_life
from micro_ray.finding import Finding
from micro_ray.nats_health import examine
from micro_ray.nats_link import Link
from micro_ray.nats_url import Place

__all__ = ["JetStreamEvents"]

log = logging.getLogger(__name__)

#: Seconds between sweeps, and for each topic that there is.
SWEEP, PER_TOPIC = 5.0, 0.01
MAX_PREFIX = 32
#: Copies of dead letters that are asked for at a time.
_AT_ONCE = 64


class JetStreamEvents(Events):
    """``prefix`` is the first word of streams and subjects: platforms that share servers have
    different ones. ``replicas`` of each stream; 0: three in a cluster, else one. ``ttl`` and
    ``max_size`` are of topics that have none of their own. ``clock`` is wall-clock seconds.
    Entered, it connects by itself; verbs wait ``patience`` seconds for a connection."""

    def __init__(
        self,
        place: Place,
        *,
        prefix: str = "micro",
        replicas: int = 0,
        ttl: float | None = None,
        max_size: int | None = None,
        tls: ssl.SSLContext | None = None,
        patience: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        try:
            checks.topic(prefix)
        except BadRequest:
            raise BadRequest("settings", f"events.prefix: {prefix[:80]!r} is no name") from None
        if len(prefix) > MAX_PREFIX:
            raise BadRequest("settings", f"events.prefix: at most {MAX_PREFIX} characters")
        self._clock = clock
        self._names = names = Names(prefix)
        self._link = Link(place, noun="events", tls=tls, patience=patience)
        self._api = api = Api(self._link, replicas=replicas)
        self._topics = streams.Topics(api, names, ttl=ttl, max_size=max_size, clock=clock)
        self._groups = logs.Groups(api, names)
        self._members = Members(api, names, self._topics, self._groups, clock)
        self._sweep = Sweep(api, names, self._topics, self._groups, self._members, clock)
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False
        self._link.on_up = self._doubt

    async def __aenter__(self) -> JetStreamEvents:
        await self._link.__aenter__()
        self._sweeper = asyncio.create_task(self._sweeping())
        return self

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.0):  # servers may be away
                await self._members.close()
        await self._groups.close()
        await self._topics.close()
        await self._link.__aexit__()

    def _doubt(self) -> None:
        """What was told while there was no connection is lost."""
        self._groups.doubt()
        self._members.doubt()

    async def _sweeping(self) -> None:
        topics = 0
        while True:
            await asyncio.sleep(SWEEP + PER_TOPIC * topics)
            try:
                topics = await self.sweep()
            except MicroError as error:  # the next one tries again
                log.info("no sweep: %s", error)
            except Exception:
                log.exception("sweep")

    async def examine(self) -> list[Finding]:
        """Whether the servers are reached, how full JetStream is there, and what keeps namespaces
        apart."""
        found = await examine(
            self._link.place, self._link.info, self._link.why, "events", tls=self._link.tls
        )
        if not self._link.info:
            return found
        try:
            about = await self._api.account()
        except MicroError as error:
            return [*found, Finding(check="events", good=False, text=error.detail)]
        used, most = about["storage"], (about.get("limits") or {}).get("max_storage", -1)
        text = f"JetStream keeps {about['streams']} streams, {used / 2**20:.0f} MiB"
        full = 0 < most * 0.9 < used
        if most > 0:
            text += f" of {most / 2**20:.0f}"
        if full:
            text += ": raise the account's limits or keep less (events.ttl, events.max_size)"
        apart = "namespaces are kept apart by names of ours alone"
        return [
            *found,
            Finding(check="events", good=not full, text=text),
            Finding(check="events", good=True, text=apart),
        ]

    async def sweep(self) -> int:
        """Remove what is no longer kept, and give up what nobody settled; done every few seconds by
        itself."""
        return await self._sweep.run()

    def _open(self) -> None:
        if self._closed:
            raise Unavailable("events", "the backend of events is closed")

    async def _existing(self, namespace: str, topic: str) -> streams.Topic | None:
        """The topic as it is now, if it is there."""
        checks.namespace(namespace)
        self._open()
        return await self._topics.look(namespace, topic)

    # -- publishing and reading ------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        id: str = "",
        expected: int | None = None,
        namespace: str = DEFAULT,
    ) -> Published:
        about = dict(metadata or {})
        size = checks.publish(topic, payload, about, id, expected)
        checks.namespace(namespace)
        self._open()
        id = id or os.urandom(16).hex()
        return await self._topics.publish(namespace, topic, payload, about, id, expected, size)

    async def read(
        self,
        topic: str,
        *,
        limit: int = 250,
        offset: int = 0,
        sequence: int = 0,
        since: float | None = None,
        until: float | None = None,
        namespace: str = DEFAULT,
    ) -> list[Event]:
        checks.topic(topic)
        checks.page(limit, offset, sequence, since, until)
        found = await self._existing(namespace, topic)
        if found is None:
            return []
        return await self._topics.read(found, limit, offset, sequence, since, until)

    # -- topics ----------------------------------------------------------------------------------

    async def topics(self, *, namespace: str = DEFAULT) -> list[Topic]:
        checks.namespace(namespace)
        self._open()
        lives = await self._groups.lives(namespace)
        found = []
        for row in await self._api.streams(self._names.topics(namespace)):
            about = row["config"]["metadata"]
            topic = streams.Topic(namespace, about["topic"], row["config"]["name"])
            self._topics.read_info(topic, row)
            found.append(self._shown(topic, len(lives.get(topic.life, ()))))
        return sorted(found, key=lambda topic: topic.name)

    async def usage(self, *, namespace: str = DEFAULT) -> Usage:
        checks.namespace(namespace)
        self._open()
        states = [row["state"] for row in await self._api.streams(self._names.topics(namespace))]
        groups = await self._api.info(self._names.groups_stream(namespace))
        return Usage(
            topics=len(states),
            events=sum(state["messages"] for state in states),
            bytes=sum(state["bytes"] for state in states),
            group_bytes=0 if groups is None else groups["state"]["bytes"],
        )

    def _shown(self, topic: streams.Topic, groups: int) -> Topic:
        return Topic(
            name=topic.name,
            first=topic.first,
            last=topic.last,
            events=topic.last - topic.first + 1,
            size=topic.size,
            groups=groups,
            ttl=self._topics.ttl(topic),
            max_size=self._topics.max_size(topic),
        )

    async def retain(
        self,
        topic: str,
        *,
        ttl: float | None = None,
        max_size: int | None = None,
        namespace: str = DEFAULT,
    ) -> Topic:
        checks.topic(topic)
        checks.retention(ttl, max_size)
        checks.namespace(namespace)
        self._open()
        kept = await self._topics.retain(namespace, topic, ttl, max_size)
        return self._shown(kept, await self._groups.count(namespace, kept.life))

    async def delete(self, topic: str, *, namespace: str = DEFAULT) -> bool:
        checks.topic(topic)
        found = await self._existing(namespace, topic)
        if found is None:
            return False
        deleted = await self._api.delete(found.stream)
        self._topics.forget(found)
        told = self._names.told(self._names.events(namespace, topic))
        await self._api.tell(f"{told}.deleted")
        await purge_life(self._api, self._names, namespace, found.life)
        return deleted

    # -- consuming -------------------------------------------------------------------------------

    async def consume(
        self,
        topic: str,
        group: str = "",
        *,
        start: str = Start.NOW,
        sequence: int = 0,
        since: float | None = None,
        auto_ack: bool = True,
        ack_wait: float = 30.0,
        retry_limit: int = 10,
        backoff: float = 1.0,
        prefetch: int = 32,
        pending: int = 1_000,
        namespace: str = DEFAULT,
    ) -> AsyncIterator[Delivery]:
        how = Reading(
            start=start,
            sequence=sequence,
            since=since,
            ack_wait=ack_wait,
            retry_limit=retry_limit,
            backoff=backoff,
            pending=pending,
        )
        checks.topic(topic)
        if group:
            checks.group(group)
        checks.reading(how, prefetch)
        checks.namespace(namespace)
        self._open()
        taken = self._members.consume(
            namespace, topic, group, how, auto_ack=auto_ack, prefetch=prefetch
        )
        async with contextlib.aclosing(taken) as deliveries:
            async for delivery in deliveries:
                yield delivery

    async def fetch(
        self,
        topic: str,
        group: str,
        *,
        limit: int = 1,
        wait: float = 0.0,
        start: str = Start.NOW,
        sequence: int = 0,
        since: float | None = None,
        ack_wait: float = 30.0,
        retry_limit: int = 10,
        backoff: float = 1.0,
        pending: int = 1_000,
        namespace: str = DEFAULT,
    ) -> list[Delivery]:
        how = Reading(
            start=start,
            sequence=sequence,
            since=since,
            ack_wait=ack_wait,
            retry_limit=retry_limit,
            backoff=backoff,
            pending=pending,
        )
        checks.topic(topic)
        checks.group(group)
        checks.reading(how)
        checks.fetching(limit, wait)
        checks.namespace(namespace)
        self._open()
        return await self._members.fetch(namespace, topic, group, how, limit=limit, wait=wait)

    async def ack(self, *tokens: str, namespace: str = DEFAULT) -> int:
        return await self._settle(
            tokens, namespace, lambda state, rows, copied: state.acknowledge(rows)
        )

    async def nack(self, *tokens: str, delay: float | None = None, namespace: str = DEFAULT) -> int:
        checks.delay(delay)
        now = self._clock()
        return await self._settle(
            tokens,
            namespace,
            lambda state, rows, copied: state.retry(rows, delay, now, copied),
        )

    async def progress(self, *tokens: str, namespace: str = DEFAULT) -> int:
        now = self._clock()
        return await self._settle(
            tokens, namespace, lambda state, rows, copied: state.work_on(rows, now)
        )

    async def _settle(
        self,
        tokens: Sequence[str],
        namespace: str,
        do: Callable[[State, list[tuple[int, int]], Mapping[int, bool]], int],
    ) -> int:
        """Do something with what is held under tokens, group by group."""
        by_group: dict[int, list[tuple[int, int]]] = {}
        for group, sequence, lease in checks.tokens(tokens):
            by_group.setdefault(group, []).append((sequence, lease))
        checks.namespace(namespace)
        self._open()
        count = 0
        for number, rows in by_group.items():
            found = await self._groups.find(namespace, number)
            if found is not None:
                with contextlib.suppress(NotFound):
                    count += await self._members.settle(
                        found,
                        None,
                        lambda state, copied, rows=rows: do(state, rows, copied),  # type: ignore[misc]  # the default binds the rows
                    )
        return count

    # -- groups ----------------------------------------------------------------------------------

    async def _group(self, namespace: str, topic: str, group: str) -> logs.Group | None:
        """A group as it is now, if it is there."""
        checks.topic(topic)
        checks.group(group)
        found = await self._existing(namespace, topic)
        if found is None:
            return None
        named = self._groups.named(namespace, found.life, group)
        try:
            await named.current(sure=True)
        except NotFound:
            return None
        return named

    async def groups(self, topic: str, *, namespace: str = DEFAULT) -> list[Group]:
        checks.topic(topic)
        found = await self._existing(namespace, topic)
        if found is None:
            return []
        numbers = (await self._groups.lives(namespace, found.life)).get(found.life, [])
        rows = []
        for number in numbers:
            with contextlib.suppress(NotFound):
                rows.append(await self._groups.of(namespace, found.life, number).current(sure=True))
        found = await self._existing(namespace, topic) or found
        return sorted((_listed(state, found) for state in rows), key=lambda group: group.name)

    async def delete_group(self, topic: str, group: str, *, namespace: str = DEFAULT) -> bool:
        found = await self._group(namespace, topic, group)
        return False if found is None else await found.delete()

    async def dead(
        self,
        topic: str,
        group: str,
        *,
        limit: int = 100,
        offset: int = 0,
        namespace: str = DEFAULT,
    ) -> list[DeadLetter]:
        checks.page(limit, offset)
        found = await self._group(namespace, topic, group)
        if found is None or found.state is None:
            return []
        chosen = found.state.letters()[offset : offset + limit]
        letters: list[DeadLetter] = []
        for start in range(0, len(chosen), _AT_ONCE):
            part = chosen[start : start + _AT_ONCE]
            copies = await asyncio.gather(
                *(self._members.copy(found, topic, sequence) for sequence, _ in part)
            )
            letters += [
                DeadLetter(event=event, attempts=letter.attempts, time=letter.time)
                for event, (_, letter) in zip(copies, part, strict=True)
                if event is not None  # discarded meanwhile
            ]
            letters = checks.answer(letters)
        return letters

    async def requeue(
        self, topic: str, group: str, sequences: Sequence[int] = (), *, namespace: str = DEFAULT
    ) -> int:
        now = self._clock()
        found = await self._of_letters(topic, group, sequences, namespace)
        return await found.change(lambda state: state.requeue(sequences, now))

    async def discard(
        self, topic: str, group: str, sequences: Sequence[int] = (), *, namespace: str = DEFAULT
    ) -> int:
        found = await self._of_letters(topic, group, sequences, namespace)
        return await found.change(lambda state: len(state.discard(sequences)))

    async def _of_letters(
        self, topic: str, group: str, sequences: Sequence[int], namespace: str
    ) -> logs.Group:
        checks.sequences(sequences)
        found = await self._group(namespace, topic, group)
        if found is None:
            raise NotFound("events", f"no group {group!r} of topic {topic!r}")
        return found


def _listed(state: State, topic: streams.Topic) -> Group:
    return Group(
        topic=topic.name,
        name=state.name,
        next=state.next,
        waiting=max(0, topic.last + 1 - max(state.next, topic.first)),
        pending=len(state.held),
        dead=len(state.letters()),
    )
