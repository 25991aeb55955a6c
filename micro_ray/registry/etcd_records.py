"""What the registry keeps in etcd: its keys, and what is under them.

``/<prefix>/registry/epoch`` names this history; ``/<prefix>/registry/nodes/<namespace>/<id>`` is a
registration as MessagePack, attached to a lease of its own. MessagePack, because that is what the
limit of a registration counts: one within it fits into a request of etcd (1.5 MiB) in any case.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import msgspec

from micro_ray.errors import BadRequest
from micro_ray.registry import Instance
from micro_ray.registry.etcdapi import kv_pb2 as kv

__all__ = ["Layout", "Record", "normal", "pack", "unpack"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """``order`` is the revision of the registration when a later write changed only who holds it or
    its ``ttl``; 0: it is the key's own."""

    instance: Instance
    ttl: float
    holder: str = ""
    order: int = 0


pack = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def normal(record: Record) -> Record:
    """As it will be when it comes back."""
    return _decode(pack(record))


def unpack(item: kv.KeyValue) -> Record | None:
    """None, and a line in the log, for what is no registration: a foreign hand wrote it."""
    try:
        return _decode(item.value)
    except (msgspec.DecodeError, RecursionError) as error:
        log.warning("%r in etcd is no registration: %s", item.key, error)
        return None


class Layout:
    """The keys below a prefix. Raises BadRequest for one that cannot be."""

    def __init__(self, prefix: str) -> None:
        words = prefix.strip("/").split("/")
        if not all(word and word.isascii() and word.isprintable() for word in words):
            raise BadRequest(
                "settings", f"registry.prefix {prefix[:80]!r}: printable words between slashes"
            )
        root = f"/{'/'.join(words)}/registry/".encode()
        #: From the epoch's key to the end of all keys of this registry.
        self.start, self.end = root, root[:-1] + b"0"
        self.epoch = root + b"epoch"
        self.nodes = root + b"nodes/"
        self.nodes_end = root + b"nodes0"

    def node(self, namespace: str, node_id: str) -> bytes:
        return self.nodes + f"{namespace}/{node_id}".encode()

    def namespace(self, namespace: str) -> tuple[bytes, bytes]:
        """The first key of a namespace's nodes, and the end of them."""
        place = self.nodes + namespace.encode()
        return place + b"/", place + b"0"
