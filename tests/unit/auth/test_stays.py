"""A stream ends when who opened it may no more, and many of them hold nobody up."""

from __future__ import annotations

import asyncio
import time

import pytest

from micro_ray.auth import Access, Identity, Kind, Resource, Revocation, Rule, Update
from micro_ray.auth import stays as module
from micro_ray.auth.callers import Callers
from micro_ray.auth.guard import Guard
from micro_ray.auth.passes import LIFE, Issuer, Passes, PrivateKey, platform
from micro_ray.auth.stays import LITTLE
from micro_ray.auth.tokens import LEEWAY
from micro_ray.errors import Forbidden, MicroError, Unauthorized
from tests.fixtures.stores import Clock
from tests.fixtures.wait import PROMPT, eventually

LISTEN = Resource(name="shop", endpoint="Shop.Listen")
OPEN = Rule(id="open", scope="+", resource=LISTEN, priority=900)
KEY = PrivateKey()


class At:
    def __init__(self) -> None:
        self.clock = Clock()
        self.guard = Guard(clock=self.clock, platform=KEY.public)
        self.guard.apply(Update(revision=1, full=True, keys=()))

    def jane(self, number: int = 0, life: float = 900.0) -> Identity:
        now = self.clock.now
        return Identity(
            id=f"jane-{number}", namespace="acme", token=f"token-{number}", issued=now,
            expires=now + life,
        )  # fmt: skip

    def rules(self, *rules: Rule, gone: tuple[str, ...] = ()) -> None:
        self.guard.apply(
            Update(
                revision=self.guard.revision + 1,
                rules=tuple(("acme", rule) for rule in rules),
                gone=tuple(("acme", id) for id in gone),
            )
        )

    def revoke(self, token: str = "", account: str = "", before: float = 0.0) -> None:
        until = self.clock.now + 1000
        revoked = Revocation(token=token, account=account, before=before, until=until)
        self.guard.apply(Update(revision=self.guard.revision + 1, revoked=(revoked,)))


async def why(stay: module.Stay) -> MicroError:
    async with asyncio.timeout(PROMPT):
        with pytest.raises(MicroError) as raised:
            await stay.ended()
    return raised.value


async def test_it_ends_with_the_rule_that_let_it_in() -> None:
    at = At()
    refused = Rule(id="no", scope="*", resource=LISTEN, access=Access.DENIED, priority=800)
    at.rules(OPEN, refused)
    with at.guard.stays.begin(at.jane(), LISTEN, "acme") as stay:
        stay.check()
        at.rules(Rule(id="other", resource=Resource(name="x"), priority=901))
        at.rules(gone=("open",))
        error = await why(stay)
        assert isinstance(error, Forbidden)
        assert error.to_dict()["id"] == "shop"
        with pytest.raises(Forbidden):
            stay.check()
    with pytest.raises(Forbidden):
        at.guard.stays.begin(at.jane(), LISTEN, "acme")
    assert len(at.guard.stays) == 0


async def test_nobody_may_be_sent_away_too() -> None:
    at = At()
    at.rules(Rule(id="all", scope="", resource=LISTEN, priority=900))
    with at.guard.stays.begin(None, LISTEN, "acme") as stay:
        at.rules(gone=("all",))
        assert isinstance(await why(stay), Unauthorized)


async def test_it_ends_with_a_revocation_and_others_go_on() -> None:
    at = At()
    stays = at.guard.stays
    with (
        stays.begin(at.jane(1), LISTEN, "acme") as first,
        stays.begin(at.jane(2), LISTEN, "acme") as second,
        stays.begin(at.jane(3), LISTEN, "acme") as third,
        stays.begin(at.jane(4), None) as token_alone,
    ):
        at.revoke(token="token-1")
        assert isinstance(await why(first), Unauthorized)
        at.revoke(account="acme/jane-2", before=at.clock.now + 1)
        assert isinstance(await why(second), Unauthorized)
        at.revoke(token="token-4")
        assert isinstance(await why(token_alone), Unauthorized)
        assert not third.over.done()
        # Who is out of reach of auth says it: rules stay as they are, revocations hold.
        stale = Revocation(token="token-3", until=at.clock.now + 1000)
        at.guard.apply(Update(revision=0, full=True, stale=True, revoked=(stale,)))
        assert isinstance(await why(third), Unauthorized)


async def test_what_another_namespace_must_let_be() -> None:
    at = At()
    with at.guard.stays.begin(at.jane(), LISTEN, "acme") as stay:
        stay.also("acme")
        assert stay.spaces == ("acme",)
        stay.also("other")
        at.guard.stays.changed()
        assert isinstance(await why(stay), Forbidden)


