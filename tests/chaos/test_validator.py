"""The validator of watches accepts what is right and says what is wrong with logs that are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from tests.chaos.watches import (
    ANY,
    Session,
    Sight,
    Write,
    disagreements,
    faults,
    registry_faults,
)


def wrote(revision: int = 0, **items: str | None) -> Write:
    return Write(items=items, revisions=dict.fromkeys(items, revision) if revision else {})


def maybe(**items: str | None) -> Write:
    return Write(items=items, known=False)


def saw(revision: int, **items: str | None) -> Sight:
    return Sight(revision=revision, items=items)


#: Two keys; a deletion whose revision was not told.
WRITES = [wrote(1, a="1"), wrote(2, b="2"), wrote(a=None), wrote(4, a="4"), wrote(5, b="5")]
SIGHTS = [saw(1, a="1"), saw(2, b="2"), saw(3, a=None), saw(4, a="4"), saw(5, b="5")]
PAIR = [Write(items={"x": "1", "y": "2"}, revisions={"x": 1, "y": 2})]

RIGHT: dict[str, tuple[Sequence[Write], Sequence[Sight]]] = {
    "nothing": ([], []),
    "all, in order": (WRITES, SIGHTS),
    "an unknown write that was not done": ([*WRITES, maybe(a="6")], SIGHTS),
    "or was": ([*WRITES, maybe(a="6")], [*SIGHTS, saw(6, a="6")]),
    "or was, and nobody knows under which value": (
        [*WRITES, maybe(a=ANY)], [*SIGHTS, saw(6, a="6")],
    ),
    "an unknown write done after a later delete": (
        [wrote(1, a="1"), maybe(a="2"), wrote(a=None)],
        [saw(1, a="1"), saw(2, a=None), saw(3, a="2")],
    ),
    "a delete of nothing": ([wrote(a=None), wrote(1, a="1")], [saw(1, a="1")]),
    "the same again": ([wrote(1, a="1"), wrote(a="1")], [saw(1, a="1")]),
    "two keys by one transaction": (PAIR, [saw(1, x="1"), saw(2, y="2")]),
    "two paths in one version": ([wrote(1, x="1", y="2")], [saw(1, x="1", y="2")]),
    "an unknown transaction, whole": (
        [maybe(x=ANY, y=ANY)], [saw(1, x="1"), saw(2, y="2")],
    ),
}  # fmt: skip

WRONG: dict[str, tuple[Sequence[Write], Sequence[Sight], str]] = {
    "two the wrong way round": (
        WRITES, [SIGHTS[1], SIGHTS[0], *SIGHTS[2:]], "out of order: revision 1",
    ),
    "one again": (WRITES, [*SIGHTS[:2], SIGHTS[1], *SIGHTS[2:]], "twice: revision 2"),
    "all from an older one on again": (WRITES, [*SIGHTS, *SIGHTS[3:]], "twice: revision 4"),
    "one left out": (WRITES, [*SIGHTS[:1], *SIGHTS[2:]], "missing: b of revision 2"),
    "a hole": (WRITES, [*SIGHTS[:1], *SIGHTS[2:]], "missing: revisions 2 to 2"),
    "an untold delete left out, the others closed up": (
        [wrote(1, a="1"), wrote(a=None), wrote(a="4")], [saw(1, a="1"), saw(2, a="4")],
        "missing before or out of order: a 4",
    ),
    "the last left out": (WRITES, SIGHTS[:-1], "missing: b of revision 5"),
    "the last, which was not told": ([*WRITES, wrote(b=None)], SIGHTS, "missing: b None"),
    "a value of nobody": (WRITES, [*SIGHTS, saw(6, a="9")], "never written: a 9"),
    "a key of nobody": (WRITES, [*SIGHTS, saw(6, c="6")], "never written: c 6"),
    "a delete of nobody": (WRITES, [*SIGHTS, saw(6, b=None)], "never written: b None"),
    "another value than was written": (
        WRITES, [*SIGHTS[:4], saw(5, b="6")], "revision 5: b is 6, not as written",
    ),
    "another revision than was told": (
        WRITES, [*SIGHTS[:4], saw(6, b="5")], "missing: b of revision 5",
    ),
    "an old value that comes back": (
        WRITES, [*SIGHTS, saw(6, a="1")], "missing before or out of order: a 1 at revision 6",
    ),
    "an unknown write done twice": (
        [*WRITES, maybe(a="6"), wrote(a=None)],
        [*SIGHTS, saw(6, a="6"), saw(7, a=None), saw(8, a="6")],
        "missing before or out of order: a 6 at revision 8",
    ),
    "half a transaction": (PAIR, [saw(1, x="1")], "missing: y of revision 2"),
    "half an unknown transaction": (
        [maybe(x=ANY, y=ANY)], [saw(1, x="1")], "half of ['x', 'y'] was seen",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("writes", "sights"), RIGHT.values(), ids=RIGHT)
def test_it_accepts(writes: Sequence[Write], sights: Sequence[Sight]) -> None:
    assert faults(writes, sights) == []


@pytest.mark.parametrize(("writes", "sights", "word"), WRONG.values(), ids=WRONG)
def test_it_refuses(writes: Sequence[Write], sights: Sequence[Sight], word: str) -> None:
    assert word in " | ".join(faults(writes, sights))


@pytest.mark.parametrize("left_out", range(len(SIGHTS)))
@pytest.mark.parametrize("dense", [True, False])
def test_it_misses_any_step(left_out: int, dense: bool) -> None:
    """Also where revisions have holes, by what the writers know."""
    rest = SIGHTS[:left_out] + SIGHTS[left_out + 1 :]
    assert faults(WRITES, rest, dense=dense)


def test_it_takes_holes_where_there_are_some() -> None:
    writes, sights = [wrote(3, a="1"), wrote(9, a="2")], [saw(3, a="1"), saw(9, a="2")]
    assert faults(writes, sights, after=1, dense=False) == []
    assert faults(writes, sights, after=1) == ["missing: revisions 2 to 2",
                                               "missing: revisions 4 to 8"]  # fmt: skip


# -- the registry --------------------------------------------------------------------------------


def session(
    *steps: Sight, epoch: str = "one", revision: int = 0, state: Mapping[str, str] | None = None
) -> Session:
    return Session(epoch=epoch, revision=revision, state=state or {}, sights=steps)


NODES = [wrote(n="1"), wrote(n="2"), wrote(n=None), wrote(n="3")]
STEPS = [saw(1, n="1"), saw(2, h="h"), saw(3, n="2"), saw(4, n=None), saw(5, n="3")]
HELD = {"h": "h"}

FINE: dict[str, list[Session]] = {
    "one life": [session(*STEPS)],
    "from the middle": [session(*STEPS[3:], revision=3, state={"n": "2", "h": "h"})],
    "a new life that forgot, and is told again": [
        session(*STEPS[:3]),
        session(saw(1, h="h"), saw(2, n="3"), epoch="two"),
    ],
    "a new life whose first steps were not seen": [
        session(*STEPS[:3]),
        session(epoch="two", revision=7, state={"n": "3", "h": "h"}),
    ],
    "the same life, after steps that were not kept": [
        session(*STEPS[:2]),
        session(STEPS[4], revision=4, state={"h": "h"}),
    ],
    "a held node that went and came": [
        session(*STEPS, saw(6, h=None), saw(7, h="h")),
    ],
}
BAD: dict[str, tuple[list[Session], str]] = {
    "out of order": (
        [session(STEPS[0], STEPS[2], STEPS[1], *STEPS[3:])], "out of order: revision 2",
    ),
    "twice": ([session(*STEPS, STEPS[4])], "twice: revision 5"),
    "twice under another revision": ([session(*STEPS, saw(6, n="3"))], "twice: n 3"),
    "a hole": ([session(*STEPS[:2], *STEPS[3:])], "missing: revisions 3 to 3"),
    "a step left out in silence": (
        [session(saw(1, n="1"), saw(2, n=None), saw(3, n="3"))], "missing before",
    ),
    "the last left out": ([session(*STEPS[:4])], "missing: n 3"),
    "the last left out of a snapshot": ([session(state={"n": "2", "h": "h"})], "missing: n None"),
    "a value of nobody": ([session(*STEPS, saw(6, n="4"))], "never written: n 4"),
    "another life of a held node": ([session(*STEPS, saw(6, h="x"))], "never written: h x"),
    "a node of nobody": ([session(*STEPS, saw(6, z="1"))], "never written: z"),
    "a snapshot of nobody": (
        [session(*STEPS, epoch="one"), session(epoch="two", state={"n": "9"})],
        "never written: n 9",
    ),
    "a snapshot that is behind what was seen": (
        [session(*STEPS), session(epoch="two", state={"n": "1"})], "out of order: n 1 in",
    ),
    "a snapshot of the same life that has forgotten": (
        [session(*STEPS), session(revision=9, state={"h": "h"})], "out of order: n None in",
    ),
    "gone by itself": ([session(*STEPS, saw(6, n=None))], "out of order: n None at"),
    "gone without being there": ([session(saw(1, n=None))], "twice: n None"),
}  # fmt: skip


@pytest.mark.parametrize("sessions", FINE.values(), ids=FINE)
def test_of_a_registry_it_accepts(sessions: list[Session]) -> None:
    assert registry_faults(NODES, HELD, sessions) == []
    assert sessions[-1].end == {"n": "3", "h": "h"}


@pytest.mark.parametrize(("sessions", "word"), BAD.values(), ids=BAD)
def test_of_a_registry_it_refuses(sessions: list[Session], word: str) -> None:
    assert word in " | ".join(registry_faults(NODES, HELD, sessions))


def test_a_node_that_was_left_may_go_by_itself_where_leases_end() -> None:
    writes = [wrote(n="1"), maybe(n="2")]
    for steps in ([saw(1, n="1"), saw(2, n=None)], [saw(1, n="1"), saw(2, n="2"), saw(3, n=None)]):
        assert registry_faults(writes, {}, [session(*steps)], expires=True) == []
        assert registry_faults(writes, {}, [session(*steps)])


def test_watchers_of_one_life_saw_the_same() -> None:
    late = session(*STEPS[2:], revision=2, state={"n": "1", "h": "h"})
    other_life = session(saw(1, h="h"), epoch="two")
    assert disagreements([[session(*STEPS)], [late, other_life]]) == []
    assert disagreements([[session(*STEPS)], [session(STEPS[0], *STEPS[2:])]]) == [
        "revision 2 of one: {'h': 'h'} for one, None for another"
    ]
    assert disagreements([[session(*STEPS)], [session(*STEPS[:4], saw(5, n="4"))]]) == [
        "revision 5 of one: {'n': '3'} for one, {'n': '4'} for another"
    ]
