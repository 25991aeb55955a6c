"""What every config does: secrets."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import pytest

from micro_ray.config import MASK, Change, Config, Kind
from micro_ray.errors import BadRequest


async def test_a_secret_is_masked_until_it_is_asked_for(config: Config) -> None:
    value = {"user": "ann", "tokens": ["t1", 2], "none": {}, "null": None}
    await config.set("db", value, secret=True)
    await config.set("db.port", 5)
    shown = await config.read("db")
    masked = {"user": MASK, "tokens": MASK, "none": {}, "null": MASK, "port": 5}
    assert shown.data == masked
    assert shown.secrets == ("db.null", "db.tokens", "db.user")
    assert (await config.read("db.user")).data == MASK
    opened = await config.read("db", secret=True)
    assert opened.data == {**value, "port": 5}
    assert await config.get("db.tokens", secret=True) == ["t1", 2]
    items = {item.path: (item.data, item.secret) for item in await config.items("db")}
    assert items["db.user"] == (MASK, True)
    assert items["db.port"] == (5, False)
    assert "t1" in str(await config.items("db", secret=True))


async def test_masked_wherever_it_would_appear(config: Config) -> None:
    await config.set("k", "hunter2", secret=True)
    await config.set("k", "hunter3", secret=True)
    await config.delete("k")

    async def told(secret: bool) -> list[Any]:
        watch = config.watch(version=0, secret=secret)
        async with contextlib.aclosing(watch) as versions:  # type: ignore[type-var]
            watched = [await anext(versions) for _ in range(3)]
        return [
            await config.history(secret=secret),
            await config.diff(1, 2, secret=secret),
            await config.read(at=1, secret=secret),
            watched,
        ]

    assert "hunter" not in str(await told(False))
    history, diff, read, watched = await told(True)
    assert diff == [Change(path="k", kind=Kind.CHANGED, old="hunter2", new="hunter3", secret=True)]
    assert read.data == {"k": "hunter2"}
    assert history == watched[::-1]
    assert history[0].changes[0].old == "hunter3"
    (masked,) = await config.diff(1, 2)
    assert (masked.old, masked.new, masked.secret) == (MASK, MASK, True)


async def test_what_is_secret_stays_so(config: Config) -> None:
    """Whatever is written at its place, above or below it, until it is deleted."""
    await config.set("a.b", "s1", secret=True)
    await config.set("a.b", "s2")
    await config.set("a", {"b": "s3", "c": 1})
    await config.merge("", {"a": {"b": "s4"}})
    assert await config.get("a") == {"b": MASK, "c": 1}
    assert await config.get("a.b", secret=True) == "s4"
    await config.set("a.b", {"d": "s5"})
    assert await config.get("a") == {"b": {"d": MASK}, "c": 1}
    await config.set("a", "s6")
    assert await config.get("a") == MASK
    await config.merge("a", {"e": "s7"})
    assert await config.get("a") == {"e": MASK}
    await config.delete("a")
    await config.set("a", "plain")
    assert await config.get("a") == "plain"


async def test_a_mask_is_not_written_back(config: Config) -> None:
    await config.set("a", {"b": "s", "c": 1}, secret=True)
    shown = await config.get("a")
    for attempt in (config.set("a", shown), config.merge("a", shown)):
        with pytest.raises(BadRequest, match="what a secret is shown as"):
            await attempt
    assert await config.get("a.b", secret=True) == "s"


async def test_the_same_secret_makes_no_version(config: Config) -> None:
    first = await config.set("a", "s", secret=True)
    assert await config.set("a", "s", secret=True) == await config.set("a", "s") == first
    assert await config.set("a", "t", secret=True) == first + 1


async def test_rollback_brings_secrets_back(config: Config) -> None:
    await config.set("a", "old", secret=True)
    await config.set("a", "new")
    await config.rollback(1)
    assert await config.get("a") == MASK
    assert await config.get("a", secret=True) == "old"


async def test_rotation(config: Config) -> None:
    """The newest document is sealed with the new key; what was before opens with the old one."""
    await config.set("a", {"b": "one", "c": 1, "d": "two"}, secret=True)
    await config.set("x", "far", secret=True, namespace="other")
    await config.set("a.b", "three")
    document = await config.version()
    first = await config.rotate(by="ann")
    second = await config.rotate()
    assert first.sealed == second.sealed == 4
    assert first.key != second.key
    assert await config.version() == document
    assert await config.diff(document) == []
    assert (await config.history())[0].version == document
    assert await config.get("a", secret=True) == {"b": "three", "c": 1, "d": "two"}
    assert await config.get("x", secret=True, namespace="other") == "far"
    assert (await config.read("a.b", at=1, secret=True)).data == "one"
    await config.rollback(1)
    assert await config.get("a.b", secret=True) == "one"


async def test_every_opening_is_logged(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    """Who, where and how, and never what."""
    with caplog.at_level(logging.INFO, "micro_ray.config"):
        await config.set("a", {"b": "hunter2", "c": "hunter3"}, secret=True, by="ann")
        await config.get("a", by="ann")
        await config.history(by="ann")
        assert "secret read" not in caplog.text
        await config.get("a", secret=True, by="bob")
        assert caplog.text.count("config secret read") == 2
        assert "namespace=micro path=a.b by='bob' verb=read" in caplog.text
        await config.history(secret=True, by="eve")
        assert "path=a.c by='eve' verb=history" in caplog.text
    assert "hunter" not in caplog.text
