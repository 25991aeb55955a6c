"""What every auth does: logging in, refreshing, revoking, keys; and what it tells guards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from micro_ray.auth import Auth, Identity, Kind, Resource, Rule, Update
from micro_ray.auth.guard import Guard
from micro_ray.errors import BadRequest, Forbidden, TooManyRequests, Unauthorized, Unavailable
from tests.fixtures.auths import BOSS, ROOT, SETTINGS, identity
from tests.fixtures.stores import Clock
from tests.fixtures.wait import PROMPT, eventually

HELLO = Resource(name="greeter", endpoint="Greeter.Hello")


async def test_logging_in(auth: Auth, clock: Clock) -> None:
    made = await auth.generate("jane", name="j@acme.org", scopes=["a"], namespace="acme", by=ROOT)
    for id in ("jane", "j@acme.org"):
        tokens = await auth.token(id, made.secret, namespace="acme")
        found = await auth.inspect(tokens.access)
        assert (found.id, found.kind, found.namespace, found.scopes) == (
            "jane", Kind.USER, "acme", ("a",),
        )  # fmt: skip
        assert tokens.expires == found.expires
        assert 99 <= found.expires - clock() <= 101
    clock.now += 110
    with pytest.raises(Unauthorized, match="expired"):
        await auth.inspect(tokens.access)


async def test_what_is_wrong_is_not_told_apart(auth: Auth) -> None:
    await auth.generate("jane", secret="her secret", by=ROOT)
    await auth.generate("off", secret="his secret", by=ROOT)
    await auth.enable("off", False, by=ROOT)
    said = set()
    for id, secret, space in (
        ("jane", "wrong", "micro"), ("nobody", "her secret", "micro"),
        ("jane", "her secret", "acme"), ("off", "his secret", "micro"),
    ):  # fmt: skip
        with pytest.raises(Unauthorized) as caught:
            await auth.token(id, secret, namespace=space)
        said.add(caught.value.detail)
    assert len(said) == 1
    for secret in ("", "x" * 1025):
        with pytest.raises(BadRequest):
            await auth.token("jane", secret)


async def test_failures_make_one_wait(auth: Auth, clock: Clock) -> None:
    await auth.generate("jane", secret="her secret", by=ROOT)
    await auth.generate("bob", secret="his secret", by=ROOT)
    for _ in range(SETTINGS.attempts - 1):
        with pytest.raises(Unauthorized):
            await auth.token("jane", "wrong")
    await auth.token("jane", "her secret")  # which forgives
    waits = []
    for _ in range(SETTINGS.attempts + 3):
        with pytest.raises((Unauthorized, TooManyRequests)):
            await auth.token("jane", "wrong")
        try:
            await auth.token("jane", "wrong")
        except TooManyRequests as error:
            waits.append(error.retry_after or 0)
            clock.now += waits[-1] + 0.1
        except Unauthorized:
            pass
    assert waits == sorted(waits)
    assert waits[-1] > 3 * waits[0]
    await auth.token("bob", "his secret")


async def test_a_session_is_not_of_who_has_the_same_id_later(auth: Auth, clock: Clock) -> None:
    made = await auth.generate("jane", namespace="acme", by=ROOT)
    tokens = await auth.token("jane", made.secret, namespace="acme")
    await auth.delete("jane", namespace="acme", by=ROOT)
    clock.now += 10
    await auth.generate("jane", kind=Kind.ADMIN, scopes=["admin"], namespace="acme", by=ROOT)
    with pytest.raises(Unauthorized, match="ended"):
        await auth.refresh(tokens.refresh)


async def test_attempts_by_id_and_name_are_one_accounts(auth: Auth) -> None:
    await auth.generate("jane", name="j@acme.org", secret="her secret", by=ROOT)
    for number in range(SETTINGS.attempts):
        with pytest.raises(Unauthorized):
            await auth.token(("jane", "j@acme.org")[number % 2], "wrong")
    for id in ("jane", "j@acme.org"):
        with pytest.raises(TooManyRequests):
            await auth.token(id, "her secret")


async def test_guesses_at_once_are_counted(auth: Auth) -> None:
    await auth.generate("jane", secret="her secret", by=ROOT)
    tries = [auth.token("jane", f"guess {i}") for i in range(12)]
    done = await asyncio.gather(*tries, return_exceptions=True)
    looked = [one for one in done if isinstance(one, Unauthorized)]
    assert len(looked) <= SETTINGS.attempts
    assert all(isinstance(one, Unauthorized | TooManyRequests) for one in done)


async def test_an_address_of_ipv6_is_its_network(auth: Auth) -> None:
    """Whoever has one has as many as he wants."""
    most = 10 * SETTINGS.attempts
    for number in range(most):
        with pytest.raises(Unauthorized):
            await auth.token(f"n{number}", "wrong", source=f"2001:db8:1:2::{number:x}")
    with pytest.raises(TooManyRequests, match="address"):
        await auth.token("another", "wrong", source="2001:db8:1:2:ffff::1")
    for other in ("2001:db8:1:3::1", "::ffff:10.0.0.1", "10.0.0.1", "no address"):
        with pytest.raises(Unauthorized):
            await auth.token("another-one", "wrong", source=other)
        await auth.generate("another-one", secret="right one", by=ROOT)
        await auth.token("another-one", "right one", source=other)
        await auth.delete("another-one", by=ROOT)


async def test_an_address_that_tries_many_waits(auth: Auth) -> None:
    async def guess(i: int) -> None:
        await auth.token(f"user{i}", "a guess", source="10.1.1.1")

    last: BaseException | None = None
    for i in range(SETTINGS.attempts * 10 + 1):
        try:
            await guess(i)
        except (Unauthorized, TooManyRequests) as error:
            last = error
    assert isinstance(last, TooManyRequests)
    assert "address" in last.detail
    with pytest.raises(Unauthorized):
        await auth.token("user0", "a guess", source="10.1.1.2")


# -- refreshing ------------------------------------------------------------------------------------


async def test_a_refresh_token_is_good_once(auth: Auth) -> None:
    made = await auth.generate("jane", by=ROOT)
    first = await auth.token("jane", made.secret)
    other = await auth.token("jane", made.secret)
    second = await auth.refresh(first.refresh)
    assert (await auth.inspect(second.access)).id == "jane"
    third = await auth.refresh(second.refresh)
    with pytest.raises(Unauthorized, match="used before"):
        await auth.refresh(first.refresh)
    for refused in (third.refresh, second.refresh, first.refresh):  # the whole session has ended
        with pytest.raises(Unauthorized):
            await auth.refresh(refused)
    await auth.refresh(other.refresh)


async def test_two_who_use_one_at_once(auth: Auth) -> None:
    made = await auth.generate("jane", by=ROOT)
    first = await auth.token("jane", made.secret)
    done = await asyncio.gather(
        *(auth.refresh(first.refresh) for _ in range(5)), return_exceptions=True
    )
    won = [one for one in done if not isinstance(one, BaseException)]
    assert len(won) <= 1
    assert all(isinstance(one, Unauthorized) for one in done if one not in won)
    for one in won:
        with pytest.raises(Unauthorized):
            await auth.refresh(one.refresh)


async def test_a_session_that_is_not_used_ends(auth: Auth, clock: Clock) -> None:
    made = await auth.generate("jane", by=ROOT)
    tokens = await auth.token("jane", made.secret)
    clock.now += SETTINGS.refresh_ttl - 100
    tokens = await auth.refresh(tokens.refresh)
    clock.now += SETTINGS.refresh_ttl - 100
    tokens = await auth.refresh(tokens.refresh)
    clock.now += SETTINGS.refresh_ttl + 1
    with pytest.raises(Unauthorized):
        await auth.refresh(tokens.refresh)


async def test_a_refresh_says_what_the_account_has_now(auth: Auth) -> None:
    """And an access token is none."""
    made = await auth.generate("jane", by=ROOT)
    tokens = await auth.token("jane", made.secret)
    for text in (tokens.access, "", "mr_", tokens.refresh + "x", "x" * 9000, "mr_" + "0" * 76):
        with pytest.raises(Unauthorized):
            await auth.refresh(text)
    with pytest.raises(Unauthorized):
        await auth.inspect(tokens.refresh)
    await auth.refresh(tokens.refresh)


# -- processes, and revoking -----------------------------------------------------------------------


async def test_identities_of_processes(auth: Auth, clock: Clock) -> None:
    tokens = await auth.issue("greeter-1", namespace="acme", by=ROOT)
    found = await auth.inspect(tokens.access)
    assert (found.id, found.kind, found.namespace) == ("greeter-1", Kind.SERVICE, "acme")
    assert found.scopes == ("service",)
    assert tokens.refresh == ""
    clock.now += SETTINGS.process_ttl + 10
    with pytest.raises(Unauthorized):
        await auth.inspect(tokens.access)
    for by in (BOSS, identity("u"), found):
        with pytest.raises(Forbidden):
            await auth.issue("greeter-2", namespace="acme", by=by)


@pytest.mark.parametrize("how", ["access", "refresh", "id", "account"])
async def test_revoking(auth: Auth, how: str) -> None:
    made = await auth.generate("jane", by=ROOT)
    tokens = await auth.token("jane", made.secret)
    jane = await auth.inspect(tokens.access)
    await auth.generate("eve", by=ROOT)
    eve = identity("eve")
    given = {
        "access": {"token": tokens.access},
        "refresh": {"token": tokens.refresh},
        "id": {"token": jane.token},
        "account": {"account": "jane"},
    }[how]
    with pytest.raises(Forbidden):
        await auth.revoke(by=eve, **given)
    await auth.revoke(by=ROOT if how == "id" else jane, **given)
    if how != "refresh":
        with pytest.raises(Unauthorized, match="revoked"):
            await auth.inspect(tokens.access)
    if how in ("refresh", "account"):
        with pytest.raises(Unauthorized):
            await auth.refresh(tokens.refresh)
    again = await auth.token("jane", made.secret)
    await auth.inspect(again.access)


async def test_revoking_asks_for_one_thing(auth: Auth) -> None:
    for given in ({}, {"token": "a", "account": "b"}):
        with pytest.raises(BadRequest):
            await auth.revoke(by=ROOT, **given)
    with pytest.raises(Unauthorized):
        await auth.revoke(token="nonsense", by=ROOT)


# -- keys ------------------------------------------------------------------------------------------


async def test_rotating_breaks_nothing(auth: Auth, clock: Clock) -> None:
    made = await auth.generate("jane", by=ROOT)
    before = await auth.keys()
    assert [key.state for key in before] == ["active", "next"]
    old = await auth.token("jane", made.secret)
    after = await auth.rotate(by=ROOT)
    assert [key.state for key in after] == ["retired", "active", "next"]
    assert [key.id for key in after[:2]] == [key.id for key in before], "it was known before"
    new = await auth.token("jane", made.secret)
    for tokens in (old, new):
        assert (await auth.inspect(tokens.access)).id == "jane"
    clock.now += SETTINGS.access_ttl + 60
    assert [key.state for key in await auth.keys()] == ["active", "next"]
    with pytest.raises(Forbidden):
        await auth.rotate(by=BOSS)


async def test_a_key_over_its_time_is_replaced(auth: Auth, clock: Clock) -> None:
    made = await auth.generate("jane", by=ROOT)
    before = await auth.keys()
    clock.now += SETTINGS.key_ttl + 1
    await asyncio.gather(*(auth.token("jane", made.secret) for _ in range(3)))
    after = [key for key in await auth.keys() if key.state == "active"]
    assert [key.id for key in after] == [before[1].id]


async def test_keys_are_published_as_jwks_have_them(auth: Auth) -> None:
    for key in await auth.keys():
        assert key.jwk() == {
            "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": key.id, "x": key.x,
        }  # fmt: skip
        assert len(key.x) == 43


# -- what guards are told --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def guarded(auth: Auth, clock: Callable[[], float]) -> AsyncIterator[Guard]:
    guard = Guard(clock=clock)

    async def follow() -> None:
        async with contextlib.aclosing(auth.follow(by=ROOT)) as updates:  # type: ignore[type-var]
            async for update in updates:
                guard.apply(update)

    task = asyncio.create_task(follow())
    try:
        await eventually(lambda: guard.ready, within=PROMPT)
        yield guard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_guard_decides_by_what_is(auth: Auth, clock: Clock) -> None:
    made = await auth.generate("jane", namespace="acme", by=ROOT)
    tokens = await auth.token("jane", made.secret, namespace="acme")
    await auth.create_rule(Rule(id="old", scope="*", resource=HELLO), namespace="acme", by=BOSS)
    async with guarded(auth, clock) as guard, guarded(auth, clock) as other:
        jane = guard.verify(tokens.access)
        assert jane == await auth.inspect(tokens.access)
        assert guard.decide(jane, HELLO, "acme").allowed
        assert not guard.decide(jane, HELLO, "micro").allowed
        assert not guard.decide(None, HELLO, "acme").allowed
        shut = Rule(id="shut", scope="*", access="denied", resource=HELLO, priority=9)  # type: ignore[arg-type]
        await auth.create_rule(shut, namespace="acme", by=BOSS)
        for each in (guard, other):
            await eventually(
                lambda: not each.decide(jane, HELLO, "acme").allowed,  # noqa: B023 - awaited here
                within=PROMPT,
            )
        with pytest.raises(Forbidden, match="jane"):
            guard.check(jane, HELLO, "acme")
        await auth.delete_rule("shut", namespace="acme", by=BOSS)
        await eventually(lambda: guard.decide(jane, HELLO, "acme").allowed, within=PROMPT)
        await auth.rotate(by=ROOT)
        new = await auth.token("jane", made.secret, namespace="acme")
        await eventually(lambda: guard.verify(new.access), within=PROMPT)
        assert guard.verify(tokens.access).id == "jane"
        await auth.revoke(account="jane", namespace="acme", by=BOSS)

        def refuses() -> bool:
            for text in (tokens.access, new.access):
                try:
                    guard.verify(text)
                except Unauthorized:
                    continue
                return False
            return True

        await eventually(refuses, within=PROMPT)
        last = await auth.token("jane", made.secret, namespace="acme")
        await eventually(lambda: guard.verify(last.access), within=PROMPT)


async def test_everything_comes_first_and_nothing_twice(auth: Auth) -> None:
    for i in range(20):
        await auth.create_rule(Rule(id=f"r{i}", resource=HELLO), by=ROOT)
    async with contextlib.aclosing(auth.follow(by=ROOT)) as updates:  # type: ignore[type-var]
        first = await anext(updates)
        assert first.full
        assert {rule.id for _, rule in first.rules} == {f"r{i}" for i in range(20)}
        assert first.keys is not None
        seen: list[Update] = []
        for i in range(5):
            await auth.create_rule(Rule(id=f"new{i}", resource=HELLO), by=ROOT)
        await auth.delete_rule("r0", by=ROOT)
        while len(seen) < 6:
            seen.append(await asyncio.wait_for(anext(updates), PROMPT))
    assert [[rule.id for _, rule in u.rules] for u in seen[:5]] == [[f"new{i}"] for i in range(5)]
    assert seen[5].gone == (("micro", "r0"),)
    revisions = [first.revision, *(u.revision for u in seen)]
    assert revisions == sorted(set(revisions))


async def test_a_service_follows_what_is_of_its_namespace(auth: Auth) -> None:
    """Its rules, all keys, all revocations; the platform's parts may ask for any namespace."""
    process = identity("shop", kind=Kind.SERVICE, namespace="acme", scopes=("service",))
    for space in ("acme", "other"):
        await auth.create_rule(Rule(id=f"of-{space}", resource=HELLO), namespace=space, by=ROOT)
    for number, (asked, by) in enumerate([(None, process), ("acme", process), ("acme", ROOT)]):
        async with contextlib.aclosing(auth.follow(asked, by=by)) as updates:  # type: ignore[type-var]
            first = await anext(updates)
            assert first.full
            assert first.keys
            assert {space for space, _ in first.rules} == {"acme"}
            await auth.create_rule(
                Rule(id=f"x{number}", resource=HELLO), namespace="other", by=ROOT
            )
            await auth.generate(f"j{number}", namespace="other", by=ROOT)
            await auth.revoke(account=f"j{number}", namespace="other", by=ROOT)
            await auth.delete_rule(f"x{number}", namespace="other", by=ROOT)
            await auth.create_rule(Rule(id=f"y{number}", resource=HELLO), namespace="acme", by=ROOT)
            told: list[Update] = []
            while not any(rule.id == f"y{number}" for update in told for _, rule in update.rules):
                told.append(await asyncio.wait_for(anext(updates), PROMPT))
        assert [place for update in told for place in update.gone] == []
        assert f"other/j{number}" in {one.account for update in told for one in update.revoked}
        assert {space for update in told for space, _ in update.rules} == {"acme"}
    async with contextlib.aclosing(auth.follow("micro", by=ROOT)) as updates:  # type: ignore[type-var]
        spaces = {space for space, _ in (await anext(updates)).rules}
        assert spaces == {"acme", "other"}


