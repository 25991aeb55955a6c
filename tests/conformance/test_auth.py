"""What every auth does: accounts and rules, and who may do what with them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from micro_ray.auth import Access, Account, Auth, Kind, Resource, Rule
from micro_ray.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    MicroError,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthorized,
)
from tests.fixtures.auths import BOSS, ROOT, identity

RULE = Rule(id="r", scope="*", resource=Resource(name="a", endpoint="A.B"))


# -- accounts --------------------------------------------------------------------------------------


async def test_an_account_comes_back_as_it_was_made(auth: Auth) -> None:
    made = await auth.generate(
        "jane", name="jane@acme.org", scopes=["a", "b:c"], metadata={"k": "ż"}, namespace="acme",
        by=BOSS,
    )  # fmt: skip
    assert made.account == Account(
        id="jane",
        name="jane@acme.org",
        namespace="acme",
        scopes=("a", "b:c"),
        metadata={"k": "ż"},
        created=made.account.created,
    )
    assert len(made.secret) >= 40, "random, when none is given"
    for id in ("jane", "jane@acme.org"):
        assert await auth.account(id, namespace="acme", by=BOSS) == made.account
    await auth.generate("bob", secret="a secret of his", namespace="acme", by=BOSS)
    assert [a.id for a in await auth.accounts(namespace="acme", by=BOSS)] == ["bob", "jane"]
    page = await auth.accounts(namespace="acme", by=BOSS, limit=1, offset=1)
    assert [a.id for a in page] == ["jane"]
    assert await auth.accounts(namespace="other", by=ROOT) == []
    assert made.secret not in repr(await auth.accounts(namespace="acme", by=BOSS))


async def test_ids_and_names_are_taken_once(auth: Auth) -> None:
    await auth.generate("jane", name="j", by=ROOT)
    for id, name in (("jane", "k"), ("k", "j"), ("j", "m"), ("k", "jane")):
        with pytest.raises(Conflict):
            await auth.generate(id, name=name, by=ROOT)
    await auth.generate("jane", name="j", namespace="acme", by=ROOT)
    tries = [auth.generate("once", by=ROOT) for _ in range(8)]
    done = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(type(one).__name__ for one in done) == ["Conflict"] * 7 + ["Created"]


async def test_an_account_that_is_deleted_is_gone(auth: Auth) -> None:
    made = await auth.generate("jane", name="j", by=ROOT)
    tokens = await auth.token("jane", made.secret)
    await auth.delete("j", by=ROOT)
    for attempt in (
        auth.account("jane", by=ROOT),
        auth.delete("jane", by=ROOT),
        auth.enable("jane", True, by=ROOT),
    ):
        with pytest.raises(NotFound):
            await attempt
    for refused in (
        auth.token("jane", made.secret),
        auth.refresh(tokens.refresh),
        auth.inspect(tokens.access),
    ):
        with pytest.raises(Unauthorized):
            await refused
    await auth.generate("jane", name="j", by=ROOT)


async def test_one_who_is_disabled_and_enabled(auth: Auth) -> None:
    made = await auth.generate("jane", by=ROOT)
    tokens = await auth.token("jane", made.secret)
    assert (await auth.enable("jane", False, by=ROOT)).enabled is False
    for refused in (
        auth.token("jane", made.secret),
        auth.refresh(tokens.refresh),
        auth.inspect(tokens.access),
    ):
        with pytest.raises(Unauthorized):
            await refused
    await auth.enable("jane", True, by=ROOT)
    again = await auth.token("jane", made.secret)
    assert (await auth.inspect(again.access)).id == "jane"
    with pytest.raises(Unauthorized):
        await auth.inspect(tokens.access)


async def test_changing_a_secret(auth: Auth) -> None:
    made = await auth.generate("jane", by=ROOT)
    jane = await auth.inspect((await auth.token("jane", made.secret)).access)
    with pytest.raises(Unauthorized, match="old secret"):
        await auth.change_secret("jane", old="not this", by=jane)
    with pytest.raises(BadRequest, match="at least 8"):
        await auth.change_secret("jane", old=made.secret, new="short", by=jane)
    new = await auth.change_secret("jane", old=made.secret, by=jane)
    with pytest.raises(Unauthorized):
        await auth.token("jane", made.secret)
    await auth.token("jane", new)
    assert await auth.change_secret("jane", new="by who administers", by=ROOT)
    await auth.token("jane", "by who administers")


# -- who may ---------------------------------------------------------------------------------------

#: Who: may he act in micro, in acme; does he administer it there.
MATRIX = [
    ("micro admin", ROOT, "all", "all"),
    ("micro admin by scope", identity("a", scopes=("admin",)), "all", "all"),
    ("micro service", identity("s", kind=Kind.SERVICE, scopes=("platform",)), "all", "all"),
    ("micro user", identity("u"), "some", "none"),
    ("acme admin", BOSS, "none", "all"),
    ("acme user", identity("u", namespace="acme"), "none", "some"),
    ("acme service", identity("s", kind=Kind.SERVICE, namespace="acme", scopes=("service",)),
     "none", "some"),
    ("micro replica", identity("s", kind=Kind.SERVICE, scopes=("service",)), "some", "none"),
    ("micro user with the scope service", identity("u", scopes=("service",)), "some", "none"),
]  # fmt: skip


@pytest.mark.parametrize(("who", "by", "micro", "acme"), MATRIX, ids=[row[0] for row in MATRIX])
async def test_who_may(auth: Auth, who: str, by: Any, micro: str, acme: str) -> None:
    for namespace, may in (("micro", micro), ("acme", acme)):
        await auth.generate("other", namespace=namespace, by=ROOT)
        some = [auth.rules(namespace=namespace, by=by)]
        every = [
            auth.accounts(namespace=namespace, by=by),
            auth.account("other", namespace=namespace, by=by),
            auth.generate("new", namespace=namespace, by=by),
            auth.create_rule(RULE, namespace=namespace, by=by),
            auth.delete_rule("r", namespace=namespace, by=by),
            auth.enable("other", False, namespace=namespace, by=by),
            auth.change_secret("other", namespace=namespace, by=by),
            auth.revoke(account="other", namespace=namespace, by=by),
            auth.delete("other", namespace=namespace, by=by),
        ]
        for call in some:
            await (call if may != "none" else _forbidden(call))
        for call in every:
            await (call if may == "all" else _forbidden(call))


async def _forbidden(call: Any) -> None:
    with pytest.raises(Forbidden):
        await call


async def test_nobody_may_do_nothing_but_log_in(auth: Auth) -> None:
    for call in (
        auth.accounts(by=None),
        auth.account("a", by=None),
        auth.generate("a", by=None),
        auth.delete("a", by=None),
        auth.enable("a", True, by=None),
        auth.change_secret("a", by=None),
        auth.revoke(account="a", by=None),
        auth.revoke(token="a", by=None),
        auth.issue("a", by=None),
        auth.create_rule(RULE, by=None),
        auth.delete_rule("r", by=None),
        auth.rules(by=None),
        auth.explain(Resource(name="a", endpoint="b"), by=None),
        auth.rotate(by=None),
    ):
        with pytest.raises(Unauthorized, match="log in"):
            await call


async def test_nobody_gives_what_he_does_not_hold(auth: Auth) -> None:
    service = identity("s", kind=Kind.SERVICE, scopes=("platform", "service", "a"))
    await auth.generate("one", scopes=["a", "service"], by=service)
    for options in ({"scopes": ["b"]}, {"scopes": ["admin"]}, {"kind": Kind.ADMIN}):
        with pytest.raises(Forbidden):
            await auth.generate("two", by=service, **options)
    await auth.generate("two", scopes=["admin"], by=ROOT)
    for call in (
        auth.change_secret("two", by=service),
        auth.enable("two", False, by=service),
        auth.delete("two", by=service),
        auth.issue("p", scopes=["admin"], by=service),
    ):
        with pytest.raises(Forbidden):
            await call
    assert (await auth.account("two", by=ROOT)).enabled


async def test_nobody_ends_himself(auth: Auth) -> None:
    made = await auth.generate("me", kind=Kind.ADMIN, by=ROOT)
    me = await auth.inspect((await auth.token("me", made.secret)).access)
    with pytest.raises(BadRequest, match="own account"):
        await auth.delete("me", by=me)
    with pytest.raises(BadRequest, match="own account"):
        await auth.enable("me", False, by=me)


@pytest.mark.parametrize("ending", ["disabled", "deleted"])
async def test_two_who_end_each_other_do_not_both_go(auth: Auth, ending: str) -> None:
    """Nobody would administer the platform any more."""
    for turn in range(5):
        pair = [f"one-{turn}", f"two-{turn}"]
        for id in pair:
            await auth.generate(id, kind=Kind.ADMIN, by=ROOT)
        for account in await auth.accounts(by=ROOT):
            if account.enabled and account.id not in pair:
                await auth.enable(account.id, False, by=ROOT)
        ends = [
            auth.delete(id, by=ROOT) if ending == "deleted" else auth.enable(id, False, by=ROOT)
            for id in pair
        ]
        done = await asyncio.gather(*ends, return_exceptions=True)
        assert any(isinstance(one, MicroError) for one in done)
        assert any(account.enabled for account in await auth.accounts(by=ROOT))


async def test_ones_own_secret_needs_the_old_one_by_any_name(auth: Auth) -> None:
    """Who had the token of who administers, for minutes, had his account by the account's name."""
    made = await auth.generate("me", name="me@acme.org", kind=Kind.ADMIN, by=ROOT)
    me = await auth.inspect((await auth.token("me", made.secret)).access)
    for id in ("me", "me@acme.org"):
        with pytest.raises(BadRequest):
            await auth.change_secret(id, new="another one", by=me)
    await auth.token("me", made.secret)


