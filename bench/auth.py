"""Decisions by rules, against pycasbin and cedarpy on the same rules and requests where they are
installed; and tokens, against PyJWT by itself. One process, one core, nothing waits."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.measure import Sample, interleave, quantile, table

__all__ = ["run"]

RULES, REQUESTS = 10_000, 20_000
SERVICES = 1000

Decide = Callable[[int], bool]


def _cases() -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Rules, each of a scope about an endpoint of a service, and requests: half are granted."""
    from micro_ray.auth import Identity, Resource, Rule

    chance = random.Random(1)
    rules = [
        Rule(
            id=f"r{i}",
            scope=f"scope{i % 97}",
            resource=Resource(name=f"service{i % SERVICES}", endpoint=f"Handler.M{i // SERVICES}"),
            priority=1000,
        )
        for i in range(RULES)
    ]
    requests = []
    for number in range(REQUESTS):
        rule = chance.choice(rules)
        scope = rule.scope if number % 2 else f"scope{chance.randrange(97)}"
        asker = Identity(id=f"u{number % 500}", namespace="acme", scopes=(scope,))
        resource = Resource(name=rule.resource.name, endpoint=rule.resource.endpoint)
        requests.append((asker, resource))
    return rules, requests


def _guard(rules: Sequence[Any], requests: Sequence[tuple[Any, Any]], fresh: bool) -> Decide:
    """With ``fresh`` what was decided is forgotten before each, so that each is searched for."""
    from micro_ray.auth import Access, Resource, Rule, Update
    from micro_ray.auth.guard import Guard

    guard = Guard()
    closed = Rule(id="default", scope="*", resource=Resource(), access=Access.DENIED)
    guard.apply(Update(revision=1, full=True, keys=(), rules=tuple(
        ("acme", rule) for rule in [closed, *rules]
    )))  # fmt: skip
    known = guard._rules_of("acme")

    def decide(number: int) -> bool:
        if fresh:
            known._forget()
        asker, resource = requests[number]
        return guard.decide(asker, resource, "acme").allowed

    return decide


def _casbin(rules: Sequence[Any], requests: Sequence[tuple[Any, Any]]) -> Decide:
    import casbin

    model = casbin.Model()
    model.load_model_from_text(
        "[request_definition]\nr = sub, obj, act\n[policy_definition]\np = sub, obj, act\n"
        "[policy_effect]\ne = some(where (p.eft == allow))\n"
        "[matchers]\nm = r.sub == p.sub && r.obj == p.obj && r.act == p.act\n"
    )
    enforcer = casbin.Enforcer(model)
    enforcer.add_policies([[r.scope, r.resource.name, r.resource.endpoint] for r in rules])

    def decide(number: int) -> bool:
        asker, resource = requests[number]
        return bool(enforcer.enforce(asker.scopes[0], resource.name, resource.endpoint))

    return decide


def _cedar(rules: Sequence[Any], requests: Sequence[tuple[Any, Any]]) -> Decide:
    import cedarpy

    policies = "\n".join(
        f'permit(principal in Scope::"{r.scope}", action == Action::"{r.resource.endpoint}", '
        f'resource == Service::"{r.resource.name}");'
        for r in rules
    )

    def decide(number: int) -> bool:
        asker, resource = requests[number]
        answer = cedarpy.is_authorized(
            {
                "principal": f'User::"{asker.id}"',
                "action": f'Action::"{resource.endpoint}"',
                "resource": f'Service::"{resource.name}"',
                "context": {},
            },
            policies,
            [
                {
                    "uid": {"__entity": {"type": "User", "id": asker.id}},
                    "attrs": {},
                    "parents": [{"__entity": {"type": "Scope", "id": asker.scopes[0]}}],
                }
            ],
        )
        return bool(answer.allowed)

    return decide


def _timed(numbers: Iterator[int], work: Callable[[int], object], seconds: float) -> Sample:
    """In batches, so that the clock is not what is measured, unless one takes longer than it."""
    took: list[float] = []
    count, begun = 0, time.perf_counter()
    end = begun + seconds
    size = 1
    while (at := time.perf_counter()) < end:
        for _ in range(size):
            work(next(numbers))
        now = time.perf_counter()
        took.append((now - at) / size)
        count += size
        if now - at < 0.001:
            size = min(100, size * 10)
    rate = count / (time.perf_counter() - begun)
    return Sample(rate=rate, p50=quantile(took, 0.5), p99=quantile(took, 0.99))


def _tokens() -> dict[str, Callable[[int], object]]:
    """Each verifies tokens in turn; those of the cache are few enough to be remembered."""
    import jwt
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from micro_ray.auth import Identity, Key, Update
    from micro_ray.auth.guard import Guard
    from micro_ray.auth.tokens import Signer, Verifier, public_of

    private = Ed25519PrivateKey.generate()
    public, key = private.public_key(), Key(id="k", x=public_of(private), state="active")
    signer = Signer(private, "k", "micro", "micro")
    now = time.time()
    tokens = [
        signer.sign(
            Identity(
                id=f"u{i}", namespace="acme", scopes=("a", "b"), token=f"{i:032x}", issued=now,
                expires=now + 3600,
            )
        )
        for i in range(1000)
    ]  # fmt: skip
    guard = Guard()
    guard.apply(Update(revision=1, full=True, keys=(key,)))
    verifier = Verifier((key,), "micro", "micro")
    required = ["exp", "iat", "nbf", "iss", "aud", "sub", "jti"]

    def alone(number: int) -> object:
        return jwt.decode(
            tokens[number % 1000],
            public,
            algorithms=["EdDSA"],
            audience="micro",
            issuer="micro",
            options={"require": required},
        )

    return {
        "PyJWT": alone,
        "first verification": lambda number: verifier.verify(tokens[number % 1000]),
        "verified before": lambda number: guard.verify(tokens[number % 1000]),
    }


async def run(*, quick: bool) -> str:
    """Aim: 300,000 decisions a second; a token that was verified before under 3 us, the first time
    at most 1.3 of PyJWT's time."""
    seconds, rounds = (0.3, 2) if quick else (2.0, 5)
    rules, requests = _cases()
    deciders: dict[str, Decide] = {
        "guard": _guard(rules, requests, False),
        "guard, nothing remembered": _guard(rules, requests, True),
    }
    for name, make in (("pycasbin", _casbin), ("cedarpy", _cedar)):
        try:
            deciders[name] = make(rules, requests)
        except ImportError:
            continue
    for number in range(4):
        said = {name: decide(number) for name, decide in deciders.items()}
        if len(set(said.values())) > 1:
            raise SystemExit(f"bench: they do not agree: {said}")

    def rounds_of(works: dict[str, Callable[[int], object]]) -> Any:
        def sampler(work: Callable[[int], object]) -> Any:
            numbers = itertools.cycle(range(REQUESTS))

            async def sample() -> Sample:
                return _timed(numbers, work, seconds)

            return sample

        return interleave({name: sampler(work) for name, work in works.items()}, rounds=rounds)

    decided = await rounds_of(dict(deciders))
    verified = await rounds_of(_tokens())
    return "\n\n".join(
        (
            table(f"Decisions with {RULES:,} rules, {REQUESTS:,} requests", decided, "guard"),
            table("Verifying an access token", verified, "PyJWT"),
        )
    )
