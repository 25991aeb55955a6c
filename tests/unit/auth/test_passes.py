"""Passes: who calls is told to one callee, for minutes, and by whom it may be."""

from __future__ import annotations

from dataclasses import replace

import jwt
import pytest

from micro_ray.auth import Identity, Key, Kind, Resource, Revocation, Rule, Update
from micro_ray.auth.callers import Callers
from micro_ray.auth.denials import Denials
from micro_ray.auth.guard import Guard
from micro_ray.auth.passes import LIFE, Issuer, Passes, PrivateKey, key_of, platform
from micro_ray.errors import BadRequest, Forbidden, PreconditionFailed, Unauthorized, Unavailable
from micro_ray.settings import load
from tests.fixtures.stores import Clock

STORE = Resource(name="store", endpoint="Store.Read")
KEY = PrivateKey()


class Place:
    """A callee, and who calls it."""

    def __init__(self, service: str = "store", namespace: str = "micro", **options: bool) -> None:
        self.clock = Clock()
        self.guard = Guard(clock=self.clock, platform=KEY.public)
        self.guard.apply(Update(revision=1, full=True, keys=()))
        self.denials = Denials(self.clock)
        self.callers = Callers(
            self.guard, service=service, namespace=namespace, platform=KEY.public,
            denials=self.denials, clock=self.clock, shared=options.get("shared", True),
        )  # fmt: skip
        self.door = Passes(KEY, platform(KEY, "api").own, clock=self.clock)

    def account(self, id: str = "jane", namespace: str = "acme", *scopes: str) -> Identity:
        now = self.clock.now
        return Identity(
            id=id, namespace=namespace, scopes=scopes, token=f"{id}-{namespace}", issued=now,
            expires=now + 900,
        )  # fmt: skip

    def replica(self, namespace: str = "acme", life: float = 3600) -> Passes:
        issuer = Issuer(KEY, "micro", "micro", life, self.clock)
        own = PrivateKey()
        token = issuer.issue("shop-1", namespace, ("service",), own.public)
        claims = Identity(id="shop-1", kind=Kind.SERVICE, namespace=namespace)
        return Passes(own, claims, token=lambda: token, clock=self.clock)


def test_a_door_speaks_for_whom_it_has_verified() -> None:
    at = Place()
    jane = at.account("jane", "acme", "a")
    identity, trusted = at.callers.identify(at.door.to("micro", "store", jane))
    assert identity == jane
    assert trusted
    assert at.callers.identify(at.door.to("micro", "Store", None)) == (None, True)
    itself, _ = at.callers.identify(at.door.itself("micro", "store"))
    assert itself is not None
    assert itself.everywhere


def test_what_is_handed_out_says_who_calls_and_no_more() -> None:
    at = Place()
    jane = at.account("jane", "acme", "a")
    assert at.callers.identify(at.door.to("micro", "store", jane, handed=True)) == (jane, False)
    assert at.callers.identify(at.door.to("micro", "store", jane)) == (jane, True)
    at.guard.apply(Update(revision=2, revoked=(Revocation(token=jane.token, until=2.0**40),)))
    with pytest.raises(Unauthorized, match="revoked"):
        at.callers.identify(at.door.to("micro", "store", jane, handed=True))


def test_a_pass_is_made_once_and_anew_before_it_ends() -> None:
    at = Place()
    first = at.door.to("micro", "store", None)
    at.clock.now += LIFE / 2 - 1
    assert at.door.to("micro", "store", None) == first
    at.clock.now += 2
    assert at.door.to("micro", "store", None) != first
    at.callers.identify(first)
    at.clock.now += LIFE / 2 + 6
    with pytest.raises(Unauthorized, match="the pass has expired"):
        at.callers.identify(first)
    with pytest.raises(Unauthorized, match="the pass has expired"):
        Place().callers._times({"iat": 0, "exp": 1})


def test_what_ends_or_is_void_behind_a_pass() -> None:
    at = Place()
    jane = at.account()
    head = at.door.to("micro", "store", jane)
    at.callers.identify(head)
    at.guard.apply(Update(revision=2, revoked=(Revocation(token=jane.token, until=2.0**40),)))
    with pytest.raises(Unauthorized, match="revoked"):
        at.callers.identify(head)
    at = Place()
    short = at.account()
    at.clock.now = short.expires - 10
    head = at.door.to("micro", "store", short)
    at.callers.identify(head)
    at.clock.now += 16
    with pytest.raises(Unauthorized, match="expired"):
        at.callers.identify(head)
    before = Revocation(account="acme/jane", before=at.clock.now, until=2.0**40)
    at.guard.apply(Update(revision=3, revoked=(before,)))
    with pytest.raises(Unauthorized):
        at.callers.identify(head)


@pytest.mark.parametrize(("namespace", "service"), [("micro", "auth"), ("acme", "store")])
def test_a_pass_is_for_one_service_of_one_namespace(namespace: str, service: str) -> None:
    at = Place()
    with pytest.raises(Unauthorized, match="another service than micro/store"):
        at.callers.identify(at.door.to(namespace, service, at.account()))


