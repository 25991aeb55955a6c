"""What to do next, decided purely from what is desired and what is.

Rules: a workload has ``replicas`` copies of one generation. While copies of it come up, running
ones of other generations serve: each running new copy lets one of them go, so that never fewer run
than ran before or are desired, and at most one copy more than desired is there (those that are
being stopped not counted). Copies of other generations that do not run yet are of no use and go at
once. Nothing is started while a crash loop backs off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from micro_ray.runtime import Replica, State, Workload

__all__ = ["Start", "Step", "Stop", "plan"]

_ALIVE = (State.PENDING, State.STARTING, State.RUNNING)


@dataclass(frozen=True, slots=True)
class Start:
    """Start one copy of a generation."""

    generation: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a replica."""

    replica: str
    why: str


Step = Start | Stop


def plan(
    desired: Workload | None,
    actual: Sequence[Replica],
    *,
    generation: int = 0,
    may_start: bool = True,
) -> list[Step]:
    """The steps that bring ``actual`` nearer to ``desired`` (None: not at all).

    ``generation`` is the one to have (0: the newest); it is an older one when the newest did not
    come up. ``may_start`` is False while a crash loop backs off.
    """
    alive = [r for r in actual if r.state in _ALIVE]
    if desired is None or desired.replicas == 0:
        return [Stop(r.id, "not desired") for r in alive]
    wanted = generation or desired.generation
    new = [r for r in alive if r.generation == wanted]
    running = [r for r in new if r.state is State.RUNNING]
    coming = [r for r in new if r.state is not State.RUNNING]
    others = [r for r in alive if r.generation != wanted]
    serving = sorted((r for r in others if r.state is State.RUNNING), key=lambda r: r.started)
    steps: list[Step] = [
        Stop(r.id, "superseded before it ran") for r in others if r.state is not State.RUNNING
    ]
    surplus = max(0, len(new) - desired.replicas)
    # Those that do not run yet first, then the youngest.
    extra = [*coming, *sorted(running, key=lambda r: -r.started)][:surplus]
    steps += [Stop(r.id, "scaled down") for r in extra]
    # Each running new copy lets an old one go; when all are new, no old one is left.
    kept = max(0, desired.replicas - len(running))
    steps += [Stop(r.id, "replaced") for r in serving[: max(0, len(serving) - kept)]]
    if may_start:
        missing = desired.replicas - len(new)
        room = desired.replicas + 1 - len(new) - min(kept, len(serving))
        steps += [Start(wanted)] * max(0, min(missing, room))
    return steps
