"""Passes: a credential for one callee, made by who calls, without asking anybody.

Whoever gets an access token may use it, so no service is given one. What travels with a call is a
**pass**: a JWT of the type ``pass+jwt`` that says who calls, is good for one service of one
namespace (``aud``, ``namespace/service``) and for minutes. It is signed by

- the **platform's key**, which its own processes have: doors, which have verified an access token,
  speak for its account; actors speak for themselves; an auth cache hands one to an account that
  calls by itself, and the pass says so (``handed``);
- or the **key of a replica**, whose public half its own access token names (``cnf``, RFC 7800). It
  speaks for itself only, and the token goes along.

Decision 0017 argues it; :mod:`micro_ray.auth.callers` is who takes passes.
"""

from __future__ import annotations

import base64
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from micro_ray.auth import DEFAULT, PLATFORM, SERVICE, Identity, Kind
from micro_ray.auth.tokens import ALGORITHM, Signer, public_of
from micro_ray.context import AUTHORIZATION
from micro_ray.errors import BadRequest, PreconditionFailed
from micro_ray.files import replace_file
from micro_ray.settings import Auth as AuthSettings
from micro_ray.settings import Settings

__all__ = [
    "HANDED",
    "LIFE",
    "PASS",
    "SCHEME",
    "TOKEN",
    "Issuer",
    "Passes",
    "PrivateKey",
    "key_of",
    "platform",
]

#: The type of a pass.
PASS = "pass+jwt"
#: Seconds that a pass is good; a new one is made when half of them are over.
LIFE = 300.0
#: The claim of a pass that who calls has himself: the rest of what comes with it is his word.
HANDED = "handed"
#: Passes that are remembered; more, and it begins anew.
REMEMBERED = 10_000
#: How the metadata ``authorization`` with a pass begins, and the metadata with a replica's token.
SCHEME, TOKEN = "Pass", "micro-token"


class PrivateKey:
    """An Ed25519 key as a text (base64url of its 32 bytes), for environments and files of mode
    0600."""

    __slots__ = ("key", "public", "text")

    def __init__(self, text: str = "") -> None:
        """A new one when none is given. Raises ValueError for what is none."""
        if text:
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            self.key = Ed25519PrivateKey.from_private_bytes(raw)
        else:
            self.key = Ed25519PrivateKey.generate()
            raw = self.key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
            text = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
        self.text = text
        self.public = public_of(self.key)

    @classmethod
    def kept(cls, path: Path) -> PrivateKey:
        """The one in a file, made with it. Raises BadRequest for a file with something else."""
        if not path.exists():
            replace_file(path, cls().text.encode())
        try:
            return cls(path.read_text().strip())
        except ValueError:
            raise BadRequest("settings", f"{path} is no key: remove it to have a new one") from None

    def __repr__(self) -> str:
        return f"PrivateKey(public={self.public!r})"


class Passes:
    """Makes passes as ``own``, signed by ``key``. ``token`` gives the access token that names the
    key; a process of the platform has none."""

    def __init__(
        self,
        key: PrivateKey,
        own: Identity,
        *,
        token: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.key = key
        self.own = own
        self._token = token
        self._clock = clock
        self._made: dict[tuple[str, str, str, bool], tuple[float, Mapping[str, str]]] = {}

    def itself(self, namespace: str, service: str) -> Mapping[str, str]:
        """The metadata with which one calls a service oneself; not to be changed."""
        return self.to(namespace, service, self.own)

    def to(
        self, namespace: str, service: str, whom: Identity | None, *, handed: bool = False
    ) -> Mapping[str, str]:
        """The metadata with which somebody, or nobody, calls a service through here, or, ``handed``
        to him, by himself: then nobody takes what else he sends for a word of the platform's. Not
        to be changed."""
        place = (namespace, service, "" if whom is None else whom.token or whom.id, handed)
        found = self._made.get(place)
        now = self._clock()
        if found is None or found[0] < now:
            found = self._make(namespace, service, whom, handed, now)
            if len(self._made) >= REMEMBERED:
                self._made.clear()
            self._made[place] = found
        return found[1]

    def _make(
        self, namespace: str, service: str, whom: Identity | None, handed: bool, now: float
    ) -> tuple[float, Mapping[str, str]]:
        expires = now + LIFE
        claims: dict[str, Any] = {
            "aud": f"{namespace}/{service.lower()}",
            "exp": math.ceil(expires),
            "iat": round(now, 3),
            "sub": "" if whom is None else whom.id,
        }
        if handed:
            claims[HANDED] = True
        if whom is not None:
            claims |= {
                "namespace": whom.namespace,
                "kind": str(whom.kind),
                "scope": " ".join(whom.scopes),
                "token": whom.token,
                "issued": round(whom.issued, 3),
                "expires": whom.expires,
            }
        signed = jwt.encode(claims, self.key.key, algorithm=ALGORITHM, headers={"typ": PASS})
        made = {AUTHORIZATION: f"{SCHEME} {signed}"}
        if self._token is not None:
            made[TOKEN] = self._token()
        return now + LIFE / 2, made

    def forget(self) -> None:
        """Make all anew: the token has changed."""
        self._made.clear()


def key_of(settings: Settings) -> PrivateKey | None:
    """The platform's key, by which its processes are known and know others; None where nobody is
    asked who he is. Raises PreconditionFailed where everybody is and there is none: what starts
    without it would let everybody in."""
    if settings.auth.mode == "off":
        return None
    if not settings.key:
        raise PreconditionFailed(
            "auth", 'there is no platform key; `micro server` gives it, or set auth.mode to "off"'
        )
    return PrivateKey(settings.key)


def platform(key: PrivateKey, service: str) -> Passes:
    """Those of a process of the platform."""
    own = Identity(id=service, kind=Kind.SERVICE, namespace=DEFAULT, scopes=(PLATFORM,))
    return Passes(key, own)


class Issuer:
    """Gives replicas the access tokens that name their keys. It has the platform's key, so that a
    replica starts also while auth is away; its tokens are revoked as any other."""

    def __init__(
        self,
        key: PrivateKey,
        issuer: str,
        audience: str,
        life: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._signer = Signer(key.key, key.public[:16], issuer, audience)
        self._life = life
        self._clock = clock

    def issue(self, id: str, namespace: str, scopes: tuple[str, ...], public: str) -> str:
        """An access token for a process with that public key."""
        now = self._clock()
        return self._signer.sign(
            Identity(
                id=id,
                kind=Kind.SERVICE,
                namespace=namespace,
                scopes=scopes,
                token=os.urandom(16).hex(),
                issued=now,
                expires=math.ceil(now + self._life),
                key=public,
            )
        )

    @classmethod
    def of(cls, key: PrivateKey, settings: AuthSettings) -> Issuer:
        """As the platform's settings have it."""
        return cls(key, settings.issuer, settings.audience, settings.process_ttl)

    def identity(self, id: str, namespace: str, scopes: tuple[str, ...] = (SERVICE,)) -> str:
        """What a replica is started with (``MICRO_IDENTITY``): a token for a key of its own, and
        the key."""
        own = PrivateKey()
        return f"{self.issue(id, namespace, scopes, own.public)} {own.text}"
