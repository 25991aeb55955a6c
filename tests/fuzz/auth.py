"""Tokens and rules that anybody may have made: a verifier says Unauthorized and nothing else, and
decisions are those of an evaluation that only does what the documents say."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from micro_ray.auth import Access, Identity, Key, Kind, Resource, Rule, checks
from micro_ray.auth.rules import DEFAULTS, Rules
from micro_ray.auth.tokens import Signer, Verifier, public_of
from micro_ray.errors import BadRequest, Unauthorized
from tests.fuzz.source import Source

__all__ = ["RulesMachine", "TokensMachine", "decided"]

NOW = 1_700_000_000.0
#: Seconds that one token may take, on a machine however busy.
LONG = 2.0
WORDS = (
    "*", "a", "A", "b", "ab", "a.b", "a.*", "*.b", "*.*", "a/b", "a/*", "/a/*", "/a/b", "/*",
    "a.b.c", "a.*.c", "*.c", "micro", "service", "Greeter.Hello", "Greeter.*", "greeter.hello", ".",
    "/", "ß",
)  # fmt: skip
SCOPES = ("", "*", "+", "x", "X", "admin", "service")
SPACES = ("acme", "micro", "other")


@cache
def _signed() -> tuple[Verifier, bytes, Identity]:
    private = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
    key = Key(id="k", x=public_of(private), state="active")
    asker = Identity(
        id="jane", namespace="acme", scopes=("x",), token="t", issued=NOW, expires=NOW + 60
    )
    token = Signer(private, "k", "micro", "micro").sign(asker)
    return Verifier((key,), "micro", "micro", lambda: NOW), token.encode(), asker


class TokensMachine:
    """A token, good at first, that is cut, doubled, changed and mixed; or no token at all."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._source = Source(data)

    async def run(self) -> None:
        verifier, good, asker = _signed()
        for body in (self._data, self._mutated(good)):
            text = body.decode("utf-8", "replace")
            begun = time.monotonic()
            found, said = None, ""
            try:
                found = verifier.verify(text)
            except Unauthorized as error:
                said = error.detail
            assert len(text) < 20 or text not in said, "a token is shown"
            if found is not None:
                assert text.encode() == good, "a token that nobody has signed"
                assert found == asker
            assert time.monotonic() - begun < LONG

    def _mutated(self, token: bytes) -> bytes:
        source = self._source
        for _ in range(source.below(6)):
            at = (source.below(256) * 256 + source.below(256)) % (len(token) + 1)
            how = source.below(6)
            if how == 0:
                token = token[:at] + token[at + 1 + source.below(8) :]
            elif how == 1:
                token = token[:at] + source.take(16) + token[at:]
            elif how == 2:
                token = token[:at] + source.take(16) + token[at + 16 :]
            elif how == 3:
                parts = token.split(b".")
                token = b".".join(reversed(parts))
            elif how == 4:
                token = token[:at] + token[:at] + token[at:]
            else:
                token = (token * (1 + source.below(64)))[: 10 + 64 * source.below(256)]
        return token


class RulesMachine:
    """Rules that come and go, and callers; each decision beside the plain evaluation's."""

    def __init__(self, data: bytes) -> None:
        self._source = Source(data)
        self._there: dict[str, Rule] = {}
        self._rules = Rules("acme")

    async def run(self) -> None:
        while self._source.more:
            if self._source.below(3) == 0:
                id = self._source.pick(("r0", "r1", "r2", "r3", "default", "default-admin"))
                self._there.pop(id, None)
                self._rules.remove(id)
            elif self._source.below(2):
                self._put()
            else:
                self._ask()

    def _put(self) -> None:
        source = self._source
        rule = Rule(
            id=source.pick(("r0", "r1", "r2", "r3", "default")),
            scope=source.pick(SCOPES),
            resource=Resource(type=self._word(), name=self._word(), endpoint=self._word()),
            access=source.pick((Access.GRANTED, Access.DENIED)),
            priority=source.below(5) * 250 - 250,
        )
        try:
            checks.rule_of(rule)
        except BadRequest:
            return
        self._there[rule.id] = rule
        self._rules.put(rule)

    def _ask(self) -> None:
        source = self._source
        resource = Resource(type=self._word(), name=self._word(), endpoint=self._word())
        asker: Identity | None = None
        if source.below(4):
            asker = Identity(
                id="u",
                kind=source.pick(tuple(Kind)),
                namespace=source.pick(SPACES),
                scopes=tuple({source.pick(SCOPES[3:]) for _ in range(source.below(3))}),
            )
        said = self._rules.decide(asker, resource)
        wanted = decided("acme", self._there.values(), asker, resource)
        assert (said.allowed, said.rule) == wanted, (self._there, asker, resource)

    def _word(self) -> str:
        if self._source.below(4):
            return self._source.pick(WORDS)
        return self._source.take(6).decode("latin-1")


def decided(
    namespace: str, rules: Iterable[Rule], asker: Identity | None, resource: Resource
) -> tuple[bool, Rule | None]:
    """What docs/security.md says, line by line."""
    given = {rule.id: rule for rule in (*DEFAULTS, *rules)}
    for rule in sorted(given.values(), key=lambda rule: (-rule.priority, rule.id)):
        asked = rule.resource
        if not (
            _about(asked.type, resource.type)
            and _about(asked.name, resource.name)
            and _about(asked.endpoint, resource.endpoint)
        ):
            continue
        granted = rule.access is Access.GRANTED
        if rule.scope == "":
            return granted, rule
        if asker is None:
            continue
        if rule.scope == "+":
            return granted, rule
        if asker.namespace != namespace:
            return False, rule
        held = [scope.lower() for scope in asker.scopes]
        if asker.kind is Kind.ADMIN:
            held.append("admin")
        if rule.scope == "*" or rule.scope.lower() in held:
            return granted, rule
    return False, None


def _about(pattern: str, text: str) -> bool:
    pattern, text = pattern.lower(), text.lower()
    if pattern in ("*", text):
        return True
    if "*" not in pattern:
        return False
    mark = "/" if "/" in pattern else "."
    return _parts(pattern.split(mark), text.split(mark))


def _parts(pattern: Sequence[str], text: Sequence[str]) -> bool:
    if not pattern or not text:
        return not pattern and not text
    if list(pattern) == ["*"]:
        return True  # the last: one or more
    return pattern[0] in ("*", text[0]) and _parts(pattern[1:], text[1:])