async def test_the_last_that_administers_stays(auth: Auth) -> None:
    await auth.generate("one", kind=Kind.ADMIN, by=ROOT)
    for call in (auth.delete("one", by=ROOT), auth.enable("one", False, by=ROOT)):
        with pytest.raises(BadRequest, match="last that administers"):
            await call
    await auth.generate("two", scopes=["admin"], by=ROOT)
    await auth.delete("one", by=ROOT)


async def test_the_first_is_made_once(auth: Auth) -> None:
    told = await asyncio.gather(*(auth.ensure_admin() for _ in range(6)))
    (secret,) = [one for one in told if one]
    tokens = await auth.token("admin", secret)
    admin = await auth.inspect(tokens.access)
    assert admin.admin
    assert await auth.ensure_admin() == ""
    await auth.generate("other", by=admin)


# -- rules -----------------------------------------------------------------------------------------


async def test_rules(auth: Auth) -> None:
    given = Rule(
        id="some", scope="ops", resource=Resource(name="a", endpoint="A.*"), priority=7,
        access=Access.DENIED,
    )  # fmt: skip
    await auth.create_rule(given, namespace="acme", by=BOSS)
    with pytest.raises(Conflict, match="already exists"):
        await auth.create_rule(given, namespace="acme", by=BOSS)
    user = identity("u", namespace="acme")
    found = await auth.rules(namespace="acme", by=user)
    assert given in found
    assert [rule.priority for rule in found] == sorted((r.priority for r in found), reverse=True)
    assert given not in await auth.rules(by=ROOT)
    await auth.delete_rule("some", namespace="acme", by=BOSS)
    with pytest.raises(NotFound):
        await auth.delete_rule("some", namespace="acme", by=BOSS)
    with pytest.raises(NotFound, match="default"):
        await auth.delete_rule("default", namespace="acme", by=BOSS)


