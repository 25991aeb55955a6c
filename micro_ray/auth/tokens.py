"""Access tokens: JWTs by PyJWT, signed by Ed25519 (RFC 8037), of the shape of RFC 9068.

Header ``{alg: EdDSA, typ: at+jwt, kid}``; claims ``iss``, ``sub`` (the account's id), ``aud``,
``exp``, ``iat``, ``nbf``, ``jti``, ``scope`` (separated by blanks), ours ``namespace`` and
``kind``, and of a process ``cnf`` (RFC 7800), the key it is bound to. The algorithm is ours to say,
never the token's; keys are found by ``kid`` among those that we have, and nothing else of the
header is used. docs/security.md goes through RFC 8725.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from micro_ray.auth import MAX_ID, MAX_SCOPES, MAX_TOKEN, Identity, Key, Kind
from micro_ray.errors import Unauthorized

__all__ = ["ALGORITHM", "LEEWAY", "TYPE", "Signer", "Verifier", "public_of"]

ALGORITHM, TYPE = "EdDSA", "at+jwt"
#: Seconds that clocks of machines may differ.
LEEWAY = 5.0

_REQUIRED = ["exp", "iat", "nbf", "iss", "aud", "sub", "jti"]
_FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
#: 32 bytes in base64url.
_X = re.compile(r"[A-Za-z0-9_-]{43}")
#: Times are ours to check: PyJWT has no clock to be given.
_OPTIONS: Any = {
    "require": _REQUIRED,
    "verify_signature": True,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
}


def public_of(private: Ed25519PrivateKey) -> str:
    """The public half as a JWK has it."""
    raw = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Signer:
    """Makes tokens. ``key`` is the id of the private key."""

    def __init__(self, private: Ed25519PrivateKey, key: str, issuer: str, audience: str) -> None:
        self.key = key
        self._private = private
        self._issuer = issuer
        self._audience = audience
        self._header = {"typ": TYPE, "kid": key}

    def sign(self, identity: Identity) -> str:
        """A token that says this; its id and times are the identity's."""
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "sub": identity.id,
            "aud": self._audience,
            "exp": int(identity.expires),
            "iat": round(identity.issued, 3),
            "nbf": int(identity.issued),
            "jti": identity.token,
            "scope": " ".join(identity.scopes),
            "namespace": identity.namespace,
            "kind": str(identity.kind),
        }
        if identity.key:
            claims["cnf"] = {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": identity.key}}
        return jwt.encode(claims, self._private, algorithm=ALGORITHM, headers=self._header)


class Verifier:
    """Verifies tokens with the keys it was given; it knows nothing of revocations."""

    def __init__(
        self,
        keys: Iterable[Key],
        issuer: str,
        audience: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._keys: dict[str, tuple[Ed25519PublicKey, float]] = {}
        for key in keys:
            raw = base64.urlsafe_b64decode(key.x + "=" * (-len(key.x) % 4))
            self._keys[key.id] = Ed25519PublicKey.from_public_bytes(raw), key.until

    def verify(self, token: str) -> Identity:
        """Whose it is. Raises Unauthorized that says what is wrong, and never shows the token."""
        if len(token) > MAX_TOKEN:
            raise _refused(f"it is over {MAX_TOKEN} bytes")
        if not _FORM.fullmatch(token):
            raise _refused("it is no JWT")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _refused("its header is none") from None
        if header.get("typ") != TYPE:
            raise _refused("it is no access token")
        if header.get("alg") != ALGORITHM:
            raise _refused(f"its algorithm is not {ALGORITHM}")
        if "crit" in header:
            raise _refused("it asks for extensions")
        kid = header.get("kid")
        found = self._keys.get(kid) if isinstance(kid, str) else None
        now = self._clock()
        if found is None or 0 < found[1] < now - LEEWAY:
            raise _refused("it is signed with a key that is not in use: log in again")
        return self._identity(self._claims(token, found[0]), now)

    def _claims(self, token: str, key: Ed25519PublicKey) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=self._issuer,
                options=_OPTIONS,
            )
        except jwt.InvalidSignatureError:
            raise _refused("its signature is wrong") from None
        except jwt.InvalidAudienceError:
            raise _refused("it is for somebody else (aud)") from None
        except jwt.InvalidIssuerError:
            raise _refused("it is not from here (iss)") from None
        except jwt.MissingRequiredClaimError as error:
            raise _refused(f"it has no {error.claim}") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise _refused("it does not decode") from None
        return claims

    def _identity(self, claims: dict[str, Any], now: float) -> Identity:
        issued, begins, expires = (_time(claims, name) for name in ("iat", "nbf", "exp"))
        if expires < now - LEEWAY:
            raise _refused("it has expired: log in again, or refresh it")
        if max(begins, issued) > now + LEEWAY:
            raise _refused("it is not valid yet: look at the clock of this machine")
        id, space, token = (_text(claims, name) for name in ("sub", "namespace", "jti"))
        scopes = claims.get("scope", "")
        if not isinstance(scopes, str) or scopes.count(" ") >= MAX_SCOPES:
            raise _refused("its scope is none")
        try:
            kind = Kind(claims.get("kind", ""))
        except ValueError:
            raise _refused("its kind is none") from None
        return Identity(
            id=id,
            kind=kind,
            namespace=space,
            scopes=tuple(scopes.split()),
            token=token,
            issued=issued,
            expires=expires,
            key=_key(claims),
        )


def _key(claims: dict[str, Any]) -> str:
    """The key that the token is bound to, blank for none."""
    if "cnf" not in claims:
        return ""
    try:
        key = claims["cnf"]["jwk"]
        if (key["kty"], key["crv"]) == ("OKP", "Ed25519") and _X.fullmatch(key["x"]):
            return str(key["x"])
    except (KeyError, TypeError):
        pass
    raise _refused("the key that it is bound to is none")


def _time(claims: dict[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        raise _refused(f"its {name} is no time")
    return float(value)


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 2 * MAX_ID:
        raise _refused(f"its {name} is none")
    return value


def _refused(why: str) -> Unauthorized:
    return Unauthorized("auth", f"the token is refused: {why}")