async def test_it_ends_with_its_token() -> None:
    at = At()
    stays = at.guard.stays
    with (
        stays.begin(at.jane(1, life=100.0), LISTEN, "acme") as later,
        stays.begin(at.jane(2, life=10.0), LISTEN, "acme") as sooner,
    ):
        at.clock.now += 10.0 + LEEWAY - 0.5
        at.guard.stays.changed()
        await asyncio.sleep(0)
        assert not sooner.over.done()
        at.clock.now += 0.5
        error = await why(sooner)
        assert isinstance(error, Unauthorized)
        assert "expired" in error.detail
        assert not later.over.done()
        at.clock.now += 90.0
        assert isinstance(await why(later), Unauthorized)


async def test_the_end_of_a_pass_is_none_of_the_stream() -> None:
    """A pass is good for minutes; what counts is the token behind it, and a replica renews its."""
    at = At()
    callers = Callers(
        at.guard, service="shop", namespace="acme", platform=KEY.public, clock=at.clock
    )
    door = Passes(KEY, platform(KEY, "api").own, clock=at.clock)
    issuer, own = Issuer(KEY, "micro", "micro", 3600, at.clock), PrivateKey()
    token = issuer.issue("cart-1", "acme", ("service",), own.public)
    claims = Identity(id="cart-1", kind=Kind.SERVICE, namespace="acme")
    cart = Passes(own, claims, token=lambda: token, clock=at.clock)
    of_jane = callers.admit(door.to("acme", "shop", at.jane()), LISTEN)
    of_cart = callers.admit(cart.itself("acme", "shop"), LISTEN)
    of_door = callers.admit(door.itself("acme", "shop"), LISTEN)
    with (
        callers.stay(of_jane.identity, LISTEN, "acme") as jane,
        callers.stay(of_cart.identity, LISTEN, "acme") as replica,
        callers.stay(of_door.identity, LISTEN, "acme") as itself,
    ):
        at.clock.now += 2 * LIFE
        at.rules(OPEN)
        await looked(at)
        assert not jane.over.done()
        at.clock.now += 900.0
        assert isinstance(await why(jane), Unauthorized)
        at.clock.now += 7200.0
        at.rules(OPEN)
        await looked(at)
        assert not replica.over.done()
        at.revoke(account="acme/cart-1", before=at.clock.now)
        assert isinstance(await why(replica), Unauthorized)
        assert not itself.over.done()


async def looked(at: At) -> None:
    """Wait until what was changed before has been looked at."""
    await eventually(lambda: not at.guard.stays._looking, within=PROMPT)


async def test_what_is_closed_is_forgotten() -> None:
    at = At()
    stays = at.guard.stays
    with stays.begin(at.jane(), LISTEN, "acme"):
        for number in range(1000):
            stays.begin(at.jane(number), LISTEN, "acme").leave()
        assert len(stays) == 1
        assert len(stays._ends) <= LITTLE + 4
    assert len(stays) == 0
    assert stays._timer is None


async def test_ten_thousand_and_a_burst_of_changes_hold_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Changes that come together are looked at together, in slices between which others run."""
    at, many, burst = At(), 10_000, 500
    stays, judged = at.guard.stays, 0
    judge = stays._judge

    def counting(stay: module.Stay) -> None:
        nonlocal judged
        judged += 1
        judge(stay)

    monkeypatch.setattr(stays, "_judge", counting)
    opened = [stays.begin(at.jane(number), LISTEN, "acme") for number in range(many)]
    judged = 0
    for number in range(burst):
        at.rules(Rule(id=f"r-{number}", resource=Resource(name=f"n-{number}")))
    turns = 0
    at.revoke(account="acme/jane-7", before=at.clock.now + 1)
    begun = time.monotonic()
    while not opened[7].over.done() or stays._queue:
        assert time.monotonic() < begun + PROMPT
        turns += 1
        await asyncio.sleep(0)
    assert turns > 2  # others had their turn meanwhile
    assert judged <= 2 * many
    # All of them at once end some at a time.
    at.rules(Rule(id="no", scope="*", resource=LISTEN, access=Access.DENIED, priority=800))
    before = len(stays)
    await eventually(lambda: len(stays) < before, within=PROMPT, every=0)
    assert len(stays) > 0
    await eventually(lambda: len(stays) == 0, within=PROMPT)
    for stay in opened:
        assert stay.over.done()
        stay.leave()
