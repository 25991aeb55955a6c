"""The rules of a namespace as they lie in config, and as a door asks them.

Under ``limits``: ``namespace`` is a limit; ``account``, ``service`` and ``route`` are the limits
of each that has none of its own; ``accounts``, ``services`` and ``routes`` have one by name. A
limit is an object with ``rate``, ``burst`` and ``concurrency``. Names go down with their dots, as
paths of config do: ``routes.helloworld.Helloworld.Call``; an object that has a number under one of
the three is a limit, and its other members go on from there. What no path can have (``@``, ``:``,
...) is written ``_`` and two hexadecimal digits: ``accounts.ada_40example.org``.

``store``, ``events`` and ``broker`` have a ``rate`` and a ``burst`` of what is done there, and
``store`` and ``events`` beside them what may be kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from micro_ray.errors import BadRequest, TooLarge
from micro_ray.limits import (
    BACKENDS,
    MAX_BURST,
    MAX_CONCURRENCY,
    MAX_NAME,
    MAX_RATE,
    MAX_RULES,
    MIN_RATE,
    WHOLE,
    EventQuota,
    Kind,
    Limit,
    Quota,
    Rule,
)

__all__ = [
    "FIELDS",
    "ROOT",
    "Rules",
    "check_limit",
    "check_place",
    "event_quota_of",
    "parse",
    "path_of",
    "quota_of",
]

#: The path of config under which they are.
ROOT = "limits"
FIELDS = ("rate", "burst", "concurrency")
KINDS = tuple(str(kind) for kind in Kind)
_BACKENDS = {str(kind): kind for kind in BACKENDS}
#: What may be kept, beside what may be done.
_QUOTAS = {"store": ("bytes", "records"), "events": ("bytes", "events", "topics"), "broker": ()}
#: The member of the document that has a kind's limits by name.
_PLURALS = {
    "accounts": Kind.ACCOUNT,
    "services": Kind.SERVICE,
    "routes": Kind.ROUTE,
}
_ESCAPE = re.compile(r"_([0-9a-f]{2})")
_ESCAPED = re.compile(r"(?:_[0-9a-f]{2})+")
_PLAIN = re.compile(r"[A-Za-z0-9_-]")


class Rules:
    """The rules of one namespace. ``of`` gives those that a request must keep, ``version`` grows
    with each change."""

    __slots__ = ("_each", "_named", "events", "rules", "store", "version")

    def __init__(
        self,
        rules: tuple[Rule, ...] = (),
        version: int = 0,
        store: Quota | None = None,
        events: EventQuota | None = None,
    ) -> None:
        self.rules = rules
        self.store = store
        self.events = events
        self.version = version
        self._named = {(rule.kind, _folded(rule.kind, rule.name)): rule for rule in rules}
        self._each = {rule.kind: rule.limit for rule in rules if not rule.name}

    def of(self, account: str, service: str, endpoint: str) -> tuple[Rule, ...]:
        """The rules for a call of an account ("": nobody has said who it is)."""
        found = []
        whole = self._each.get(Kind.NAMESPACE)
        if whole is not None:
            found.append(Rule(kind=Kind.NAMESPACE, limit=whole))
        route = f"{service}.{endpoint}"
        for kind, name in (
            (Kind.ACCOUNT, account),
            (Kind.SERVICE, service.lower()),
            (Kind.ROUTE, route.lower()),
        ):
            if not name:
                continue
            rule = self._named.get((kind, name))
            if rule is None and kind in self._each:
                rule = Rule(kind=kind, name=name, limit=self._each[kind])
            if rule is not None:
                found.append(rule)
        own = _BACKENDS.get(service.lower())
        if own is not None and own in self._each:
            found.append(Rule(kind=own, limit=self._each[own]))
        return tuple(found)


def _folded(kind: Kind, name: str) -> str:
    """Services and endpoints are called without regard to case."""
    return name if kind is Kind.ACCOUNT else name.lower()


def parse(document: Any) -> tuple[Rule, ...]:
    """The rules of a document, by kind and name. Raises BadRequest that names the path of what is
    wrong, TooLarge over :data:`MAX_RULES`."""
    if document is None:
        return ()
    rules: list[Rule] = []
    for word, value in _object(document, ROOT).items():
        where = f"{ROOT}.{word}"
        if word in _PLURALS:
            rules += _named(_PLURALS[word], _object(value, where), where, ())
        elif word in _QUOTAS:
            rules += _of_backend(Kind(word), value, where)
        elif word in KINDS:
            members = _object(value, where)
            unknown = sorted(members.keys() - set(FIELDS))
            if unknown:
                raise _wrong(f"{where}.{unknown[0]}", f"is none of {', '.join(FIELDS)}")
            if members:
                rules.append(Rule(kind=Kind(word), limit=_limit(members, where)))
        else:
            known = ", ".join((*KINDS, *_PLURALS))
            raise _wrong(where, f"is none of {known}")
    if len(rules) > MAX_RULES:
        raise TooLarge("limits", f"{len(rules)} limits in a namespace; {MAX_RULES} allowed")
    return tuple(sorted(rules, key=lambda rule: (list(Kind).index(rule.kind), rule.name)))


def quota_of(document: Any) -> Quota | None:
    """The quota of the store in a document. Raises BadRequest."""
    given = _kept(document, "store")
    return Quota(**given) if any(given.values()) else None


def event_quota_of(document: Any) -> EventQuota | None:
    """The quota of events in a document. Raises BadRequest."""
    given = _kept(document, "events")
    return EventQuota(**given) if any(given.values()) else None


def _of_backend(kind: Kind, value: Any, where: str) -> Iterator[Rule]:
    """The limit of what is done there, if it has one."""
    members = _object(value, where)
    known = (*_QUOTAS[kind], "rate", "burst")
    unknown = sorted(members.keys() - set(known))
    if unknown:
        raise _wrong(f"{where}.{unknown[0]}", f"is none of {', '.join(known)}")
    _kept({kind: value}, kind)
    given = {name: value for name, value in members.items() if name in FIELDS}
    if given:
        yield Rule(kind=kind, limit=_limit(given, where))


def _kept(document: Any, word: str) -> dict[str, int]:
    """What may be kept in a backend."""
    if document is None or document.get(word) is None:
        return {}
    where = f"{ROOT}.{word}"
    given = {}
    for name, value in _object(document[word], where).items():
        if name not in _QUOTAS[word]:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**60:
            raise _wrong(
                f"{where}.{name}", f"is {str(value)[:40]!r}, not a whole number below 2**60"
            )
        given[name] = value
    return given


def _named(
    kind: Kind, members: Mapping[str, Any], where: str, parts: tuple[str, ...]
) -> Iterator[Rule]:
    """A limit where there is one, and what is below it."""
    limit = {k: v for k, v in members.items() if k in FIELDS and not isinstance(v, Mapping)}
    if limit:
        if not parts:
            raise _wrong(f"{where}.{min(limit)}", f"belongs to one {kind}, whose name is missing")
        name = ".".join(map(_unescaped, parts))
        check_place(kind, name)
        yield Rule(kind=kind, name=name, limit=_limit(limit, where))
    for word, value in members.items():
        if word not in limit:
            below = f"{where}.{word}"
            yield from _named(kind, _object(value, below), below, (*parts, word))


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, f"is {str(value)[:40]!r}, not an object")
    return value


def _limit(members: Mapping[str, Any], where: str) -> Limit:
    given = {name: value for name, value in members.items() if value is not None}
    return check_limit(where=f"{where}.", **given)


def check_limit(*, rate: Any = 0.0, burst: Any = 0, concurrency: Any = 0, where: str = "") -> Limit:
    """The limit of numbers that somebody gave. Raises BadRequest that names the wrong one."""
    for name, value, whole, least, most in (
        ("rate", rate, False, MIN_RATE, MAX_RATE),
        ("burst", burst, True, 1, MAX_BURST),
        ("concurrency", concurrency, True, 1, MAX_CONCURRENCY),
    ):
        kinds = int if whole else int | float
        number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not (value == 0 or least <= value <= most):
            what = "a whole number" if whole else "a number"
            raise _wrong(
                f"{where}{name}",
                f"is {str(value)[:40]!r}, not {what} from {least:g} to {most:.0f} (or 0: no limit)",
            )
    if burst and not rate:
        raise _wrong(f"{where}burst", "goes with a rate, and there is none")
    return Limit(rate=float(rate), burst=burst, concurrency=concurrency)


def check_place(kind: str, name: str) -> Kind:
    """Raises BadRequest for a kind that there is not, and a name that it cannot have."""
    if kind not in KINDS:
        raise BadRequest("limits", f"kind {kind[:40]!r} is none of {', '.join(KINDS)}")
    if kind in WHOLE and name:
        whose = "a namespace" if kind == Kind.NAMESPACE else f"a namespace in {kind}"
        raise BadRequest("limits", f"the limit of {whose} has no name: it is the caller's own")
    bad = not name.isprintable() or " " in name or "" in name.split(".")
    if name and (len(name) > MAX_NAME or bad):
        raise BadRequest(
            "limits",
            f"name {name[:80]!r}: at most {MAX_NAME} characters that can be shown, without spaces, "
            "and something before, between and after its dots",
        )
    if kind == Kind.ROUTE and name and name.count(".") < 2:
        raise BadRequest("limits", f"route {name[:80]!r} is not like service.Handler.Method")
    return Kind(kind)


def path_of(kind: Kind, name: str) -> str:
    """Where in config the limit of something is."""
    if not name:
        return f"{ROOT}.{kind}"
    return f"{ROOT}.{kind}s.{'.'.join(map(_escaped, name.split('.')))}"


def _escaped(part: str) -> str:
    """A part of a name as a part of a path. A field's own name is escaped too: it would be taken
    for the field only with a number in it, but is easier to read so."""
    part = _ESCAPE.sub(r"_5f\1", part)
    text = "".join(
        c if _PLAIN.fullmatch(c) else "".join(f"_{byte:02x}" for byte in c.encode()) for c in part
    )
    return f"_{ord(text[0]):02x}{text[1:]}" if text in FIELDS else text


def _unescaped(part: str) -> str:
    return _ESCAPED.sub(
        lambda found: bytes.fromhex(found.group().replace("_", "")).decode(errors="replace"), part
    )


def _wrong(where: str, why: str) -> BadRequest:
    return BadRequest("limits", f"{where} {why}")
