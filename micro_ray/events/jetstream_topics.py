"""Topics on JetStream: a stream each, whose sequences are the numbers of its events.

The subject of an event ends with its id, and a publish demands that there be none of that subject:
so an id is taken once for as long as the topic keeps its event. Retention by age is the stream's
own (``max_age``); what is older by the caller's clock is not shown meanwhile. Retention by size is
kept by purging from the front: a stream's ``max_bytes`` would be reserved on the servers whether it
is used or not, and would also take the newest event.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from micro_ray.errors import MicroError, TooLarge
from micro_ray.events import MAX_ANSWER, MAX_TOPICS, Event, Published, checks
from micro_ray.events.jetstream_api import BUDGET, NO_STREAM, Api, Message, Names, Refused, id_of

__all__ = ["ID", "METADATA", "TIME", "Topic", "Topics", "event_of"]

#: Headers. The time is followed by a mark of the call, which tells whose event it is that is there.
TIME, METADATA, ID = "Micro-Time", "Micro-Metadata", "Micro-Id"
#: Below so many bytes a topic's ``max_size`` is of payloads and metadata, and kept with each
#: publish; above, of what JetStream counts, and kept within seconds.
SMALL = 2**20
#: Bytes that JetStream adds to an event beside subject, headers and payload.
OVERHEAD = 40
#: The longest metadata that is readable JSON; a block of headers may have 64 KiB.
READABLE = 40_000


@dataclass(slots=True)
class Topic:
    """What is known of a topic here: ``first``, ``last`` and ``size`` as they were when its stream
    was looked at, or later. ``life`` tells it from an earlier topic of its name."""

    space: str
    name: str
    stream: str
    life: str = ""
    own: bool = False
    own_ttl: float | None = None
    own_size: int | None = None
    first: int = 1
    last: int = 0
    size: int = 0
    last_time: float = float("-inf")
    trimming: bool = False
    #: When it was looked at, by the loop's clock.
    looked: float = float("-inf")


class Topics:
    """``ttl`` and ``max_size`` are of topics that have no retention of their own."""

    def __init__(
        self,
        api: Api,
        names: Names,
        *,
        ttl: float | None,
        max_size: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._api = api
        self._names = names
        self._ttl = ttl
        self._max_size = max_size
        self._clock = clock
        self._known: dict[tuple[str, str], Topic] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- finding and making ----------------------------------------------------------------------

    def ttl(self, topic: Topic) -> float | None:
        return topic.own_ttl if topic.own else self._ttl

    def max_size(self, topic: Topic) -> int | None:
        return topic.own_size if topic.own else self._max_size

    def kept_after(self, topic: Topic) -> float:
        """Events taken at this time or before are no longer kept."""
        ttl = self.ttl(topic)
        return float("-inf") if ttl is None else self._clock() - ttl

    async def look(self, space: str, name: str) -> Topic | None:
        """The topic as its leader knows it now."""
        info = await self._api.info(self._names.topic_stream(space, name))
        if info is None:
            self._known.pop((space, name), None)
            return None
        return await self._taken(space, name, info)

    async def make(self, space: str, name: str, *, fresh: bool = False) -> Topic:
        """The topic, made if need be; with ``fresh`` as its leader knows it now."""
        topic = self._known.get((space, name))
        if topic is not None and not fresh:
            return topic
        topic = await self.look(space, name)
        if topic is not None:
            return topic
        if await self._api.count(self._names.topics(space)) >= MAX_TOPICS:
            raise TooLarge("events", f"{MAX_TOPICS} topics; delete some")
        subject = self._names.events(space, name)
        life = os.urandom(8).hex()
        info = await self._api.create(
            {
                "name": self._names.topic_stream(space, name),
                "subjects": [f"{subject}.*"],
                "max_age": _nanoseconds(self._ttl),
                "duplicate_window": _nanoseconds(0.1),  # of no use here; no longer than max_age
                "republish": {
                    "src": f"{subject}.>",
                    "dest": f"{self._names.told(subject)}.>",
                    "headers_only": True,
                },
                "metadata": {"namespace": space, "topic": name, "life": life},
            }
        )
        return await self._taken(space, name, info)

    async def _taken(self, space: str, name: str, info: Mapping[str, Any]) -> Topic:
        topic = self._known.get((space, name))
        fresh = topic is None or topic.life != info["config"]["metadata"]["life"]
        if topic is None or fresh:
            topic = Topic(space, name, self._names.topic_stream(space, name))
        self.read_info(topic, info)
        if fresh and topic.last:
            newest = await self._api.message(topic.stream, seq=topic.last)
            if newest is not None:
                topic.last_time = time_of(newest)
        self._known[space, name] = topic
        return topic

    def read_info(self, topic: Topic, info: Mapping[str, Any]) -> None:
        """Take what a leader says of a stream."""
        about, state = info["config"]["metadata"], info["state"]
        topic.life = about["life"]
        topic.own = "own" in about
        topic.own_ttl = float(about["ttl"]) if "ttl" in about else None
        topic.own_size = int(about["max_size"]) if "max_size" in about else None
        topic.first, topic.last = max(state["first_seq"], 1), state["last_seq"]
        topic.size = state["bytes"]
        topic.looked = asyncio.get_running_loop().time()

    def forget(self, topic: Topic) -> None:
        self._known.pop((topic.space, topic.name), None)

    async def retain(self, space: str, name: str, ttl: float | None, max_size: int | None) -> Topic:
        topic = await self.make(space, name, fresh=True)
        info = await self._api.info(topic.stream)
        if info is None:
            return await self.retain(space, name, ttl, max_size)
        about = {"namespace": space, "topic": name, "life": topic.life, "own": "1"}
        if ttl is not None:
            about["ttl"] = repr(ttl)
        if max_size is not None:
            about["max_size"] = str(max_size)
        config = {**info["config"], "metadata": about, "max_age": _nanoseconds(ttl)}
        await self._api.update(config)
        topic.own, topic.own_ttl, topic.own_size = True, ttl, max_size
        await self.trim(topic)
        return topic

    # -- publishing ------------------------------------------------------------------------------

    async def publish(
        self,
        space: str,
        name: str,
        payload: bytes,
        metadata: Mapping[str, str],
        id: str,
        expected: int | None,
        size: int,
    ) -> Published:
        topic = self._known.get((space, name)) or await self.make(space, name)
        time = topic.last_time = max(self._clock(), topic.last_time)
        call = os.urandom(4).hex()
        subject = self._names.event(space, name, id)
        headers = {
            "Nats-Expected-Last-Subject-Sequence": "0",
            TIME: f"{time!r} {call}",
        }
        if metadata:
            headers[METADATA] = encode(metadata)
        if expected is not None:
            headers["Nats-Expected-Last-Sequence"] = str(expected)
        total = len(payload) + sum(len(key) + len(value) + 4 for key, value in headers.items()) + 14
        most = self._api.link.info.get("max_payload", total)
        if total > most:
            raise TooLarge(
                "events",
                f"event of {total} bytes; NATS at {self._api.link.place} takes {most} (its "
                "max_payload)",
            )
        tried: list[str] = []
        end = 0.0
        while True:
            try:
                sequence = await self._api.append(subject, payload, headers, tried=tried)
            except Refused as error:
                end = end or asyncio.get_running_loop().time() + BUDGET
                found = await self._refused(error, topic, subject, id, call, expected, end)
                if found is not None:
                    return found
                continue
            topic.last = max(topic.last, sequence)
            topic.size += size + len(subject) + OVERHEAD
            await self._bound(topic)
            return Published(topic=name, sequence=sequence, id=id, time=time)

    async def _refused(
        self,
        error: Refused,
        topic: Topic,
        subject: str,
        id: str,
        call: str,
        expected: int | None,
        end: float,
    ) -> Published | None:
        """What a publish comes to that was refused; None: try again."""
        if error.code == NO_STREAM:
            if await self._api.info(topic.stream) is None:
                self.forget(topic)
                await self.make(topic.space, topic.name)
            elif asyncio.get_running_loop().time() >= end:
                raise self._api.link.away(f"nobody takes events of {topic.name}")
            else:
                await asyncio.sleep(0.1)
            return None
        if not error.wrong_last:
            raise self._api._error(error)
        twin = await self._api.message(topic.stream, last_by_subj=subject)
        if twin is not None:
            time = time_of(twin)
            if time <= self.kept_after(topic):  # and not yet removed
                await self._api.purge(topic.stream, seq=twin.sequence + 1)
                return None
            return Published(
                topic=topic.name,
                sequence=twin.sequence,
                id=id,
                time=time,
                duplicate=not twin.headers[TIME].endswith(call),
            )
        now = await self.look(topic.space, topic.name)
        last = 0 if now is None else now.last
        if expected is not None and expected != last:
            raise checks.conflict(topic.name, expected, last)
        if asyncio.get_running_loop().time() >= end:
            raise self._api._error(error)
        return None

    # -- retention -------------------------------------------------------------------------------

    async def _bound(self, topic: Topic) -> None:
        """Remove what is too much, at once where little is kept."""
        most = self.max_size(topic)
        if most is None or topic.size <= most:
            return
        if most < SMALL:
            await self.trim(topic)
        elif not topic.trimming:
            topic.trimming = True
            task = asyncio.create_task(self._trim_later(topic))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _trim_later(self, topic: Topic) -> None:
        try:
            most, size = self.max_size(topic), topic.size + 1
            while most is not None and most < topic.size < size:  # what came meanwhile, too
                size = topic.size
                await self.trim(topic)
        except MicroError:
            pass  # the sweep tries again
        finally:
            topic.trimming = False

    async def keep_up(self, topic: Topic, config: Mapping[str, Any]) -> None:
        """Do what a sweep does for a topic that was listed with its stream's ``config``."""
        most = self.max_size(topic)
        if most is not None and topic.size > most:
            await self.trim(topic)
        age = _nanoseconds(self._ttl)
        if not topic.own and config.get("max_age", 0) != age:  # the setting was changed
            await self._api.update({**config, "max_age": age})

    async def trim(self, topic: Topic) -> None:
        """Remove the oldest events beyond the size; the newest stays."""
        most = self.max_size(topic)
        if most is None:
            return
        now = await self.look(topic.space, topic.name)
        if now is None or now.size <= most:
            return
        over = now.size - max(most, 2 * SMALL)
        if over > 0:
            first = now.first
            while over > 0 and first < now.last:
                page = await self.scan(now, first)
                if not page:
                    return  # by a replica that lags; the sweep tries again
                for message in page:
                    if over <= 0 or message.sequence >= now.last:
                        break
                    over -= _stored(message)
                    first = message.sequence + 1
                await self._api.purge(now.stream, seq=first)
            again = await self.look(topic.space, topic.name)
            if again is None:
                return
            now = again
        if most < SMALL:
            await self._trim_small(now, most)

    async def _trim_small(self, topic: Topic, most: int) -> None:
        sizes: list[tuple[int, int]] = []
        first = topic.first
        while first <= topic.last:
            page = await self.scan(topic, first)
            if not page:
                return
            sizes += [(message.sequence, size_of(message)) for message in page]
            first = page[-1].sequence + 1
        total, cut = sum(size for _, size in sizes), topic.first
        for sequence, size in sizes[:-1]:
            if total <= most:
                break
            total, cut = total - size, sequence + 1
        if cut > topic.first:
            await self._api.purge(topic.stream, seq=cut)
            topic.first = cut

    # -- reading ---------------------------------------------------------------------------------

    async def scan(self, topic: Topic, sequence: int, most: int = 1000) -> list[Message]:
        subject = f"{self._names.events(topic.space, topic.name)}.*"
        return await self._api.scan(topic.stream, subject, sequence, most)

    async def page(self, topic: Topic, sequence: int, most: int) -> list[Message]:
        """Messages from a sequence on, as many as the leader has, bounded as an answer is."""
        loop = asyncio.get_running_loop()
        end = loop.time() + BUDGET
        found: list[Message] = []
        size = 0
        while len(found) < most and sequence <= topic.last and size <= MAX_ANSWER:
            page = await self.scan(topic, sequence, most - len(found))
            if page:
                found += page
                size += sum(len(message.body) for message in page)
                sequence = page[-1].sequence + 1
                continue
            now = await self.look(topic.space, topic.name)
            if now is None or now.first > now.last or now.life != topic.life:
                break
            topic, sequence = now, max(sequence, now.first)
            if loop.time() >= end:
                raise self._api.link.away(f"no replica of {topic.name} has its newest events")
            if sequence <= topic.last:
                await asyncio.sleep(0.01)
        return found

    async def messages(self, topic: Topic, sequences: Sequence[int]) -> dict[int, Message | None]:
        """Those of some sequences, None for those that are no longer kept."""
        found: dict[int, Message | None] = {}
        if len(sequences) > 2 and sequences[-1] - sequences[0] < 4 * len(sequences):
            span = sequences[-1] - sequences[0] + 1
            wanted = set(sequences)
            rows = await self.scan(topic, sequences[0], span)
            found = {row.sequence: row for row in rows if row.sequence in wanted}
        rest = [sequence for sequence in sequences if sequence not in found]
        asked = await asyncio.gather(*(self._api.message(topic.stream, seq=n) for n in rest))
        return found | dict(zip(rest, asked, strict=True))

    async def at(self, topic: Topic, sequence: int) -> float | None:
        """When an event was taken; None when it is not kept."""
        found = await self._api.message(topic.stream, seq=sequence)
        return None if found is None else time_of(found)

    async def first_at(self, topic: Topic, since: float) -> int:
        """The number of the first event taken at or after a time, one past the last when there is
        none."""
        low, high = topic.first, topic.last + 1
        while low < high:
            middle = (low + high) // 2
            time = await self.at(topic, middle)
            if time is None or time < since:
                low = middle + 1
            else:
                high = middle
        return low

    async def first_kept(self, topic: Topic) -> int:
        """The number of the first event that is not too old."""
        after = self.kept_after(topic)
        if topic.first > topic.last or after == float("-inf"):
            return topic.first
        oldest = await self.at(topic, topic.first)
        if oldest is not None and oldest > after:
            return topic.first
        return await self.first_at(topic, _next(after))

    async def read(
        self,
        topic: Topic,
        limit: int,
        offset: int,
        sequence: int,
        since: float | None,
        until: float | None,
    ) -> list[Event]:
        first = max(sequence, await self.first_kept(topic))
        if since is not None:
            first = max(first, await self.first_at(topic, since))
        end = topic.last + 1 if until is None else await self.first_at(topic, until)
        first += min(offset, end)
        found = await self.page(topic, first, max(0, min(limit, end - first)))
        return checks.answer(event_of(topic.name, m) for m in found if m.sequence < end)


