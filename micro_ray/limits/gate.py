"""A door: what admits requests with what it has borrowed from the limiter.

``admit`` is on the path of every request, and asks nobody: a request passes while its limits have
tokens and slots here, and is refused at once while it is known that they have none. Only what is
neither waits for one answer of the limiter (``obtain``). More is asked for ahead, in proportion to
what comes, by whoever pulls ``words`` and brings ``hear`` the answers; while nobody does, the door
is ``alone`` and admits its part: the limit over the doors there were.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable

from micro_ray.errors import Unavailable
from micro_ray.limits import BACKENDS, DOORS, Kind, Limit, Rule
from micro_ray.limits.gauge import PACE, Gauge
from micro_ray.limits.ledger import Ask, Grant, Place
from micro_ray.limits.rules import Rules

__all__ = ["ADMITTED", "FREE", "Admission", "Gate"]

#: Metadata of a call that a door has let in: the service does not count it again.
ADMITTED = "micro-admitted"

log = logging.getLogger(__name__)

#: Seconds that a request waits for the rules of a namespace that has not been here, and for the
#: limiter to answer; then it goes by what is known.
RULES, ANSWER = 1.0, 0.1
#: Calls whose limits are remembered, per namespace.
MAX_CALLS = 10_000
#: Namespaces whose rules are followed; beyond them that which came first is left, and may come
#: again.
MAX_SPACES = 1000
#: Seconds without a request after which a limit is forgotten here.
FORGET = 10.0
#: Seconds between looking through all limits for what goes back.
SWEEP = 0.05


class Admission:
    """A request that was let in; ``release`` it when it is over, however it ends."""

    __slots__ = ("_gate", "_gauges")

    def __init__(self, gate: Gate | None, gauges: tuple[Gauge, ...]) -> None:
        self._gate = gate
        self._gauges = gauges

    def release(self) -> None:
        """Idempotent."""
        gauges, self._gauges = self._gauges, ()
        for gauge in gauges:
            if gauge.leave() and self._gate is not None:
                self._gate.say(gauge)


#: The admission of what nothing limits: there is one, and releasing it does nothing.
FREE = Admission(None, ())


class _Space:
    """A namespace here."""

    __slots__ = ("calls", "entered", "known", "rules")

    def __init__(self, rules: Rules, now: float) -> None:
        self.rules = rules
        self.known = asyncio.Event()
        self.calls: dict[tuple[str, str, str], tuple[Gauge, ...]] = {}
        self.entered = now


class Gate:
    """``default`` is the limit of a namespace that has set none; ``doors`` how many there are,
    until the limiter has said so; ``kinds`` those of limits that are kept here. All on one loop.
    ``ruled`` is set once there is a rule to keep, ``stale`` while the limiter is away."""

    def __init__(
        self,
        *,
        default: Limit | None = None,
        doors: int = 1,
        kinds: Collection[Kind] = DOORS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._default = default or Limit()
        self._clock = clock
        self._spaces: dict[str, _Space] = {}
        self._gauges: dict[Place, Gauge] = {}
        self._waiting: dict[Gauge, int] = {}
        self._due: dict[Gauge, None] = {}
        self._wake = asyncio.Event()
        self._turn = asyncio.Event()
        self._new: asyncio.Queue[str] = asyncio.Queue()
        self._swept = 0.0
        self._kinds = frozenset(kinds)
        self.doors = doors
        self.stale = False
        self.ruled = asyncio.Event()

    # -- requests ----------------------------------------------------------------------------------

    def admit(self, namespace: str, account: str, service: str, endpoint: str) -> Admission | None:
        """Let a request in, or None: :meth:`obtain` must be asked. Raises TooManyRequests that
        names the limit, with ``retry_after``."""
        space = self._spaces.get(namespace)
        if space is None or not space.known.is_set():
            return None
        if not space.rules.rules:
            return FREE
        gauges = space.calls.get((account, service, endpoint))
        if gauges is None:
            gauges = self._find(namespace, space, account, service, endpoint)
        if not gauges:
            return FREE
        now = self._clock()
        for gauge in gauges:
            gauge.attempts += 1
            gauge.used_at = now
        return self._pass(gauges, now)

    def _pass(self, gauges: tuple[Gauge, ...], now: float) -> Admission | None:
        fits = True
        for gauge in gauges:
            if not gauge.fits(now):
                fits = False
        if not fits:
            return None
        for gauge in gauges:
            if gauge.take():
                self.say(gauge)
        return Admission(self, gauges)

    async def obtain(self, namespace: str, account: str, service: str, endpoint: str) -> Admission:
        """As :meth:`admit`, after asking: once, in general. What nobody answers in time goes by
        this door's part of the limit."""
        space = self._spaces.get(namespace) or self._enter(namespace)
        if not space.known.is_set():
            await self._known(space)
            admission = self.admit(namespace, account, service, endpoint)
            if admission is not None:
                return admission
        gauges = space.calls.get((account, service, endpoint)) or self._find(
            namespace, space, account, service, endpoint
        )
        for gauge in gauges:
            self._waiting[gauge] = self._waiting.get(gauge, 0) + 1
        try:
            return await self._wait(gauges)
        finally:
            for gauge in gauges:
                self._waiting[gauge] -= 1
                if not self._waiting[gauge]:
                    del self._waiting[gauge]

    async def _wait(self, gauges: tuple[Gauge, ...]) -> Admission:
        end = self._clock() + ANSWER
        while (now := self._clock()) < end:
            admission = self._pass(gauges, now)
            if admission is not None:
                return admission
            for gauge in gauges:
                self.say(gauge)
            try:
                async with asyncio.timeout(PACE):
                    await self._turn.wait()
            except TimeoutError:
                pass
        for gauge in gauges:
            if gauge.bucket is None:
                gauge.alone(self.doors, now)
        admission = self._pass(gauges, now)
        if admission is None:
            raise Unavailable("limits", "the limiter does not answer", 1.0)
        return admission

    def _find(
        self, namespace: str, space: _Space, account: str, service: str, endpoint: str
    ) -> tuple[Gauge, ...]:
        now = self._clock()
        found = []
        for rule in space.rules.of(account, service, endpoint):
            if rule.kind not in self._kinds:
                continue
            place = Place(namespace=namespace, kind=rule.kind, name=rule.name)
            gauge = self._gauges.get(place)
            if gauge is None:
                gauge = Gauge(place, rule.limit, space.rules.version, now)
                self._gauges[place] = gauge
                if self.stale:
                    gauge.alone(self.doors, now, fresh=True)
            else:
                gauge.change(rule.limit, space.rules.version, now, self.doors)
            found.append(gauge)
        if len(space.calls) >= MAX_CALLS:
            space.calls.clear()
        space.calls[account, service, endpoint] = tuple(found)
        return tuple(found)

    # -- rules -------------------------------------------------------------------------------------

    async def entered(self) -> str:
        """The next namespace whose rules are to be followed."""
        return await self._new.get()

    def follow(self, namespace: str) -> None:
        """Have the rules of a namespace followed before a request comes."""
        if namespace not in self._spaces:
            self._enter(namespace)

    def _enter(self, namespace: str) -> _Space:
        now = self._clock()
        if len(self._spaces) >= MAX_SPACES:
            oldest = min(self._spaces, key=lambda name: self._spaces[name].entered)
            del self._spaces[oldest]
        space = self._spaces[namespace] = _Space(self._with_default(Rules()), now)
        self._look(space.rules)
        self._new.put_nowait(namespace)
        return space

    async def _known(self, space: _Space) -> None:
        """Wait for the rules of a new namespace; without them the default holds."""
        try:
            async with asyncio.timeout(RULES):
                await space.known.wait()
        except TimeoutError:
            space.known.set()

    def follows(self, namespace: str) -> bool:
        """Whether it still matters."""
        return namespace in self._spaces

    def rule(self, namespace: str, rules: Rules) -> None:
        """The rules of a namespace, from now on."""
        space = self._spaces.get(namespace)
        if space is None:
            return
        space.rules = self._with_default(rules)
        space.calls.clear()
        self._look(space.rules)
        now = self._clock()
        # Those that have gone are let go of; those that are other now are found so.
        for place, gauge in list(self._gauges.items()):
            if place.namespace == namespace:
                limit = _limit_in(space.rules, place)
                gauge.change(limit, space.rules.version, now, self.doors)
                self.say(gauge)
        space.known.set()

    def rules(self, namespace: str) -> Rules:
        """What is in force in a namespace; nothing as long as it is not known. It is followed from
        now on."""
        space = self._spaces.get(namespace) or self._enter(namespace)
        return space.rules

    def _look(self, rules: Rules) -> None:
        """Whether there is something to be asked of the limiter."""
        if any(rule.kind in self._kinds for rule in rules.rules):
            self.ruled.set()

    def _with_default(self, rules: Rules) -> Rules:
        whole = any(rule.kind is Kind.NAMESPACE for rule in rules.rules)
        if whole or self._default == Limit():
            return rules
        default = Rule(kind=Kind.NAMESPACE, limit=self._default)
        return Rules((default, *rules.rules), rules.version, rules.store, rules.events)

    # -- the limiter -------------------------------------------------------------------------------

    def say(self, gauge: Gauge) -> None:
        """There may be something to say of a limit."""
        self._due[gauge] = None
        self._wake.set()

    async def words(self) -> list[Ask]:
        """Wait until there is something to say, and give it; perhaps nothing, from time to
        time."""
        try:
            pause = PACE if self._due else SWEEP if self._gauges else None
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
        now = self._clock()
        if now > self._swept + SWEEP:
            self._sweep(now)
        said, due = [], self._due
        self._due = {}
        for gauge in due:
            ask = gauge.ask(self._waiting.get(gauge, 0), now)
            if ask is not None:
                said.append(ask)
            elif gauge.due(now):
                self._due[gauge] = None
        return said

    def _sweep(self, now: float) -> None:
        """Look at every limit: what is not used goes back."""
        self._swept = now
        for place, gauge in list(self._gauges.items()):
            if not gauge.used and not gauge.holds:
                if gauge.used_at < now - FORGET and gauge not in self._waiting:
                    del self._gauges[place]
                    space = self._spaces.get(place.namespace)
                    if space is not None:
                        space.calls.clear()
            elif gauge.holds:
                self._due[gauge] = None

    def hear(self, doors: int, grants: Iterable[Grant]) -> None:
        """What the limiter says."""
        self.doors = max(1, doors)
        now = self._clock()
        for grant in grants:
            gauge = self._gauges.get(grant.place)
            if gauge is None:
                continue
            gauge.give(grant, now)
            self.say(gauge)
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    def joined(self) -> list[Ask]:
        """The limiter is there: what it must know first."""
        self.stale = False
        now = self._clock()
        return [gauge.joined(now) for gauge in self._gauges.values()]

    def alone(self) -> None:
        """The limiter is away."""
        if self.stale:
            return
        self.stale = True
        now = self._clock()
        for gauge in self._gauges.values():
            gauge.alone(self.doors, now)
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()


def _limit_in(rules: Rules, place: Place) -> Limit:
    """The limit of a place under other rules; none if it has gone."""
    account = place.name if place.kind is Kind.ACCOUNT else ""
    service, _, endpoint = place.name.partition(".")
    if place.kind is Kind.SERVICE:
        service, endpoint = place.name, ""
    elif place.kind in BACKENDS:
        service = place.kind
    for rule in rules.of(account, service, endpoint):
        if rule.kind is place.kind:
            return rule.limit
    return Limit()
