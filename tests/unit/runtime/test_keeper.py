"""A keeper through bad days: crash loops, what hangs, what is unhealthy, what its driver throws."""

from __future__ import annotations

import asyncio
import time

import pytest

from micro_ray.errors import BadRequest, Unavailable
from micro_ray.runtime import Replica, State, Workload
from tests.fixtures.wait import PROMPT
from tests.unit.runtime.stage import hang, play


def fails(replica: Replica, workload: Workload) -> None:
    raise BadRequest("runtime", "it will not")


async def test_a_crash_loop_backs_off() -> None:
    """It doubles up to the most, says why and when, and nothing is started before its time."""
    async with play(fails, backoff=(0.5, 4.0)) as it:
        begun = it.clock()
        for pause in (0.5, 1, 2, 4, 4, 4):
            await it.is_(State.ERROR, "it will not")
            count = len(it.stage.started)
            assert it.status.retry_in == pytest.approx(pause)
            it.clock.now += pause - 0.01
            await it.calm()
            assert len(it.stage.started) == count, "too early"
            it.clock.now += 0.02
            await it.until(lambda count=count: len(it.stage.started) == count + 1)
            await it.until(lambda: it.status.retry_in > 0)
        assert it.clock() - begun < 16
        assert it.status.restarts == 0, "none has ever run"
        assert it.told().count(f"starting {it.stage.started[0][1].id}") == 1
        assert f"{it.stage.started[0][1].id} ended: it will not" in it.told()


async def test_those_that_fail_side_by_side_fail_once() -> None:
    async with play(fails, replicas=8, backoff=(0.5, 60.0)) as it:
        await it.until(lambda: len(it.stage.started) == 8)
        await it.calm()
        assert it.status.retry_in == 0.5


async def test_who_has_lived_a_while_is_in_no_crash_loop() -> None:
    """The next attempt is after the first pause again. One that falls young is."""
    async with play(backoff=(0.5, 60.0), healthy=10.0) as it:
        for lived, pause in ((1, 0.5), (9, 1), (1, 2), (10, 0.5), (11, 0.5), (2, 1)):
            await it.until(lambda: it.running() and it.stage.lives)
            it.clock.now += lived
            it.stage.fall(it.running()[0], f"after {lived}")
            await it.until(lambda lived=lived: it.status.error == f"after {lived}")
            assert it.status.retry_in == pytest.approx(pause)
            assert it.status.state is State.ERROR
            it.clock.now += pause
        assert it.status.restarts == 6


async def test_what_went_wrong_is_forgotten_after_a_while() -> None:
    async with play(healthy=10.0) as it:
        await it.is_(State.RUNNING)
        it.stage.fall(it.running()[0])
        await it.is_(State.ERROR)
        it.clock.now += 0.5
        await it.is_(State.RUNNING, "fell")
        it.clock.now += 9
        await it.calm()
        assert it.status.error == "fell"
        it.clock.now += 1
        await it.until(lambda: it.status.error == "")
        assert it.status.restarts == 1


async def test_one_of_many_falls() -> None:
    """The others serve, and it is replaced."""
    async with play(replicas=3) as it:
        await it.is_(State.RUNNING)
        fallen = it.running()[1]
        it.stage.fall(fallen)
        await it.until(lambda: it.status.restarts == 1)
        assert (it.status.ready, it.status.state) == (2, State.ERROR)
        it.clock.now += 0.5
        await it.is_(State.RUNNING)
        assert it.status.ready == 3
        assert fallen not in it.running()


async def test_a_long_error_keeps_its_end() -> None:
    def loud(replica: Replica, workload: Workload) -> None:
        raise BadRequest("runtime", "x" * 9_000 + "the point")

    async with play(loud) as it:
        await it.is_(State.ERROR, "the point")
        assert len(it.status.error) == 8_000


async def test_one_that_hangs() -> None:
    """It is given up after its time; its driver is cancelled, and others are not kept waiting."""
    async with play(lambda r, w: hang(), start=0.05) as it:
        await it.is_(State.ERROR, "did not come up within 0.05 s; its log may say why")
        assert it.stage.starting == 0
        assert it.status.replicas == ()