def _next(time: float) -> float:
    """The smallest time after another, for all that clocks can tell."""
    return time + 1e-6


def _nanoseconds(ttl: float | None) -> int:
    """As a stream takes it: nothing below a tenth of a second, 292 years at most."""
    return 0 if ttl is None else min(max(int(ttl * 1e9), 10**8), 2**63 - 1)


def encode(metadata: Mapping[str, str]) -> str:
    text = json.dumps(dict(metadata))
    if len(text) <= READABLE:
        return text
    return "=" + base64.b64encode(msgspec.msgpack.encode(dict(metadata))).decode()


def decode(text: str | None) -> dict[str, str]:
    if not text:
        return {}
    if text.startswith("="):
        return msgspec.msgpack.decode(base64.b64decode(text[1:]), type=dict[str, str])
    found: dict[str, str] = json.loads(text)
    return found


def time_of(message: Message) -> float:
    return float(message.headers[TIME].partition(" ")[0])


def size_of(message: Message) -> int:
    """Bytes of payload and metadata."""
    metadata = decode(message.headers.get(METADATA))
    return len(message.body) + sum(len(text.encode()) for item in metadata.items() for text in item)


def _stored(message: Message) -> int:
    """About what JetStream counts for a message: what it adds on reading is in the headers too."""
    return len(message.subject) + len(message.body) + OVERHEAD


def event_of(topic: str, message: Message) -> Event:
    headers = message.headers
    return Event(
        topic=topic,
        sequence=message.sequence,
        id=headers.get(ID) or id_of(message.subject),
        time=time_of(message),
        payload=message.body,
        metadata=decode(headers.get(METADATA)),
    )
