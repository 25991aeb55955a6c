"""Who calls a service, and whether he may: what each service asks of each call, and asks nobody.

A call says who makes it by a pass (``passes.py``) or, where somebody comes without a door, by his
access token. One that says nothing is nobody's, whom rules may let in too. The namespace that a
call is about is its metadata ``micro-namespace`` at the platform's own services, which serve all,
and that of the service elsewhere; the rules of that namespace decide.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from micro_ray.auth import DEFAULT, MAX_TOKEN, Identity, Kind, Resource
from micro_ray.auth.checks import namespace_of
from micro_ray.auth.denials import Denials
from micro_ray.auth.guard import Guard
from micro_ray.auth.passes import HANDED, LIFE, PASS, SCHEME, TOKEN
from micro_ray.auth.stays import Stay
from micro_ray.auth.tokens import ALGORITHM, LEEWAY
from micro_ray.context import AUTHORIZATION
from micro_ray.errors import Forbidden, Unauthorized

__all__ = ["NAMESPACE", "Admitted", "Callers", "bearer_of"]

NAMESPACE = "micro-namespace"
#: Passes whose verification is remembered; more, and it begins anew.
REMEMBERED = 10_000

_FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_OPTIONS: Any = {
    "require": ["exp", "iat", "aud", "sub"],
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
}


class Admitted(NamedTuple):
    """A call that may be served: for whom (None: nobody), within which namespace, and whether a
    process of the platform says so."""

    identity: Identity | None
    namespace: str
    platform: bool


class _Known(NamedTuple):
    identity: Identity | None
    expires: float
    #: The replica that speaks, where it is not the platform.
    process: Identity | None
    platform: bool


class Callers:
    """Decides for one service of one namespace. ``platform`` is the public half of the platform's
    key; ``shared`` says that the service serves all namespaces."""

    def __init__(
        self,
        guard: Guard,
        *,
        service: str,
        namespace: str = DEFAULT,
        platform: str,
        shared: bool = False,
        denials: Denials | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.guard = guard
        self._audience = f"{namespace}/{service.lower()}"
        self._namespace = namespace
        self._shared = shared
        self._platform = platform
        self._denials = denials
        self._clock = clock
        self._known: dict[tuple[str, str], _Known] = {}
        #: Calls that were admitted, what the guard had learnt then, and until when it holds.
        self._admitted: dict[
            tuple[str, str, str | None, Resource], tuple[int, float, Admitted]
        ] = {}
        self._keys: dict[str, Ed25519PublicKey] = {}

    def admit(self, metadata: Mapping[str, str], resource: Resource) -> Admitted:
        """Whose call it is, if he may make it. Raises Unauthorized for a credential that is none
        and for nobody where somebody is needed, Forbidden for who may not, BadRequest for a
        namespace that cannot be, Unavailable before the rules are known."""
        given = metadata.get(AUTHORIZATION, "")
        place = (given, metadata.get(TOKEN, ""), metadata.get(NAMESPACE), resource)
        before = self._admitted.get(place)
        if before is not None and before[0] == self.guard.generation and before[1] > self._clock():
            return before[2]
        admitted = self._admit(metadata, resource)
        known = self._known.get(place[:2])
        if known is not None:
            until = known.expires
            if known.identity is not None and known.identity.token:
                until = min(until, known.identity.expires)
            if len(self._admitted) >= REMEMBERED:
                self._admitted.clear()
            self._admitted[place] = (self.guard.generation, until, admitted)
        return admitted

    def _admit(self, metadata: Mapping[str, str], resource: Resource) -> Admitted:
        identity, platform = self.identify(metadata)
        namespace = self._namespace
        if self._shared:
            own = DEFAULT if identity is None else identity.namespace
            namespace = metadata.get(NAMESPACE, own)
            if identity is None or namespace != identity.namespace:
                namespace_of(namespace)
        self.check(identity, resource, namespace)
        return Admitted(identity, namespace, platform)

    def check(self, identity: Identity | None, resource: Resource, namespace: str) -> None:
        """As :meth:`admit`, for who is known. ``*`` is every namespace."""
        try:
            if namespace == "*":
                if identity is None or not identity.everywhere:
                    raise Forbidden(resource.name, "only the platform acts in every namespace")
                return
            if not self._shared and namespace != self._namespace:
                raise Forbidden(resource.name, f"it is of {self._namespace}, not of {namespace}")
            self.guard.check(identity, resource, namespace)
        except (Unauthorized, Forbidden) as error:
            if self._denials is not None:
                self._denials.add(identity, resource, namespace, error.detail)
            raise

    def stay(self, identity: Identity | None, resource: Resource, namespace: str) -> Stay:
        """A stream of somebody who was admitted, over when he would be no more. Raises what
        :meth:`admit` does when that is so already."""
        return self.guard.stays.begin(identity, resource, namespace)

    def identify(self, metadata: Mapping[str, str]) -> tuple[Identity | None, bool]:
        """Who calls, and whether the platform says so. Raises Unauthorized."""
        given = metadata.get(AUTHORIZATION, "")
        if not given:
            return None, False
        if not given.startswith(f"{SCHEME} "):
            identity = self.guard.verify(bearer_of(given))
            if identity.key and identity.kind is Kind.SERVICE:
                raise _refused("it is of a process, which must make a pass by its key")
            return identity, False
        token = metadata.get(TOKEN, "")
        known = self._known.get((given, token))
        if known is None:
            known = self._verify(given, token)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[given, token] = known
        elif known.expires < self._clock() - LEEWAY:
            del self._known[given, token]
            raise _refused("the pass has expired")
        if known.process is not None:
            self.guard.standing(known.process)
        elif known.identity is not None and known.identity.token:
            self._standing(known.identity)
        return known.identity, known.platform

    def _standing(self, identity: Identity) -> None:
        """A door verified the token when it made the pass: it may have ended or been voided."""
        if identity.expires < self._clock() - LEEWAY:
            raise _refused("the token has expired: log in again, or refresh it")
        self.guard.standing(identity)

    def _verify(self, given: str, token: str) -> _Known:
        text = given[len(SCHEME) + 1 :]
        if len(text) > MAX_TOKEN or not _FORM.fullmatch(text):
            raise _refused("the pass is none")
        process = self.guard.verify(token) if token else None
        if process is not None and not process.key:
            raise _refused("the token that came with the pass names no key")
        public = self._platform if process is None else process.key
        claims = self._claims(text, public)
        expires = self._times(claims)
        if process is not None:
            # It speaks for itself: of what the pass says only the callee and the time count.
            return _Known(process, min(expires, process.expires), process, False)
        # What is handed out is the platform's word for who calls, and for nothing else.
        whom = _identity(claims) if claims["sub"] else None
        return _Known(whom, expires, None, HANDED not in claims)

    def _claims(self, text: str, public: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(text)
            if header.get("typ") != PASS or header.get("alg") != ALGORITHM or "crit" in header:
                raise _refused("the pass is none")
            claims: dict[str, Any] = jwt.decode(
                text,
                self._key(public),
                algorithms=[ALGORITHM],
                audience=self._audience,
                options=_OPTIONS,
            )
        except jwt.InvalidAudienceError:
            raise _refused(f"the pass is for another service than {self._audience}") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise _refused("the pass is not signed by whom it says") from None
        return claims

    def _key(self, public: str) -> Ed25519PublicKey:
        key = self._keys.get(public)
        if key is None:
            raw = base64.urlsafe_b64decode(public + "=" * (-len(public) % 4))
            key = Ed25519PublicKey.from_public_bytes(raw)
            if len(self._keys) >= REMEMBERED:
                self._keys.clear()
            self._keys[public] = key
        return key

    def _times(self, claims: dict[str, Any]) -> float:
        now = self._clock()
        issued, expires = claims["iat"], claims["exp"]
        if not all(isinstance(at, int | float) for at in (issued, expires)):
            raise _refused("the times of the pass are none")
        if expires < now - LEEWAY:
            raise _refused("the pass has expired")
        if issued > now + LEEWAY or expires - issued > LIFE + 2:
            raise _refused("the pass is good for longer than one may be")
        return float(expires)


def bearer_of(given: str) -> str:
    """The access token of a header ``Authorization``. Raises Unauthorized for another scheme."""
    scheme, _, token = given.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("auth", "invalid authorization header. expected Bearer schema")
    return token.strip()


def _identity(claims: dict[str, Any]) -> Identity:
    """What the platform says of who calls."""
    try:
        return Identity(
            id=str(claims["sub"]),
            kind=Kind(claims["kind"]),
            namespace=str(claims["namespace"]),
            scopes=tuple(str(claims["scope"]).split()),
            token=str(claims["token"]),
            issued=float(claims["issued"]),
            expires=float(claims["expires"]),
        )
    except (KeyError, ValueError, TypeError):
        raise _refused("the pass does not say who calls") from None


def _refused(why: str) -> Unauthorized:
    return Unauthorized("auth", f"the credential is refused: {why}")
