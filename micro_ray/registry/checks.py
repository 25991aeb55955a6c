"""What a registration may be. Every backend asks :func:`check` before it takes one."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from micro_ray.errors import BadRequest, TooLarge
from micro_ray.registry import MAX_NAME, MAX_TTL, MIN_TTL, Endpoint, Instance, Node

__all__ = ["check", "check_ttl"]

MAX_ADDRESSES = 8
MAX_ADDRESS = 300
MAX_ENDPOINTS = 1_000
MAX_METADATA = 64
MAX_METADATA_BYTES = 16 * 1024
MAX_WEIGHT = 1_000_000
#: Bytes of a whole registration. Every router and every caller holds each of them.
MAX_INSTANCE = 2**20
#: Longest path of a Unix socket on Linux.
MAX_PATH = 107

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
_TCP = re.compile(rf"tcp:({_HOST.pattern}|\[[0-9A-Fa-f:.]{{2,45}}\]):([0-9]{{1,5}})")
_STREAMS = ("", "client", "server", "bidi")

_encode = msgspec.msgpack.Encoder().encode


def check(instance: Instance) -> int:
    """The size of a registration in bytes. Raises BadRequest or TooLarge that names what is wrong
    with it."""
    node = instance.node
    _name("service", instance.service)
    _name("version", instance.version)
    _name("namespace", instance.namespace)
    _name("node.id", node.id)
    _node(node)
    if len(instance.endpoints) > MAX_ENDPOINTS:
        raise TooLarge(
            "registry", f"{len(instance.endpoints)} endpoints; {MAX_ENDPOINTS} are allowed"
        )
    _metadata("metadata", instance.metadata)
    _metadata("node.metadata", node.metadata)
    taken: set[str] = set()
    for endpoint in instance.endpoints:
        _endpoint(endpoint)
        if endpoint.name in taken:
            raise BadRequest("registry", f"endpoint {endpoint.name} is there twice")
        taken.add(endpoint.name)
    try:
        size = len(_encode(instance))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest("registry", f"a registration that cannot be sent: {error}") from None
    if size > MAX_INSTANCE:
        raise TooLarge(
            "registry",
            f"a registration of {size} bytes; {MAX_INSTANCE} are allowed: publish fewer endpoints "
            "or smaller types",
        )
    return size


def check_ttl(ttl: float) -> None:
    """Raises BadRequest for a TTL outside the bounds."""
    if not MIN_TTL <= ttl <= MAX_TTL:
        raise BadRequest("registry", f"ttl {ttl:g} s is not within {MIN_TTL:g} and {MAX_TTL:g}")


def _name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise BadRequest(
            "registry",
            f"{what} {name[:80]!r}: letters, digits, '.', '_' and '-', at most {MAX_NAME}, with a "
            "letter or digit at both ends",
        )


def _node(node: Node) -> None:
    if not node.addresses:
        raise BadRequest("registry", "node.addresses is empty: nobody could call it")
    if len(node.addresses) > MAX_ADDRESSES:
        raise TooLarge(
            "registry", f"{len(node.addresses)} node.addresses; {MAX_ADDRESSES} are allowed"
        )
    for address in node.addresses:
        if not _is_address(address):
            raise BadRequest(
                "registry",
                f"node.addresses: {address[:120]!r} is neither unix:/path nor tcp:host:port",
            )
    if node.host and (not _HOST.fullmatch(node.host) or len(node.host) > MAX_NAME):
        raise BadRequest("registry", f"node.host {node.host[:80]!r} is no name of a machine")
    _name("node.protocol", node.protocol)
    if isinstance(node.weight, bool) or not 0 <= node.weight <= MAX_WEIGHT:
        raise BadRequest("registry", f"node.weight {node.weight} is not within 0 and {MAX_WEIGHT}")


def _is_address(address: str) -> bool:
    if address.startswith("unix:/"):
        path = address[5:]
        return path.isprintable() and len(path.encode("utf-8", "replace")) <= MAX_PATH
    found = _TCP.fullmatch(address) if len(address) <= MAX_ADDRESS else None
    return found is not None and 0 < int(found.group(3)) < 65536


def _endpoint(endpoint: Endpoint) -> None:
    _name("endpoint", endpoint.name)
    if endpoint.stream not in _STREAMS:
        raise BadRequest(
            "registry",
            f"endpoint {endpoint.name}: stream {endpoint.stream[:20]!r} is none of "
            "'', 'client', 'server', 'bidi'",
        )
    _metadata(f"endpoint {endpoint.name}: metadata", endpoint.metadata)


def _metadata(what: str, metadata: Mapping[str, str]) -> None:
    size = sum(len(k.encode("utf-8", "replace")) + len(v.encode("utf-8", "replace"))
               for k, v in metadata.items())  # fmt: skip
    if len(metadata) > MAX_METADATA or size > MAX_METADATA_BYTES:
        raise TooLarge(
            "registry",
            f"{what} of {len(metadata)} entries and {size} bytes; {MAX_METADATA} and "
            f"{MAX_METADATA_BYTES} are allowed",
        )
