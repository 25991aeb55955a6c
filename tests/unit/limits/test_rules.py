"""Rules as they lie in config: what is read, what is refused and by which words."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_ray.config import checks
from micro_ray.errors import BadRequest, MicroError, TooLarge
from micro_ray.limits import MAX_RULES, EventQuota, Kind, Limit, Quota, Rule
from micro_ray.limits.rules import Rules, check_place, event_quota_of, parse, path_of, quota_of

DOCUMENT = {
    "namespace": {"rate": 1000, "burst": 50},
    "account": {"rate": 10},
    "accounts": {"ada": {"rate": 0.5, "concurrency": 2}, "bob_40example": {"org": {"rate": 3}}},
    "services": {"store": {"concurrency": 64}, "blocked": {}},
    "routes": {"hello": {"Hello": {"Call": {"rate": 5}, "rate": {"Odd": {"rate": 6}}}}},
}


def test_a_document_is_read() -> None:
    assert parse(DOCUMENT) == (
        Rule(kind=Kind.NAMESPACE, limit=Limit(rate=1000.0, burst=50)),
        Rule(kind=Kind.ACCOUNT, limit=Limit(rate=10.0)),
        Rule(kind=Kind.ACCOUNT, name="ada", limit=Limit(rate=0.5, concurrency=2)),
        Rule(kind=Kind.ACCOUNT, name="bob@example.org", limit=Limit(rate=3.0)),
        Rule(kind=Kind.SERVICE, name="store", limit=Limit(concurrency=64)),
        Rule(kind=Kind.ROUTE, name="hello.Hello.Call", limit=Limit(rate=5.0)),
        Rule(kind=Kind.ROUTE, name="hello.Hello.rate.Odd", limit=Limit(rate=6.0)),
    )
    assert parse(None) == parse({}) == ()


@pytest.mark.parametrize(
    ("account", "service", "endpoint", "kinds"),
    [
        ("", "other", "Other.Call", ["namespace "]),
        ("ada", "other", "Other.Call", ["namespace ", "account ada"]),
        ("eve", "STORE", "Store.Read", ["namespace ", "account eve", "service store"]),
        ("", "Hello", "hello.call", ["namespace ", "route hello.Hello.Call"]),
    ],
)
def test_which_rules_a_call_must_keep(
    account: str, service: str, endpoint: str, kinds: list[str]
) -> None:
    found = Rules(parse(DOCUMENT)).of(account, service, endpoint)
    assert [f"{rule.kind} {rule.name}" for rule in found] == kinds


def test_a_backend_has_a_rate_and_a_quota() -> None:
    document = {
        "store": {"rate": 5, "burst": 7, "bytes": 10},
        "events": {"topics": 3, "bytes": 0},
        "broker": {"rate": 2},
    }
    assert parse(document) == (
        Rule(kind=Kind.STORE, limit=Limit(rate=5.0, burst=7)),
        Rule(kind=Kind.BROKER, limit=Limit(rate=2.0)),
    )
    assert quota_of(document) == Quota(bytes=10)
    assert event_quota_of(document) == EventQuota(topics=3)
    assert quota_of({"store": {"rate": 5, "bytes": 0}}) is event_quota_of({}) is None
    found = Rules(parse(document)).of("ada", "store", "Store.Read")
    assert [rule.kind for rule in found] == [Kind.STORE]
    assert path_of(Kind.STORE, "") == "limits.store"


def test_each_account_has_a_limit_of_its_own() -> None:
    rules = Rules(parse(DOCUMENT))
    assert rules.of("eve", "x", "X.Y")[1] == Rule(
        kind=Kind.ACCOUNT, name="eve", limit=Limit(rate=10.0)
    )
    assert len(rules.of("", "x", "X.Y")) == 1, "nobody is no account"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "limits is '[]', not an object"),
        ({"namespaces": {}}, "limits.namespaces is none of namespace, account"),
        ({"namespace": {"rps": 5}}, "limits.namespace.rps is none of rate, burst, concurrency"),
        ({"namespace": 5}, "limits.namespace is '5', not an object"),
        ({"namespace": {"rate": "5"}}, "limits.namespace.rate is '5', not a number from 0.001"),
        ({"namespace": {"rate": -1}}, "limits.namespace.rate is '-1'"),
        ({"namespace": {"rate": True}}, "limits.namespace.rate is 'True'"),
        ({"namespace": {"rate": float("nan")}}, "limits.namespace.rate is 'nan'"),
        ({"namespace": {"burst": 5}}, "limits.namespace.burst goes with a rate"),
        ({"namespace": {"rate": 1, "burst": 1.5}}, "limits.namespace.burst is '1.5'"),
        ({"store": {"bytes": -5}}, "limits.store.bytes is '-5', not a whole number"),
        ({"store": {"size": 5}}, "limits.store.size is none of bytes, records, rate, burst"),
        ({"store": {"concurrency": 5}}, "limits.store.concurrency is none of bytes"),
        ({"store": {"burst": 5}}, "limits.store.burst goes with a rate"),
        ({"store": 5}, "limits.store is '5', not an object"),
        ({"events": {"records": 5}}, "limits.events.records is none of bytes, events, topics"),
        ({"events": {"topics": 2.5}}, "limits.events.topics is '2.5', not a whole number"),
        ({"broker": {"bytes": 5}}, "limits.broker.bytes is none of rate, burst"),
        ({"services": {"rate": 5}}, "limits.services.rate belongs to one service"),
        ({"services": {"store": {"rate": 1, "deep": 4}}}, "limits.services.store.deep is '4'"),
        ({"routes": {"store": {"rate": 1}}}, "route 'store' is not like service.Handler.Method"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(document: Any, words: str) -> None:
    with pytest.raises(BadRequest) as raised:
        parse(document)
    assert words in raised.value.detail


def test_so_many_rules_and_no_more() -> None:
    names = {f"s{i}": {"rate": 1} for i in range(MAX_RULES)}
    assert len(parse({"services": names})) == MAX_RULES
    with pytest.raises(TooLarge, match=str(MAX_RULES)):
        parse({"services": {**names, "more": {"rate": 1}}})


@given(st.text(max_size=40))
def test_any_name_has_a_path_and_is_found_there(name: str) -> None:
    try:
        check_place("account", name)
    except BadRequest:
        return
    if not name:
        return
    path = path_of(Kind.ACCOUNT, name)
    try:
        checks.path(path)
    except TooLarge:
        return
    tree: Any = {"rate": 7}
    for part in reversed(path.split(".")[1:]):
        tree = {part: tree}
    assert [rule.name for rule in parse(tree)] == [name]


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
        lambda below: st.dictionaries(
            st.sampled_from(
                ["rate", "burst", "concurrency", "namespace", "accounts", "a", "_4", "store",
                 "events", "broker", "bytes"]
            ),
            below,
            max_size=4,
        ),
        max_leaves=8,
    )
)  # fmt: skip
def test_no_document_does_more_than_be_refused(document: Any) -> None:
    with contextlib.suppress(MicroError):
        parse(document)