async def test_explaining(auth: Auth) -> None:
    hello = Resource(name="greeter", endpoint="Greeter.Hello")
    store = Resource(name="store", endpoint="Store.Read")
    login = Resource(name="auth", endpoint="Auth.Token")
    await auth.generate("jane", namespace="acme", by=ROOT)
    await auth.generate("ops", scopes=["ops"], namespace="acme", by=ROOT)

    async def said(resource: Resource, account: str = "") -> tuple[bool, str | None]:
        decision = await auth.explain(resource, account=account, namespace="acme", by=BOSS)
        assert decision.why
        return decision.allowed, decision.rule and decision.rule.id

    assert await said(hello) == (False, None)
    assert await said(login) == (True, "default-login")
    assert await said(hello, "jane") == (True, "default")
    await auth.generate("off", namespace="acme", by=ROOT)
    await auth.enable("off", False, namespace="acme", by=ROOT)
    assert await said(hello, "off") == (False, None)
    assert await said(store, "jane") == (False, "default-closed-store")
    assert await said(store, "boss") == (True, "default-admin")
    rule = Rule(id="ops", scope="ops", resource=Resource(name="store"), priority=600)
    await auth.create_rule(rule, namespace="acme", by=BOSS)
    assert await said(store, "ops") == (True, "ops")
    assert await said(store, "jane") == (False, "default-closed-store")
    await auth.create_rule(Rule(id="default", scope="", priority=0), namespace="acme", by=BOSS)
    assert await said(hello) == (True, "default")
    own = identity("jane", namespace="acme")
    assert (await auth.explain(hello, account="jane", namespace="acme", by=own)).allowed
    with pytest.raises(Forbidden):
        await auth.explain(hello, account="ops", namespace="acme", by=own)
    with pytest.raises(NotFound):
        await said(hello, "who")


