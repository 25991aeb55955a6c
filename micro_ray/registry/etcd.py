"""The registry on etcd (3.4 or newer): any number of processes, one truth.

A registration is a key with a lease of its own; who registers a node anew takes a new lease, so
that the end of an older holder takes nothing away. All leases that a process renews share one
stream. Revisions are etcd's. Reads are linearizable: what one process has registered, all others
see.

etcd counts TTLs in whole seconds (they are rounded up) and gives at least what one and a half of
its election timeouts are, 2 seconds by default. A new leader gives every lease its whole TTL again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, replace

from micro_ray.errors import MicroError, TooManyRequests, Unavailable
from micro_ray.finding import Finding
from micro_ray.registry import DEFAULT_TTL, Change, Instance, Registry, Service, Snapshot
from micro_ray.registry.checks import check, check_ttl
from micro_ray.registry.etcd_client import Client, Compacted, Method, Missing, Unsure
from micro_ray.registry.etcd_health import examine
from micro_ray.registry.etcd_leases import Leases
from micro_ray.registry.etcd_records import Layout, Record, normal, pack, unpack
from micro_ray.registry.etcd_url import Place, Trust
from micro_ray.registry.etcd_watch import RANGE, Watch
from micro_ray.registry.etcdapi import kv_pb2 as kv
from micro_ray.registry.etcdapi import rpc_pb2 as pb
from micro_ray.registry.listing import Ordered, find, services

__all__ = ["EtcdRegistry"]

TXN = Method("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse)

#: Keys of one answer, least (one may have a megabyte) and most; bytes that it is to have.
PAGE, MOST, ROOM = 8, 1_000, 2 * 2**20
#: Keys that one transaction reads; etcd takes 128 operations.
BATCH = 32
#: How often a write is tried anew when others write the same node, or its end is unknown.
TRIES = 20


Items = list[kv.KeyValue]


@dataclass(slots=True)
class _Held:
    """A registration that is known without asking, for as long as its own TTL."""

    lease: int
    record: Record | None
    until: float


class EtcdRegistry(Registry):
    """``async with``. ``prefix`` is that of the keys: platforms that share an etcd have different
    ones. Verbs raise Unavailable when no endpoint has served them for ``patience`` seconds; they go
    on to the next one after ``attempt`` seconds of silence."""

    def __init__(
        self,
        place: Place,
        *,
        prefix: str = "micro",
        trust: Trust | None = None,
        patience: float = 5.0,
        attempt: float = 1.0,
    ) -> None:
        self._place = place
        self._layout = Layout(prefix)
        self._trust = trust
        self._patience = patience
        self._attempt = attempt
        self._up: tuple[Client, Leases] | None = None
        self._held: dict[bytes, _Held] = {}
        self._prune = 100
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> EtcdRegistry:
        client = Client(self._place, self._trust, patience=self._patience, attempt=self._attempt)
        self._up = (client, Leases(client))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        up, self._up = self._up, None
        if up is not None:
            client, leases = up
            for task in self._ending:
                task.cancel()
            await asyncio.gather(*self._ending, return_exceptions=True)
            await client.close()
            await leases.close()

    async def examine(self) -> list[Finding]:
        """Of etcd: members, quorum, versions, alarms, how full."""
        return await examine(self._client)

    @property
    def _client(self) -> Client:
        return self._open()[0]

    @property
    def _leases(self) -> Leases:
        return self._open()[1]

    def _open(self) -> tuple[Client, Leases]:
        if self._up is None:
            raise Unavailable("registry", "the registry is closed")
        return self._up

    # -- registering -----------------------------------------------------------------------------

    async def register(
        self, instance: Instance, *, ttl: float = DEFAULT_TTL, holder: str = ""
    ) -> None:
        self._open()
        check_ttl(ttl)
        key = self._layout.node(instance.namespace, instance.node.id)
        record = Record(instance=instance, ttl=ttl, holder=holder)
        held = self._known(key)
        if held is not None and held.record == record:
            if (await self._leases.renew([held.lease]))[0]:
                return
            self._held.pop(key, None)
        check(instance)
        write = _Write(self, key, record)
        try:
            for _ in range(TRIES):
                lease = await write.attempt()
                if lease:
                    self._remember(key, lease, record)
                    return
        finally:
            self._end(write.unused)
        raise Unavailable("registry", f"others write the node {instance.node.id}, too", 1.0)

    async def renew(self, namespace: str, node_ids: Sequence[str]) -> list[str]:
        self._open()
        keys = [self._layout.node(namespace, node_id) for node_id in node_ids]
        leases = {key: held.lease for key in keys if (held := self._known(key)) is not None}
        alive = await self._alive(leases)
        rest = [key for key in dict.fromkeys(keys) if key not in alive]
        if rest:
            # Unknown here, or it has another lease by now.
            found = await self._read_leases(rest)
            for key, (lease, record) in found.items():
                self._remember(key, lease, record)
            alive |= await self._alive({key: lease for key, (lease, _) in found.items()})
        return [i for i, key in zip(node_ids, keys, strict=True) if key not in alive]

    async def _alive(self, leases: dict[bytes, int]) -> set[bytes]:
        """The keys whose lease was renewed; the others are forgotten here."""
        answers = await self._leases.renew([*leases.values()])
        alive = {key for key, there in zip(leases, answers, strict=True) if there}
        for key in leases.keys() - alive:
            self._held.pop(key, None)
        return alive

    async def _read_leases(self, keys: Sequence[bytes]) -> dict[bytes, tuple[int, Record | None]]:
        found: dict[bytes, tuple[int, Record | None]] = {}
        for start in range(0, len(keys), BATCH):
            ops = [
                pb.RequestOp(request_range=pb.RangeRequest(key=key))
                for key in keys[start : start + BATCH]
            ]
            answer = await self._client.call(TXN, pb.TxnRequest(success=ops))
            for response in answer.responses:
                for item in response.response_range.kvs:
                    if item.lease:
                        found[item.key] = (item.lease, unpack(item))
        return found

    async def deregister(self, namespace: str, node_id: str, *, holder: str = "") -> None:
        key = self._layout.node(namespace, node_id)
        item = await self.read(key)
        self._held.pop(key, None)
        if item is None:
            return
        record = unpack(item)
        if holder and (record is None or record.holder != holder):
            return
        if item.lease:
            # With its key. A node that has been registered anew since has another lease.
            await self._leases.revoke(item.lease)
        else:
            await self._client.call(
                TXN,
                pb.TxnRequest(
                    compare=[_unchanged(key, item.mod_revision)],
                    success=[pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))],
                ),
            )

    async def read(self, key: bytes) -> kv.KeyValue | None:
        """What is under a key now."""
        answer = await self._client.call(RANGE, pb.RangeRequest(key=key))
        return answer.kvs[0] if answer.kvs else None

    def _known(self, key: bytes) -> _Held | None:
        held = self._held.get(key)
        if held is not None and held.until <= asyncio.get_running_loop().time():
            del self._held[key]
            return None
        return held

    def _remember(self, key: bytes, lease: int, record: Record | None) -> None:
        now = asyncio.get_running_loop().time()
        ttl = record.ttl if record is not None else 0.0
        self._held[key] = _Held(lease, record, now + ttl)
        if len(self._held) > self._prune:
            self._held = {k: held for k, held in self._held.items() if held.until > now}
            self._prune = 2 * len(self._held) + 100

    def _end(self, leases: Collection[int]) -> None:
        """Give up leases that hold nothing any more; they would end by themselves."""
        if leases and self._up is not None:
            task = asyncio.create_task(self._revoke(leases))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _revoke(self, leases: Collection[int]) -> None:
        with contextlib.suppress(MicroError):
            for lease in leases:
                await self._leases.revoke(lease)

    # -- finding ---------------------------------------------------------------------------------

    async def get(self, namespace: str, service: str) -> list[Service]:
        self._open()
        start, end = self._layout.namespace(namespace)
        items, _ = await self._range(start, end)
        return find(_ordered(items), namespace, service)

    async def list(self, namespace: str) -> list[Service]:
        self._open()
        start, end = self._layout.nodes, self._layout.nodes_end
        if namespace != "*":
            start, end = self._layout.namespace(namespace)
        items, _ = await self._range(start, end)
        return services(_ordered(items), namespace)

    async def snapshot(self) -> Snapshot:
        self._open()
        for _ in range(TRIES):
            items, revision = await self._range(self._layout.start, self._layout.end)
            if items and items[0].key == self._layout.epoch:
                instances = sorted(_ordered(items[1:]), key=lambda entry: entry[0])
                return Snapshot(
                    epoch=items[0].value.decode(),
                    revision=revision,
                    instances=tuple(instance for _, instance in instances),
                )
            await self._begin()
        raise Unavailable("registry", "the registry's history is taken away again and again", 1.0)

    async def _begin(self) -> None:
        """Name the history, if nobody has."""
        key = self._layout.epoch
        put = pb.PutRequest(key=key, value=os.urandom(8).hex().encode())
        compare = pb.Compare(
            result=pb.Compare.EQUAL, target=pb.Compare.CREATE, key=key, create_revision=0
        )
        await self._client.call(
            TXN, pb.TxnRequest(compare=[compare], success=[pb.RequestOp(request_put=put)])
        )

    async def _range(self, start: bytes, end: bytes) -> tuple[Items, int]:
        """All keys of a range as of one revision, in pages."""
        items: Items = []
        revision = 0
        for _ in range(TRIES):
            with contextlib.suppress(Compacted):  # while we read: read again
                items, revision, more, size = [], 0, True, 0
                while more:
                    # As many as fit, if they are as large as those before them.
                    fit = ROOM * len(items) // size if size else PAGE
                    request = pb.RangeRequest(
                        key=items[-1].key + b"\0" if items else start,
                        range_end=end,
                        limit=max(PAGE, min(fit, MOST)),
                        revision=revision,
                    )
                    page = await self._client.call(RANGE, request)
                    items += page.kvs
                    size += page.ByteSize()
                    revision, more = revision or page.header.revision, page.more
                return items, revision
        raise Unavailable("registry", "etcd compacts faster than its keys can be read", 1.0)

    async def watch(self, *, epoch: str, revision: int) -> AsyncIterator[Change]:
        watch = Watch(self._client, self._layout, epoch, revision)
        try:
            async with contextlib.aclosing(watch.changes()) as changes:  # type: ignore[type-var]
                async for change in changes:
                    yield change
        except Unavailable:
            if self._up is not None:
                raise


class _Write:
    """One registration on its way: reads what is there, then writes if nobody else has meanwhile. A
    write whose end is unknown is looked for, never repeated blindly."""

    def __init__(self, registry: EtcdRegistry, key: bytes, record: Record) -> None:
        self._registry = registry
        self._leases, self._client = registry._leases, registry._client
        self._key = key
        self._record = normal(record)
        #: Leases that hold nothing once this is done; and the one that was granted for it.
        self.unused: set[int] = set()
        self._fresh = 0

    async def attempt(self) -> int:
        """The lease under which the node is registered now; 0: try again."""
        record = self._record
        item = await self._registry.read(self._key)
        have = unpack(item) if item is not None else None
        if item is None or have is None:
            return await self._put(record, item, 0)
        same = have.instance == record.instance
        if (have.holder, have.ttl) == (record.holder, record.ttl) and item.lease:
            if not await self._renewed(item.lease):
                return 0
            return item.lease if same else await self._put(record, item, item.lease)
        if same:
            record = replace(record, order=have.order or item.mod_revision)
        try:
            return await self._put(record, item, 0)
        except TooManyRequests:
            # etcd is full. A node that lives, and only comes from elsewhere, must not end for that.
            if same and have.ttl == record.ttl and await self._renewed(item.lease):
                return item.lease
            raise

    async def _renewed(self, lease: int) -> bool:
        self.unused.discard(lease)
        return (await self._leases.renew([lease]))[0]

    async def _put(self, record: Record, item: kv.KeyValue | None, lease: int) -> int:
        """Write under a lease, 0: a new one."""
        if not lease:
            self._fresh = lease = self._fresh or await self._leases.grant(record.ttl)
            self.unused.add(lease)
        put = pb.PutRequest(key=self._key, value=pack(record), lease=lease)
        request = pb.TxnRequest(
            compare=[_unchanged(self._key, item.mod_revision if item is not None else 0)],
            success=[pb.RequestOp(request_put=put)],
        )
        try:
            answer = await self._client.call(TXN, request, once=True)
        except Missing:  # the lease has ended
            self._fresh = 0
            return 0
        except Unsure:
            return 0
        if not answer.succeeded:
            return 0
        self.unused.discard(lease)
        if item is not None and item.lease not in (0, lease):
            self.unused.add(item.lease)
        return lease


def _unchanged(key: bytes, revision: int) -> pb.Compare:
    """That a key is as it was read; revision 0: that it is not there."""
    return pb.Compare(
        result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=key, mod_revision=revision
    )


def _ordered(items: Sequence[kv.KeyValue]) -> list[Ordered]:
    found = []
    for item in items:
        record = unpack(item)
        if record is not None:
            found.append((record.order or item.mod_revision, record.instance))
    return found
