"""Start-up: the server from nothing to the first answer, the command line, memory of a replica."""

from __future__ import annotations

import asyncio
import statistics
import time

import psutil

from bench.stack import MICRO, micro, server

__all__ = ["run"]

#: Processes counted as a service replica, by title.
REPLICA = "ray::Replica"


async def _seconds(*command: str, times: int) -> list[float]:
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        await process.wait()
        took.append(time.perf_counter() - begun)
    return took


async def run(*, quick: bool) -> str:
    starts, times = (1, 3) if quick else (5, 20)
    servers, memory, calls = [], [], []
    for _ in range(starts):
        with server() as up:
            servers.append(up.started_in)
            micro(up, "run", "--replicas", "2", "examples/helloworld")
            for process in psutil.Process(up.pid).children(recursive=True):
                if " ".join(process.cmdline()).startswith(REPLICA):
                    memory.append(process.memory_full_info().pss / 2**20)
            for _ in range(times // starts + 1):
                begun = time.perf_counter()
                micro(up, "helloworld", "call", "--name=Alice")
                calls.append(time.perf_counter() - begun)
    version = await _seconds(str(MICRO), "--version", times=times)
    help_ = await _seconds(str(MICRO), "--help", times=times)
    python = await _seconds(str(MICRO.with_name("python")), "-c", "pass", times=times)
    rows = {
        "micro server, nothing to first answer": (servers, "s", 1.0),
        "micro --version": (version, "ms", 1e3),
        "micro --help": (help_, "ms", 1e3),
        "micro helloworld call (whole command)": (calls, "ms", 1e3),
        "python -c pass": (python, "ms", 1e3),
        "memory of a service replica (PSS)": (memory, "MiB", 1.0),
    }
    lines = ["**Start-up and memory**", "", "| | median | min | max |", "|---|---|---|---|"]
    for name, (values, unit, scale) in rows.items():
        low, middle, high = (f(values) * scale for f in (min, statistics.median, max))
        lines.append(f"| {name} | {middle:,.1f} {unit} | {low:,.1f} | {high:,.1f} |")
    return "\n".join(lines)
