"""store: records written, read, listed and deleted, byte for byte."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from micro_ray.sdk.testing import Here
from tests.fixtures.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_write_read_delete(terminal: Terminal) -> None:
    """Writing and deleting print nothing."""
    written = await terminal.micro("store", "write", "cli/one", "a value")
    assert (written.code, written.raw, written.err) == (0, b"", "")
    assert (await terminal.micro("store", "read", "cli/one")).out == "a value\n"
    deleted = await terminal.inside("store", "delete", "cli/one")
    assert (deleted.code, deleted.raw, deleted.err) == (0, b"", "")
    assert (await terminal.inside("store", "read", "cli/one")).code == 1
    assert (await terminal.inside("store", "delete", "cli/one")).code == 0


async def test_words_are_joined(terminal: Terminal) -> None:
    await terminal.inside("store", "write", "cli/words", "several", "words  here")
    assert (await terminal.inside("store", "read", "cli/words")).out == "several words  here\n"


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (["-5"], "-5"),
        (["-.5e3"], "-.5e3"),
        (["1", "-2", "3"], "1 -2 3"),
        (["--", "--expiry", "-x"], "--expiry -x"),
        ([""], ""),
        (["żółw \u2028 漢"], "żółw \u2028 漢"),
        (["a\nb\t\x1b[31m"], "a\nb\t\x1b[31m"),
    ],
)
async def test_any_text_is_a_value(terminal: Terminal, args: list[str], value: str) -> None:
    done = await terminal.inside("store", "write", "cli/text", *args)
    assert done.code == 0, done
    assert (await terminal.inside("store", "read", "cli/text", "-o", "raw")).out == value


async def test_an_option_that_is_none_is_no_value(terminal: Terminal) -> None:
    done = await terminal.inside("store", "write", "cli/option", "x", "--expirry=5m")
    assert done.code == 2
    assert "--expiry" in done.err


async def test_a_key_may_be_a_number(terminal: Terminal) -> None:
    await terminal.inside("store", "write", "-7", "seven", "-t", "cli-numbers")
    assert (await terminal.inside("store", "read", "-7", "-t", "cli-numbers")).out == "seven\n"
    await terminal.inside("store", "delete", "-7", "-t", "cli-numbers")
    assert (await terminal.inside("store", "list", "-t", "cli-numbers")).out == ""


async def test_bytes_go_through_untouched(terminal: Terminal) -> None:
    data = bytes(range(256)) * 100
    done = await terminal.micro("store", "write", "cli/bytes", "-", stdin=data)
    assert done.code == 0, done
    assert (await terminal.micro("store", "read", "cli/bytes")).raw == data
    text = b"ends with a line end\n"
    await terminal.micro("store", "write", "cli/text", "-", stdin=text)
    assert (await terminal.micro("store", "read", "cli/text", "-o", "raw")).raw == text


async def test_an_argument_that_is_not_utf8_is_kept_as_it_is(terminal: Terminal) -> None:
    await terminal.micro("store", "write", "cli/latin", "caf\udce9")
    assert (await terminal.micro("store", "read", "cli/latin")).raw == b"caf\xe9"


async def test_large_values(terminal: Terminal) -> None:
    """As large as a store takes, also of bytes that JSON makes long; and no larger."""
    for data in (b"x" * (8 * 2**20), b"\x01" * (8 * 2**20)):
        done = await terminal.inside("store", "write", "cli/large", "-", stdin=data)
        assert done.code == 0, done
        assert (await terminal.inside("store", "read", "cli/large", "-o", "raw")).raw == data
    done = await terminal.inside("store", "write", "cli/large", "-", stdin=b"x" * (8 * 2**20 + 1))
    assert done.code == 1
    assert str(8 * 2**20) in done.err
    await terminal.inside("store", "delete", "cli/large")


async def test_prefix_suffix_limit_offset_order(terminal: Terminal) -> None:
    for name in ("a", "b", "c"):
        await terminal.inside("store", "write", f"page/{name}/end", name)
    await terminal.inside("store", "write", "page%/z", "z")

    async def read(*args: str) -> list[str]:
        return (await terminal.inside("store", "read", *args)).lines

    async def names(*args: str) -> list[str]:
        return (await terminal.inside("store", "list", *args)).lines

    assert await read("-p", "page/") == ["a", "b", "c"]
    assert await read("--prefix", "page/", "--order", "desc", "-l", "2") == ["c", "b"]
    assert await read("--prefix", "page/", "--offset", "1", "--limit", "1") == ["b"]
    assert await read("-s", "b/end") == ["b"]
    assert await read("--prefix", "page%") == ["z"]  # a wildcard elsewhere, here it is a letter
    assert await names("-p", "page/") == ["page/a/end", "page/b/end", "page/c/end"]
    assert await names("-p", "page/", "-s", "c/end") == ["page/c/end"]
    assert await names("-p", "page/", "--order=desc", "-l1") == ["page/c/end"]
    assert await names("-p", "page/none") == []


async def test_nothing_found(terminal: Terminal) -> None:
    """By key or by prefix it is not found; for a program an empty list is an answer."""
    done = await terminal.inside("store", "read", "-p", "cli/none/")
    assert (done.code, done.raw, done.err) == (1, b"", "Not found\n")
    assert (await terminal.inside("store", "read", "-p", "cli/none/", "-o", "json")).json() == []


async def test_verbose(terminal: Terminal) -> None:
    await terminal.inside("store", "write", "verbose/a", "one\ntwo\x1b[2J", "--expiry=1h")
    await terminal.inside("store", "write", "verbose/b\u202e", "-", stdin=b"\xff\x00")
    done = await terminal.inside("store", "read", "-p", "verbose/", "-v")
    assert done.lines[0].split() == ["KEY", "VALUE", "EXPIRY", "VERSION"]
    first, second = done.rows()
    assert first[:2] == ["verbose/a", "one\\ntwo\\x1b[2J"]
    assert first[2] in ("3600s", "3599s")
    assert second[:3] == ["verbose/b\\u202e", "/wA=", "None"]
    assert "\x1b" not in done.out
    assert "verbose/b\\u202e" in (await terminal.inside("store", "list", "-p", "verbose")).lines


async def test_expiry(terminal: Terminal, town: Here) -> None:
    await terminal.inside("store", "write", "cli/short", "x", "-e", "1h30m")
    (record,) = (await terminal.inside("store", "read", "cli/short", "-o", "json")).json()
    assert 5390 < record["expiry"] <= 5400
    assert (await town.store.read("cli/short")).expiry == pytest.approx(5400, abs=10)


@pytest.mark.parametrize("given", ["5", "m", "5 m", "-5m", "5y", "1e3s", "5m!", "٣s"])
async def test_an_expiry_that_is_none(terminal: Terminal, given: str) -> None:
    done = await terminal.inside("store", "write", "cli/x", "x", f"--expiry={given}")
    assert done.code == 2
    assert done.err == f"{given!r} is no duration, such as 90s, 5m or 1h30m\n"


async def test_an_expiry_out_of_range(terminal: Terminal) -> None:
    for given in ("0s", "999999999999d"):
        done = await terminal.inside("store", "write", "cli/x", "x", "-e", given)
        assert done.code == 1
        assert "expiry" in done.err.lower()


async def test_compare_and_set(terminal: Terminal) -> None:
    args = ["store", "write", "cli/cas", "-o", "json", "--expected"]
    first = (await terminal.inside(*args, "0", "one")).json()["version"]
    again = await terminal.inside("store", "write", "cli/cas", "two", "--expected", "0")
    assert again.code == 1
    assert str(first) in again.err
    second = (await terminal.inside(*args, str(first), "two")).json()["version"]
    assert second > first
    stale = await terminal.inside("store", "delete", "cli/cas", "--expected", str(first))
    assert stale.code == 1
    assert (await terminal.inside("store", "read", "cli/cas")).out == "two\n"
    gone = await terminal.inside("store", "delete", "cli/cas", "--expected", str(second))
    assert gone.code == 0


async def test_metadata(terminal: Terminal) -> None:
    await terminal.inside("store", "write", "cli/meta", "x", "--metadata=a=1", "--metadata=b=x=y")
    (record,) = (await terminal.inside("store", "read", "cli/meta", "-o", "json")).json()
    assert record["metadata"] == {"a": "1", "b": "x=y"}
    done = await terminal.inside("store", "write", "cli/meta", "x", "--metadata=a")
    assert done.code == 2


async def test_databases_and_tables(terminal: Terminal) -> None:
    """Made at first use; what is not there is not found, never a failure of another kind."""
    place = ["-d", "cli-base", "-t", "cli-table"]
    assert (await terminal.inside("store", "read", "k", *place)).code == 1
    assert (await terminal.inside("store", "list", *place)).out == ""
    await terminal.inside("store", "write", "k", "there", *place)
    assert (await terminal.inside("store", "read", "k", *place)).out == "there\n"
    assert (await terminal.inside("store", "read", "k", "-d", "cli-base")).code == 1
    assert "cli-base" in (await terminal.inside("store", "databases")).lines
    assert (await terminal.inside("store", "tables", "-d", "cli-base")).lines == ["cli-table"]
    assert "micro" in (await terminal.inside("store", "databases")).lines


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["read", "-p", "x", "--limit=-1"], "limit"),
        (["read", "-p", "x", "--offset=-1"], "offset"),
        (["read", "-p", "x", "--limit=many"], "--limit"),
        (["read", "x", "--order=up"], "--order"),
        (["read", "x", "-t", "../etc"], "table"),
        (["list", "-d", "a/b"], "database"),
        (["write", "x" * 1025, "v"], "key"),
        (["write", "", "v"], "key"),
        (["write", "k", "v", "--expected=-1"], "expected"),
    ],
)
async def test_bad_input_is_named(terminal: Terminal, args: list[str], named: str) -> None:
    done = await terminal.inside("store", *args)
    assert done.code in (1, 2)
    assert named in done.err.lower()


async def test_query(terminal: Terminal) -> None:
    place = ("-t", "cli-query")
    for key in ("a1", "a2", "b1"):
        await terminal.inside("store", "write", key, f"of {key}", *place)
    rows = (await terminal.inside("store", "query", "-p", "a", "-s", "2", *place)).rows()
    assert [row[:4] for row in rows] == [["a2", "of", "a2", "None"]]
    assert len((await terminal.inside("store", "query", *place)).rows()) == 3
    assert (await terminal.inside("store", "query", "-p", "z", *place)).rows() == []


async def test_transactions(terminal: Terminal) -> None:
    put = '[{"kind": "put", "key": "cli/t", "value": "v", "expected": 0}]'
    done = await terminal.inside("store", "transact", put)
    newest = await terminal.inside("store", "revision")
    assert (done.code, done.out) == (0, newest.out)
    again = await terminal.inside("store", "transact", "-", stdin=put.encode())
    assert (again.code, again.out) == (1, "")
    assert "no record expected" in again.err
    wrong = await terminal.inside("store", "transact", "{")
    assert wrong.code == 2
    assert "not JSON" in wrong.err


async def test_a_watch(terminal: Terminal) -> None:
    """From a version on, and until it is interrupted."""
    begun = (await terminal.inside("store", "revision")).out.strip()
    await terminal.inside("store", "write", "cli/w", "v", "-t", "cli-watch")
    await terminal.inside("store", "delete", "cli/w", "-t", "cli-watch")
    async with (
        asyncio.timeout(20),
        terminal.started("store", "watch", "--from", begun, "-t", "cli-watch") as watching,
    ):
        assert watching.stdout is not None
        lines = [(await watching.stdout.readline()).decode().split("  ") for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        await watching.communicate()
    assert [line[1] for line in lines] == ["put", "delete"]
    assert watching.returncode == 130


async def test_blobs(terminal: Terminal) -> None:
    value = os.urandom(600_000)
    written = await terminal.micro("store", "blob", "write", "cli/b", stdin=value)
    assert (written.code, written.out, written.err) == (0, "", "")
    assert (await terminal.micro("store", "blob", "read", "cli/b")).raw == value
    rows = (await terminal.inside("store", "blob", "list", "-p", "cli/")).rows()
    assert rows == [["cli/b", "0.57mb"]]
    for _ in range(2):
        assert (await terminal.inside("store", "blob", "delete", "cli/b")).code == 0
    gone = await terminal.inside("store", "blob", "read", "cli/b")
    assert (gone.code, gone.raw) == (1, b"")
