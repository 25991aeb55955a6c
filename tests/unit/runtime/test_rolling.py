"""Updates: a new generation takes over copy by copy, or what ran before goes on."""

from __future__ import annotations

import asyncio

from micro_ray.errors import BadRequest, Unavailable
from micro_ray.runtime import Replica, State, Workload
from micro_ray.runtime.desired import Desired
from tests.unit.runtime.stage import Play, hang, play


def breaks(*generations: int) -> object:
    """These do not come up."""

    def act(replica: Replica, workload: Workload) -> None:
        if workload.generation in generations:
            raise BadRequest("runtime", f"generation {workload.generation} is broken")

    return act


async def settled(it: Play, generation: int, count: int) -> None:
    await it.until(
        lambda: len(it.running(generation)) == len(it.status.replicas) == count,
    )


async def test_a_roll() -> None:
    """One more at a time, and never fewer than before; while it goes on it says so."""
    async with play(replicas=3) as it:
        await it.is_(State.RUNNING)
        gate = asyncio.Event()

        async def act() -> None:
            await gate.wait()
            gate.clear()

        it.stage.act = lambda r, w: act()
        it.update()
        for done in range(1, 4):
            await it.until(lambda: it.stage.starting == 1)
            await it.calm()
            assert it.status.state is State.UPDATING
            assert it.stage.starting == 1
            assert len(it.running()) == 3
            gate.set()
            await it.until(lambda done=done: len(it.running(2)) == done)
        await settled(it, 2, 3)
        assert it.status.state is State.RUNNING
        assert it.stage.most <= 3


async def test_steps_begin_anew_with_a_generation() -> None:
    async with play() as it:
        await it.is_(State.RUNNING)
        _, told = it.keeper.steps(0)
        it.update()
        await settled(it, 2, 1)
        steps, _ = it.keeper.steps(told)
        assert steps == it.keeper.steps(0)[0]
        assert [s.text.split()[0] for s in steps] == ["starting", "running", "stopping"]
        assert steps[-1].text.endswith(": replaced")


async def test_an_update_that_does_not_come_up() -> None:
    """What ran goes on untouched; the error says why; nothing of it is tried again."""
    async with play(breaks(2), replicas=2) as it:
        await it.is_(State.RUNNING)
        before = it.running()
        it.update()
        await it.is_(State.ERROR, "generation 2 is broken")
        it.clock.now += 1_000
        await it.calm()
        assert it.running() == before
        assert len(it.stage.started) == 3
        assert it.stage.stopped == []
        assert it.keeper.desired.failed == "generation 2 is broken"
        assert "the update failed, the earlier generation goes on: generation 2 is broken" in (
            it.told()
        )
        assert it.status.retry_in == 0


async def test_what_went_on_is_kept() -> None:
    """After a failed update the old generation is what is kept: its dead are replaced, also all of
    them, with its own source; and it can be scaled."""
    async with play(breaks(2), replicas=2) as it:
        await it.is_(State.RUNNING)
        it.update(digest="new")
        await it.is_(State.ERROR)
        for id in it.running():
            it.stage.fall(id)
        await it.until(lambda: not it.running())
        it.clock.now += 1
        await settled(it, 1, 2)
        it.update(replicas=3)
        await settled(it, 1, 3)
        assert it.status.state is State.ERROR
        assert it.keeper.desired.failed
        assert [r.generation for _, r in it.stage.started].count(2) == 1


async def test_an_update_after_a_failed_one() -> None:
    """It takes over from what went on; when it fails as well, that still goes on."""
    async with play(breaks(2, 3), replicas=2) as it:
        await it.is_(State.RUNNING)
        for generation in (2, 3):
            it.update()
            await it.is_(State.ERROR, f"generation {generation} is broken")
            previous = it.keeper.desired.previous
            assert previous is not None
            assert previous.generation == 1
            assert len(it.running(1)) == 2
        it.update()
        await settled(it, 4, 2)
        assert it.status.state is State.RUNNING
        assert it.status.error == ""


