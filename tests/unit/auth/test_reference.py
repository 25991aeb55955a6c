"""Compiled rules beside a plain evaluation of them, on random ones; and tokens that are none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micro_ray.auth import Access, Identity, Kind, Resource, Rule, checks
from micro_ray.auth.rules import Rules
from micro_ray.errors import BadRequest, Unauthorized
from tests.fuzz.auth import SCOPES, SPACES, WORDS, _signed, decided

WORD = st.one_of(st.sampled_from(WORDS), st.lists(st.sampled_from(["a", "b", "*"])).map(".".join))
RESOURCE = st.builds(Resource, type=WORD, name=WORD, endpoint=WORD)
RULE = st.builds(
    Rule,
    id=st.sampled_from(["r0", "r1", "r2", "r3", "default", "default-closed-store"]),
    scope=st.sampled_from(SCOPES),
    resource=RESOURCE,
    access=st.sampled_from(Access),
    priority=st.integers(-2, 2).map(lambda n: n * 250),
)
ASKER = st.none() | st.builds(
    Identity,
    id=st.just("u"),
    kind=st.sampled_from(Kind),
    namespace=st.sampled_from(SPACES),
    scopes=st.lists(st.sampled_from(SCOPES[3:]), max_size=3).map(tuple),
)


def good(rule: Rule) -> bool:
    try:
        checks.rule_of(rule)
    except BadRequest:
        return False
    return True


@settings(deadline=None, max_examples=500)
@given(
    st.lists(RULE.filter(good), max_size=8),
    st.lists(st.tuples(ASKER, RESOURCE), min_size=1, max_size=8),
)
def test_rules_decide_as_they_are_written(
    rules: list[Rule], asked: list[tuple[Identity | None, Resource]]
) -> None:
    compiled = Rules("acme")
    there: dict[str, Rule] = {}
    for rule in rules:
        compiled.put(rule)
        there[rule.id] = rule
        for asker, resource in asked:
            said = compiled.decide(asker, resource)
            assert (said.allowed, said.rule) == decided("acme", there.values(), asker, resource)
    for id in list(there):
        compiled.remove(id)
        del there[id]
        for asker, resource in asked:
            said = compiled.decide(asker, resource)
            assert (said.allowed, said.rule) == decided("acme", there.values(), asker, resource)


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(max_size=200), st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*", fullmatch=True)))
def test_a_text_is_no_token(text: str) -> None:
    with pytest.raises(Unauthorized):
        _signed()[0].verify(text)
