"""Where the door's time goes: samples of its process under load, by the part they fell in."""

from __future__ import annotations

import asyncio
import collections
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.stack import Server, micro, peer, server
from bench.wrk import load

__all__ = ["run"]

DOOR = "ray::ServeReplica:api"
#: Functions whose leaf is a system call that writes.
WRITES = ("_Together.", "RequestResponseCycle.send", "Connection.flush")
WRITES_THERE = "send (bench/peers"
#: Part -> what the file of a sample's leaf begins with; the first that fits counts.
PARTS = {
    "HTTP: uvicorn and our limits in it": ("uvicorn/", "micro_ray/serve/"),
    "the api: path, body, headers, metrics": ("micro_ray/api/",),
    "the network: table, choice, retries": ("micro_ray/network/", "micro_ray/router/"),
    "frames": ("micro_ray/wire/",),
    "asyncio: tasks, timeouts": ("asyncio/",),
}


async def run(*, quick: bool) -> str:
    """The door with a call behind it, the door answering by itself, and a bare uvicorn."""
    seconds = 3 if quick else 10
    shares: dict[str, collections.Counter[str]] = {}
    with server(MICRO_API_REPLICAS="1") as ours, peer("door") as door, peer("uvicorn") as bare:
        micro(ours, "run", "examples/helloworld")
        for name, pid, url in (
            ("api to helloworld", _door(ours), f"http://127.0.0.1:{ours.port}/helloworld/call"),
            ("(a) the same door", _listens(door), f"http://127.0.0.1:{door}/helloworld/call"),
            ("(d) bare uvicorn", _listens(bare), f"http://127.0.0.1:{bare}/"),
        ):
            loading = asyncio.create_task(load(url, connections=32, seconds=seconds + 2, post=True))
            await asyncio.sleep(1)
            samples = await asyncio.to_thread(_samples, pid, seconds)
            rate = (await loading).rate
            shares[f"{name}, {rate:,.0f}/s"] = samples
    return _table(shares)


def _door(at: Server) -> int:
    for process in psutil.Process(at.pid).children(recursive=True):
        if " ".join(process.cmdline()).startswith(DOOR):
            return process.pid
    raise SystemExit("bench: there is no door")


def _listens(port: int) -> int:
    for process in psutil.Process().children(recursive=True):
        if any(c.status == "LISTEN" and c.laddr.port == port for c in process.net_connections()):
            return process.pid
    raise SystemExit(f"bench: nobody listens on {port}")


def _samples(pid: int, seconds: int) -> collections.Counter[str]:
    """CPU seconds per part, by py-spy (which comes with Ray)."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        raise SystemExit("bench: py-spy is missing")
    process = psutil.Process(pid)
    begun, before = time.monotonic(), process.cpu_times()
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run(
            [spy, "record", "-p", str(pid), "-d", str(seconds), "-r", "200", "-f", "raw",
             "-o", file.name],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        after, passed = process.cpu_times(), time.monotonic() - begun
        counts = _counts(Path(file.name).read_text())
    busy = (after.user + after.system - before.user - before.system) / passed
    total = sum(counts.values()) or 1
    return collections.Counter({part: busy * n / total for part, n in counts.items()})


def _counts(text: str) -> collections.Counter[str]:
    """Samples of the loop that serves, by part."""
    counts: collections.Counter[str] = collections.Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if any("uvicorn/" in frame or "micro_ray/" in frame for frame in frames):
            counts[_part(frames[-1])] += int(count)
    return counts


def _part(leaf: str) -> str:
    if leaf.startswith(WRITES) or WRITES_THERE in leaf:
        return "writing to sockets"
    where = leaf.partition("(")[2]
    for part, beginnings in PARTS.items():
        if where.startswith(beginnings):
            return part
    return "other"


def _table(shares: dict[str, collections.Counter[str]]) -> str:
    parts = ["writing to sockets", *PARTS, "other"]
    lines = [
        "**CPU of the door's process by part, microseconds per request**",
        "",
        f"| | {' | '.join(shares)} |",
        f"|---|{'---|' * len(shares)}",
    ]
    rates = [float(name.rpartition(", ")[2].removesuffix("/s").replace(",", "")) for name in shares]
    for part in parts:
        cells = [
            f"{counts[part] / rate * 1e6:.1f}"
            for counts, rate in zip(shares.values(), rates, strict=True)
        ]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    totals = [
        f"{sum(c.values()) / rate * 1e6:.1f}"
        for c, rate in zip(shares.values(), rates, strict=True)
    ]
    lines.append(f"| all | {' | '.join(totals)} |")
    return "\n".join(lines)
