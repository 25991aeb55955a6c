"""limits: how much a namespace, an account, a service or a route may ask for.

A **limit** is requests per second with a burst, and requests under way at once. It belongs to a
kind and a name, and counts for all doors together, not for each. They are kept in config, under
``limits`` of each namespace (``rules.py`` says how), so that they are set live and have a history::

    limits.namespace.rate                     1000   the namespace as a whole
    limits.account.rate                        100   each account that has none of its own
    limits.accounts.ada.rate                   500   the account ada
    limits.services.store.concurrency           64   all endpoints of a service
    limits.routes.helloworld.Helloworld.Call.rate 5  one endpoint
    limits.store.bytes                 1000000000    what it may keep (``quota_store.py``)
    limits.store.rate                         500    operations of the store
    limits.events.topics                      100    (``quota_events.py``)

``bucket.py`` counts tokens; ``ledger.py`` is the limiter, who lends them out; ``gate.py`` is a
door, who admits with what it has borrowed; ``stored.py`` keeps the rules; ``tally.py`` counts what
is kept, ``meter.py`` what is done in a backend; ``pressure.py`` says when memory is short. None of
them knows how the two reach each other: ``wire/gate.py`` does.
"""

from __future__ import annotations

import abc
import builtins
from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "BACKENDS",
    "DOORS",
    "WHOLE",
    "EventQuota",
    "Kind",
    "Limit",
    "Limits",
    "Quota",
    "Rule",
    "Standing",
    "Use",
]

DEFAULT = "micro"
#: Requests per second: least and most.
MIN_RATE, MAX_RATE = 0.001, 1_000_000.0
#: Most tokens that may be had at once, and most requests under way.
MAX_BURST = 10_000_000
MAX_CONCURRENCY = 1_000_000
#: Rules in one namespace, and characters of a name.
MAX_RULES = 2000
MAX_NAME = 256
#: Seconds of the rate that a burst is when none is given, and that it is at least: doors come for
#: tokens some times in this.
BURST, MIN_BURST = 1.0, 0.1


class Kind(StrEnum):
    """What a limit is of."""

    NAMESPACE = "namespace"
    ACCOUNT = "account"
    SERVICE = "service"
    ROUTE = "route"
    STORE = "store"
    EVENTS = "events"
    BROKER = "broker"


#: Those that doors keep, and those that the members of a service of that name keep, for whoever
#: comes to them and however: what a namespace may do there in all. These have a rate alone.
DOORS = (Kind.NAMESPACE, Kind.ACCOUNT, Kind.SERVICE, Kind.ROUTE)
BACKENDS = (Kind.STORE, Kind.EVENTS, Kind.BROKER)
#: Those of a namespace as a whole, which have no name: whoever keeps the platform sets them, and
#: its own administrators do not.
WHOLE = frozenset((Kind.NAMESPACE, *BACKENDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """``rate``: requests per second; ``burst``: how many of them may come at once (0: a second's);
    ``concurrency``: how many may be under way. 0 is no limit."""

    rate: float = 0.0
    burst: int = 0
    concurrency: int = 0

    @property
    def depth(self) -> float:
        """Tokens that the bucket of this rate holds."""
        wanted = self.burst or self.rate * BURST
        return max(1.0, wanted, self.rate * MIN_BURST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The limit of one thing. The name is blank for the namespace, for what it may do in the store,
    in events and in the broker, and for the limit of each account, service or route that has none
    of its own; that of a route is ``service.Handler.Method``."""

    kind: Kind
    name: str = ""
    limit: Limit = Limit()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a namespace may keep in the store: ``bytes`` of keys, values and blobs, and ``records``.
    0 is no quota."""

    bytes: int = 0
    records: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EventQuota:
    """What a namespace may keep in events: ``bytes``, as their topics' sizes and their groups' dead
    letters are counted, ``events`` and ``topics``. 0 is no quota."""

    bytes: int = 0
    events: int = 0
    topics: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is in force in a namespace: ``version`` is that of the config's path ``limits``.
    ``problem`` says why what is in config is not in force (then ``rules`` are the last that were
    good, blank where none have been seen)."""

    rules: tuple[Rule, ...] = ()
    store: Quota | None = None
    events: EventQuota | None = None
    version: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How a limit is used, as the limiter has it: ``left`` tokens in the bucket, ``lent`` slots of
    concurrency at the doors, ``admitted`` tokens taken since the limiter knows it, ``doors`` that
    have asked in the last seconds."""

    kind: Kind
    name: str
    limit: Limit
    left: float
    lent: int
    admitted: int
    doors: int


class Limits(abc.ABC):
    """The interface.

    Common to all verbs: BadRequest for a kind, a name or a number that cannot be, naming it;
    TooLarge over :data:`MAX_RULES` rules; Unavailable when config does not answer. A change is in
    force at every door as soon as config has told it (well under 0.1 s).
    """

    @abc.abstractmethod
    async def list(self, *, namespace: str = DEFAULT) -> Standing:
        """The rules of a namespace, by kind and name."""

    @abc.abstractmethod
    async def set(
        self,
        kind: str,
        name: str = "",
        *,
        rate: float | None = None,
        burst: int | None = None,
        concurrency: int | None = None,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> Rule:
        """Set a limit and give it as it is then; what is None stays as it was, what is 0 is
        removed. Raises BadRequest when nothing is given."""

    @abc.abstractmethod
    async def unset(
        self, kind: str, name: str = "", *, by: str = "", namespace: str = DEFAULT
    ) -> None:
        """Remove a limit. Raises NotFound when there is none."""

    @abc.abstractmethod
    async def usage(self, *, namespace: str = DEFAULT) -> builtins.list[Use]:
        """The limits that are being used, by kind and name."""