def test_a_replica_speaks_for_itself() -> None:
    at = Place()
    identity, trusted = at.callers.identify(at.replica().itself("micro", "store"))
    assert identity is not None
    assert (identity.id, identity.namespace, identity.scopes) == ("shop-1", "acme", ("service",))
    assert not trusted
    said = at.replica().to("micro", "store", at.account("admin", "micro", "admin"))
    identity, _ = at.callers.identify(said)
    assert identity is not None
    assert (identity.id, identity.namespace) == ("shop-1", "acme")
    at.guard.apply(Update(revision=2, revoked=(Revocation(token=identity.token, until=2.0**40),)))
    with pytest.raises(Unauthorized, match="revoked"):
        at.callers.identify(said)


def test_a_replica_whose_token_has_ended() -> None:
    at = Place()
    replica = at.replica(life=100)
    head = replica.itself("micro", "store")
    at.callers.identify(head)
    at.clock.now += 106
    with pytest.raises(Unauthorized):
        at.callers.identify(head)


def test_a_process_needs_its_key() -> None:
    at = Place()
    token = at.replica().itself("micro", "store")["micro-token"]
    with pytest.raises(Unauthorized, match="by its key"):
        at.callers.identify({"authorization": f"Bearer {token}"})
    with pytest.raises(Unauthorized, match="not signed"):
        at.callers.identify({**at.door.itself("micro", "store"), "micro-token": token})


@pytest.mark.parametrize("claims", [
    {"exp": 2.0**40}, {"iat": 2.0**40}, {"exp": "soon"}, {"sub": 7}, {"kind": "king"},
    {"namespace": None, "kind": None}, {"exp": None},
])  # fmt: skip
def test_a_pass_must_be_whole(claims: dict[str, object]) -> None:
    at = Place()
    head = at.door.to("micro", "store", at.account())["authorization"]
    good = jwt.decode(head[5:], options={"verify_signature": False})
    made = {name: value for name, value in (good | claims).items() if value is not None}
    token = jwt.encode(made, KEY.key, algorithm="EdDSA", headers={"typ": "pass+jwt"})
    with pytest.raises(Unauthorized):
        at.callers.identify({"authorization": f"Pass {token}"})


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "a" * 9000, "..", "é.é.é"])
def test_what_is_no_pass(text: str) -> None:
    with pytest.raises(Unauthorized):
        Place().callers.identify({"authorization": f"Pass {text}"})


def test_the_namespace_is_that_of_who_calls_or_the_one_he_may_name() -> None:
    at = Place()
    boss = at.account("boss", "acme", "admin")
    admitted = at.callers.admit(at.door.to("micro", "store", boss), STORE)
    assert admitted.namespace == "acme"
    for space in ("other", "micro", "ACME"):
        with pytest.raises(Forbidden):
            at.callers.admit(
                {**at.door.to("micro", "store", boss), "micro-namespace": space}, STORE
            )
    with pytest.raises(BadRequest):
        at.callers.admit(
            {**at.door.to("micro", "store", boss), "micro-namespace": "../acme"}, STORE
        )
    rule = Rule(id="open", scope="+", resource=STORE, priority=600)
    at.guard.apply(Update(revision=2, rules=(("other", rule),)))
    head = {**at.door.to("micro", "store", boss), "micro-namespace": "other"}
    assert at.callers.admit(head, STORE).namespace == "other"
    with pytest.raises(Forbidden, match="every namespace"):
        at.callers.check(boss, STORE, "*")
    at.callers.check(at.door.own, STORE, "*")


def test_a_service_of_a_tenant_is_of_one_namespace() -> None:
    at = Place("shop", "acme", shared=False)
    resource = Resource(name="shop", endpoint="Shop.Buy")
    head = {**at.door.to("acme", "shop", at.account()), "micro-namespace": "other"}
    assert at.callers.admit(head, resource).namespace == "acme"
    with pytest.raises(Forbidden, match="it is of acme"):
        at.callers.check(at.account(), resource, "other")
    with pytest.raises(Forbidden):
        at.callers.admit(at.door.to("acme", "shop", at.account(namespace="other")), resource)


def test_before_anything_is_known_only_the_platform_is_let_in() -> None:
    at = Place()
    fresh = Guard(clock=at.clock, platform=KEY.public)
    callers = Callers(fresh, service="store", platform=KEY.public, shared=True, clock=at.clock)
    assert callers.admit(at.door.itself("micro", "store"), STORE).platform
    for head in ({}, at.door.to("micro", "store", at.account()),
                 {"authorization": "Bearer a.b.c"}):  # fmt: skip
        with pytest.raises(Unavailable):
            callers.admit(head, STORE)


def test_keys_of_the_guard_change_and_the_platforms_stays() -> None:
    at = Place()
    at.guard.apply(Update(revision=2, keys=(Key(id="k", x=PrivateKey().public, state="active"),)))
    at.callers.identify(at.replica().itself("micro", "store"))


@pytest.mark.parametrize("text", ["x", "a" * 43 + "!", "YQ"])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        PrivateKey(text)
    assert PrivateKey(KEY.text).public == KEY.public
    assert KEY.text not in repr(KEY)


def test_what_is_started_without_the_key_asks_nobody_only_where_that_is_meant() -> None:
    asked = load({}, {"key": KEY.text})
    found = key_of(asked)
    assert found is not None
    assert found.public == KEY.public
    with pytest.raises(PreconditionFailed, match="no platform key"):
        key_of(replace(asked, key=""))
    assert key_of(replace(asked, auth=replace(asked.auth, mode="off"))) is None
