"""Credentials that are none, each with the code that it must be answered with."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import jwt

from micro_ray.auth import Identity, Kind, Rule, Tokens
from micro_ray.auth.passes import Passes, PrivateKey
from micro_ray.auth.rules import Resource
from micro_ray.auth.tokens import TYPE
from micro_ray.sdk.authority import ITSELF
from tests.security.guarded import Guarded, Verb

__all__ = ["BAD", "FRAMES", "Make"]

#: Metadata of a call to a verb, and the code of its answer.
Make = Callable[[Guarded, Verb], Awaitable[tuple[dict[str, str], int]]]

_made: dict[tuple[int, str], Tokens] = {}


async def _account(at: Guarded, id: str, namespace: str = "micro", *scopes: str) -> Tokens:
    """The tokens of an account that is made once per platform."""
    key = (id_of(at), f"{namespace}/{id}")
    if key not in _made:
        _made[key] = await at.authority.login(id, namespace, scopes=scopes)
    return _made[key]


def id_of(at: Guarded) -> int:
    return id(at)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def _signed(at: Guarded, header: dict[str, Any], key: Any = None, **claims: Any) -> str:
    """A token of who administers, but for what is given: an id, a key, claims."""
    signer = await at.authority.auth._ring.signer()
    now = time.time()
    good = {
        "iss": "micro", "aud": "micro", "sub": "admin", "namespace": "micro", "kind": "admin",
        "scope": "admin", "jti": "0" * 32, "iat": now, "nbf": int(now), "exp": int(now) + 600,
    }  # fmt: skip
    algorithm = header.pop("alg", "EdDSA")
    body = {name: value for name, value in (good | claims).items() if value is not None}
    head = {"typ": TYPE, "kid": signer.key} | header
    return jwt.encode(body, signer._private if key is None else key, algorithm=algorithm,
                      headers=head)  # fmt: skip


async def nobody(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    return {}, 401


async def garbage(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    return bearer("not.a.token"), 401


async def another_scheme(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    return {"authorization": "Basic YWRtaW46bWljcm8="}, 401


async def expired(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    return bearer(await _signed(at, {}, exp=int(time.time()) - 60)), 401


async def not_yet(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    return bearer(await _signed(at, {}, nbf=int(time.time()) + 600)), 401


async def another_key(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    return bearer(await _signed(at, {}, PrivateKey().key)), 401


async def an_unknown_key(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    return bearer(await _signed(at, {"kid": "nobody's"}, PrivateKey().key)), 401


async def another_audience(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    return bearer(await _signed(at, {}, aud="elsewhere")), 401


async def another_issuer(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    return bearer(await _signed(at, {}, iss="elsewhere")), 401


async def no_expiry(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    return bearer(await _signed(at, {}, exp=None)), 401


async def another_type(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    return bearer(await _signed(at, {"typ": "JWT"})), 401


async def algorithm_none(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    token = await _signed(at, {})
    header = {"alg": "none", "typ": TYPE, "kid": jwt.get_unverified_header(token)["kid"]}
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    return bearer(f"{head}.{token.split('.')[1]}."), 401


async def algorithm_confused(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    """Signed by HMAC with what everybody knows: the public key."""
    key = (await at.authority.auth.keys())[0]
    secret = key.x.encode()
    return bearer(await _signed(at, {"alg": "HS256", "kid": key.id}, secret)), 401


async def revoked(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    tokens = await _account(at, "revoked", "micro", "admin")
    if (id_of(at), "revoked") not in _made:
        await at.authority.auth.revoke(token=tokens.access, by=ITSELF)
        _made[id_of(at), "revoked"] = tokens
        await _known(at, tokens.access)
    return bearer(tokens.access), 401


async def disabled(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    tokens = await _account(at, "disabled", "micro", "admin")
    if (id_of(at), "disabled") not in _made:
        await at.authority.auth.enable("disabled", False, by=ITSELF)
        _made[id_of(at), "disabled"] = tokens
        await _known(at, tokens.access)
    return bearer(tokens.access), 401


async def _known(at: Guarded, token: str) -> None:
    """Until every part of the platform knows that a token is void."""
    from micro_ray.errors import Unauthorized
    from tests.fixtures.wait import eventually

    assert at.here.trust is not None
    guard = at.here.trust.guard

    def refused() -> bool:
        try:
            guard.verify(token)
        except Unauthorized:
            return True
        return False

    await eventually(refused)


async def a_refresh_token(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    tokens = await _account(at, "refresher", "micro", "admin")
    return bearer(tokens.refresh), 401


async def another_namespace(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    """Who administers one namespace, in another."""
    tokens = await _account(at, "boss", "acme", "admin")
    return {**bearer(tokens.access), "micro-namespace": "micro"}, 403


async def no_scope(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    """An account that a rule takes for nobody in particular."""
    tokens = await _account(at, "plain")
    if (id_of(at), "rule") not in _made:
        rule = Rule(id="scoped", scope="*", resource=Resource(type="*"), priority=450,
                    access=Rule(id="x").access.__class__("denied"))  # fmt: skip
        await at.authority.auth.create_rule(rule, by=ITSELF)
        _made[id_of(at), "rule"] = tokens
        from tests.fixtures.wait import eventually

        assert at.here.trust is not None
        guard = at.here.trust.guard
        who = guard.verify(tokens.access)
        await eventually(lambda: not guard.decide(who, Resource(name="x", endpoint="X.Y")).allowed)
    return bearer(tokens.access), 403


async def a_process_without_its_key(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    token, _, _ = at.authority.issuer.identity("replica-1", "micro").rpartition(" ")
    return bearer(token), 401


async def a_pass_for_another_service(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    return at.authority.passes("api").itself("micro", "another"), 401


async def a_pass_by_a_strangers_key(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    own = Identity(id="api", kind=Kind.SERVICE, scopes=("platform",))
    return Passes(PrivateKey(), own).itself("micro", verb.service), 401


async def a_pass_of_another_replicas_token(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    """Its own key, and a token that names another."""
    token, _, _ = at.authority.issuer.identity("replica-1", "micro").rpartition(" ")
    own = Identity(id="replica-1", kind=Kind.SERVICE, scopes=("service",))
    return Passes(PrivateKey(), own, token=lambda: token).itself("micro", verb.service), 401


async def a_replica_that_speaks_for_another(at: Guarded, verb: Verb) -> tuple[dict[str, str], int]:
    """What a pass of a replica says of who calls is not believed: it is the replica that calls."""
    token, _, key = at.authority.issuer.identity("replica-1", "acme").rpartition(" ")
    admin = Identity(id="admin", kind=Kind.ADMIN, scopes=("admin",), token="t" * 32)
    private = PrivateKey(key)
    made = Passes(private, admin, token=lambda: token).itself("micro", verb.service)
    return {**made, "micro-namespace": "micro"}, 403


#: At every way in.
BAD: dict[str, Make] = {
    make.__name__: make
    for make in (
        nobody, garbage, another_scheme, expired, not_yet, another_key, an_unknown_key,
        another_audience, another_issuer, no_expiry, another_type, algorithm_none,
        algorithm_confused, revoked, disabled, a_refresh_token, another_namespace, no_scope,
        a_process_without_its_key,
    )
}  # fmt: skip
#: Where passes are taken.
FRAMES: dict[str, Make] = {
    make.__name__: make
    for make in (
        a_pass_for_another_service, a_pass_by_a_strangers_key, a_pass_of_another_replicas_token,
        a_replica_that_speaks_for_another,
    )
}  # fmt: skip