async def test_an_update_that_fails_half_way() -> None:
    """Its copies serve until those of before are back: nothing that runs is given up early."""
    count = 0

    def second_breaks(replica: Replica, workload: Workload) -> None:
        nonlocal count
        if workload.generation == 2:
            count += 1
            if count > 1:
                raise BadRequest("runtime", "no more of it")

    async with play(second_breaks, replicas=3) as it:
        await it.is_(State.RUNNING)
        lowest = 3
        it.update()

        def watched() -> bool:
            nonlocal lowest
            lowest = min(lowest, len(it.running()))
            return len(it.running(1)) == len(it.status.replicas) == 3

        await it.until(lambda: it.keeper.desired.failed)
        await it.until(watched)
        assert lowest == 3
        assert it.status.state is State.ERROR


async def test_an_update_that_falls_twice() -> None:
    """It comes up, takes over, falls, is given another chance, and falls: what ran is brought
    back."""
    async with play(healthy=10.0) as it:
        await it.is_(State.RUNNING)
        it.update()
        await settled(it, 2, 1)
        it.stage.fall(it.running()[0], "first fall")
        await it.until(lambda: it.status.error == "first fall")
        assert not it.keeper.desired.failed
        it.clock.now += 1
        await settled(it, 2, 1)
        it.stage.fall(it.running()[0], "second fall")
        await settled(it, 1, 1)
        assert it.status.state is State.ERROR
        assert it.status.error == "second fall"
        # What was brought back begins with a clean slate.
        it.stage.fall(it.running()[0], "a fall of the old one")
        await it.until(lambda: it.status.retry_in > 0)
        assert it.status.retry_in == 0.5


async def test_two_that_fall_side_by_side() -> None:
    """That is one fall, not two."""
    async with play(replicas=2) as it:
        await it.is_(State.RUNNING)
        it.update()
        await settled(it, 2, 2)
        for id in it.running():
            it.stage.fall(id)
        await it.until(lambda: it.status.restarts == 2)
        assert not it.keeper.desired.failed
        it.clock.now += 1
        await settled(it, 2, 2)


async def test_going_back_waits_for_nothing() -> None:
    """One copy of the new generation falls, and while that backs off another does not come up."""
    async with play(replicas=2, backoff=(60.0, 60.0)) as it:
        await it.is_(State.RUNNING)
        it.update()
        await settled(it, 2, 2)
        gate = asyncio.Event()

        async def act() -> None:
            await gate.wait()
            raise BadRequest("runtime", "not this one")

        it.stage.act = lambda r, w: act() if w.generation == 2 else None
        it.update(replicas=3)
        await it.until(lambda: it.stage.starting == 1)
        it.stage.fall(it.running()[0])
        await it.until(lambda: it.status.retry_in == 60)
        gate.set()
        await settled(it, 1, 3)


async def test_a_proven_update_is_not_undone() -> None:
    """Once it has run well for a while there is nothing to go back to: it is kept, as any."""
    async with play(healthy=10.0) as it:
        await it.is_(State.RUNNING)
        it.update()
        await settled(it, 2, 1)
        it.clock.now += 5
        await it.calm()
        assert it.keeper.desired.previous is not None
        it.clock.now += 6
        await it.until(lambda: it.keeper.desired.proven)
        assert it.keeper.desired.previous is None
        for _ in range(4):
            await it.until(lambda: it.running())
            it.stage.fall(it.running()[0])
            await it.until(lambda: not it.running())
            it.clock.now += 60
        await settled(it, 2, 1)


async def test_a_fall_of_an_old_one_is_no_fault_of_the_new() -> None:
    """It needs no replacing: the roll goes on at once, and does not fail."""
    async with play(replicas=2) as it:
        await it.is_(State.RUNNING)
        gate = asyncio.Event()
        it.stage.act = lambda r, w: gate.wait()
        it.update()
        await it.until(lambda: it.stage.starting == 1)
        it.stage.fall(it.running()[0])
        await it.until(lambda: it.stage.starting == 2)
        assert it.status.state is State.UPDATING
        assert it.status.retry_in == 0
        gate.set()
        await settled(it, 2, 2)
        assert not it.keeper.desired.failed


