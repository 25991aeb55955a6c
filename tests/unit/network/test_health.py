"""What is remembered of a node, and the budget: pure."""

from __future__ import annotations

import pytest

from micro_ray.network import Peer
from micro_ray.network.health import BREAKER, OUT, Budget, Node
from micro_ray.router import Route


def node() -> Node:
    return Node(Route(id="a", namespace="m", service="s", addresses=("unix:/a", "tcp:h:1")))


class Line(Peer):
    """A connection that is only counted."""

    closed = False
    in_flight = 3

    async def call(self, call: object, body: bytes) -> bytes:  # type: ignore[override]
        raise AssertionError

    async def open(self, call: object) -> None:  # type: ignore[override]
        raise AssertionError

    async def wait_closed(self) -> None:
        raise AssertionError

    async def close(self) -> None:
        raise AssertionError


def test_the_breaker_opens_after_failures_in_a_row() -> None:
    one = node()
    assert [one.bad(0) for _ in range(BREAKER)] == [False] * (BREAKER - 1) + [True]
    one.eject(0)
    assert not one.bad(0.5)  # it is out already
    assert one.bad(OUT[0])  # let in, and failed again
    assert (one.calls, one.errors) == (BREAKER + 2, BREAKER + 2)


def test_an_answer_closes_it() -> None:
    one = node()
    for _ in range(3):
        assert not any(one.bad(0) for _ in range(BREAKER - 1))
        one.good(0.1)
    assert (one.calls, one.errors) == (3 * BREAKER, 3 * (BREAKER - 1))


def test_each_time_twice_as_long_until_it_is_good() -> None:
    one, now, outs = node(), 100.0, []
    for _ in range(8):
        one.eject(now)
        outs.append(one.out_until - now)
        now = one.out_until
    assert outs == [1, 2, 4, 8, 16, 30, 30, 30]
    one.good(0.1)
    one.eject(now)
    assert one.out_until - now == 1


def test_what_breaks_with_one_connection_is_one_failure_and_one_retry() -> None:
    one, budget = node(), Budget(0)
    lines = [Line() for _ in range(BREAKER)]
    for line in lines[:-1]:
        assert not any(one.broke(line, 0, budget) for _ in range(20))
    assert one.in_a_row == BREAKER - 1
    assert one.broke(lines[-1], 0, budget)
    left = 0
    while budget.spend():
        left += 1
    assert left == Budget.RESERVE - BREAKER
    assert one.retry
    one.eject(0)
    assert not one.broke(Line(), 0.5, budget)
    assert not one.retry


def test_a_node_that_does_not_answer_the_door_is_not_idle() -> None:
    one = node()
    assert one.in_flight == 0
    one.waiting = 4
    assert one.in_flight == 4
    one.peer = Line()
    assert one.in_flight == 7


def test_latency_is_a_moving_average() -> None:
    one = node()
    one.good(1.0)
    assert one.latency == 1.0
    one.good(2.0)
    assert one.latency == pytest.approx(1.1)
    for _ in range(200):
        one.good(0.5)
    assert one.latency == pytest.approx(0.5, abs=0.01)


def test_status() -> None:
    one = node()
    one.good(0.25)
    one.bad(0)
    one.eject(10)
    status = one.status(10.5, ["unix:/a", "tcp:10.0.0.1:1"])
    assert (status.id, status.service, status.address) == ("a", "s", "unix:/a")
    assert (status.calls, status.errors, status.latency) == (2, 1, 0.25)
    assert (status.connected, status.in_flight, status.out) == (False, 0, True)
    one.peer = Line()
    status = one.status(11.5, [])
    assert (status.connected, status.in_flight, status.out) == (True, 3, False)


def test_the_budget_earns_its_share_and_has_a_bound() -> None:
    budget = Budget(0.1)
    spent = sum(budget.spend() for _ in range(100))
    assert spent == Budget.RESERVE
    for _ in range(95):
        budget.earn()
    assert sum(budget.spend() for _ in range(100)) == 9
    for _ in range(100_000):
        budget.earn()
    assert Budget.MOST <= sum(budget.spend() for _ in range(1_000)) <= Budget.MOST + 1


def test_a_budget_of_nothing_keeps_its_reserve_only() -> None:
    budget = Budget(0)
    for _ in range(1_000):
        budget.earn()
    assert sum(budget.spend() for _ in range(100)) == Budget.RESERVE