@pytest.mark.parametrize(
    ("by", "asked"),
    [
        (identity("shop", kind=Kind.SERVICE, namespace="acme", scopes=("service",)), "other"),
        (identity("shop", kind=Kind.SERVICE, namespace="acme", scopes=("service",)), "micro"),
        (identity("shop", kind=Kind.SERVICE, namespace="acme"), None),
        (identity("user", namespace="acme", scopes=("service",)), "acme"),
        (BOSS, "other"),
        (None, None),
    ],
)
async def test_who_may_not_follow(auth: Auth, by: Identity | None, asked: str | None) -> None:
    with pytest.raises(Unauthorized if by is None else Forbidden):
        await anext(auth.follow(asked, by=by))


async def test_closing_ends_followers(auth: Auth) -> None:
    async def follow() -> None:
        async for _ in auth.follow(by=ROOT):
            pass

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.05)
    await auth.close()
    with pytest.raises(Unavailable, match="closed"):
        await asyncio.wait_for(task, PROMPT)
    with pytest.raises(Unavailable, match="closed"):
        await auth.keys()
    await auth.close()


# -- what was done ---------------------------------------------------------------------------------


async def test_what_is_done_is_entered_with_it(auth: Auth, clock: Clock) -> None:
    made = await auth.generate("jane", namespace="acme", by=BOSS)
    clock.now += 1
    await auth.token("jane", made.secret, namespace="acme", source="10.0.0.1")
    clock.now += 1
    with pytest.raises(Unauthorized):
        await auth.token("jane", "wrong", namespace="acme")
    clock.now += 1
    with pytest.raises(Unauthorized):
        await auth.token("jane", "wrong", namespace="nowhere")  # anybody can: it is only logged
    clock.now += 1
    await auth.create_rule(Rule(id="r"), namespace="acme", by=BOSS)
    clock.now += 1
    await auth.delete("jane", namespace="acme", by=BOSS)
    found = [entry for entry in await auth.audits(by=ROOT) if entry.action != "keys.rotate"]
    assert [(e.action, e.by, e.subject, e.allowed) for e in found] == [
        ("account.create", "acme/boss", "jane", True),
        ("login", "acme/jane", "jane", True),
        ("login", "", "jane", False),
        ("rule.create", "acme/boss", "r", True),
        ("account.delete", "acme/boss", "jane", True),
    ]
    assert made.secret not in repr(found)
    await auth.settle(*(entry.id for entry in await auth.audits(by=ROOT)), by=ROOT)
    assert await auth.audits(by=ROOT) == []
    await auth.note(*found, by=ROOT)
    assert len(await auth.audits(by=ROOT)) == 5
    for by in (BOSS, identity("u"), None):
        for call in (auth.audits(by=by), auth.note(*found, by=by), auth.settle("a", by=by)):
            with pytest.raises((Forbidden, Unauthorized)):
                await call
