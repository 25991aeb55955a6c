"""The store by the command line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any

from micro_ray.store import Action, Blob, Change, Operation, Put, Record, Store, Usage
from micro_ray.wire.store_records import WireRecord, from_wire, to_text
from tests.faces.rows import Rows, lacks
from tests.faces.terminal import Shell

__all__ = ["ROWS", "TerminalStore"]

_MANY = "hundreds of commands; the backend's own, and tried over frames"
_LARGE = "megabytes, the backend's own to count"
_SPACE = "a terminal speaks for the namespace of its platform"

ROWS = Rows(
    verbs={
        "close": "what a command has opened it closes at its end",
    },
    fail={
        "test_bad_expiry[-1]": "no duration is below zero; the terminal says so before it asks",
    },
    dear={
        "test_bad_keys[a\\x00b-BadRequest]": "no argument of a process has a NUL",
        "test_a_blob_is_bounded": "a limit is changed in this process; tried over frames",
        "test_places_are_apart": _SPACE,
        "test_no_update_is_lost": _MANY,
        "test_transactions_do_not_mix": _MANY,
        "test_one_of_many_creates": _MANY,
        "test_a_blob_is_replaced_whole": _MANY,
        "test_many_watch_alike": _MANY,
        "test_wildcards_are_data": _MANY,
        "test_pages": _MANY,
        "test_a_watch_goes_on_where_it_ended": _MANY,
        "test_the_largest_value": _LARGE,
        "test_an_answer_is_bounded": _LARGE,
        "test_an_answer_has_a_most_of_records": _LARGE,
        "test_a_transaction_is_bounded": _LARGE,
        "test_leaving_leaves_nothing": "tasks are those of a process that has ended",
        "test_leaving_a_blob_releases_it": "files are those of a process that has ended",
    },
)


class TerminalStore(Store):
    """The interface over ``micro store``."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def _run(
        self, *args: str, key: str | None = None, namespace: str, stdin: bytes = b"", **options: Any
    ) -> Any:
        line = ["store", *args, *_options(options, namespace)]
        rest = [] if key is None else ["--", key]
        return await self._shell.value(*line, *rest, stdin=stdin)

    async def close(self) -> None:
        ROWS.lacks("close")

    async def read(self, key: str, *, namespace: str = "micro", **place: Any) -> Record:
        (row,) = await self._run("read", key=key, namespace=namespace, **place)
        return _record(row)

    async def write(
        self,
        key: str,
        value: bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        expiry: float | None = None,
        namespace: str = "micro",
        **options: Any,
    ) -> Record:
        words = _options(options, namespace)
        words += [f"--metadata={name}={text}" for name, text in (metadata or {}).items()]
        words += [] if expiry is None else [f"--expiry={expiry:f}s"]
        row = await self._shell.value("store", "write", *words, "--", key, "-", stdin=value)
        return _record(row)

    async def delete(self, key: str, *, namespace: str = "micro", **options: Any) -> None:
        await self._run("delete", key=key, namespace=namespace, **options)

    async def query(self, *, namespace: str = "micro", **options: Any) -> list[Record]:
        return [_record(row) for row in await self._run("query", namespace=namespace, **options)]

    async def keys(self, *, namespace: str = "micro", **options: Any) -> list[str]:
        return await self._run("list", namespace=namespace, **options)

    async def transact(
        self, operations: Sequence[Operation], *, namespace: str = "micro", **options: Any
    ) -> list[int]:
        rows = json.dumps([_row(operation) for operation in operations]).encode()
        words = _options(options, namespace)
        return await self._shell.value("store", "transact", *words, "-", stdin=rows)

    async def databases(self, *, namespace: str = "micro") -> list[str]:
        return await self._run("databases", namespace=namespace)

    async def tables(self, database: str = "micro", *, namespace: str = "micro") -> list[str]:
        return await self._run("tables", namespace=namespace, database=database)

    async def usage(self, *, namespace: str = "micro") -> Usage:
        return Usage(**await self._run("usage", namespace=namespace))

    async def revision(self, *, namespace: str = "micro") -> int:
        return await self._run("revision", namespace=namespace)

    async def watch(
        self, *, revision: int, namespace: str = "micro", **options: Any
    ) -> AsyncIterator[Change]:
        words = _options(options, namespace)
        async for row in self._shell.lines("store", "watch", f"--from={revision}", *words):
            yield Change(**{**row, "action": Action(row["action"])})

    async def write_blob(
        self, key: str, chunks: AsyncIterable[bytes], *, namespace: str = "micro"
    ) -> Blob:
        whole = b"".join([piece async for piece in chunks])
        row = await self._run("blob", "write", key=key, namespace=namespace, stdin=whole)
        return Blob(**row)

    async def read_blob(self, key: str, *, namespace: str = "micro") -> AsyncIterator[bytes]:
        _options({}, namespace)
        whole = await self._shell.bytes("store", "blob", "read", "--", key)
        for start in range(0, len(whole), 65536):
            yield whole[start : start + 65536]

    async def delete_blob(self, key: str, *, namespace: str = "micro") -> bool:
        done = await self._run("blob", "delete", key=key, namespace=namespace)
        return done["deleted"]

    async def blobs(self, *, prefix: str = "", namespace: str = "micro") -> list[Blob]:
        rows = await self._run("blob", "list", namespace=namespace, prefix=prefix)
        return [Blob(**row) for row in rows]


def _options(options: Mapping[str, Any], namespace: str) -> list[str]:
    if namespace != "micro":
        lacks(_SPACE)
    return [f"--{name}={value}" for name, value in options.items() if value is not None]


def _record(row: Mapping[str, Any]) -> Record:
    return from_wire(WireRecord(**row))


def _row(operation: Operation) -> dict[str, Any]:
    row: dict[str, Any] = {
        "kind": type(operation).__name__.lower(),
        "key": operation.key,
        "table": operation.table,
        "expected": operation.expected,
    }
    match operation:
        case Put():
            row["value"], row["encoding"] = to_text(operation.value)
            row |= {"metadata": dict(operation.metadata), "expiry": operation.expiry}
    return row
