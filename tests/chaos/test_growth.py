"""The comparison that the chaos tests end with finds what has grown, in values made up for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.growth import Baselines, Bounds, Held, Roll, Seen, grown, total

BOUNDS = Bounds(descriptors=10, memory=1000, tasks=5)
OLD = Held(descriptors=50, memory=10_000, tasks=4)


def seen(pid: int, group: str) -> Seen:
    return Seen(pid=pid, title="ray::X", group=group)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, False),
        ({"descriptors": 60, "memory": 11_000, "tasks": 9}, False),
        ({"descriptors": 0, "memory": 0, "tasks": 0}, False),
        ({"descriptors": 61}, True),
        ({"memory": 11_001}, True),
        ({"tasks": 10}, True),
        ({"descriptors": 0, "memory": 0, "tasks": 10}, True),
    ],
)
def test_what_grew_is_found(more: dict[str, int], found: bool) -> None:
    before = {"store": OLD, "store-1": OLD}
    rows = grown(before, {"store": OLD, "store-1": replace(OLD, **more)}, BOUNDS)
    assert [row.partition(":")[0] for row in rows] == ["store-1"] * found


def test_who_is_not_there_is_found() -> None:
    assert grown({"store": OLD}, {}, BOUNDS) == ["store: is not there"]


def test_a_new_process_takes_the_place_of_the_one_that_died() -> None:
    roll = Roll()
    first = roll.call([seen(1, "api"), seen(2, "api"), seen(3, "store"), seen(4, "store-1")])
    assert {name: row.pid for name, row in first.items()} == {
        "api": 1, "api+1": 2, "store": 3, "store-1": 4,
    }  # fmt: skip
    # The first door and a store have died; one is back, under a number lower than the others'.
    second = roll.call([seen(2, "api"), seen(3, "store")])
    assert {name: row.pid for name, row in second.items()} == {"api+1": 2, "store": 3}
    third = roll.call([seen(2, "api"), seen(9, "api"), seen(3, "store"), seen(8, "store-1")])
    assert {name: row.pid for name, row in third.items()} == {
        "api": 9, "api+1": 2, "store": 3, "store-1": 8,
    }  # fmt: skip


def test_each_life_has_a_baseline_and_the_first_one_stays() -> None:
    lives = Baselines()
    held = {"store": OLD, "api": OLD}
    assert lives.take({"store": seen(1, "store"), "api": seen(2, "api")}, held) == ["store", "api"]
    more = replace(OLD, memory=10_900)
    now = {"store": seen(7, "store"), "api": seen(2, "api")}
    assert lives.take(now, {"store": more, "api": more}) == ["store"]
    assert lives.latest == {"store": more, "api": OLD}
    assert lives.first == held
    assert lives.grown({"store": more, "api": OLD}, BOUNDS) == []
    # Within the bounds of this life, and over those of the first: it creeps.
    crept = replace(OLD, memory=11_500)
    assert [row.partition(":")[0] for row in lives.grown({"store": crept, "api": OLD}, BOUNDS)] == [
        "store"
    ]
    assert lives.grown({"store": OLD}, BOUNDS) == ["api: is not there"] * 2


def test_the_total_is_of_all() -> None:
    assert total([OLD, OLD, Held(descriptors=1, memory=2)]) == Held(
        descriptors=101, memory=20_002, tasks=8
    )
