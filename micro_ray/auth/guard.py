"""The local decision-maker of a door or a service: who calls, and whether he may. It asks nobody.

It is told by :class:`~micro_ray.auth.Update`: everything once, then what changes. While it is told
nothing it goes on with what it knows and is ``stale``. A revocation is kept until the last token
that it is about has ended, whatever else is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from micro_ray.auth import DEFAULT, Decision, Identity, Key, Resource, Revocation, Update
from micro_ray.auth.rules import Rules
from micro_ray.auth.stays import Stay, Stays
from micro_ray.auth.tokens import LEEWAY, Verifier
from micro_ray.errors import Forbidden, Unauthorized, Unavailable

__all__ = ["Guard"]

#: Tokens whose verification is remembered; more, and it begins anew.
REMEMBERED = 10_000
#: Namespaces without a rule of their own whose decisions are remembered: anybody may name any.
PLAIN = 1000
#: Revocations that are kept before those whose time is over are looked for.
LITTLE = 100

_PLATFORM = Decision(allowed=True, rule=None, why=f"it acts for the platform ({DEFAULT})")


class Guard:
    """``platform`` is the public half of the platform's key, which signs the tokens of replicas."""

    def __init__(
        self,
        issuer: str = DEFAULT,
        audience: str = DEFAULT,
        clock: Callable[[], float] = time.time,
        platform: str = "",
    ) -> None:
        self.revision = -1
        #: Grows with everything that is learnt: what was decided holds while it stays.
        self.generation = 0
        #: What is known, in a word for who is followed next.
        self.mark = ""
        #: Whether who is followed has begun with less than is known, so that only everything, or
        #: another who goes on from the mark, is of use.
        self.aside = False
        #: Whether what is known may be old.
        self.stale = True
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._own = (Key(id=platform[:16], x=platform, state="active"),) if platform else ()
        self._verifier = Verifier(self._own, issuer, audience, clock)
        self._ready = False
        self._verified: dict[str, Identity] = {}
        self._rules: dict[str, Rules] = {}
        #: Of namespaces that have none of their own.
        self._plain: dict[str, Rules] = {}
        self._tokens: dict[str, float] = {}
        self._accounts: dict[tuple[str, str], tuple[float, float]] = {}
        self._prune_at = LITTLE
        #: Streams that it has let in, ended when it would no more.
        self.stays = Stays(self._judge, clock)

    @property
    def ready(self) -> bool:
        """Whether everything has come once."""
        return self._ready

    def apply(self, update: Update) -> None:
        """Learn; afterwards decisions are by it. Of what somebody knew who is out of reach of the
        source, and who may know less than is known here, only that which never goes back."""
        self.generation += 1
        if update.stale:
            self.stale = True
            self.aside = self.aside or (update.full and update.revision < self.revision)
            if not update.full or self.aside:
                self._only_revoke(update)
                return
        if self.aside and not update.full:
            self._only_revoke(update)  # it is what has changed since what was not taken
            return
        self.aside = False
        if update.full:
            self._rules, self._ready = {}, True
        if update.keys is not None:
            keys = (*update.keys, *self._own)
            self._verifier = Verifier(keys, self._issuer, self._audience, self._clock)
            self._verified.clear()
        for space, rule in update.rules:
            self._rules_of(space).put(rule)
        for space, id in update.gone:
            self._rules_of(space).remove(id)
        for revoked in update.revoked:
            self._revoke(revoked)
        self.revision = update.revision
        self.mark = update.mark
        self.stale = update.stale or (self.stale and not (update.full or update.resumed))
        if update.full or update.rules or update.gone or update.revoked:
            self.stays.changed()

    def _only_revoke(self, update: Update) -> None:
        for revoked in update.revoked:
            self._revoke(revoked)
        if update.revoked:
            self.stays.changed()

    def _rules_of(self, namespace: str) -> Rules:
        rules = self._rules.get(namespace)
        if rules is None:
            rules = self._rules[namespace] = Rules(namespace)
        return rules

    def _revoke(self, revoked: Revocation) -> None:
        if revoked.until < self._clock():
            return
        if len(self._tokens) + len(self._accounts) >= self._prune_at:
            self._prune()
        if revoked.token:
            self._tokens[revoked.token] = max(self._tokens.get(revoked.token, 0.0), revoked.until)
            return
        space, _, id = revoked.account.partition("/")
        before, until = self._accounts.get((space, id), (0.0, 0.0))
        self._accounts[space, id] = max(before, revoked.before), max(until, revoked.until)

    def _prune(self) -> None:
        """Forget those whose time is over: not each time, as many come at once."""
        now = self._clock()
        self._tokens = {id: until for id, until in self._tokens.items() if until >= now}
        self._accounts = {key: void for key, void in self._accounts.items() if void[1] >= now}
        self._prune_at = max(LITTLE, 2 * (len(self._tokens) + len(self._accounts)))

    def ruled(self, namespace: str) -> bool:
        """Whether a namespace has rules of its own, or had."""
        return namespace in self._rules

    def now(self) -> float:
        """The time by which it decides."""
        return self._clock()

    # -- deciding --------------------------------------------------------------------------------

    def verify(self, token: str) -> Identity:
        """Whose token it is. Raises Unauthorized that says what is wrong with it, Unavailable
        before anything is known."""
        identity = self._verified.get(token)
        if identity is None:
            identity = self._first(token)
            if len(self._verified) >= REMEMBERED:
                self._verified.clear()
            self._verified[token] = identity
        elif identity.expires < self._clock() - LEEWAY:
            del self._verified[token]
            raise Unauthorized("auth", "the token is refused: it has expired: log in again")
        self.standing(identity)
        return identity

    def _first(self, token: str) -> Identity:
        try:
            return self._verifier.verify(token)
        except Unauthorized:
            if not self._ready:
                raise _unknown() from None
            raise

    def standing(self, identity: Identity) -> None:
        """Raises Unauthorized when the token of somebody who was verified is void."""
        if identity.token in self._tokens:
            raise _revoked()
        voids = self._accounts.get((identity.namespace, identity.id))
        if voids is not None and identity.issued < voids[0]:
            raise _revoked()

    def decide(
        self, identity: Identity | None, resource: Resource, namespace: str = DEFAULT
    ) -> Decision:
        """Whether ``identity`` (None: nobody) may call a resource of a namespace."""
        if identity is not None and identity.everywhere:
            return _PLATFORM
        rules = self._rules.get(namespace) or self._plain.get(namespace)
        if rules is None:
            if len(self._plain) >= PLAIN:
                self._plain.clear()
            rules = self._plain[namespace] = Rules(namespace)
        return rules.decide(identity, resource)

    def check(
        self, identity: Identity | None, resource: Resource, namespace: str = DEFAULT
    ) -> None:
        """Raises Unauthorized for nobody, Forbidden for somebody who may not, Unavailable before
        anything is known."""
        if not self._ready and not (identity is not None and identity.everywhere):
            raise _unknown()
        if self.decide(identity, resource, namespace).allowed:
            return
        what = f"{resource.name}:{resource.endpoint}"
        if identity is None:
            raise Unauthorized(resource.name, f"Unauthorized call made to {what}: log in")
        raise Forbidden(resource.name, f"Forbidden call made to {what} by {identity.id}")

    def _judge(self, stay: Stay) -> None:
        """Raises Unauthorized or Forbidden when a stream may go on no more."""
        if stay.identity is not None and stay.identity.token:
            self.standing(stay.identity)
        if stay.resource is not None:
            for namespace in stay.spaces:
                self.check(stay.identity, stay.resource, namespace)


def _unknown() -> Unavailable:
    return Unavailable("auth", "keys and rules are not known here yet", 1.0)


def _revoked() -> Unauthorized:
    return Unauthorized("auth", "the token is refused: it was revoked; log in again")
