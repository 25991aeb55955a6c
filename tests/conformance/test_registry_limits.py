"""What every registry refuses: registrations that cannot be, with the field in the error."""

from __future__ import annotations

from dataclasses import replace

import pytest

from micro_ray.errors import BadRequest, TooLarge
from micro_ray.registry import MAX_NAME, Endpoint, Instance, Registry
from tests.fixtures.registries import instance


def named(field: str, name: str) -> Instance:
    if field == "node.id":
        return instance(node=name, addresses=("unix:/a",))
    return instance(**{field: name})


def with_endpoints(*endpoints: Endpoint) -> Instance:
    return instance(endpoints=endpoints)


LONG = "n" * MAX_NAME
METADATA = {str(i): "" for i in range(64)}

#: What is taken: each limit to its end.
GOOD = {
    "longest names": instance(LONG, LONG, version=LONG, namespace=LONG, addresses=("unix:/a",)),
    "one letter": instance("a", "b", version="1", namespace="Z"),
    "marks": instance("a.b_c-d", "1.2_3-4", version="v1.0_a-b", namespace="t.e_n-t"),
    "longest path": instance(addresses=("unix:/" + "p" * 106,)),
    "path with spaces and letters": instance(addresses=("unix:/run/my dir/ä.sock",)),
    "highest port": instance(addresses=("tcp:host_1.example-a.org:65535",)),
    "IPv6": instance(addresses=("tcp:[::1]:1", "tcp:[fe80::1:2]:80")),
    "8 addresses": instance(addresses=tuple(f"tcp:10.0.0.{i}:80" for i in range(8))),
    "weight 0": instance(weight=0),
    "greatest weight": instance(weight=1_000_000),
    "64 entries": replace(instance(metadata=METADATA), node=instance(metadata=METADATA).node),
    "16 KiB of metadata": instance(metadata={"k": "v" * 16_383}),
    "1000 endpoints": with_endpoints(*(Endpoint(name=f"A.E{i}") for i in range(1000))),
    "every kind of stream": with_endpoints(
        *(Endpoint(name=f"A.{s or 'none'}", stream=s) for s in ("", "client", "server", "bidi"))
    ),
    "a megabyte": with_endpoints(Endpoint(name="A.B", request={"d": "x" * (2**20 - 400)})),
}

BAD_NAMES = [
    "",
    " ",
    "a b",
    "a/b",
    "-a",
    "a-",
    ".a",
    "_",
    "a\n",
    "ä",
    "a*",
    "*",
    "a\0b",
    LONG + "n",
]
NAMED = [
    (f"{field} {name[:12]!r}", named(field, name), field)
    for field in ("service", "version", "namespace", "node.id")
    for name in BAD_NAMES
]
ADDRESSES = [
    (f"address {address[:24]!r}", instance(addresses=(address,)), "node.addresses")
    for address in (
        "", "unix:", "unix:relative", "unix:/a\0b", "unix:/a\nb", "unix:/" + "p" * 107,
        "unix:/" + "ä" * 60, "tcp:", "tcp:host", "tcp:host:", "tcp::80", "tcp:host:0",
        "tcp:host:65536", "tcp:host:80x", "tcp:host:-1", "tcp:a..b:80", "tcp:a b:80",
        "tcp:[::1:80", "tcp:" + "h" * 64 + ":80", "http://host:80", "host:80", "tcp:h/p:80",
    )
]  # fmt: skip

#: What is refused: (what, registration, field that is named).
BAD = [
    *NAMED,
    *ADDRESSES,
    ("no address", replace(instance(), node=replace(instance().node, addresses=())), "node.addr"),
    ("negative weight", instance(weight=-1), "node.weight"),
    ("weight beyond", instance(weight=1_000_001), "node.weight"),
    ("host with a control character", instance(host="a\x1bb"), "node.host"),
    ("host too long", instance(host="h" * 254), "node.host"),
    ("protocol", instance(protocol="a b"), "node.protocol"),
    ("endpoint name", with_endpoints(Endpoint(name="A B")), "endpoint"),
    ("endpoint name too long", with_endpoints(Endpoint(name=LONG + "n")), "endpoint"),
    ("stream", with_endpoints(Endpoint(name="A.B", stream="both")), "A.B: stream"),
    ("twice", with_endpoints(Endpoint(name="A.B"), Endpoint(name="A.B")), "A.B"),
]

#: What is too large: (what, registration, what is named).
LARGE = [
    ("1001 endpoints", with_endpoints(*(Endpoint(name=f"A.E{i}") for i in range(1001))), "1000"),
    ("65 entries", instance(metadata={**METADATA, "x": ""}), "64"),
    ("metadata", instance(metadata={"k": "v" * 16_384}), "16384"),
    ("metadata in bytes", instance(metadata={"k": "ä" * 8_192}), "16384"),
    (
        "node's metadata",
        replace(instance(), node=replace(instance().node, metadata={"k": "v" * 16_384})),
        "node.metadata",
    ),
    (
        "endpoint's metadata",
        with_endpoints(Endpoint(name="A.B", metadata={"k": "v" * 16_384})),
        "A.B",
    ),
    ("9 addresses", instance(addresses=tuple(f"tcp:10.0.0.{i}:80" for i in range(9))), "8"),
    ("over a megabyte", with_endpoints(Endpoint(name="A.B", request={"d": "x" * 2**20})), "bytes"),
]


@pytest.mark.parametrize("what", GOOD)
async def test_what_is_taken(registry: Registry, what: str) -> None:
    await registry.register(GOOD[what])
    assert (await registry.snapshot()).instances == (GOOD[what],)


async def test_what_is_refused(registry: Registry) -> None:
    """Each names the field, and changes nothing."""
    await registry.register(instance())
    before = await registry.snapshot()
    for what, refused, field in BAD:
        with pytest.raises(BadRequest) as caught:
            await registry.register(refused)
        assert field in caught.value.detail, f"{what}: {caught.value}"
        assert len(caught.value.detail) < 400, what
    for what, refused, limit in LARGE:
        with pytest.raises(TooLarge) as caught:
            await registry.register(refused)
        assert limit in caught.value.detail, f"{what}: {caught.value}"
    assert await registry.snapshot() == before


@pytest.mark.parametrize("ttl", [0, 0.99, -1, 3600.1, float("nan"), float("inf")])
async def test_a_ttl_out_of_bounds(registry: Registry, ttl: float) -> None:
    with pytest.raises(BadRequest, match=r"ttl .* is not within 1 and 3600"):
        await registry.register(instance(), ttl=ttl)
    assert (await registry.snapshot()).instances == ()
    await registry.register(instance(), ttl=1)
    await registry.register(instance(), ttl=3600)
    with pytest.raises(BadRequest, match="ttl"):
        await registry.register(instance(), ttl=ttl)
