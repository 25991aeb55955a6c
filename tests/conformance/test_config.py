"""What every config does, whatever keeps it and however it is reached: values, paths, writes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from micro_ray.config import MAX_AUTHOR, MAX_PART, MAX_PATH, Config, Item
from micro_ray.errors import (
    BadRequest,
    Conflict,
    MicroError,
    NotFound,
    PreconditionFailed,
    TooLarge,
)
from tests.fixtures.configs import LIMITS

VALUES: list[Any] = [
    "", "text", "ä€😀\u2028\n\"\\", "a.b", 0, -1, 1.5, 1e300, 2**63, -(2**63), True, False, None,
    [], [1, [2, {"any key.": None}]], {}, {"a": {}}, {"a": {"b": [1], "c": "d"}, "e": None},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_a_value_comes_back_as_it_was_set(config: Config, value: Any) -> None:
    version = await config.set("one.two", value)
    found = await config.read("one.two")
    assert (found.data, type(found.data)) == (value, type(value))
    assert (found.path, found.version, found.document, found.secrets) == (
        "one.two", version, version, (),
    )  # fmt: skip
    assert await config.get() == {"one": {"two": value}}


async def test_what_is_not_there(config: Config) -> None:
    assert await config.get() == {}
    assert (await config.read()).version == await config.version() == 0
    await config.set("a.b", 1)
    for path in ("b", "a.c", "a.b.c", "a.b.c.d"):
        with pytest.raises(NotFound, match=path):
            await config.read(path)
        assert await config.get(path) is None
        assert await config.get(path, 7) == 7
        assert await config.items(path) == []
    assert await config.get("a.b", 7) == 1


async def test_a_null_is_a_value(config: Config) -> None:
    await config.set("a", None)
    assert (await config.read("a")).data is None
    assert await config.get("a", 7) is None


async def test_set_replaces(config: Config) -> None:
    await config.set("a", {"b": 1, "c": {"d": 2}})
    await config.set("a.c", {"e": 3})
    assert await config.get("a") == {"b": 1, "c": {"e": 3}}
    await config.set("a", [1])
    assert await config.get("a") == [1]
    await config.set("", {"z": 1})
    assert await config.get() == {"z": 1}


async def test_a_value_is_no_object(config: Config) -> None:
    """A path does not go through a value, whose loss nobody has asked for."""
    await config.set("a.b", [1])
    for path in ("a.b.c", "a.b.c.d", "a.b.0"):
        with pytest.raises(PreconditionFailed, match=r"a\.b is a value"):
            await config.set(path, 1)
    with pytest.raises(BadRequest, match="object"):
        await config.set("", 1)
    with pytest.raises(BadRequest, match="object"):
        await config.merge("", [1])
    assert await config.get() == {"a": {"b": [1]}}
    await config.set("a.b", {"c": 1})
    assert await config.get("a.b.c") == 1


async def test_delete(config: Config) -> None:
    await config.set("a", {"b": 1, "c": 2})
    first = await config.delete("a.b")
    assert await config.get() == {"a": {"c": 2}}
    assert await config.delete("a.b") == await config.delete("x.y") == first
    await config.delete("a.c")
    assert await config.get() == {"a": {}}
    await config.delete("a")
    assert await config.get() == {}
    await config.set("a", 1)
    await config.delete("")
    assert await config.get() == {}


#: The examples of RFC 7396, appendix A, that are about objects.
MERGES: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("before", "patch", "after"), MERGES)
async def test_merge(config: Config, before: Any, patch: Any, after: Any) -> None:
    await config.set("at.it", before)
    await config.set("at.side", 1)
    await config.merge("at.it", patch)
    assert await config.get() == {"at": {"it": after, "side": 1}}


async def test_merge_where_nothing_is(config: Config) -> None:
    await config.merge("a.b", {"c": 1, "d": None})
    assert await config.get() == {"a": {"b": {"c": 1}}}
    await config.merge("", {"e": 2, "a": None})
    assert await config.get() == {"e": 2}
    await config.merge("e", None)
    assert await config.get() == {}


async def test_items(config: Config) -> None:
    await config.set("a", {"b": 1, "c": {"d": [2], "e": {}}})
    await config.set("a-b", 3)
    await config.set("ab.x", 4)
    assert await config.items() == [
        Item(path="a-b", data=3, version=2),
        Item(path="a.b", data=1, version=1),
        Item(path="a.c.d", data=[2], version=1),
        Item(path="a.c.e", data={}, version=1),
        Item(path="ab.x", data=4, version=3),
    ]
    assert [item.path for item in await config.items("a")] == ["a.b", "a.c.d", "a.c.e"]
    assert [item.path for item in await config.items("a.c.d")] == ["a.c.d"]


async def test_namespaces_are_apart(config: Config) -> None:
    await config.set("a", 1)
    await config.set("a", 2, namespace="other")
    assert await config.get("a") == 1
    assert await config.get("a", namespace="other") == 2
    assert await config.version(namespace="third") == 0
    await config.delete("", namespace="other")
    assert await config.get() == {"a": 1}


# -- versions ------------------------------------------------------------------------------------


async def test_what_changes_nothing_makes_no_version(config: Config) -> None:
    first = await config.set("a", {"b": 1})
    assert await config.set("a", {"b": 1}) == first
    assert await config.merge("a", {"b": 1}) == first
    assert await config.merge("", {}) == await config.rollback(first) == first
    assert await config.set("a.b", 1) == await config.version() == first
    assert await config.set("a.b", 1.0) == first + 1
    assert await config.set("a.b", True) == first + 2


async def test_versions_of_paths(config: Config) -> None:
    async def at(path: str) -> int:
        return (await config.read(path)).version

    await config.set("a", {"b": 1, "c": {"d": 2}})
    await config.set("x", 1)
    await config.set("a.c.d", 3)
    assert [await at(p) for p in ("", "a", "a.b", "a.c", "a.c.d", "x")] == [3, 3, 1, 3, 3, 2]
    await config.delete("a.c.d")
    assert [await at(p) for p in ("", "a", "a.b", "a.c", "x")] == [4, 4, 1, 4, 2]
    assert (await config.read("x")).document == 4


async def test_compare_and_set(config: Config) -> None:
    await config.set("other", 1)
    first = await config.set("a.b", 1, expected=0)
    with pytest.raises(Conflict, match=f"nothing expected, version {first} found"):
        await config.set("a.b", 2, expected=0)
    await config.set("other", 2)
    second = await config.set("a.b", 2, expected=first)
    both = f"version {first} expected, version {second} found"
    for attempt in (
        config.set("a.b", 3, expected=first),
        config.delete("a.b", expected=first),
        config.merge("a", {"b": 3}, expected=first),
        config.rollback(first, path="a.b", expected=first),
    ):
        with pytest.raises(Conflict, match=both):
            await attempt
    assert await config.get("a.b") == 2
    await config.delete("a.b", expected=second)
    with pytest.raises(Conflict, match=f"version {second} expected, nothing found"):
        await config.set("a.b", 4, expected=second)
    await config.set("a.b", 5, expected=0)
    document = await config.version()
    with pytest.raises(Conflict):
        await config.set("", {}, expected=document - 1)
    await config.set("", {}, expected=document)


async def test_no_update_is_lost(config: Config) -> None:
    """Tasks count in one value by compare-and-set, while others write beside it."""

    async def count(times: int) -> None:
        for _ in range(times):
            while True:
                found = await config.read("counts.all")
                try:
                    await config.set("counts.all", found.data + 1, expected=found.version)
                except Conflict:
                    continue
                break

    async def beside(name: str) -> None:
        for i in range(5):
            await config.merge("counts", {name: i})

    await config.set("counts.all", 0)
    await asyncio.gather(*(count(5) for _ in range(6)), *(beside(f"n{i}") for i in range(4)))
    assert await config.get("counts") == {"all": 30, **{f"n{i}": 4 for i in range(4)}}
    assert await config.version() == 1 + 30 + 20


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (".", BadRequest), ("a.", BadRequest), (".a", BadRequest), ("a..b", BadRequest),
        ("a b", BadRequest), ("a/b", BadRequest), ("ä", BadRequest), ("a\n", BadRequest),
        ("a.*", BadRequest), ("\x00", BadRequest), ("a[0]", BadRequest),
        ("x" * (MAX_PART + 1), TooLarge), (".".join(["x" * 50] * 11), TooLarge),
    ],
)  # fmt: skip
async def test_bad_paths(config: Config, path: str, error: type[MicroError]) -> None:
    for attempt in (
        config.read(path),
        config.items(path),
        config.set(path, 1),
        config.delete(path),
        config.merge(path, {}),
        config.history(path),
        config.diff(0, path=path),
        config.rollback(0, path=path),
        anext(config.watch(path, version=0)),
    ):
        with pytest.raises(error, match="path"):
            await attempt
    if error is BadRequest and path:
        with pytest.raises(BadRequest, match="part of a path"):
            await config.set("", {path: 1})
    assert await config.version() == 0


async def test_the_longest_path(config: Config) -> None:
    path = ".".join(["x" * MAX_PART] * LIMITS.max_depth)
    assert len(path) <= MAX_PATH
    await config.set(path, 1)
    assert await config.get(path) == 1
    with pytest.raises(TooLarge, match=f"{LIMITS.max_depth} levels"):
        await config.set("a.b.c.d.e.f.g", 1)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 2**64, -(2**63) - 1, "\ud800", {"a": object()}, b"x", {1: 2},
     {"": 1}, {"a": {"b c": 1}}, [{1: 2}], "[secret]", {"a": ["[secret]"]}, {1, 2}],
    ids=repr,
)  # fmt: skip
async def test_bad_values(config: Config, value: Any) -> None:
    for attempt in (config.set("a", value), config.merge("a", value)):
        with pytest.raises(BadRequest):
            await attempt
    assert await config.version() == 0


async def test_sizes(config: Config) -> None:
    text = "x" * (LIMITS.max_value - 2)
    for secret in (False, True):
        await config.set("a", text, secret=secret)
        assert await config.get("a", secret=True) == text
        with pytest.raises(TooLarge, match=rf"a: .*{LIMITS.max_value} allowed"):
            await config.set("a", text + "x", secret=secret)
    with pytest.raises(TooLarge, match="max_document"):
        await config.set("b", {f"k{i}": text for i in range(10)})
    with pytest.raises(TooLarge, match="max_keys"):
        await config.set("b", {f"k{i}": i for i in range(LIMITS.max_keys)})
    with pytest.raises(TooLarge, match="levels"):
        await config.set("b", [[[[[[1]]]]]])
    assert await config.get("b") is None
    await config.set("b", [[[[[1]]]]])


@pytest.mark.parametrize(
    "options",
    [{"namespace": ""}, {"namespace": "../x"}, {"namespace": "a" * 64},
     {"expected": -1}, {"expected": 2**63}],
    ids=repr,
)  # fmt: skip
async def test_bad_options(config: Config, options: dict[str, Any]) -> None:
    for attempt in (
        config.set("a", 1, **options),
        config.delete("a", **options),
        config.merge("a", {}, **options),
        config.rollback(0, **options),
    ):
        with pytest.raises(BadRequest, match="|".join(options)):
            await attempt


@pytest.mark.parametrize("by", ["a\nb", "x" * (MAX_AUTHOR + 1)], ids=["lines", "long"])
async def test_bad_authors(config: Config, by: str) -> None:
    for attempt in (config.set, config.merge):
        with pytest.raises(BadRequest, match="by"):
            await attempt("a", {}, by=by)
    with pytest.raises(BadRequest, match="by"):
        await config.delete("a", by=by)
    with pytest.raises(BadRequest, match="by"):
        await config.rollback(0, by=by)


async def test_bad_versions(config: Config) -> None:
    await config.set("a", 1)
    with pytest.raises(NotFound, match="the newest is 1"):
        await config.read("a", at=2)
    with pytest.raises(NotFound, match="the newest is 1"):
        await config.rollback(2)
    with pytest.raises(NotFound):
        await config.diff(1, 9)
    for attempt in (
        config.rollback(-1), config.diff(-1), config.read("a", at=-1), config.history(limit=0),
        config.history(limit=10**6), config.history(before=-1),
    ):  # fmt: skip
        with pytest.raises(BadRequest):
            await attempt
