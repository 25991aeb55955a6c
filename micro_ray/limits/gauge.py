"""One limit as one door has it: what it has borrowed, what is under way, what it needs."""

from __future__ import annotations

import math

from micro_ray.errors import TooManyRequests
from micro_ray.limits import WHOLE, Kind, Limit
from micro_ray.limits.bucket import Bucket
from micro_ray.limits.ledger import Ask, Grant, Place

__all__ = ["HORIZON", "PACE", "Gauge"]

#: Seconds of its demand that a door asks for: as a rule, and of a limit that has plenty, where
#: what others miss meanwhile is nothing and each word costs both sides.
HORIZON, AMPLE = 0.05, 0.25
#: Seconds between two words about a limit that gives less than is wanted.
PACE = 0.01
#: Seconds without a request after which tokens and slots go back.
IDLE = 0.1
#: Seconds that others have to bring back slots before a request is refused.
CALLED = 0.02
#: Seconds after which a refused request may come again, where no bucket says it.
AGAIN = 0.05
#: What a rate is of, where it is not requests.
_DOES = {
    Kind.STORE: "do {} operations a second in the store",
    Kind.EVENTS: "publish {} events a second",
    Kind.BROKER: "publish {} messages a second",
}


class Gauge:
    """Pure: times are given. ``attempts`` and ``used_at`` are for whoever lets requests in to keep:
    how many have come, and when the last. ``bucket`` is there while the limiter is away: this
    door's part of the limit."""

    __slots__ = (
        "_asked",
        "_asked_at",
        "_called",
        "_demand",
        "_full",
        "_horizon",
        "_keep",
        "_low",
        "_number",
        "_peak",
        "_said_slots",
        "_until",
        "attempts",
        "bucket",
        "limit",
        "most",
        "place",
        "slots",
        "tokens",
        "used",
        "used_at",
        "version",
    )

    def __init__(self, place: Place, limit: Limit, version: int, now: float) -> None:
        self.place = place
        self.limit = limit
        self.version = version
        self.tokens = 0
        self.slots = 0
        self.used = 0
        self.used_at = now
        self.bucket: Bucket | None = None
        #: Requests under way that may be at this door, whatever it holds.
        self.most = limit.concurrency
        self.attempts = 0
        self._demand = 0.0
        self._horizon = HORIZON
        self._asked = False
        self._asked_at = now
        self._until = self._called = 0.0
        self._full = False
        self._keep = -1
        self._low = self._said_slots = self._number = self._peak = 0

    # -- a request ---------------------------------------------------------------------------------

    def fits(self, now: float) -> bool:
        """Whether another request may pass; False: it must be asked for. Raises TooManyRequests
        when it is known that it may not."""
        limit = self.limit
        if limit.rate and not self.tokens:
            if self.bucket is not None:
                if not self.bucket.take(1, now):
                    raise self._refusal(self.bucket.wait(now))
                self.tokens = 1
            elif now < self._until:
                raise self._refusal(self._until - now)
            else:
                return False
        if limit.concurrency:
            if self.used >= self.most:
                raise self._crowded()
            if self.used >= self.slots and self.bucket is None:
                if self._full or (self._called and now >= self._called):
                    self._full = True
                    raise self._crowded()
                return False
        return True

    def take(self) -> bool:
        """Let a request pass that fits; whether more should be asked for."""
        self.used += 1
        if self.used > self._peak:
            self._peak = self.used
        limit = self.limit
        if limit.rate:
            self.tokens -= 1
            if self.tokens < self._low and self.used_at >= self._until and not self._asked:
                return self.bucket is None
        if limit.concurrency and self.slots <= self.used < self.most:
            return not (self._asked or self._full) and self.bucket is None
        return False

    def leave(self) -> bool:
        """A request is over; whether its slot is wanted elsewhere."""
        self.used -= 1
        return self._keep >= 0 and self.slots > max(self.used, self._keep)

    def _refusal(self, wait: float) -> TooManyRequests:
        limit = self.limit
        does = _DOES.get(self.place.kind, "make {} requests a second")
        return TooManyRequests(
            "limits",
            f"{self._whose()} may {does.format(f'{limit.rate:g}')}"
            + (f" ({limit.burst} at once)" if limit.burst else "")
            + "; come again later",
            max(wait, 0.001),
        )

    def _crowded(self) -> TooManyRequests:
        return TooManyRequests(
            "limits",
            f"{self._whose()} may have {self.limit.concurrency} requests under way at once; "
            "come again when one of them is over",
            AGAIN,
        )

    def _whose(self) -> str:
        if self.place.kind in WHOLE:
            return f"namespace {self.place.namespace}"
        return f"{self.place.kind} {self.place.name}"

    # -- the limiter -------------------------------------------------------------------------------

    def ask(self, waiting: int, now: float) -> Ask | None:
        """What is to be said to the limiter now, None for nothing. ``waiting`` requests wait for
        the answer."""
        limit = self.limit
        spent = now - self._asked_at
        if spent >= PACE:
            # What came since the last word, half of it at once and half by and by.
            self._demand += (self.attempts / spent - self._demand) / 2
            self.attempts, self._asked_at = 0, now
            # As many as were under way of late, and slowly fewer: slots should not come and go.
            self._peak -= (self._peak - self.used) // 16
        idle = now - self.used_at > IDLE and not waiting
        want = slots = back = freed = 0
        if idle:
            self._demand, self._peak = 0.0, self.used
            back, self.tokens = self.tokens, 0
        elif limit.rate and not self._asked and now >= self._until:
            ahead = math.ceil(self._demand * self._horizon)
            self._low = (ahead + 1) // 2
            if self.tokens < max(waiting, self._low):
                want = max(waiting, ahead) - self.tokens
        if limit.concurrency:
            slots, freed = self._ask_slots(waiting, idle)
        self._low = self._low if not idle else 0
        if not (want or back or freed or slots != self._said_slots):
            return None
        self._said_slots = slots
        self._full, self._called = self._full and bool(slots), 0.0
        self._asked = bool(want or slots)
        self._number += 1
        return Ask(
            place=self.place,
            limit=limit,
            version=self.version,
            want=want,
            back=back,
            slots=slots,
            freed=freed,
            number=self._number,
        )

    def _ask_slots(self, waiting: int, idle: bool) -> tuple[int, int]:
        """Slots to ask for in all, and to bring back. Some are kept ready beyond those in use."""
        if self._keep >= 0:
            wanted = min(self.used + max(waiting, 1), max(self._keep, self.used + waiting))
        else:
            wanted = self._peak + max(waiting, 1, self._peak // 4)
        wanted = self.used if idle else min(self.limit.concurrency, wanted)
        freed = max(0, self.slots - max(wanted, self.used))
        self.slots -= freed
        return max(0, wanted - self.slots), freed

    def give(self, grant: Grant, now: float) -> None:
        """What the limiter says."""
        if self.bucket is not None:  # it was too late with an earlier answer
            self.bucket, self.most = None, self.limit.concurrency
        self.tokens += grant.tokens
        self.slots += grant.slots
        self._said_slots = max(0, self._said_slots - grant.slots)
        self._keep = grant.keep
        self._full = self._full and self._said_slots > 0
        if grant.answers != self._number:
            return  # to what was said before, or to nothing: how it stands is another's to say
        self._asked = False
        self._horizon = AMPLE if grant.plenty else HORIZON
        if grant.wait:
            self._until = now + max(grant.wait, PACE)
        self._called = now + CALLED if grant.called else 0.0
        self._full = grant.full and not grant.called

    def due(self, now: float) -> bool:
        """Whether there may soon be something to say by itself: it got less than is wanted."""
        return self.attempts > 0 and now < self._until + PACE

    # -- without the limiter -----------------------------------------------------------------------

    @property
    def holds(self) -> bool:
        """Whether something here may have to go back."""
        return bool(self.tokens or self.slots or self._said_slots)

    def alone(self, doors: int, now: float, *, fresh: bool = False) -> None:
        """The limiter is away: this door admits its part of the limit, beginning with what it
        has, or, where it is ``fresh``, with its part of the burst."""
        limit = self.limit
        self._asked = False
        self.most = max(1, limit.concurrency // doors) if limit.concurrency else 0
        rate = limit.rate / doors or 1.0
        level = None if fresh else float(self.tokens)
        self.bucket = Bucket(rate, max(1.0, limit.depth / doors), now, level)
        self.tokens = 0

    def joined(self, now: float) -> Ask:
        """The limiter is there: what it must know of this door."""
        if self.bucket is not None:
            self.tokens, self.bucket = 0, None
        self.most = self.limit.concurrency
        self.slots = self.used if self.limit.concurrency else 0
        self._until = self._called = 0.0
        self._full = self._asked = False
        self._keep, self._said_slots = -1, 0
        self._number += 1
        return Ask(
            place=self.place,
            limit=self.limit,
            version=self.version,
            holds=self.slots,
            number=self._number,
        )

    def change(self, limit: Limit, version: int, now: float, doors: int) -> None:
        """Another limit from now on."""
        self.version = version
        if limit == self.limit:
            return
        self.limit = limit
        self.most = limit.concurrency
        self._until = self._called = 0.0
        self._full = self._asked = False
        if not limit.rate:
            self.tokens = 0
        self.tokens = min(self.tokens, int(limit.depth))
        if self.bucket is not None:
            self.alone(doors, now)
