"""Compiled rules decide as the algorithm of Micro written out does."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micro_ray.auth import Access, Identity, Kind, Resource, Rule
from micro_ray.auth.rules import DEFAULTS, Rules, matches, order


def about(pattern: str, text: str) -> bool:
    """Whether a pattern matches, by a regular expression made from it."""
    mark = "/" if "/" in pattern else "."
    if pattern == "*":
        return True
    one = f"[^{re.escape(mark)}]*"
    parts = [one if part == "*" else re.escape(part) for part in pattern.split(mark)]
    if pattern.endswith(f"{mark}*"):
        parts[-1] = ".*"
    return re.fullmatch(re.escape(mark).join(parts), text, re.IGNORECASE | re.DOTALL) is not None


def naive(
    namespace: str, rules: list[Rule], identity: Identity | None, resource: Resource
) -> tuple[bool, str | None]:
    """One rule after the other."""
    for rule in rules:
        parts = zip(
            (rule.resource.type, rule.resource.name, rule.resource.endpoint),
            (resource.type, resource.name, resource.endpoint),
            strict=True,
        )
        if not all(about(pattern, text) for pattern, text in parts):
            continue
        allowed = rule.access is Access.GRANTED
        if not rule.scope:
            return allowed, rule.id
        if identity is None:
            continue
        if rule.scope != "+" and identity.namespace != namespace:
            return False, rule.id
        held = {scope.lower() for scope in identity.scopes}
        held |= {"admin"} if identity.kind is Kind.ADMIN else set()
        if rule.scope in ("*", "+") or rule.scope.lower() in held:
            return allowed, rule.id
    return False, None


WORDS = ["a", "B", "a.b", "A.B", "a.b.c", "/a/b", "*", "a.*", "*.b", "/a/*"]
TEXTS = [word for word in WORDS if "*" not in word]
RESOURCES = st.builds(
    Resource, type=st.sampled_from(["service", "topic"]), name=st.sampled_from(TEXTS),
    endpoint=st.sampled_from(TEXTS),
)  # fmt: skip
RULES = st.builds(
    Rule,
    id=st.sampled_from([*"abcdefgh", "default", "default-login"]),
    scope=st.sampled_from(["", "*", "+", "ops", "OPS", "admin"]),
    resource=st.builds(
        Resource,
        type=st.sampled_from(["service", "*", "Topic"]),
        name=st.sampled_from(WORDS),
        endpoint=st.sampled_from(WORDS),
    ),
    access=st.sampled_from(Access),
    priority=st.integers(-2, 600),
)
WHO = st.none() | st.builds(
    Identity,
    id=st.just("who"),
    namespace=st.sampled_from(["acme", "other"]),
    scopes=st.lists(st.sampled_from(["ops", "Admin", "x"]), max_size=2).map(tuple),
    kind=st.sampled_from(Kind),
)


@settings(max_examples=400, deadline=None)
@given(
    first=st.lists(RULES, max_size=8),
    then=st.lists(RULES | st.sampled_from([*"abcd", "default"]), max_size=8),
    asked=st.lists(st.tuples(WHO, RESOURCES), min_size=1, max_size=6),
)
def test_they_decide_as_the_algorithm_does(
    first: list[Rule],
    then: list[Rule | str],
    asked: list[tuple[Identity | None, Resource]],
) -> None:
    """Also while they change, and when asked twice."""
    kept = {rule.id: rule for rule in first}
    rules = Rules("acme", kept.values())
    for change in [None, *then]:
        if isinstance(change, Rule):
            kept[change.id] = change
            rules.put(change)
        elif change is not None:
            kept.pop(change, None)
            rules.remove(change)
        assert rules.ordered == order(kept.values())
        for identity, resource in [*asked, *asked]:
            decision = rules.decide(identity, resource)
            found = decision.allowed, decision.rule and decision.rule.id
            assert found == naive("acme", order(kept.values()), identity, resource)


@pytest.mark.parametrize(
    ("pattern", "text", "matched"),
    [
        ("*", "anything/at.all", True),
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", True),
        ("a.*", "a", False),
        ("a.*", "ab.c", False),
        ("*.b", "a.b", True),
        ("*.b", "a.c", False),
        ("*.b", "a.a.b", False),
        ("/users/*", "/users/7", True),
        ("/users/*", "/users/7/pets", True),
        ("/users/*", "/users", False),
        ("/users/*/pets", "/users/7/pets", True),
        ("/users/*/pets", "/users/7/cats", False),
        ("/public/*", "/public.private/x", False),
        ("/public/*", "/public/x.y", True),
        ("greeter.*", "greeter/x", False),
        ("greeter.*", "greeter.x/y", True),
    ],
)
def test_patterns(pattern: str, text: str, matched: bool) -> None:
    assert matches(pattern, text) == about(pattern, text) == matched


def test_no_rule_no_access() -> None:
    """And a public rule of equal priority comes before or after by its id, as Micro's do."""
    rules = Rules("acme")
    for rule in DEFAULTS:
        rules.put(Rule(id=rule.id, scope="nobody-has-this"))
    hello = Resource(name="a", endpoint="A.B")
    user = Identity(id="u", namespace="acme")
    assert rules.decide(user, hello).rule is None
    assert "no rule" in rules.decide(None, hello).why
    rules.put(Rule(id="b", scope="", access=Access.DENIED))
    rules.put(Rule(id="a", scope=""))
    assert rules.decide(None, hello).allowed
    rules.put(Rule(id="b", scope="", access=Access.DENIED, priority=1))
    assert not rules.decide(user, hello).allowed


def test_another_namespace_needs_a_rule_that_says_so() -> None:
    rules = Rules("acme")
    hello = Resource(name="a", endpoint="A.B")
    stranger = Identity(id="s", namespace="other", scopes=("admin",))
    decision = rules.decide(stranger, hello)
    assert not decision.allowed
    assert "none of acme" in decision.why
    rules.put(Rule(id="guests", scope="+", resource=Resource(name="a"), priority=900))
    assert rules.decide(stranger, hello).allowed
    assert not rules.decide(stranger, Resource(name="b", endpoint="A.B")).allowed
