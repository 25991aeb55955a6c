"""The door's own figures in Prometheus' text format. Labels are bounded: codes and services."""

from __future__ import annotations

import asyncio
import bisect
import os

__all__ = ["Metrics"]

#: Upper bounds of the latency histogram in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Services with a label of their own; further ones are counted as "other".
MAX_SERVICES = 200


class Metrics:
    """Counted on one loop; ``text``, made on the same, is what ``/metrics`` shows. A service here
    is one that the table has: what clients ask for in vain counts as "api"."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._requests: dict[tuple[str, int], int] = {}
        self._services: set[str] = set()
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def count(self, service: str, code: int, seconds: float | None) -> None:
        """One request that is over; ``seconds`` None leaves it out of the histogram."""
        key = (service, code)
        requests = self._requests
        if key in requests:
            requests[key] += 1
        else:
            if service not in self._services and len(self._services) >= MAX_SERVICES:
                key = ("other", code)
            self._services.add(key[0])
            requests[key] = requests.get(key, 0) + 1
        if seconds is not None:
            self._buckets[bisect.bisect_left(BUCKETS, seconds)] += 1
            self._sum += seconds

    def text(self) -> bytes:
        """The exposition."""
        lines = [
            "# HELP micro_api_requests_total Requests that were answered, by service and status.",
            "# TYPE micro_api_requests_total counter",
        ]
        for (service, code), number in sorted(self._requests.items()):
            labels = f'service="{service}",code="{code}"'
            lines.append(f"micro_api_requests_total{{{labels}}} {number}")
        lines += [
            "# HELP micro_api_request_seconds Seconds from request to answer, without streams.",
            "# TYPE micro_api_request_seconds histogram",
        ]
        total = 0
        for bound, number in zip((*BUCKETS, "+Inf"), self._buckets, strict=True):
            total += number
            lines.append(f'micro_api_request_seconds_bucket{{le="{bound}"}} {total}')
        lines += [
            f"micro_api_request_seconds_sum {self._sum:.6f}",
            f"micro_api_request_seconds_count {total}",
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
        return ("\n".join(lines) + "\n").encode()