async def test_the_first_generation_has_nothing_to_go_back_to() -> None:
    """It is tried again and again, and an update of it too."""
    async with play(breaks(1, 2)) as it:
        await it.is_(State.ERROR, "generation 1 is broken")
        it.update()
        assert it.keeper.desired.previous is None
        for _ in range(3):
            count = len(it.stage.started)
            await it.is_(State.ERROR, "generation 2 is broken")
            it.clock.now += 100
            await it.until(lambda count=count: len(it.stage.started) > count)
        assert not it.keeper.desired.failed


async def test_an_update_that_mends() -> None:
    """A crash loop does not keep it waiting."""
    async with play(breaks(1), backoff=(60.0, 60.0)) as it:
        await it.is_(State.ERROR)
        it.update()
        await it.is_(State.RUNNING)
        assert it.status.error == ""


async def test_an_update_of_one_that_hangs() -> None:
    """What is still coming up is of no use any more: it is given up at once."""
    async with play(lambda r, w: hang() if w.generation == 1 else None, replicas=2) as it:
        await it.until(lambda: it.stage.starting == 2)
        it.update()
        await it.is_(State.RUNNING)
        await settled(it, 2, 2)
        assert it.stage.starting == 0


async def test_updates_while_one_rolls() -> None:
    """Only the last counts, and what serves meanwhile is whatever runs."""
    async with play(replicas=3) as it:
        await it.is_(State.RUNNING)
        for _ in range(5):
            it.update()
            await it.until(lambda: it.stage.starting or it.running())
            assert len(it.running()) >= 3
        await settled(it, 6, 3)


async def test_ended_while_one_rolls() -> None:
    async with play(replicas=3) as it:
        await it.is_(State.RUNNING)
        it.stage.act = lambda r, w: hang()
        it.update()
        await it.until(lambda: it.stage.starting)
        it.keeper.end()
        assert it.status.state is State.STOPPING
        await it.task
        assert it.stage.lives == {}


async def test_unhealthy_updates_do_not_take_over() -> None:
    async def gate(replica: Replica, workload: Workload) -> None:
        if workload.generation == 2:
            raise Unavailable("w", "the new one is not well")

    async with play(gate=gate, start=0.1) as it:
        await it.is_(State.RUNNING)
        before = it.running()
        it.update()
        await it.is_(State.ERROR, "the new one is not well")
        assert it.running() == before


async def test_what_to_go_back_to() -> None:
    async with play(breaks(3), replicas=2) as it:
        assert it.keeper.fallback() is None
        await it.is_(State.RUNNING)
        assert it.keeper.fallback() == it.keeper.workload
        gate = asyncio.Event()
        it.stage.act = lambda r, w: gate.wait()
        it.update()
        await it.until(lambda: it.stage.starting)
        fallback = it.keeper.fallback()
        assert fallback is not None
        assert fallback.generation == 1, "the second has not taken over yet"
        gate.set()
        await settled(it, 2, 2)
        fallback = it.keeper.fallback()
        assert fallback is not None
        assert fallback.generation == 2, "what runs now, proven or not"


async def test_a_new_life_remembers_a_failed_update() -> None:
    """Everything was killed: what ran before is started, not what had failed."""
    old = Workload(name="w", command=("x",), driver="process", generation=1, replicas=2)
    new = Workload(name="w", command=("y",), driver="process", generation=2, replicas=2)
    desired = Desired(workload=new, previous=old, failed="it was broken")
    async with play(desired=desired) as it:
        await settled(it, 1, 2)
        assert (it.status.state, it.status.error) == (State.ERROR, "it was broken")
        assert it.status.workload.generation == 2


async def test_a_new_life_goes_back_as_well() -> None:
    """It was killed while an update rolled, and the update does not come up."""
    old = Workload(name="w", command=("x",), driver="process", generation=1)
    new = Workload(name="w", command=("y",), driver="process", generation=2)
    async with play(breaks(2), desired=Desired(workload=new, previous=old)) as it:
        await it.is_(State.ERROR, "generation 2 is broken")
        await settled(it, 1, 1)
