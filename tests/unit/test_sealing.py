"""Secrets and the file of their keys: what is made, refused, found again and lost."""

# ruff: noqa: ASYNC240 - a test may wait for its own files
from __future__ import annotations

import asyncio
import base64
import os
import stat
from pathlib import Path

import pytest

from micro_ray.config.stored import StoredConfig
from micro_ray.errors import InternalError, PreconditionFailed, Unavailable
from micro_ray.sealing import KeyFile
from micro_ray.store.memory import MemoryStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "config.keys"


async def test_the_file_is_made_for_its_owner_alone(path: Path) -> None:
    mask = os.umask(0)
    try:
        keys = await KeyFile(path).keys()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (line,) = path.read_text().splitlines()
    id, key = line.split()
    assert id == keys.newest
    assert len(base64.b64decode(key)) == 32
    assert not path.with_name("config.keys.new").exists()


async def test_many_make_one(path: Path) -> None:
    found = await asyncio.gather(*(KeyFile(path).keys() for _ in range(20)))
    assert len({keys.newest for keys in found}) == 1
    assert len(path.read_text().splitlines()) == 1


async def test_many_rotate(path: Path) -> None:
    """No key that somebody seals with is lost."""
    found = await asyncio.gather(*(KeyFile(path).rotate() for _ in range(20)))
    ids = [line.split()[0] for line in path.read_text().splitlines()]
    assert len(ids) == len(set(ids)) == 21
    assert {keys.newest for keys in found} <= set(ids)


async def test_what_another_has_added_is_seen(path: Path) -> None:
    one, other = KeyFile(path), KeyFile(path)
    before = await one.keys()
    sealed = (await other.rotate()).seal("n", "p", b"text")
    with pytest.raises(PreconditionFailed):
        before.open("n", "p", sealed)
    assert (await one.keys()).open("n", "p", sealed) == b"text"
    assert (await one.keys()).newest == (await other.keys()).newest


async def test_a_secret_opens_in_its_place_only(path: Path) -> None:
    keys = await KeyFile(path).keys()
    sealed = keys.seal("n", "a.b", b"text")
    assert keys.open("n", "a.b", sealed) == b"text"
    assert b"text" not in sealed.encode()
    assert sealed != keys.seal("n", "a.b", b"text")
    for namespace, at in (("m", "a.b"), ("n", "a.c"), ("n.a", "b"), ("", "a.b")):
        with pytest.raises(InternalError, match="does not open"):
            keys.open(namespace, at, sealed)


async def test_a_secret_that_was_altered_does_not_open(path: Path) -> None:
    keys = await KeyFile(path).keys()
    sealed = keys.seal("n", "p", b"text")
    head, body = sealed.rsplit(":", 1)
    data = base64.b64decode(body)
    for at in range(len(data)):
        broken = bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]])
        with pytest.raises(InternalError, match="does not open"):
            keys.open("n", "p", f"{head}:{base64.b64encode(broken).decode()}")
    for broken in (data[:11], data[:27], data[:-1], b""):
        with pytest.raises(InternalError, match="does not open"):
            keys.open("n", "p", f"{head}:{base64.b64encode(broken).decode()}")
    with pytest.raises(InternalError, match="does not open"):
        keys.open("n", "p", f"{head}:%%%")
    with pytest.raises(InternalError, match="unknown form"):
        keys.open("n", "p", "9" + sealed)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o620])
async def test_a_file_that_others_may_read_is_refused(path: Path, mode: int) -> None:
    await KeyFile(path).keys()
    path.chmod(mode)
    with pytest.raises(PreconditionFailed, match="chmod 600"):
        await KeyFile(path).keys()
    with pytest.raises(PreconditionFailed, match="chmod 600"):
        await KeyFile(path).rotate()


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "x", "abc def\n", "abcdefabcdef " + "A" * 44 + "\n", "\x00\xff"]
)
async def test_a_malformed_file_is_refused_and_not_shown(path: Path, text: str) -> None:
    file = KeyFile(path)
    good = await file.keys()
    key = path.read_text().split()[1]
    path.write_text(text or "\n")
    with pytest.raises(PreconditionFailed, match="backup"):
        await file.keys()
    path.write_text(f"{good.newest} {key[:-4]}\n")
    with pytest.raises(PreconditionFailed, match="line 1") as refused:
        await file.keys()
    assert key[:10] not in str(refused.value)
    path.write_text(f"# restored\n\n{good.newest} {key}\n")
    assert (await file.keys()).newest == good.newest


async def test_a_place_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "keys", tmp_path):
        with pytest.raises(Unavailable, match="key file"):
            await KeyFile(place).keys()


async def test_a_lost_key(path: Path) -> None:
    """What needs no key goes on; a secret can be set again, and opens again when the key is back
    beside the new one."""
    async with MemoryStore() as store:
        async with StoredConfig(store, KeyFile(path)) as config:
            await config.set("a", {"b": "one", "c": "two"}, secret=True)
        old = path.read_text()
        path.unlink()
        async with StoredConfig(store, KeyFile(path)) as config:
            assert not path.exists()
            await config.set("plain", 1)
            assert await config.get("plain") == 1
            assert not path.exists()  # without a secret there is no need of a key
            with pytest.raises(PreconditionFailed, match=r"config\.key_file"):
                await config.get("a.b", secret=True)
            await config.set("a.b", "three")
            assert await config.get("a.b", secret=True) == "three"
            assert (await config.rotate()).sealed == 1
            await config.delete("plain")
            path.write_text(old + path.read_text())
            assert await config.get("a", secret=True) == {"b": "three", "c": "two"}
            assert (await config.read("a.b", at=1, secret=True)).data == "one"