async def test_a_source_that_does_not_arrive() -> None:
    """Its time counts as well."""
    async with play(prepare=lambda workload: hang(), start=0.05) as it:
        await it.is_(State.ERROR, "did not come up within 0.05 s")
        assert it.stage.started == []


async def test_a_driver_that_throws() -> None:
    """Whatever it is, the workload says so and goes on trying."""
    errors = iter([ZeroDivisionError("oh"), TimeoutError("its own"), None])

    def act(replica: Replica, workload: Workload) -> None:
        error = next(errors)
        if error is not None:
            raise error

    async with play(act) as it:
        await it.is_(State.ERROR, "ZeroDivisionError: oh")
        it.clock.now += 10
        await it.is_(State.ERROR, "TimeoutError: its own")
        it.clock.now += 10
        await it.is_(State.RUNNING)


async def test_a_driver_that_cannot_watch() -> None:
    """What is not watched is not kept: it is ended, and made anew."""
    async with play() as it:
        await it.is_(State.RUNNING)
        first = it.running()[0]
        it.stage.lives[first].set_exception(OSError("no descriptors"))
        await it.is_(State.ERROR, "OSError: no descriptors")
        assert it.stage.stopped == [(first, 0)]
        it.clock.now += 1
        await it.is_(State.RUNNING)


