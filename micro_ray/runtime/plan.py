"""What to do next, decided purely from what is desired and what is.

Rules: a workload has ``replicas`` copies of its newest generation. While a newer generation comes
up, old copies serve: one new copy at a time is started (a surge of one), and when it runs one old
copy is stopped. Nothing is started while a crash loop backs off.
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
    may_start: bool = True,
    failed_generation: int = 0,
) -> list[Step]:
    """The steps that bring ``actual`` nearer to ``desired`` (None: not at all).

    ``may_start`` is False while a crash loop backs off. ``failed_generation`` is one that did not
    come up: its copies go, the older ones stay, and none of it is started again.
    """
    alive = [r for r in actual if r.state in _ALIVE]
    if desired is None or desired.replicas == 0:
        return [Stop(r.id, "not desired") for r in alive]
    wanted = desired.generation
    if failed_generation == wanted:
        return _hold(desired, alive, wanted, may_start)
    new = [r for r in alive if r.generation == wanted]
    old = [r for r in alive if r.generation != wanted]
    running = [r for r in new if r.state is State.RUNNING]
    coming = [r for r in new if r.state is not State.RUNNING]
    steps: list[Step] = []
    if len(new) > desired.replicas:
        # Those that do not run yet first, then the youngest.
        extra = [*coming, *sorted(running, key=lambda r: -r.started)]
        steps += [Stop(r.id, "scaled down") for r in extra[: len(new) - desired.replicas]]
    # Each running new copy replaces an old one; when all are new, no old one is left.
    keep = max(0, desired.replicas - len(running))
    serving = sorted(old, key=lambda r: (r.state is State.RUNNING, r.started))
    steps += [Stop(r.id, "replaced") for r in serving[: max(0, len(old) - keep)]]
    if may_start:
        missing = desired.replicas - len(new)
        if old:
            missing = min(missing, 1 - len(coming))
        steps += [Start(wanted)] * max(0, missing)
    return steps


def _hold(desired: Workload, alive: Sequence[Replica], failed: int, may_start: bool) -> list[Step]:
    """A generation failed: end it, and keep as many of the one before."""
    steps: list[Step] = [Stop(r.id, "did not come up") for r in alive if r.generation == failed]
    old = [r for r in alive if r.generation != failed]
    if old and may_start:
        newest = max(r.generation for r in old)
        steps += [Start(newest)] * max(0, desired.replicas - len(old))
    return steps