async def test_patterns_of_names_are_bounded(auth: Auth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("micro_ray.auth.stored.MAX_PATTERNS", 2)
    for number in range(2):
        await auth.create_rule(Rule(id=f"p{number}", resource=Resource(name="a.*")), by=ROOT)
    with pytest.raises(TooManyRequests, match="is a pattern"):
        await auth.create_rule(Rule(id="p2", resource=Resource(type="a.*")), by=ROOT)
    await auth.create_rule(Rule(id="p3", resource=Resource(endpoint="A.*")), by=ROOT)


# -- what is refused -------------------------------------------------------------------------------

BAD_IDS = ["", " ", "a b", "a/b", "-a", "a\n", "ä", "a" * 129, "../x", "a\0"]


@pytest.mark.parametrize("id", BAD_IDS)
async def test_ids_that_cannot_be(auth: Auth, id: str) -> None:
    for call in (
        auth.generate(id, by=ROOT),
        auth.token(id, "a secret"),
        auth.create_rule(Rule(id=id), by=ROOT),
        auth.delete_rule(id, by=ROOT),
        auth.issue(id, by=ROOT),
        auth.delete(id, by=ROOT),
    ):
        with pytest.raises(BadRequest):
            await call
    if id:
        with pytest.raises(BadRequest):
            await auth.generate("fine", name=id, by=ROOT)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"scopes": ["a b"]}, BadRequest),
        ({"scopes": [""]}, BadRequest),
        ({"scopes": ["*"]}, BadRequest),
        ({"scopes": "text"}, BadRequest),
        ({"scopes": ["s" * 129]}, BadRequest),
        ({"scopes": [f"s{i}" for i in range(65)]}, TooLarge),
        ({"secret": "1234567"}, BadRequest),
        ({"secret": "x" * 1025}, TooLarge),
        ({"secret": "1234567\0"}, BadRequest),
        ({"metadata": {str(i): "" for i in range(33)}}, TooLarge),
        ({"metadata": {"k": "v" * 4096}}, TooLarge),
        ({"namespace": "a/b"}, BadRequest),
        ({"namespace": ""}, BadRequest),
    ],
)
async def test_accounts_that_cannot_be(auth: Auth, options: Any, kind: type[MicroError]) -> None:
    with pytest.raises(kind):
        await auth.generate("jane", by=ROOT, **options)
    assert await auth.accounts(by=ROOT) == []


@pytest.mark.parametrize(
    "rule",
    [
        Rule(id="r", scope="a b"),
        Rule(id="r", scope="**"),
        Rule(id="r", resource=Resource(name="")),
        Rule(id="r", resource=Resource(name="a*")),
        Rule(id="r", resource=Resource(endpoint="A.B*")),
        Rule(id="r", resource=Resource(endpoint="a b")),
        Rule(id="r", resource=Resource(type="\n")),
        Rule(id="r", resource=Resource(name="n" * 254)),
        Rule(id="r", priority=2**31),
        Rule(id="r", priority=-(2**31)),
    ],
)
async def test_rules_that_cannot_be(auth: Auth, rule: Rule) -> None:
    with pytest.raises(BadRequest):
        await auth.create_rule(rule, by=ROOT)