async def test_a_driver_that_cannot_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked until it can: a workload is gone when its replicas are, and not before."""
    async with play(replicas=2) as it:
        await it.is_(State.RUNNING)
        it.stage.stop_raises = 1
        it.update(replicas=0)
        await it.is_(State.STOPPING)
        await it.is_(State.STOPPED)
        assert len(it.stage.stopped) == 2


async def test_a_gate() -> None:
    """A replica that has come up does not count before it is healthy."""
    well = False

    async def gate(replica: Replica, workload: Workload) -> None:
        if not well:
            raise Unavailable("w", "no database")

    async with play(gate=gate) as it:
        await it.until(lambda: it.stage.lives)
        await it.calm()
        assert it.status.state is State.STARTING
        well = True
        await it.is_(State.RUNNING)


async def test_a_gate_that_stays_shut() -> None:
    async def gate(replica: Replica, workload: Workload) -> None:
        raise Unavailable("w", "no database")

    async with play(gate=gate, start=0.05) as it:
        await it.is_(State.ERROR, "did not come up within 0.05 s: no database")
        assert it.stage.lives == {}


async def test_a_gate_that_hangs() -> None:
    async def gate(replica: Replica, workload: Workload) -> None:
        await hang()

    async with play(gate=gate, start=0.05) as it:
        await it.is_(State.ERROR, "did not come up within 0.05 s")
        assert it.stage.lives == {}


async def test_who_falls_before_the_gate() -> None:
    """Nobody waits for the health of one that is gone."""

    async def gate(replica: Replica, workload: Workload) -> None:
        await hang()

    async with play(gate=gate, start=60) as it:
        await it.until(lambda: it.stage.lives)
        it.stage.fall(next(iter(it.stage.lives)), "fell at the gate")
        await it.is_(State.ERROR, "fell at the gate")


async def test_starts_take_turns() -> None:
    """So many at once; one that hangs gives its turn away after a while."""
    stuck = asyncio.Event()

    async def wait() -> None:
        await stuck.wait()

    async with play(lambda r, w: wait(), replicas=6, slots=2, turn=0.05) as it:
        await it.until(lambda: it.stage.starting == 2)
        begun = time.monotonic()
        await it.until(lambda: it.stage.starting == 6)
        assert time.monotonic() - begun >= 0.08
        stuck.set()
        await it.is_(State.RUNNING)
    async with play(lambda r, w: asyncio.sleep(0.002), replicas=20, slots=3) as it:
        await it.is_(State.RUNNING)
        assert it.stage.most == 3, "a turn was given back twice, or never"


async def test_stopped_while_it_starts() -> None:
    """Nobody waits for what is not wanted."""
    async with play(lambda r, w: hang()) as it:
        await it.until(lambda: it.stage.starting)
        begun = time.monotonic()
        it.keeper.end()
        await it.task
        assert time.monotonic() - begun < PROMPT
        assert it.stage.starting == 0
    assert it.status.replicas == ()


async def test_stopped_while_it_waits_for_its_turn() -> None:
    async with play(lambda r, w: hang(), replicas=5, slots=1) as it:
        await it.until(lambda: it.stage.starting == 1)
        it.update(replicas=0)
        await it.is_(State.STOPPED)
        assert len(it.stage.started) == 1


async def test_how_long_those_have_that_are_stopped() -> None:
    """Who serves may finish; who has not come up has nothing to finish."""
    slow = asyncio.Event()
    async with play(drain=7.0) as it:
        await it.is_(State.RUNNING)
        it.stage.act = lambda r, w: slow.wait()
        it.update(replicas=2)
        await it.until(lambda: it.stage.starting)
        (young,) = [r.id for r in it.status.replicas if r.state is State.STARTING]
        (old,) = it.running()
        it.update(replicas=0)
        await it.is_(State.STOPPED)
        assert dict(it.stage.stopped) == {young: 0, old: 7.0}


async def test_given_up_at_the_moment_it_has_come_up() -> None:
    """It is stopped as one that serves: callers may have found it already."""
    gate = asyncio.Event()
    async with play(lambda r, w: gate.wait(), drain=7.0) as it:
        await it.until(lambda: it.stage.starting)
        it.update(replicas=0)
        gate.set()  # in the same turn of the loop
        await it.is_(State.STOPPED)
        assert it.stage.stopped == [(it.stage.started[0][1].id, 7.0)]
        assert not any(line.startswith("running") for line in it.told())


async def test_scaling() -> None:
    async with play() as it:
        await it.is_(State.RUNNING)
        (first,) = it.running()
        it.update(replicas=4)
        await it.until(lambda: it.status.ready == 4)
        assert it.status.state is State.RUNNING
        it.update(replicas=1)
        await it.until(lambda: len(it.status.replicas) == 1)
        assert it.running() == [first], "the youngest go"
        assert it.status.workload.generation == 1
        it.update(replicas=0)
        await it.is_(State.STOPPED)
        assert it.status.replicas == ()
        it.update(replicas=2)
        await it.is_(State.RUNNING)


async def test_let_go() -> None:
    """Closed, what runs goes on, and what was coming up does not."""
    async with play() as it:
        await it.is_(State.RUNNING)
        (first,) = it.running()
        it.stage.act = lambda r, w: hang()
        it.update(replicas=3)
        await it.until(lambda: it.stage.starting == 2)
        it.task.cancel()
        await asyncio.gather(it.task, return_exceptions=True)
        await it.keeper.close()
        assert list(it.stage.lives) == [first]
        assert it.stage.starting == 0
        it.stage.fall(first)


async def test_halt() -> None:
    """Everything ends, with the grace that is given, and nothing is started for it."""
    async with play(replicas=3) as it:
        await it.is_(State.RUNNING)
        it.task.cancel()
        await asyncio.gather(it.task, return_exceptions=True)
        await it.keeper.halt(2.5)
        assert it.stage.lives == {}
        assert {grace for _, grace in it.stage.stopped} == {2.5}
        assert len(it.stage.started) == 3


async def test_steps_are_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has heard some of them hears the others once, however many there have been."""
    monkeypatch.setattr("micro_ray.runtime.keeper.MAX_STEPS", 10)
    async with play(fails) as it:
        heard: list[str] = []
        told = 0
        for _ in range(20):
            await it.until(lambda: it.status.retry_in > 0)
            steps, told = it.keeper.steps(told)
            heard += [step.text for step in steps]
            it.clock.now += 100
            await it.until(lambda told=told: it.keeper.steps(told)[0])
        assert len(heard) == len(set(heard)) >= 38
        assert len(it.keeper.steps(0)[0]) <= 10
