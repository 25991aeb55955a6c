"""The figures of doors in Prometheus' text format. Labels are bounded: namespaces, services and
codes."""

from __future__ import annotations

import asyncio
import bisect
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Figures", "Metrics", "Space", "exposition"]

#: Upper bounds of the latency histogram in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Namespaces, and services of all of them, with a label of their own; further ones are counted as
#: another, which no namespace can be called: its figures would be shown to whose that is.
MAX_NAMESPACES, MAX_SERVICES = 100, 200
OTHER = "_other"

#: What was answered: service, code, how often.
Row = tuple[str, int | str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What was asked for within one namespace: ``buckets`` of the histogram, and the sum of its
    ``seconds``."""

    namespace: str
    requests: tuple[Row, ...]
    buckets: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Those of one replica of a door, as they are told to another process."""

    pid: int
    in_flight: int
    tasks: int
    spaces: tuple[Space, ...]


class _Counted:
    """What was asked for within one namespace."""

    __slots__ = ("buckets", "requests", "seconds")

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int | str], int] = {}
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0


class Metrics:
    """Counted on one loop; ``text``, made on the same, is what ``/metrics`` shows. A namespace here
    is one that somebody was let into and a service one that the table has: what clients ask for
    in vain counts as the door's own, of its own namespace. A code is a status of HTTP, or the name
    of one of gRPC."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._spaces: dict[str, _Counted] = {}
        self._services: set[tuple[str, str]] = set()

    def count(self, namespace: str, service: str, code: int | str, seconds: float | None) -> None:
        """One request that is over; ``seconds`` None leaves it out of the histogram."""
        space = self._spaces.get(namespace) or self._space(namespace)
        key = (service, code)
        requests = space.requests
        if key in requests:
            requests[key] += 1
        else:
            place = (namespace, service)
            if place not in self._services and len(self._services) >= MAX_SERVICES:
                key = (OTHER, code)
            else:
                self._services.add(place)
            requests[key] = requests.get(key, 0) + 1
        if seconds is not None:
            space.buckets[bisect.bisect_left(BUCKETS, seconds)] += 1
            space.seconds += seconds

    def _space(self, namespace: str) -> _Counted:
        if namespace not in self._spaces and len(self._spaces) >= MAX_NAMESPACES:
            namespace = OTHER
        return self._spaces.setdefault(namespace, _Counted())

    def figures(self) -> Figures:
        """All of it."""
        return Figures(
            pid=os.getpid(),
            in_flight=self.in_flight,
            tasks=len(asyncio.all_tasks()),
            spaces=tuple(
                Space(
                    namespace=name,
                    requests=tuple(
                        (*key, number) for key, number in sorted(space.requests.items())
                    ),
                    buckets=tuple(space.buckets),
                    seconds=space.seconds,
                )
                for name, space in sorted(self._spaces.items())
            ),
        )

    def text(self, namespace: str | None = None) -> bytes:
        """The exposition of the HTTP door: of one namespace what is of it alone, of all (None) also
        how the process fares."""
        return exposition("api", [self.figures()], namespace)


def exposition(door: str, replicas: Sequence[Figures], namespace: str | None = None) -> bytes:
    """What replicas of a door have counted. That of the HTTP door tells of itself only; those of
    another are told apart by the label ``pid``."""
    name, own = f"micro_{door}", door == "api"
    asked, what = ("Requests", "Requests, streams and WebSockets")
    if not own:
        asked, what = ("Calls", "Calls and streams")
    lines = [
        f"# HELP {name}_requests_total {asked} answered, by namespace, service and status.",
        f"# TYPE {name}_requests_total counter",
    ]
    shown = [
        (space, "" if own else f',pid="{replica.pid}"')
        for replica in replicas
        for space in replica.spaces
        if namespace in (None, space.namespace)
    ]
    for space, more in shown:
        for service, code, number in space.requests:
            labels = f'namespace="{space.namespace}",service="{service}",code="{code}"{more}'
            lines.append(f"{name}_requests_total{{{labels}}} {number}")
    lines += [
        f"# HELP {name}_request_seconds Seconds from request to answer, without streams.",
        f"# TYPE {name}_request_seconds histogram",
    ]
    for space, more in shown:
        lines += _histogram(f"{name}_request_seconds", space, more)
    if namespace is None:
        lines += _processes(name, what, replicas, own)
    return ("\n".join(lines) + "\n").encode()


def _processes(name: str, what: str, replicas: Sequence[Figures], own: bool) -> Iterator[str]:
    for gauge, said in (
        ("in_flight", f"{what} being served."),
        ("tasks", "Tasks on the loop of this replica of the door."),
    ):
        yield f"# HELP {name}_{gauge} {said}"
        yield f"# TYPE {name}_{gauge} gauge"
        for replica in replicas:
            label = "" if own else f'{{pid="{replica.pid}"}}'
            yield f"{name}_{gauge}{label} {getattr(replica, gauge)}"
    if own:
        yield f"# HELP {name}_pid The process of this replica: replicas share a port."
        yield f"# TYPE {name}_pid gauge"
        yield from (f"{name}_pid {replica.pid}" for replica in replicas)


def _histogram(name: str, space: Space, more: str) -> Iterator[str]:
    total, label = 0, f'namespace="{space.namespace}"{more}'
    for bound, number in zip((*BUCKETS, "+Inf"), space.buckets, strict=True):
        total += number
        yield f'{name}_bucket{{{label},le="{bound}"}} {total}'
    yield f"{name}_sum{{{label}}} {space.seconds:.6f}"
    yield f"{name}_count{{{label}}} {total}"
