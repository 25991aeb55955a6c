"""The plan in a simulated world: whatever comes up, fails, dies or is changed meanwhile, what runs
is never given up before something takes its place, and in the end all is as desired."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from micro_ray.runtime import Replica, State, Workload
from micro_ray.runtime.plan import Start, plan

CALM = 400


class World(RuleBasedStateMachine):
    """Executes what is planned. A start ends well or badly at a time of its own, a stop too."""

    def __init__(self) -> None:
        super().__init__()
        self.desired: Workload | None = None
        self.hold = 0
        self.backing_off = False
        self.replicas: dict[str, Replica] = {}
        self.count = 0
        self.broken: set[int] = set()

    @initialize(replicas=st.integers(1, 4))
    def create(self, replicas: int) -> None:
        self.desired = Workload(name="w", command=("x",), replicas=replicas)

    def of(self, *states: State) -> list[Replica]:
        return [r for r in self.replicas.values() if r.state in states]

    def running(self) -> int:
        return len(self.of(State.RUNNING))

    def act(self) -> None:
        """One look at the plan, carried out, under the promises that every look keeps."""
        before = self.running()
        there = len(self.of(State.STARTING, State.RUNNING))
        steps = plan(
            self.desired,
            list(self.replicas.values()),
            generation=self.hold,
            may_start=not self.backing_off,
        )
        for step in steps:
            if isinstance(step, Start):
                assert not self.backing_off
                assert self.desired is not None
                assert step.generation == (self.hold or self.desired.generation)
                self.count += 1
                id = f"r{self.count}"
                self.replicas[id] = Replica(
                    id=id,
                    namespace="micro",
                    workload="w",
                    generation=step.generation,
                    state=State.STARTING,
                )
            else:
                gone = self.replicas[step.replica]
                assert gone.state in (State.STARTING, State.RUNNING)
                self.replicas[step.replica] = replace(gone, state=State.STOPPING)
        wanted = self.desired.replicas if self.desired is not None else 0
        assert self.running() >= min(wanted, before), "what ran was given up too early"
        alive = len(self.of(State.STARTING, State.RUNNING))
        assert alive <= max(wanted + 1, there), "a surge of more than one"
        if wanted == 0:
            assert alive == 0

    look = rule()(act)

    @precondition(lambda self: self.of(State.STARTING))
    @rule(data=st.data())
    def comes_up_or_fails(self, data: st.DataObject) -> None:
        replica = data.draw(st.sampled_from(self.of(State.STARTING)))
        if replica.generation in self.broken or data.draw(st.booleans()):
            del self.replicas[replica.id]
        else:
            self.rises(replica)

    def rises(self, replica: Replica) -> None:
        self.count += 1
        self.replicas[replica.id] = replace(replica, state=State.RUNNING, started=float(self.count))

    @precondition(lambda self: self.of(State.STARTING, State.RUNNING, State.STOPPING))
    @rule(data=st.data())
    def dies(self, data: st.DataObject) -> None:
        del self.replicas[data.draw(st.sampled_from(sorted(self.replicas)))]

    @precondition(lambda self: self.desired is not None)
    @rule(replicas=st.integers(0, 5))
    def scale(self, replicas: int) -> None:
        assert self.desired is not None
        self.desired = replace(self.desired, replicas=replicas)

    @precondition(lambda self: self.desired is not None)
    @rule(broken=st.booleans())
    def update(self, broken: bool) -> None:
        assert self.desired is not None
        self.desired = replace(self.desired, generation=self.desired.generation + 1)
        self.hold = 0
        if broken:
            self.broken.add(self.desired.generation)

    @precondition(lambda self: self.desired is not None and self.desired.generation > 1)
    @rule(back=st.integers(1, 3))
    def the_update_failed(self, back: int) -> None:
        assert self.desired is not None
        self.hold = max(1, self.desired.generation - back)

    @rule(off=st.booleans())
    def back_off(self, off: bool) -> None:
        self.backing_off = off

    @rule()
    def delete(self) -> None:
        self.desired = None

    @invariant()
    def one_calm_hour_brings_all_to_rest(self) -> None:
        """From every state the world can be in: with nothing failing any more it converges, and
        keeps its promises on the way."""
        calm = World()
        calm.desired, calm.hold, calm.count = self.desired, self.hold, self.count
        calm.replicas = dict(self.replicas)
        calm.settle()

    def settle(self) -> None:
        for _ in range(CALM):
            self.act()
            moving = self.of(State.STARTING, State.STOPPING)
            if not moving:
                break
            if moving[0].state is State.STARTING:
                self.rises(moving[0])
            else:
                del self.replicas[moving[0].id]
        wanted = self.desired.replicas if self.desired is not None else 0
        generation = self.desired and (self.hold or self.desired.generation)
        assert len(self.replicas) == wanted
        assert all(
            r.state is State.RUNNING and r.generation == generation for r in self.replicas.values()
        )


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
