"""HTTP to helloworld with accounts, rules and limits, against a platform that asks nobody."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager

from bench.measure import Sample, interleave, table
from bench.stack import Server, micro, server
from bench.wrk import load

__all__ = ["run"]

NAMES = (
    "auth off, no limits",
    "an access token, the default rules",
    "the same, with a limit of each kind",
)
#: Limits that are kept count of and never reached: of the namespace, the account, the service and
#: the route.
HIGH = {"rate": 1_000_000}
LIMITS: dict[str, object] = {
    "namespace": HIGH,
    "accounts": {"admin": HIGH},
    "services": {"helloworld": HIGH},
    "routes": {"helloworld": {"Helloworld": {"Call": HIGH}}},
}
#: Seconds until a change of config is surely known at the doors.
KNOWN = 0.3


@contextmanager
def _platform(mode: str) -> Iterator[Server]:
    with server(MICRO_API_REPLICAS="1", MICRO_AUTH_MODE=mode, open=False) as up:
        yield up


async def run(*, quick: bool) -> str:
    """Two tables: 32 connections, and one."""
    seconds, rounds = (1, 1) if quick else (4, 7)
    parts = []
    with _platform("off") as off, _platform("on") as on:
        _login(on)
        for at in (off, on):
            micro(at, "run", "examples/helloworld")
        token = micro(on, "user", "token").strip()

        async def asked(limits: dict[str, object], connections: int) -> Sample:
            await asyncio.to_thread(micro, on, "config", "set", "limits", json.dumps(limits))
            await asyncio.sleep(KNOWN)
            return await _once(on, token, connections, seconds)

        for connections in (32, 1):
            contenders = {
                NAMES[0]: functools.partial(_once, off, "", connections, seconds),
                NAMES[1]: functools.partial(asked, {}, connections),
                NAMES[2]: functools.partial(asked, LIMITS, connections),
            }
            figures = await interleave(contenders, rounds=rounds)
            parts.append(table(f"HTTP, {connections} connection(s)", figures, NAMES[0]))
    return "\n\n".join(parts)


def _login(at: Server) -> None:
    told = next(line for line in at.lines if "shown this once" in line)
    micro(at, "login", "--username", "admin", "--password", told.split(": ")[-1].strip())


async def _once(at: Server, token: str, connections: int, seconds: int) -> Sample:
    url = f"http://127.0.0.1:{at.port}/helloworld/call"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return await load(url, connections=connections, seconds=seconds, post=True, headers=headers)
