"""Interleaved measurements: A B A B, medians over rounds, so that what else the machine does falls
on all alike."""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

__all__ = [
    "Figure", "Sample", "calls", "interleave", "latencies", "machine", "quantile", "table",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One round of one contender: ``rate`` per second, latencies in seconds, failures."""

    rate: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A contender's medians over its rounds, with the spread of the rate (min, max)."""

    name: str
    rate: float
    low: float
    high: float
    p50: float
    p99: float
    failures: int


async def interleave(
    contenders: Mapping[str, Callable[[], Awaitable[Sample]]], *, rounds: int
) -> dict[str, Figure]:
    """Run every contender once per round, in turn, after one unmeasured warm-up of each."""
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for contender in contenders.values():
        await contender()
    for _ in range(rounds):
        for name, contender in contenders.items():
            samples[name].append(await contender())
    return {
        name: Figure(
            name=name,
            rate=statistics.median(s.rate for s in rows),
            low=min(s.rate for s in rows),
            high=max(s.rate for s in rows),
            p50=statistics.median(s.p50 for s in rows),
            p99=statistics.median(s.p99 for s in rows),
            failures=sum(s.failures for s in rows),
        )
        for name, rows in samples.items()
    }


async def calls(
    call: Callable[[bytes], Awaitable[bytes]],
    body: bytes,
    answer: bytes,
    in_flight: int,
    seconds: float,
) -> Sample:
    """Call over and over, ``in_flight`` at a time, each answer checked."""
    latencies: list[float] = []
    clock = time.perf_counter
    begun = clock()
    end = begun + seconds

    async def caller() -> None:
        while (at := clock()) < end:
            if await call(body) != answer:
                raise SystemExit("bench: a wrong answer")
            latencies.append(clock() - at)

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return Sample(
        rate=len(latencies) / (clock() - begun),
        p50=quantile(latencies, 0.5),
        p99=quantile(latencies, 0.99),
    )


def quantile(values: list[float], q: float) -> float:
    """The q-quantile (0..1) by nearest rank; 0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def machine() -> str:
    """One line: what this was measured on."""
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} x {models[0] if models else platform.machine()}, {memory:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def latencies(title: str, rows: Mapping[str, list[float]], digits: int = 2) -> str:
    """Quantiles of seconds, as a table of milliseconds."""
    lines = [f"**{title}**", "", "| | p50 ms | p99 ms | max ms |", "|---|---|---|---|"]
    for what, took in rows.items():
        values = (quantile(took, 0.5), quantile(took, 0.99), max(took))
        lines.append(f"| {what} | {' | '.join(f'{value * 1e3:.{digits}f}' for value in values)} |")
    return "\n".join(lines)


def table(title: str, figures: Mapping[str, Figure], base: str) -> str:
    """A Markdown table; ``ratio`` is the rate of ``base`` over the row's."""
    lines = [
        f"**{title}**",
        "",
        "| | per second (min-max) | p50 ms | p99 ms | failures | first / this |",
        "|---|---|---|---|---|---|",
    ]
    for figure in figures.values():
        ratio = figures[base].rate / figure.rate if figure.rate else float("inf")
        lines.append(
            f"| {figure.name} | {figure.rate:,.0f} ({figure.low:,.0f}-{figure.high:,.0f}) "
            f"| {figure.p50 * 1e3:.2f} | {figure.p99 * 1e3:.2f} | {figure.failures} "
            f"| {ratio:.2f}x |"
        )
    return "\n".join(lines)
