"""Changes of the registry as etcd tells them.

A watch goes on after the last event that it was given (not after the newest revision that a server
named: in catch-up these are far apart), at another endpoint when its own breaks, has no leader, or
says nothing though it is asked. What it cannot know without a gap it does not guess: a history that
is compacted, or an event whose former value is, ends it with Conflict.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator

from micro_ray.errors import Conflict, MicroError
from micro_ray.registry import Action, Change
from micro_ray.registry.etcd_client import AGAIN, Client, Method
from micro_ray.registry.etcd_line import Broken, Line
from micro_ray.registry.etcd_records import Layout, unpack
from micro_ray.registry.etcdapi import kv_pb2 as kv
from micro_ray.registry.etcdapi import rpc_pb2 as pb

__all__ = ["Watch"]

WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse)
RANGE = Method("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse)

#: Seconds of silence after which a server is asked for a sign of life, and how often it may say
#: nothing before it is left.
SILENCE, SILENT = 1.0, 3

_Line = Line[pb.WatchRequest, pb.WatchResponse]


class Watch:
    """The changes after ``revision`` of the history ``epoch``."""

    def __init__(self, client: Client, layout: Layout, epoch: str, revision: int) -> None:
        self._client = client
        self._layout = layout
        self._epoch = epoch
        self._revision = revision
        #: An event that is held back until it is known whether its revision has more.
        self._held: kv.Event | None = None

    async def changes(self) -> AsyncIterator[Change]:
        """Raises Conflict, or Unavailable when no endpoint has served for a while."""
        loop, client = asyncio.get_running_loop(), self._client
        served, failed = loop.time(), 0
        while True:
            line: _Line | None = None
            try:
                line = await self._open()
                while True:
                    response = await self._next(line)
                    served, failed = loop.time(), 0
                    for change in self._read(response):
                        yield change
            except Broken as error:
                client.leave(error.number, error.why)
                failed += 1
                if loop.time() - served > client.patience:
                    raise client.unavailable() from None
                if failed % len(client.place.endpoints) == 0:
                    await asyncio.sleep(AGAIN * (0.5 + random.random()))
            finally:
                if line is not None:
                    await line.close()

    async def _open(self) -> _Line:
        """A stream on which the server has begun to watch."""
        await self._check()
        line = await self._client.open(WATCH)
        try:
            await line.send(
                pb.WatchRequest(
                    create_request=pb.WatchCreateRequest(
                        key=self._layout.nodes,
                        range_end=self._layout.nodes_end,
                        start_revision=self._revision + 1,
                        prev_kv=True,
                        fragment=True,
                    )
                )
            )
            response = await line.receive(self._client.attempt)
            if response is None:
                raise Broken(line.number, f"no answer within {self._client.attempt:g} s")
            if not response.created:
                raise Broken(line.number, "not the answer to a watch")
            self._refuse(line, response)
        except BaseException:
            await line.close()
            raise
        self._client.reached(line.number)
        self._held = None
        return line

    async def _check(self) -> None:
        """Whether etcd still has this history, and has come so far."""
        answer = await self._client.call(RANGE, pb.RangeRequest(key=self._layout.epoch))
        if not answer.kvs or answer.kvs[0].value.decode() != self._epoch:
            raise Conflict("registry", "another life of the registry; take a new snapshot")
        if self._revision > answer.header.revision:
            raise Conflict(
                "registry",
                f"revision {self._revision} is to come; the newest is {answer.header.revision}",
            )
        if self._revision < 0:
            raise self._forgotten()

    async def _next(self, line: _Line) -> pb.WatchResponse:
        """The next response; a silent server is asked whether it is there."""
        silent = 0
        while (response := await line.receive(SILENCE)) is None:
            silent += 1
            if silent > SILENT:
                raise Broken(line.number, f"silent for {SILENCE * silent:g} s")
            await line.send(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
        self._refuse(line, response)
        return response

    def _refuse(self, line: _Line, response: pb.WatchResponse) -> None:
        """Raise if the server ended the watch."""
        if response.compact_revision:
            raise self._forgotten()
        if response.canceled:
            # Servers of the line 3.4 say "permission denied" of an old token, too.
            self._client.expired()
            why = response.cancel_reason.removeprefix("etcdserver: ") or "the watch was ended"
            raise Broken(line.number, why)

    def _forgotten(self) -> MicroError:
        return Conflict("registry", f"revision {self._revision} is no longer kept")

    def _read(self, response: pb.WatchResponse) -> Iterator[Change]:
        """The changes that are complete with this response."""
        for event in response.events:
            held, self._held = self._held, event
            if held is not None:
                yield from self._step(held, event.kv.mod_revision != held.kv.mod_revision)
        if not response.fragment and self._held is not None:
            held, self._held = self._held, None
            yield from self._step(held, True)

    def _step(self, event: kv.Event, last: bool) -> Iterator[Change]:
        """An event as a change; none for a write that changes nothing that others see. Only the
        ``last`` of a revision completes it."""
        revision = event.kv.mod_revision if last else event.kv.mod_revision - 1
        change = self._change(event, revision)
        self._revision = revision
        if change is not None:
            yield change

    def _change(self, event: kv.Event, revision: int) -> Change | None:
        before = unpack(event.prev_kv) if event.prev_kv.key else None
        if event.type == kv.Event.PUT:
            after = unpack(event.kv)
            if after is None or (before is not None and before.instance == after.instance):
                return None
            return Change(revision=revision, action=Action.PUT, instance=after.instance)
        if before is not None:
            return Change(revision=revision, action=Action.DELETE, instance=before.instance)
        if not event.prev_kv.key:
            raise self._forgotten()  # what it was is compacted
        return None
