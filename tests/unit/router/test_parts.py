"""Deltas in messages."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micro_ray.registry import Endpoint
from micro_ray.router import Delta, Entry, Route
from micro_ray.router.parts import PART, join, split

EMPTY = Delta(epoch="e", revision=4, stale=True, at=2.5)


def routes(count: int, size: int = 10) -> tuple[Route, ...]:
    text = {"k": "v" * size}
    return tuple(Route(id=f"n{i}", namespace="m", service="s", metadata=text) for i in range(count))


def entries(count: int, size: int = 10) -> tuple[Entry, ...]:
    ends = (Endpoint(name="A.B", request={"d": "x" * size}),)
    return tuple(
        Entry(namespace="m", service=f"s{i}", version="1", endpoints=ends) for i in range(count)
    )


@pytest.mark.parametrize(
    "delta",
    [EMPTY, replace(EMPTY, full=True, routes=routes(3), entries=entries(2), gone=(("m", "a"),))],
)
def test_small_ones_go_as_they_are(delta: Delta) -> None:
    assert list(split(delta)) == [delta]
    assert join([delta]) is delta


@pytest.mark.parametrize(
    "delta",
    [
        replace(EMPTY, full=True, routes=routes(20_000), entries=entries(3_000)),
        replace(EMPTY, full=True, entries=entries(30, 900_000)),
        replace(EMPTY, full=True, entries=entries(5, PART + 100)),
        replace(EMPTY, gone=tuple(("m", f"n{i}" * 20) for i in range(100_000))),
        replace(EMPTY, gone_entries=tuple(("m", "s" * 100, str(i)) for i in range(50_000))),
        replace(EMPTY, routes=routes(200, 16_000), gone=tuple(("m", str(i)) for i in range(99))),
    ],
    ids=["many", "large", "larger than a part", "gone", "gone entries", "both"],
)
def test_large_ones_go_in_parts(delta: Delta) -> None:
    parts = list(split(delta))
    assert len(parts) > 1
    assert join(parts) == delta
    for part in parts:
        items = len(part.routes) + len(part.entries) + len(part.gone) + len(part.gone_entries)
        assert items
        assert len(msgspec.msgpack.encode(part)) < PART + 1_000 or items == 1
        assert (part.epoch, part.revision, part.full) == (delta.epoch, 4, delta.full)
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 400_000), max_size=12),
    st.lists(st.integers(0, 40_000), max_size=150),
    st.integers(0, 200),
)
def test_any_delta_comes_back(large: list[int], small: list[int], gone: int) -> None:
    delta = replace(
        EMPTY,
        full=bool(gone % 2),
        entries=tuple(e for size in large for e in entries(1, size)),
        routes=tuple(r for size in small for r in routes(1, size)),
        gone=tuple(("m", f"n{i}") for i in range(gone)),
    )
    parts = list(split(delta))
    assert join(parts) == delta
    assert not parts[-1].more
