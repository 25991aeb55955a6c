"""A door's own figures in Prometheus' text format. Labels are bounded: namespaces, services and
codes."""

from __future__ import annotations

import asyncio
import bisect
import os
from collections.abc import Iterator

__all__ = ["Metrics"]

#: Upper bounds of the latency histogram in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Namespaces, and services of all of them, with a label of their own; further ones are counted as
#: "other".
MAX_NAMESPACES, MAX_SERVICES = 100, 200
OTHER = "other"


class _Counted:
    """What was asked for within one namespace."""

    __slots__ = ("buckets", "requests", "seconds")

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0


class Metrics:
    """Counted on one loop; ``text``, made on the same, is what ``/metrics`` shows. A namespace here
    is one that somebody was let into and a service one that the table has: what clients ask for
    in vain counts as "api" of the door's own namespace."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._spaces: dict[str, _Counted] = {}
        self._services: set[tuple[str, str]] = set()

    def count(self, namespace: str, service: str, code: int, seconds: float | None) -> None:
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

    def text(self, namespace: str | None = None) -> bytes:
        """The exposition: of one namespace what is of it alone, of all (None) also how the
        process fares."""
        lines = [
            "# HELP micro_api_requests_total Requests answered, by namespace, service and status.",
            "# TYPE micro_api_requests_total counter",
        ]
        shown = {n: s for n, s in self._spaces.items() if namespace in (None, n)}
        for name, space in sorted(shown.items()):
            for (service, code), number in sorted(space.requests.items()):
                labels = f'namespace="{name}",service="{service}",code="{code}"'
                lines.append(f"micro_api_requests_total{{{labels}}} {number}")
        lines += [
            "# HELP micro_api_request_seconds Seconds from request to answer, without streams.",
            "# TYPE micro_api_request_seconds histogram",
        ]
        for name, space in sorted(shown.items()):
            lines += _histogram(name, space)
        if namespace is None:
            lines += self._process()
        return ("\n".join(lines) + "\n").encode()

    def _process(self) -> list[str]:
        return [
            "# HELP micro_api_in_flight Requests, streams and WebSockets being served.",
            "# TYPE micro_api_in_flight gauge",
            f"micro_api_in_flight {self.in_flight}",
            "# HELP micro_api_tasks Tasks on the loop of this replica of the door.",
            "# TYPE micro_api_tasks gauge",
            f"micro_api_tasks {len(asyncio.all_tasks())}",
            "# HELP micro_api_pid The process of this replica: replicas share a port.",
            "# TYPE micro_api_pid gauge",
            f"micro_api_pid {os.getpid()}",
        ]


def _histogram(namespace: str, space: _Counted) -> Iterator[str]:
    total, label = 0, f'namespace="{namespace}"'
    for bound, number in zip((*BUCKETS, "+Inf"), space.buckets, strict=True):
        total += number
        yield f'micro_api_request_seconds_bucket{{{label},le="{bound}"}} {total}'
    yield f"micro_api_request_seconds_sum{{{label}}} {space.seconds:.6f}"
    yield f"micro_api_request_seconds_count{{{label}}} {total}"
