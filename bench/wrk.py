"""Load on an HTTP port by wrk (Debian package ``wrk``), and its report as a Sample."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from bench.measure import Sample

__all__ = ["load"]

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_SCRIPT = Path(__file__).with_name("post.lua")


async def load(
    url: str,
    *,
    connections: int,
    seconds: int,
    post: bool,
    headers: Mapping[str, str] | None = None,
) -> Sample:
    """``connections`` keep-alive connections for ``seconds``; one wrk thread, so that it takes as
    little of a small machine as it can. Answers other than 2xx and 3xx count as failures."""
    if shutil.which("wrk") is None:
        raise SystemExit("bench: wrk is missing; on Debian: apt-get install wrk")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    for name, value in (headers or {}).items():
        command += ["-H", f"{name}: {value}"]
    if post:
        command += ["-s", str(_SCRIPT)]
    process = await asyncio.create_subprocess_exec(
        *command, url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode()
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if process.returncode or rate is None:
        raise SystemExit(f"bench: wrk on {url}: {output}")
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    errors = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    return Sample(
        rate=float(rate[1]),
        p50=_latency(output, "50%"),
        p99=_latency(output, "99%"),
        failures=(int(failed[1]) if failed else 0)
        + sum(map(int, errors.groups() if errors else ())),
    )


def _latency(output: str, label: str) -> float:
    match = re.search(rf"^\s*{label}\s+([\d.]+)(us|ms|s|m)\s*$", output, re.MULTILINE)
    return float(match[1]) * _UNITS[match[2]] if match else 0.0
