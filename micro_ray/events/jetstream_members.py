"""The members of groups on JetStream: what a consumer is given, waits for, and gives back."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TypeVar

from micro_ray.errors import Conflict, MicroError, NotFound, TooLarge, Unavailable
from micro_ray.events import FORGET, MAX_ANSWER, MAX_GROUPS, Delivery, Event, Start
from micro_ray.events.checks import Reading
from micro_ray.events.jetstream_api import Api, Message, Names, id_of
from micro_ray.events.jetstream_groups import Group, Groups
from micro_ray.events.jetstream_state import Copies, State
from micro_ray.events.jetstream_topics import ID, METADATA, TIME, Topic, Topics, event_of, time_of

__all__ = ["Members", "parts"]

#: Longest wait in seconds before a consumer looks by itself, and before it asks the servers.
LOOK, ASK = 0.5, 5.0
#: Bytes that are given out at a time, requests that are under way at a time.
_BATCH, _AT_ONCE = MAX_ANSWER // 2, 64

T = TypeVar("T")


def parts(token: str) -> tuple[int, int, int]:
    group, sequence, lease = token.split(".")
    return int(group), int(sequence), int(lease)


class _Watch:
    """What members here are told of a topic."""

    def __init__(self) -> None:
        self.users = 0
        self.last = 0
        self.doubt = False
        self.changed = asyncio.Event()

    def wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def take(self, subject: bytes, body: bytes, headers: Mapping[str, str] | None) -> None:
        sequence = int((headers or {}).get("Nats-Sequence", "0"))
        self.last = max(self.last, sequence)
        self.doubt = self.doubt or not sequence  # something other than an event: look
        self.wake()


class Members:
    def __init__(
        self, api: Api, names: Names, topics: Topics, groups: Groups, clock: Callable[[], float]
    ) -> None:
        self._api = api
        self._names = names
        self._topics = topics
        self._groups = groups
        self._clock = clock
        self._watches: dict[str, _Watch] = {}
        #: Consumers here: their groups, and what they have been given and not yet seen.
        self._holders: dict[str, tuple[Topic, Group, list[Delivery]]] = {}
        self._closed = False

    async def close(self) -> None:
        """What consumers here hold is given back; they end with Unavailable."""
        self._closed = True
        for holder in list(self._holders):
            with contextlib.suppress(MicroError):
                await self._release(holder)
        for watch in self._watches.values():
            watch.wake()

    def doubt(self) -> None:
        """Something may have been missed: all look anew."""
        for watch in self._watches.values():
            watch.doubt = True
            watch.wake()

    # -- joining ---------------------------------------------------------------------------------

    async def join(
        self, space: str, name: str, group: str, how: Reading, own: bool
    ) -> tuple[Topic, Group]:
        """A group, made where ``how`` says if need be, with its rules from now on."""
        topic = await self._topics.make(space, name, fresh=True)
        found = self._groups.named(space, topic.life, group)
        try:
            state = await found.current(sure=True)
        except NotFound:
            state = await self._make(topic, found, group, how, own)
        if (state.topic, state.name) != (name, group):
            raise Conflict("events", f"group {group!r} of {name!r} needs another name")
        if not state.follows(how):
            await found.change(lambda state: state.follow(how))
        if state.beyond(topic.last):
            await self._topics.make(space, name, fresh=True)  # the group is newer than what we know
            following, last = state.next, topic.last
            await found.change(lambda state: state.rewind(following, last))
        return topic, found

    async def _make(self, topic: Topic, group: Group, name: str, how: Reading, own: bool) -> State:
        if await self._groups.count(topic.space, topic.life) >= MAX_GROUPS:
            raise TooLarge("events", f"{MAX_GROUPS} groups of {topic.name}; delete some")
        begin = topic.first if how.start == Start.BEGINNING else topic.last + 1
        if how.sequence:
            begin = max(topic.first, how.sequence)
        if how.since is not None:
            begin = await self._topics.first_at(topic, how.since)
        state = State.new(topic.name, name, begin, self._clock() if own else None)
        state.follow(how)
        state.keep()
        await group.create(state)
        return await group.current()

    # -- consuming -------------------------------------------------------------------------------

    async def consume(
        self, space: str, name: str, group: str, how: Reading, *, auto_ack: bool, prefetch: int
    ) -> AsyncGenerator[Delivery, None]:
        holder = os.urandom(8).hex()
        own = not group
        topic, joined = await self.join(space, name, group or f"consumer-{holder}", how, own)
        unseen: list[Delivery] = []
        settled: list[tuple[int, int]] = []
        seen = self._clock()
        self._holders[holder] = (topic, joined, unseen)
        try:
            async with self._watching(topic, joined) as watch:
                while True:
                    changing = joined.changing, watch.changed
                    await self._look(topic, joined, watch)
                    unseen += await self._give(topic, joined, holder, prefetch, settled)
                    settled.clear()
                    while unseen:
                        delivery = unseen.pop(0)
                        yield delivery
                        if auto_ack:
                            settled.append(parts(delivery.token)[1:])
                    if settled:
                        continue
                    if own and self._clock() - seen > FORGET / 4:
                        seen = self._clock()
                        await joined.change(lambda state: state.see(self._clock()))
                    await self._wait(joined, watch, changing, LOOK)
        finally:
            with contextlib.suppress(MicroError):
                await self._leave(holder, joined, settled, own)

    async def _leave(
        self, holder: str, group: Group, settled: Sequence[tuple[int, int]], own: bool
    ) -> None:
        if own:
            self._holders.pop(holder, None)
            await group.delete()
            return
        if settled:
            await group.change(lambda state: state.acknowledge(settled))
        await self._release(holder)

    async def fetch(
        self, space: str, name: str, group: str, how: Reading, *, limit: int, wait: float
    ) -> list[Delivery]:
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        holder = os.urandom(8).hex()
        topic, joined = await self.join(space, name, group, how, False)
        if not wait:
            return await self._give(topic, joined, holder, limit, ())
        async with self._watching(topic, joined) as watch:
            while True:
                changing = joined.changing, watch.changed
                await self._look(topic, joined, watch)
                given = await self._give(topic, joined, holder, limit, ())
                left = end - loop.time()
                if given or left <= 0:
                    return given
                await self._wait(joined, watch, changing, min(left, LOOK))

    @contextlib.asynccontextmanager
    async def _watching(self, topic: Topic, group: Group) -> AsyncGenerator[_Watch, None]:
        """Within it, members here are told of changes."""
        subject = f"{self._names.told(self._names.events(topic.space, topic.name))}.>"
        watch = self._watches.setdefault(subject, _Watch())
        watch.users += 1
        group.users += 1
        try:
            await self._api.link.listen(subject, watch.take)
            await self._api.link.listen(group.told_of, group.take)
            watch.doubt = True  # before they were listened to, nothing was heard
            group.doubt()
            yield watch
        finally:
            watch.users -= 1
            group.users -= 1
            if not watch.users:
                self._watches.pop(subject, None)
                await self._api.link.leave(subject)
            if not group.users:
                await self._api.link.leave(group.told_of)

    async def _wait(
        self,
        group: Group,
        watch: _Watch,
        changing: tuple[asyncio.Event, asyncio.Event],
        most: float,
    ) -> None:
        """Until the topic or the group changes, or something is due again. Raises Unavailable once
        closed."""
        state = await group.current()
        soonest = state.soonest()
        pause = most
        if soonest is not None:
            pause = min(most, max(soonest - self._clock(), 0.005))
        if not any(event.is_set() for event in changing):
            waiting = [asyncio.ensure_future(event.wait()) for event in changing]
            try:
                await asyncio.wait(waiting, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waiting:
                    task.cancel()
        if self._closed:
            raise Unavailable("events", "the backend of events is closed")

    # -- giving ----------------------------------------------------------------------------------

    async def _give(
        self,
        topic: Topic,
        group: Group,
        holder: str,
        prefetch: int,
        settled: Sequence[tuple[int, int]],
    ) -> list[Delivery]:
        """Settle, and give if there is something to give; nothing is written for nothing."""
        done = list(settled)
        if self._closed:
            raise Unavailable("events", "the backend of events is closed")
        while True:
            state = await group.current()
            now = self._clock()
            if state.overdue(now):
                await self.bury(topic, group)
                state = await group.current()
            events, first, more = await self._events(
                topic, state, holder, prefetch + len(done), now
            )
            if not done and not events and first <= state.next:
                return []
            known = events, first

            def job(
                state: State,
                known: tuple[dict[int, Event | None], int] = known,
                now: float = now,
                done: Sequence[tuple[int, int]] = tuple(done),
            ) -> list[Delivery]:
                state.acknowledge(done)
                state.skip(known[1])
                return [
                    Delivery(
                        event=given.event,
                        token=f"{group.number}.{given.event.sequence}.{given.lease}",
                        attempt=given.attempt,
                    )
                    for given in state.give(holder, prefetch, now, known[0])
                ]

            given = await group.change(job)
            done.clear()
            if given or not more:
                return given

    async def _look(self, topic: Topic, group: Group, watch: _Watch) -> None:
        """Know the topic's newest event: by what was told, or else from the servers."""
        topic.last = max(topic.last, watch.last)
        if not watch.doubt and asyncio.get_running_loop().time() - topic.looked < ASK:
            return
        now = await self._topics.look(topic.space, topic.name)
        if now is None or now.life != group.life:
            watch.doubt = True  # the others are to find out too
            group.doubt()
            raise NotFound("events", "the topic or the group has been deleted")
        watch.doubt = False
        await group.current(sure=True)

    async def _events(
        self, topic: Topic, state: State, holder: str, prefetch: int, now: float
    ) -> tuple[dict[int, Event | None], int, bool]:
        """What may be given: the events by number, None for those that are no longer kept; the
        first number that is kept; and whether there may be more."""
        due, room = state.wanted(holder, prefetch, now)
        events: dict[int, Event | None] = {}
        size = 0
        for start in range(0, len(due), _AT_ONCE):
            again = await self._again(topic, state, due[start : start + _AT_ONCE])
            events |= again
            size += sum(len(event.payload) for event in again.values() if event)
            if size > _BATCH:
                return events, 0, True
        first = max(state.next, topic.first)
        if room <= 0 or first > topic.last:
            return events, topic.first, False
        rows = await self._topics.page(topic, first, room)
        if not rows:
            now_first = max(topic.first, first)
            return events, now_first, False
        after = self._topics.kept_after(topic)
        if time_of(rows[0]) <= after:
            first = await self._topics.first_kept(topic)
            rows = [row for row in rows if row.sequence >= first]
            return events | {r.sequence: event_of(topic.name, r) for r in rows}, first, True
        for row in rows:
            if events and size > _BATCH:
                return events, rows[0].sequence, True
            for gone in range(first, row.sequence):
                events[gone] = None
            events[row.sequence] = event_of(topic.name, row)
            size += len(row.body)
            first = row.sequence + 1
        return events, rows[0].sequence, False

    async def _again(
        self, topic: Topic, state: State, sequences: Sequence[int]
    ) -> dict[int, Event | None]:
        """Events that are given again; those that are dead letters from their copies."""
        kept = await self._topics.messages(topic, [n for n in sequences if n not in state.dead])
        events: dict[int, Event | None] = {
            n: None if m is None else event_of(topic.name, m) for n, m in kept.items()
        }
        group = self._groups.named(topic.space, topic.life, state.name)
        copied = [n for n in sequences if n in state.dead]
        found = await asyncio.gather(*(self.copy(group, topic.name, n) for n in copied))
        return events | dict(zip(copied, found, strict=True))

    async def copy(self, group: Group, topic: str, sequence: int) -> Event | None:
        """The copy that a dead letter has."""
        found = await self._api.message(group.stream, last_by_subj=f"{group.copies}.{sequence}")
        if found is None:
            return None
        event = event_of(topic, found)
        return Event(
            topic=topic,
            sequence=sequence,
            id=event.id,
            time=event.time,
            payload=event.payload,
            metadata=event.metadata,
        )

    # -- giving back and giving up ---------------------------------------------------------------

    async def settle(
        self, group: Group, topic: Topic | None, job: Callable[[State, Mapping[int, bool]], T]
    ) -> T:
        """Do what may give events up: they are copied to the dead letters before that is written,
        so who dies in between leaves them held, and the next one gives them up."""
        copied: dict[int, bool] = {}
        while True:
            try:
                return await group.change(lambda state: job(state, copied))
            except Copies as needed:
                if topic is None:
                    state = await group.current()
                    topic = await self._topics.look(group.space, state.topic)
                for start in range(0, len(needed.sequences), _AT_ONCE):
                    chosen = needed.sequences[start : start + _AT_ONCE]
                    copied.update(await self._copied(group, topic, chosen))

    async def _copied(
        self, group: Group, topic: Topic | None, sequences: Sequence[int]
    ) -> dict[int, bool]:
        """Copy events to the dead letters; False for those that the topic no longer keeps."""
        if topic is None or topic.life != group.life:
            return dict.fromkeys(sequences, False)
        found = await self._topics.messages(topic, sequences)
        await asyncio.gather(*(self._put_copy(group, m) for m in found.values() if m))
        return {sequence: message is not None for sequence, message in found.items()}

    async def _put_copy(self, group: Group, event: Message) -> None:
        headers = {ID: id_of(event.subject), TIME: event.headers[TIME], "Nats-Rollup": "sub"}
        if METADATA in event.headers:
            headers[METADATA] = event.headers[METADATA]
        await self._api.append(f"{group.copies}.{event.sequence}", event.body, headers)

    async def bury(self, topic: Topic | None, group: Group) -> None:
        """Give up what nobody has settled in time and has had all its attempts."""
        now = self._clock()
        await self.settle(group, topic, lambda state, copied: state.bury(now, copied))

    async def _release(self, holder: str) -> None:
        held = self._holders.pop(holder, None)
        if held is None:
            return
        topic, group, unseen = held
        now, numbers = self._clock(), {delivery.event.sequence for delivery in unseen}
        await self.settle(
            group, topic, lambda state, copied: state.release(holder, numbers, now, copied)
        )
