"""Leases, and the one stream over which all of them that this process renews are kept alive."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
from collections import deque
from collections.abc import Sequence

from micro_ray.errors import Unavailable
from micro_ray.registry.etcd_client import AGAIN, Client, Exists, Method, Missing
from micro_ray.registry.etcd_line import Broken, Line
from micro_ray.registry.etcdapi import rpc_pb2 as pb

__all__ = ["Leases"]

GRANT = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse)
REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse)
KEEP = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse
)


class _Stream:
    """A line, who waits for which lease's answer on it, and when the last answer came."""

    def __init__(self, line: Line[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) -> None:
        self.line = line
        self.waiting: dict[int, deque[asyncio.Future[int | None]]] = {}
        self.last = 0.0
        self.why = ""
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                answer = await self.line.receive()
                assert answer is not None  # it waits without an end
                self.last = loop.time()
                queue = self.waiting.get(answer.ID)
                if queue:
                    waiter = queue.popleft()
                    if not waiter.done():
                        waiter.set_result(answer.TTL)
                    if not queue:
                        del self.waiting[answer.ID]
        except (Broken, Unavailable) as error:
            self.why = str(error)
        finally:
            self.why = self.why or "the stream was left"
            waiting, self.waiting = self.waiting, {}
            for queue in waiting.values():
                for waiter in queue:
                    if not waiter.done():
                        waiter.set_result(None)

    async def close(self) -> None:
        self.reader.cancel()
        await asyncio.gather(self.reader, return_exceptions=True)
        await self.line.close()


class Leases:
    """Grants, renews and revokes. Renewals of any number of leases share one stream."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stream: _Stream | None = None
        self._opening = asyncio.Lock()
        #: How many streams have been opened.
        self.opened = 0

    async def grant(self, ttl: float) -> int:
        """A new lease of ``ttl`` seconds, rounded up; etcd may give it more."""
        # We choose the number, so that a grant which is sent again after it broke makes no second.
        number = int.from_bytes(os.urandom(8), "big") >> 1 or 1
        request = pb.LeaseGrantRequest(TTL=math.ceil(ttl), ID=number)
        with contextlib.suppress(Exists):
            await self._client.call(GRANT, request)
        return number

    async def revoke(self, lease: int) -> bool:
        """End a lease and take away its keys; False when there is no such lease."""
        try:
            await self._client.call(REVOKE, pb.LeaseRevokeRequest(ID=lease))
        except Missing:
            return False
        return True

    async def renew(self, leases: Sequence[int]) -> list[bool]:
        """Whether each is still there; those that are live for their whole TTL from now."""
        return list(await asyncio.gather(*(self._renew(lease) for lease in leases)))

    async def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def _renew(self, lease: int) -> bool:
        loop = asyncio.get_running_loop()
        client = self._client
        end, failed = loop.time() + client.patience, 0
        while True:
            stream: _Stream | None = None
            try:
                stream = await self._open()
                ttl = await self._answer(stream, lease)
            except Broken as error:
                if stream is None or stream is self._stream:  # the first to notice
                    client.leave(error.number, error.why)
                    await self.close()
            else:
                client.reached(stream.line.number)
                return ttl > 0
            failed += 1
            if loop.time() >= end:
                raise client.unavailable()
            if failed % len(client.place.endpoints) == 0:
                await asyncio.sleep(AGAIN * (0.5 + random.random()))

    async def _open(self) -> _Stream:
        async with self._opening:
            stream = self._stream
            if stream is None or stream.reader.done():
                await self.close()
                stream = self._stream = _Stream(await self._client.open(KEEP))
                self.opened += 1
            return stream

    async def _answer(self, stream: _Stream, lease: int) -> int:
        """Raises Broken when the stream breaks, or is silent while an answer is due."""
        loop, attempt, number = asyncio.get_running_loop(), self._client.attempt, stream.line.number
        waiter: asyncio.Future[int | None] = loop.create_future()
        stream.waiting.setdefault(lease, deque()).append(waiter)
        await stream.line.send(pb.LeaseKeepAliveRequest(ID=lease))
        while not waiter.done():
            since = loop.time()
            await asyncio.wait({waiter}, timeout=attempt)
            if not waiter.done() and (stream.reader.done() or stream.last < since):
                raise Broken(number, stream.why or f"no answer within {attempt:g} s")
        ttl = waiter.result()
        if ttl is None:
            raise Broken(number, stream.why)
        return ttl
