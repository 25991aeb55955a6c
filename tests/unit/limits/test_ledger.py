"""What is lent is never more than the limit, however doors and words interleave."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from micro_ray.limits import Kind, Limit
from micro_ray.limits.bucket import Bucket
from micro_ray.limits.gauge import Gauge
from micro_ray.limits.ledger import Ask, Grant, Ledger, Place

PLACE = Place(namespace="micro", kind=Kind.NAMESPACE)


def ask(**given: int) -> Ask:
    limit = Limit(rate=float(given.pop("rate", 100)), burst=given.pop("burst", 10),
                  concurrency=given.pop("concurrency", 0))  # fmt: skip
    return Ask(place=PLACE, limit=limit, **given)


def test_a_bucket_fills_and_is_emptied() -> None:
    bucket = Bucket(10, 5, now=0)
    assert bucket.take(9, 0) == 5
    assert (bucket.take(1, 0.05), bucket.wait(0.05)) == (0, 0.05)
    assert bucket.take(9, 0.3) == 3
    assert bucket.take(9, 100) == 5
    bucket.give(9, 100)
    assert bucket.take(9, 100) == 5, "what does not fit is gone"


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    bucket = Bucket(10, 5, now=10)
    assert bucket.take(5, 10) == 5
    assert bucket.take(5, 9) == 0
    assert bucket.take(5, 10.1) == 1


def test_doors_share_in_proportion() -> None:
    ledger = Ledger()
    one, two = ledger.attach(), ledger.attach()
    ledger.ask(one, [ask(want=10)], 0.0)
    got = ledger.ask(two, [ask(want=30)], 0.09)[two][0]
    assert got.tokens == 7, "three quarters of the nine that there are, for one still wants ten"


def test_the_newest_version_of_a_limit_counts() -> None:
    ledger = Ledger()
    door = ledger.attach()
    ledger.ask(door, [ask(rate=100, burst=50, version=2)], 0.0)
    late = ledger.ask(ledger.attach(), [ask(rate=100, burst=90, version=1, want=90)], 0.0)
    assert [g.tokens for grants in late.values() for g in grants] == [50]


def test_slots_come_back_with_the_end_of_a_line() -> None:
    ledger = Ledger()
    one, two = ledger.attach(), ledger.attach()
    assert ledger.ask(one, [ask(concurrency=3, slots=3)], 0.0)[one][0].slots == 3
    told = ledger.ask(two, [ask(concurrency=3, slots=2)], 0.0)
    assert told[two][0] == Grant(place=PLACE, plenty=True, full=True, called=True)
    assert told[one][-1].keep == 1, "of three slots two doors may keep one each"
    told = ledger.detach(one, 0.1)
    assert told[two][0].slots == 2


def words(limit: Limit, demand: int) -> int:
    """How often a door asks for a limit in a second, at so many requests a second."""
    ledger = Ledger()
    door, gauge, count = ledger.attach(), Gauge(PLACE, limit, 1, 0.0), 0
    for tick in range(3 * 100):
        now = tick / 100
        for _ in range(demand // 100):
            gauge.attempts, gauge.used_at = gauge.attempts + 1, now
            if gauge.tokens:
                gauge.take()
                gauge.leave()
        said = gauge.ask(0, now)
        if said is not None:
            count += now >= 2
            for grant in ledger.ask(door, [said], now)[door]:
                gauge.give(grant, now)
    return count


def test_of_a_limit_that_has_plenty_a_door_asks_seldom() -> None:
    """And often of one that is nearly used up, for others want of it too."""
    assert words(Limit(rate=10_000), 1000) <= 10
    assert words(Limit(rate=10_000, burst=50_000), 1000) <= 10
    assert words(Limit(rate=900, burst=100), 1000) >= 20


def test_a_new_ledger_knows_what_doors_hold() -> None:
    ledger = Ledger()
    one, two = ledger.attach(), ledger.attach()
    ledger.ask(one, [ask(concurrency=3, holds=3)], 0.0)
    assert ledger.ask(two, [ask(concurrency=3, slots=1)], 0.0)[two][0].full


def test_what_is_not_used_is_forgotten() -> None:
    ledger = Ledger()
    door = ledger.attach()
    ledger.ask(door, [ask(want=5)], 0.0)
    ledger.sweep(5.0)
    assert [use.admitted for use in ledger.usage("micro", 5.0)] == [5]
    ledger.sweep(60.0)
    assert ledger.usage("micro", 60.0) == []


STEP = st.tuples(
    st.integers(0, 2),  # which door
    st.sampled_from(["come", "leave", "speak", "hear", "die", "pass"]),
    st.integers(1, 60),  # how many, or milliseconds
)


class World:
    """Three doors and a ledger whose messages are on their way until they are heard."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.now = 0.0
        self.ledger = Ledger()
        self.doors = [self.ledger.attach() for _ in range(3)]
        self.gauges = [Gauge(PLACE, limit, 1, 0.0) for _ in range(3)]
        self.up: list[list[Ask]] = [[], [], []]
        self.down: list[list[Grant]] = [[], [], []]
        self.admitted: list[float] = []

    def tell(self, told: dict[int, list[Grant]]) -> None:
        for door, grants in told.items():
            self.down[self.doors.index(door)] += grants

    def step(self, at: int, what: str, count: int) -> None:
        gauge = self.gauges[at]
        if what == "pass":
            self.now += count / 1000
        elif what == "come":
            for _ in range(count):
                gauge.attempts += 1
                gauge.used_at = self.now
                self.enter(gauge)
        elif what == "leave" and gauge.used:
            gauge.leave()
        elif what == "speak":
            said = gauge.ask(count % 3, self.now)
            if said is not None:
                self.up[at].append(said)
        elif what == "hear":
            asks, self.up[at] = self.up[at], []
            self.tell(self.ledger.ask(self.doors[at], asks, self.now))
            grants, self.down[at] = self.down[at], []
            for grant in grants:
                gauge.give(grant, self.now)
        elif what == "die":
            # Its line breaks with all that was on it; its requests go with it.
            self.up[at], self.down[at] = [], []
            told = self.ledger.detach(self.doors[at], self.now)
            self.doors[at] = self.ledger.attach()
            self.gauges[at] = Gauge(PLACE, self.limit, 1, self.now)
            self.tell(told)

    def enter(self, gauge: Gauge) -> None:
        try:
            fits = gauge.fits(self.now)
        except Exception:
            return
        if fits:
            gauge.take()
            self.admitted.append(self.now)


@settings(max_examples=300, deadline=None)
@given(
    rate=st.integers(1, 500),
    burst=st.integers(0, 40),
    concurrency=st.integers(0, 7),
    steps=st.lists(STEP, max_size=120),
)
def test_never_more_than_the_limit(
    rate: int, burst: int, concurrency: int, steps: list[tuple[int, str, int]]
) -> None:
    limit = Limit(rate=float(rate), burst=burst, concurrency=concurrency)
    world = World(limit)
    for step in steps:
        world.step(*step)
        if concurrency:
            assert sum(gauge.used for gauge in world.gauges) <= concurrency
        most = rate * world.now + limit.depth + 1e-6
        assert len(world.admitted) <= most, "over rate * t + burst"
