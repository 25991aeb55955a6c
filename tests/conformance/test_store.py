"""What every store does, whatever keeps it and however it is reached: records."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from micro_ray.errors import BadRequest, Conflict, MicroError, NotFound, TooLarge
from micro_ray.store import (
    MAX_ANSWER,
    MAX_KEY,
    MAX_METADATA,
    MAX_METADATA_BYTES,
    MAX_NAME,
    MAX_OPERATIONS,
    MAX_RECORDS,
    MAX_VALUE,
    Check,
    Delete,
    Put,
    Record,
    Store,
    Usage,
)
from tests.fixtures.stores import Clock

EVERY_BYTE = bytes(range(256))


async def test_a_record_comes_back_as_it_was_written(store: Store) -> None:
    written = await store.write("k", EVERY_BYTE, metadata={"a": "1", "ä": "\u2028\n"})
    assert written.version > 0
    assert written == Record(
        key="k",
        value=EVERY_BYTE,
        metadata={"a": "1", "ä": "\u2028\n"},
        version=written.version,
    )
    assert await store.read("k") == written


@pytest.mark.parametrize(
    "value",
    [b"", b"x", "ä€😀".encode(), b"\x00", b"\xff", b"\\\"'", b"aGk=", b"\xed\xa0\x80", b" \n"],
)
async def test_any_bytes_are_a_value(store: Store, value: bytes) -> None:
    await store.write("k", value)
    assert (await store.read("k")).value == value


@pytest.mark.parametrize("fill", [b"\x00", b"\x01", b'"', b"x", b"\xff", b"\x7f"])
async def test_the_largest_value(store: Store, fill: bytes) -> None:
    value = fill * MAX_VALUE
    await store.write("k", value, metadata={"m": "x" * (MAX_METADATA_BYTES - 1)})
    (found,) = await store.query(prefix="k")
    for record in (found, await store.read("k")):
        same = record.value == value  # outside the assertion: nobody wants to see 8 MiB of it
        assert same
    with pytest.raises(TooLarge, match=str(MAX_VALUE)):
        await store.write("k", b"x" * (MAX_VALUE + 1))
    assert (await store.read("k")).version == found.version


async def test_what_is_not_there_is_not_found(store: Store) -> None:
    for place in ({}, {"table": "none"}, {"database": "none"}, {"namespace": "none"}):
        with pytest.raises(NotFound, match="'k'"):
            await store.read("k", **place)
        assert await store.query(prefix="k", **place) == []
        assert await store.keys(**place) == []
        await store.delete("k", **place)
    assert await store.databases(namespace="none") == []
    assert await store.tables("none") == []
    assert await store.revision(namespace="none") == 0
    assert await store.blobs(namespace="none") == []
    assert await store.delete_blob("k", namespace="none") is False
    with pytest.raises(NotFound, match="'k'"):
        await anext(store.read_blob("k", namespace="none"))


async def test_usage_counts_what_is_kept(store: Store) -> None:
    assert await store.usage(namespace="none") == Usage()
    await store.write("kä", b"12345")
    await store.write("k", b"x" * 100_000, table="other")
    await store.write("k", b"1", database="another")
    await store.write("k", b"1", namespace="another")
    await store.write("kä", b"123")
    await store.write("gone", b"1")
    await store.delete("gone")
    await store.write_blob("blob", _pieces(b"x" * 1000, b"y"))
    assert await store.usage() == Usage(records=3, bytes=6 + 100_001 + 2, blobs=1, blob_bytes=1001)


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_delete(store: Store) -> None:
    await store.write("k", b"1")
    await store.delete("k")
    with pytest.raises(NotFound):
        await store.read("k")
    await store.delete("k")


async def test_places_are_apart(store: Store) -> None:
    """Names that a careless mangling would let fall together, and keys that look like paths."""
    names = ["a-b", "a_b", "a.b", "A-b", "ab", "micro"]
    places = [
        {"namespace": n, "database": d, "table": t, "key": k}
        for n, d, t, k in itertools.product(names[:3], names[:3], names, ["k", "a-b/k"])
    ]
    for place in places:
        await store.write(value="|".join(place.values()).encode(), **place)
    for place in places:
        assert (await store.read(**place)).value == "|".join(place.values()).encode()
    assert await store.databases(namespace="a-b") == sorted(names[:3])
    assert await store.tables("a.b", namespace="a_b") == sorted(names)
    await store.delete(**places[0])
    for place in places[1:]:
        await store.read(**place)


# -- versions ------------------------------------------------------------------------------------


async def test_versions_grow_and_are_never_used_again(store: Store) -> None:
    seen = []
    for _ in range(3):
        seen.append((await store.write("k", b"1")).version)
        await store.delete("k")
    seen.append((await store.write("k", b"1")).version)
    seen.append((await store.write("l", b"1")).version)
    assert seen == sorted(set(seen))
    assert await store.revision() == seen[-1]


async def test_compare_and_set(store: Store) -> None:
    first = await store.write("k", b"1", expected=0)
    with pytest.raises(Conflict, match=f"no record expected, version {first.version} found"):
        await store.write("k", b"2", expected=0)
    second = await store.write("k", b"2", expected=first.version)
    both = f"version {first.version} expected, version {second.version} found"
    with pytest.raises(Conflict, match=both):
        await store.write("k", b"3", expected=first.version)
    with pytest.raises(Conflict, match=both):
        await store.delete("k", expected=first.version)
    assert await store.read("k") == second
    await store.delete("k", expected=second.version)
    with pytest.raises(Conflict, match=f"version {second.version} expected, no record found"):
        await store.write("k", b"4", expected=second.version)
    with pytest.raises(Conflict):
        await store.delete("k", expected=second.version)
    await store.delete("k", expected=0)
    assert (await store.write("k", b"5", expected=0)).version > second.version


async def test_no_update_is_lost(store: Store) -> None:
    """Eight tasks count in one record by compare-and-set."""

    async def count(times: int) -> None:
        for _ in range(times):
            while True:
                try:
                    record = await store.read("counter")
                    await store.write(
                        "counter",
                        str(int(record.value) + 1).encode(),
                        expected=record.version,
                    )
                except Conflict:
                    continue
                break

    await store.write("counter", b"0", expected=0)
    await asyncio.gather(*(count(20) for _ in range(8)))
    assert (await store.read("counter")).value == b"160"


async def test_one_of_many_creates(store: Store) -> None:
    outcomes = await asyncio.gather(
        *(store.write("k", str(i).encode(), expected=0) for i in range(50)),
        return_exceptions=True,
    )
    (winner,) = [o for o in outcomes if isinstance(o, Record)]
    assert all(isinstance(o, Conflict) for o in outcomes if o is not winner)
    assert await store.read("k") == winner


# -- listing -------------------------------------------------------------------------------------

#: Keys full of what some database or protocol takes for an operator.
ODD = [
    "%", "_", "*", "?", "\\", "'", '"', "[a]", "a", "a%", "a%b", "a*", "a/", "a/b", "a\\%", "a_b",
    "ab", "axb", "b", "B", " ", "ä", "ä%", "\u2028", "\ufb01", "\uffff", "😀", "😀b",
    "\U0010ffff", "\U0010ffffx", "\ud7ff", "\ue000", "--", ";", "${x}", "a\u0301",
]  # fmt: skip


async def test_wildcards_are_data(store: Store) -> None:
    await store.transact([Put(key=key, value=key.encode()) for key in ODD])
    ordered = sorted(ODD)
    assert await store.keys() == ordered
    assert await store.keys(order="desc") == ordered[::-1]
    for part in {*ODD, *(key[0] for key in ODD), *(key[-1] for key in ODD)}:
        begin = [key for key in ordered if key.startswith(part)]
        end = [key for key in ordered if key.endswith(part)]
        assert await store.keys(prefix=part) == begin
        assert await store.keys(suffix=part) == end
        assert [r.key for r in await store.query(prefix=part, order="desc")] == begin[::-1]
        assert [r.key for r in await store.query(suffix=part)] == end
        both = [key for key in begin if key in end]
        assert await store.keys(prefix=part, suffix=part) == both


async def test_pages(store: Store) -> None:
    names = [f"k{i:03}" for i in range(20)]
    await store.transact([Put(key=name, value=b"") for name in [*names, "other"]])
    for offset, limit, order in itertools.product([0, 3, 19, 20, 50], [0, 1, 7, 50], [1, -1]):
        page = names[::order][offset:]
        page = page[:limit] if limit else page
        options: dict[str, Any] = {
            "prefix": "k", "offset": offset, "limit": limit,
            "order": "asc" if order == 1 else "desc",
        }  # fmt: skip
        assert await store.keys(**options) == page
        assert [r.key for r in await store.query(**options)] == page


async def test_numbers_beyond_any_database(store: Store) -> None:
    await store.write("k", b"")
    huge = 2**63 - 1
    assert await store.keys(limit=huge) == ["k"]
    assert await store.keys(offset=huge) == []
    for number in (2**63, 2**70, -1):
        for verb in (store.keys, store.query):
            for name in ("limit", "offset"):
                with pytest.raises(BadRequest):
                    await verb(**{name: number})
        with pytest.raises((BadRequest, Conflict)):
            await store.write("k", b"", expected=number)


async def test_an_answer_is_bounded(store: Store) -> None:
    """By bytes, keys and metadata counted; the error says what to do."""
    big = b"x" * (MAX_ANSWER // 4)
    for i in range(5):
        await store.write(f"k{i}", big)
    with pytest.raises(TooLarge, match="limit"):
        await store.query()
    assert len(await store.query(limit=3)) == 3
    bulky = {"m": "x" * (MAX_METADATA_BYTES - 1)}
    rows = [Put(key=f"{i:0{MAX_KEY}}", value=b"", metadata=bulky) for i in range(100)]
    for i in range(7):
        await store.transact(
            [Put(key=f"{i}{r.key[1:]}", value=b"", table="bulky", metadata=bulky) for r in rows]
        )
    with pytest.raises(TooLarge, match="limit"):
        await store.query(table="bulky")
    assert len(await store.query(table="bulky", limit=50)) == 50


async def test_an_answer_has_a_most_of_records(store: Store) -> None:
    for start in range(0, MAX_RECORDS, 100):
        await store.transact([Put(key=f"{start + i:06}", value=b"") for i in range(100)])
    assert len(await store.query()) == MAX_RECORDS
    await store.write("x", b"")
    with pytest.raises(TooLarge, match=str(MAX_RECORDS)):
        await store.query()
    assert len(await store.query(limit=MAX_RECORDS)) == MAX_RECORDS
    assert len(await store.keys()) == MAX_RECORDS + 1


# -- transactions --------------------------------------------------------------------------------


async def test_all_or_nothing(store: Store) -> None:
    a = await store.write("a", b"1", table="t1")
    with pytest.raises(Conflict, match="t2/b"):
        await store.transact(
            [
                Put(key="a", value=b"2", table="t1", expected=a.version),
                Put(key="new", value=b"", table="t1"),
                Delete(key="a", table="t1"),
                Check(key="b", table="t2", expected=a.version),
            ]
        )
    assert await store.keys(table="t1") == ["a"]
    assert await store.read("a", table="t1") == a
    assert await store.revision() == a.version
    versions = await store.transact(
        [
            Check(key="b", table="t2", expected=0),
            Put(key="b", value=b"1", table="t2", expected=0),
            Delete(key="a", table="t1", expected=a.version),
        ]
    )
    assert versions[0] == versions[2] == 0
    assert (await store.read("b", table="t2")).version == versions[1] > a.version
    assert await store.keys(table="t1") == []


async def test_operations_see_those_before_them(store: Store) -> None:
    first, second = await store.transact(
        [Put(key="k", value=b"1", expected=0), Put(key="k", value=b"2")]
    )
    assert second > first
    assert (await store.read("k")).value == b"2"
    with pytest.raises(Conflict):
        await store.transact([Put(key="k", value=b"3"), Check(key="k", expected=second)])
    await store.transact([Delete(key="k"), Check(key="k", expected=0)])
    assert await store.keys() == []


async def test_transactions_do_not_mix(store: Store) -> None:
    """Money moves between accounts by many tasks; none appears or is lost."""
    await store.transact([Put(key=str(i), value=b"100") for i in range(4)])

    async def move(source: str, target: str) -> None:
        while True:
            one, two = await store.read(source), await store.read(target)
            try:
                await store.transact(
                    [
                        Put(
                            key=one.key,
                            value=str(int(one.value) - 1).encode(),
                            expected=one.version,
                        ),
                        Put(
                            key=two.key,
                            value=str(int(two.value) + 1).encode(),
                            expected=two.version,
                        ),
                    ]
                )
            except Conflict:
                continue
            return

    pairs = [(str(i % 4), str((i + 1 + i // 4 % 3) % 4)) for i in range(60)]
    await asyncio.gather(*(move(a, b) for a, b in pairs))
    want = [100 - sum(a == k for a, _ in pairs) + sum(b == k for _, b in pairs) for k in "0123"]
    assert [int(r.value) for r in await store.query()] == want


async def test_a_transaction_is_bounded(store: Store) -> None:
    rows = [Put(key=str(i), value=b"") for i in range(MAX_OPERATIONS)]
    assert len(await store.transact(rows)) == MAX_OPERATIONS
    with pytest.raises(TooLarge, match=str(MAX_OPERATIONS)):
        await store.transact([*rows, Check(key="x", expected=0)])
    with pytest.raises(TooLarge):
        await store.transact([Put(key=k, value=b"x" * MAX_VALUE) for k in "ab"])
    assert "a" not in await store.keys()
    with pytest.raises(BadRequest):
        await store.transact([])


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("", BadRequest),
        ("a\x00b", BadRequest),
        ("a\nb", BadRequest),
        ("\x7f", BadRequest),
        ("x" * (MAX_KEY + 1), TooLarge),
        ("ä" * (MAX_KEY // 2 + 1), TooLarge),
    ],
)
async def test_bad_keys(store: Store, key: str, error: type[MicroError]) -> None:
    async def chunks() -> Any:
        yield b""

    for attempt in (
        store.read(key),
        store.write(key, b""),
        store.delete(key),
        store.transact([Check(key=key, expected=0)]),
        store.write_blob(key, chunks()),
        store.delete_blob(key),
        anext(store.read_blob(key)),
    ):
        with pytest.raises(error, match="key"):
            await attempt
    assert await store.keys() == []


async def test_the_longest_key(store: Store) -> None:
    for key in ("x" * MAX_KEY, "ä" * (MAX_KEY // 2)):
        await store.write(key, b"1")
        assert (await store.read(key)).key == key


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a b", "-a", "a\x00", "a\n", "ä", "x" * (MAX_NAME + 1)]
)
async def test_bad_names(store: Store, name: str) -> None:
    for place in ("database", "table", "namespace"):
        for verb in (store.read, store.delete):
            with pytest.raises(BadRequest, match=place):
                await verb("k", **{place: name})
        with pytest.raises(BadRequest, match=place):
            await store.write("k", b"", **{place: name})
        with pytest.raises(BadRequest, match=place):
            await store.keys(**{place: name})
        with pytest.raises(BadRequest, match=place):
            await asyncio.wait_for(anext(store.watch(revision=0, **{place: name})), 5)
    with pytest.raises(BadRequest, match="namespace"):
        await store.blobs(namespace=name)


async def test_metadata_is_bounded(store: Store) -> None:
    await store.write("k", b"", metadata={str(i): "" for i in range(MAX_METADATA)})
    for metadata in (
        {str(i): "" for i in range(MAX_METADATA + 1)},
        {"a": "x" * MAX_METADATA_BYTES},
        {"a": "ä" * (MAX_METADATA_BYTES // 2)},
    ):
        with pytest.raises(TooLarge, match="metadata"):
            await store.write("k", b"", metadata=metadata)


@pytest.mark.parametrize("expiry", [0, -1, 1e10, 1e300])
async def test_bad_expiry(store: Store, expiry: float) -> None:
    with pytest.raises(BadRequest, match="expiry"):
        await store.write("k", b"", expiry=expiry)


@pytest.mark.parametrize("order", ["", "ASC", "up", "asc; drop table records"])
async def test_bad_order(store: Store, order: str) -> None:
    for verb in (store.keys, store.query):
        with pytest.raises(BadRequest, match="order"):
            await verb(order=order)


# -- expiry --------------------------------------------------------------------------------------


async def test_expired_is_gone_at_once(store: Store, clock: Clock) -> None:
    await store.write("k", b"1", expiry=10)
    await store.write("stays", b"2")
    clock.now += 4
    assert (await store.read("k")).expiry == pytest.approx(6)
    assert [r.expiry for r in await store.query()] == [pytest.approx(6), None]
    clock.now += 5.99
    assert await store.keys() == ["k", "stays"]
    clock.now += 0.01
    with pytest.raises(NotFound):
        await store.read("k")
    assert await store.keys(prefix="k") == await store.query(prefix="k") == []
    assert await store.keys(limit=1) == ["stays"]
    assert await store.keys(offset=1) == []


async def test_expired_counts_as_absent_in_comparisons(store: Store, clock: Clock) -> None:
    old = await store.write("k", b"1", expiry=10)
    clock.now += 10
    with pytest.raises(Conflict, match="no record found"):
        await store.write("k", b"2", expected=old.version)
    new = await store.write("k", b"2", expected=0)
    assert new.version > old.version
    clock.now += 10**8
    assert await store.read("k") == new


async def test_a_write_sets_the_expiry_anew(store: Store, clock: Clock) -> None:
    await store.write("k", b"1", expiry=10)
    clock.now += 9
    await store.write("k", b"1", expiry=0.5)
    clock.now += 0.4
    await store.write("k", b"1")
    clock.now += 1000
    assert (await store.read("k")).expiry is None
