"""Tokens against RFC 8725, point by point (docs/security.md has the same list)."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from micro_ray.auth import Identity, Key, Kind, Revocation, Update
from micro_ray.auth.guard import REMEMBERED, Guard
from micro_ray.auth.tokens import LEEWAY, Signer, Verifier, public_of
from micro_ray.errors import MicroError, Unauthorized, Unavailable

NOW = 1_700_000_000.0
PRIVATE = Ed25519PrivateKey.generate()
KEY = Key(id="k1", x=public_of(PRIVATE), state="active")
JANE = Identity(
    id="jane", namespace="acme", scopes=("a", "b"), token="f" * 32, issued=NOW, expires=NOW + 60
)
CLAIMS: dict[str, Any] = {
    "iss": "micro", "sub": "jane", "aud": "micro", "exp": NOW + 60, "iat": NOW, "nbf": NOW,
    "jti": "f" * 32, "scope": "a b", "namespace": "acme", "kind": "user",
}  # fmt: skip


def verifier(*keys: Key, now: float = NOW) -> Verifier:
    return Verifier(keys or (KEY,), "micro", "micro", lambda: now)


def forged(
    claims: dict[str, Any] | None = None,
    key: Any = PRIVATE,
    algorithm: str = "EdDSA",
    **header: Any,
) -> str:
    """A token of any kind; None takes a claim or a header away."""
    given = {k: v for k, v in {**CLAIMS, **(claims or {})}.items() if v is not None}
    headers = {"typ": "at+jwt", "kid": "k1", **header}
    return jwt.encode(given, key, algorithm=algorithm, headers=headers)


def refused(token: str, why: str = "", **how: Any) -> None:
    with pytest.raises(Unauthorized, match=why or None) as caught:
        verifier(**how).verify(token)
    assert token[:200] not in caught.value.detail or not token


def test_what_is_signed_is_verified() -> None:
    token = Signer(PRIVATE, "k1", "micro", "micro").sign(JANE)
    assert verifier().verify(token) == JANE
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "typ": "at+jwt", "kid": "k1"}
    assert verifier().verify(forged()) == JANE


def part(data: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()


def test_3_1_the_algorithm_is_ours_to_say() -> None:
    """No "none", and no HMAC with the public key as its secret."""
    header = {"typ": "at+jwt", "kid": "k1"}
    for alg in ("none", "None", "NONE", "nOnE"):
        refused(f"{part({**header, 'alg': alg})}.{part(CLAIMS)}.", "no JWT")
        refused(f"{part({**header, 'alg': alg})}.{part(CLAIMS)}.AAAA", "algorithm")
    pem = PRIVATE.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    raw = base64.urlsafe_b64decode(KEY.x + "=")
    for secret in (raw, KEY.x.encode(), pem[27:-26]):
        refused(forged(key=secret.ljust(32, b"\0"), algorithm="HS256"), "algorithm")
    refused(forged(key=rsa.generate_private_key(65537, 2048), algorithm="RS256"), "algorithm")
    refused(forged(key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"), "algorithm")
    refused(f"{part({'typ': 'at+jwt', 'kid': 'k1'})}.{part(CLAIMS)}.AAAA")


def test_3_3_all_of_it_is_verified() -> None:
    head, body, signature = forged().split(".")
    refused(f"{head}.{body}.{'A' * len(signature)}", "signature")
    refused(f"{head}.{part({**CLAIMS, 'sub': 'root'})}.{signature}", "signature")
    other = part({"alg": "EdDSA", "typ": "at+jwt", "kid": "k1", "x": 1})
    refused(f"{other}.{body}.{signature}", "signature")
    refused(forged(key=Ed25519PrivateKey.generate()), "signature")


def test_3_8_issuer_and_subject() -> None:
    for issuer in ("other", "", None, ["micro"], 7):
        refused(
            forged({"iss": issuer}) if not isinstance(issuer, list | int) else raw_of("iss", issuer)
        )
    for subject in ("", None, 7, ["jane"], "x" * 300):
        refused(raw_of("sub", subject))


def raw_of(name: str, value: Any) -> str:
    """A token that is signed right, whatever is in it."""
    claims = {k: v for k, v in {**CLAIMS, name: value}.items() if v is not None}
    head = part({"alg": "EdDSA", "typ": "at+jwt", "kid": "k1"})
    signed = f"{head}.{part(claims)}"
    signature = base64.urlsafe_b64encode(PRIVATE.sign(signed.encode())).rstrip(b"=").decode()
    return f"{signed}.{signature}"


def test_3_9_the_audience() -> None:
    for audience in ("other", "", None, [], ["other"], {"micro": 1}, 7):
        refused(raw_of("aud", audience))


def test_3_10_the_key_is_not_taken_from_the_token() -> None:
    mine = Ed25519PrivateKey.generate()
    own = {"kty": "OKP", "crv": "Ed25519", "x": public_of(mine)}
    for header in (
        {"jwk": own}, {"jku": "http://127.0.0.1:1/keys"}, {"x5u": "http://127.0.0.1:1/"},
        {"x5c": ["AAAA"]},
    ):  # fmt: skip
        refused(forged(key=mine, **header), "signature")
    for kid in ("k2", "../k1", "k1' OR 1", ""):
        refused(forged(kid=kid), "key that is not in use")
    for kid in (None, 7, ["k1"], {"k1": 1}):
        head = part({"alg": "EdDSA", "typ": "at+jwt", "kid": kid})
        refused(f"{head}.{part(CLAIMS)}.AAAA")
    refused(forged(crit=["b64"], b64=False))


def test_3_11_and_3_12_the_type() -> None:
    """A refresh token, an ID token or any other JWT of ours is no access token."""
    for type in ("JWT", "jwt", "rt+jwt", "AT+JWT", "", None):
        refused(forged(typ=type), "no access token")


@pytest.mark.parametrize("name", ["exp", "iat", "nbf", "iss", "aud", "sub", "jti"])
def test_every_claim_must_be_there(name: str) -> None:
    refused(forged({name: None}))


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("value", ["soon", True, [], {}, 1e300, -1e300, None])
def test_times_are_numbers(name: str, value: Any) -> None:
    refused(raw_of(name, value))


def test_times() -> None:
    token = forged()
    assert verifier(now=NOW + 60 + LEEWAY - 1).verify(token)
    refused(token, "expired", now=NOW + 60 + LEEWAY + 1)
    assert verifier(now=NOW - LEEWAY + 1).verify(token)
    refused(token, "not valid yet", now=NOW - LEEWAY - 1)
    refused(forged({"iat": NOW + 100}), "not valid yet")


@pytest.mark.parametrize(
    ("name", "value"),
    [("jti", ""), ("jti", 7), ("namespace", None), ("namespace", ""), ("kind", "root"),
     ("kind", None), ("kind", []), ("scope", ["a"]), ("scope", 7), ("scope", "a " * 100)],
)  # fmt: skip
def test_our_claims(name: str, value: Any) -> None:
    refused(raw_of(name, value))


def test_retired_keys() -> None:
    token = forged()
    retired = Key(id="k1", x=KEY.x, state="retired", until=NOW + 10)
    assert verifier(retired).verify(token)
    with pytest.raises(Unauthorized, match="not in use"):
        verifier(retired, now=NOW + 20).verify(token)


def test_sizes() -> None:
    for text in ("", ".", "..", "a.b", "a.b.c.d", "x" * 9000, "a" * 8000, "é.é.é", "a.b.c\n"):
        refused(text)
    deep = base64.urlsafe_b64encode(b"[" * 3000).rstrip(b"=").decode()
    refused(f"{deep}.{deep}.AAAA")


@settings(max_examples=300, deadline=None)
@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
@example(".".join(["e30"] * 3))
def test_any_text_is_refused_in_good_order(text: str) -> None:
    with pytest.raises(Unauthorized):
        verifier().verify(text)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(forged()) - 1), st.characters(codec="ascii"))
def test_any_change_of_a_token_is_noticed(place: int, letter: str) -> None:
    token = forged()
    changed = token[:place] + letter + token[place + 1 :]
    try:
        found = verifier().verify(changed)
    except Unauthorized:
        return
    assert found == JANE  # the last letter of base64 has bits that say nothing


# -- the guard -------------------------------------------------------------------------------------


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def everything(**more: Any) -> Update:
    return Update(revision=1, full=True, keys=(KEY,), **more)


def test_a_guard_that_knows_nothing_lets_nobody_in() -> None:
    guard = Guard(clock=Clock())
    assert guard.stale
    with pytest.raises(Unavailable):
        guard.verify(forged())
    guard.apply(everything())
    assert guard.verify(forged()) == JANE
    assert not guard.stale


def test_what_is_remembered_still_ends() -> None:
    clock = Clock()
    guard = Guard(clock=clock)
    guard.apply(everything())
    token = forged()
    assert guard.verify(token) is guard.verify(token)
    clock.now += 60 + LEEWAY + 1
    for _ in range(2):
        with pytest.raises(Unauthorized, match="expired"):
            guard.verify(token)


def test_a_revocation_is_never_forgotten() -> None:
    """Not by everything that comes anew, and not when many others come."""
    guard = Guard(clock=Clock())
    guard.apply(everything())
    token = forged()
    other = forged({"jti": "e" * 32})
    assert guard.verify(token)
    guard.apply(Update(revision=2, revoked=(Revocation(token="f" * 32, until=NOW + 60),)))
    guard.apply(Update(revision=3, full=True, keys=(KEY,)))
    for i in range(50):
        revoked = Revocation(token=f"{i:032x}", until=NOW + 60)
        guard.apply(Update(revision=4 + i, revoked=(revoked,)))
    with pytest.raises(Unauthorized, match="revoked"):
        guard.verify(token)
    assert guard.verify(other)
    account = Revocation(account="acme/jane", before=NOW + 1, until=NOW + 60)
    guard.apply(Update(revision=99, revoked=(account,)))
    with pytest.raises(Unauthorized, match="revoked"):
        guard.verify(other)
    assert guard.verify(forged({"iat": NOW + 2, "jti": "d" * 32}))


def test_a_key_that_goes_takes_its_tokens_with_it() -> None:
    guard = Guard(clock=Clock())
    guard.apply(everything())
    assert guard.verify(forged())
    new = Ed25519PrivateKey.generate()
    guard.apply(Update(revision=2, keys=(Key(id="k2", x=public_of(new), state="active"),)))
    with pytest.raises(Unauthorized, match="not in use"):
        guard.verify(forged())
    assert guard.verify(forged(key=new, kid="k2"))


def test_what_is_remembered_is_bounded() -> None:
    guard = Guard(clock=Clock())
    guard.apply(everything())
    signer = Signer(PRIVATE, "k1", "micro", "micro")
    identity = Identity(
        id="j", kind=Kind.SERVICE, token="t", issued=NOW, expires=NOW + 60, namespace="acme"
    )
    token = signer.sign(identity)
    guard._verified.update({str(i): identity for i in range(REMEMBERED)})
    guard.verify(token)
    assert len(guard._verified) == 1
    with pytest.raises(MicroError):
        guard.verify("nonsense")
    assert len(guard._verified) == 1
