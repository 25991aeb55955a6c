"""Config by the command line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from micro_ray.config import Change, Config, Item, Rotation, Value, Version
from tests.faces.rows import Rows, lacks
from tests.faces.terminal import Shell

__all__ = ["ROWS", "TerminalConfig"]

_MANY = "hundreds of commands; the backend's own, and tried over frames"
_JSON = "what is not JSON is a text at a terminal"

ROWS = Rows(
    verbs={"close": "what a command has opened it closes at its end"},
    dear={
        "test_bad_values": _JSON,
        "test_bad_options": "the namespace of a terminal is not given",
        "test_bad_authors": "the author of a terminal is who is logged in",
        "test_who_did_it_is_told": "the author of a terminal is who is logged in",
        "test_bad_versions": "numbers below one are refused before they are asked for",
        "test_bad_paths": "a blank path, a NUL and a number are refused before they are asked for",
        "test_no_update_is_lost": _MANY,
        "test_a_watch_goes_on_where_it_ended": _MANY,
        "test_many_watch_alike": _MANY,
        "test_versions_in_order": _MANY,
        "test_leaving_leaves_nothing": "tasks are those of a process that has ended",
        "test_like_plain_objects": _MANY,
    },
)


class TerminalConfig(Config):
    """The interface over ``micro config``."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def _run(self, verb: str, *words: str, stdin: bytes = b"", **options: Any) -> Any:
        return await self._shell.value(
            "config", verb, *_options(options), "--", *words, stdin=stdin
        )

    async def _write(self, verb: str, path: str, value: Any, **options: Any) -> int:
        text = json.dumps(value).encode()
        done = await self._run(verb, path, "-", stdin=text, **options)
        return done["version"]

    async def close(self) -> None:
        ROWS.lacks("close")

    async def read(self, path: str = "", *, at: int = 0, **options: Any) -> Value:
        row = await self._run("get", path, at=at or None, **options)
        return msgspec.convert(row, Value)

    async def items(self, path: str = "", **options: Any) -> list[Item]:
        return msgspec.convert(await self._run("list", path, **options), list[Item])

    async def set(self, path: str, data: Any, **options: Any) -> int:
        if not path:
            lacks("set: the terminal replaces no whole document")
        return await self._write("set", path, data, **options)

    async def delete(self, path: str, **options: Any) -> int:
        if not path:
            lacks("delete: the terminal removes no whole document")
        return (await self._run("del", path, **options))["version"]

    async def merge(self, path: str, patch: Any, **options: Any) -> int:
        match patch:
            case dict():
                return await self._write("merge", path, patch, **options)
        return lacks("merge: a patch of the terminal is an object")

    async def version(self, *, namespace: str = "micro") -> int:
        return (await self.read(namespace=namespace)).document

    async def history(self, path: str = "", *, before: int = 0, **options: Any) -> list[Version]:
        rows = await self._run("history", path, before=before or None, **options)
        return msgspec.convert(rows, list[Version])

    async def diff(self, old: int, new: int = 0, *, path: str = "", **options: Any) -> list[Change]:
        rows = await self._run("diff", str(old), str(new), key=path, **options)
        return msgspec.convert(rows, list[Change])

    async def rollback(self, version: int, *, path: str = "", **options: Any) -> int:
        return (await self._run("rollback", str(version), path, **options))["version"]

    async def watch(
        self, path: str = "", *, version: int | None = None, **options: Any
    ) -> AsyncIterator[Version]:
        words = _options({**options, "from": version})
        async for row in self._shell.lines("config", "watch", *words, "--", path):
            yield msgspec.convert(row, Version)

    async def rotate(self, *, by: str = "") -> Rotation:
        return msgspec.convert(await self._run("rotate", by=by), Rotation)


def _options(options: Mapping[str, Any]) -> list[str]:
    given = dict(options)
    if given.pop("namespace", "micro") != "micro":
        lacks("a terminal speaks for the namespace of its platform")
    if given.pop("by", ""):
        lacks("by: at a terminal it is the user of the machine")
    words = ["--secret"] if given.pop("secret", False) else []
    return words + [f"--{name}={value}" for name, value in given.items() if value is not None]
