"""What auth refuses, said in one place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from micro_ray.auth import (
    ADMIN,
    DEFAULT,
    MAX_ID,
    MAX_METADATA,
    MAX_METADATA_BYTES,
    MAX_PRIORITY,
    MAX_SCOPE,
    MAX_SCOPES,
    MAX_SECRET,
    MIN_SECRET,
    SERVICE,
    Identity,
    Kind,
    Rule,
)
from micro_ray.errors import BadRequest, Forbidden, TooLarge, Unauthorized

__all__ = [
    "administers",
    "followed",
    "grants",
    "id_of",
    "metadata_of",
    "namespace_of",
    "rule_of",
    "scopes_of",
    "secret_of",
    "somebody",
    "within",
]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]*")
#: As long as those of the store and of events.
_NAMESPACE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_SCOPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")
_PATTERN = re.compile(r"[^\s\x00-\x1f\x7f*]*|\*")


def id_of(what: str, value: str) -> str:
    """An id or a name."""
    if not isinstance(value, str) or len(value) > MAX_ID or not _ID.fullmatch(value):
        raise BadRequest(
            "auth",
            f"{what} {str(value)[:80]!r}: letters, digits and . _ @ + -, beginning with a letter "
            f"or digit, at most {MAX_ID} characters",
        )
    return value


def namespace_of(value: str) -> str:
    if not isinstance(value, str) or not _NAMESPACE.fullmatch(value):
        raise BadRequest(
            "auth", f"namespace {str(value)[:80]!r}: letters, digits, '.', '_' and '-'"
        )
    return value


def scopes_of(values: Sequence[str]) -> tuple[str, ...]:
    """Scopes, each once."""
    if isinstance(values, str):
        raise BadRequest("auth", "scopes are a list")
    if len(values) > MAX_SCOPES:
        raise TooLarge("auth", f"{len(values)} scopes; {MAX_SCOPES} allowed")
    for scope in values:
        if not isinstance(scope, str) or len(scope) > MAX_SCOPE or not _SCOPE.fullmatch(scope):
            raise BadRequest(
                "auth",
                f"scope {str(scope)[:80]!r}: letters, digits and . _ : / -, at most {MAX_SCOPE} "
                "characters",
            )
    return tuple(dict.fromkeys(values))


def secret_of(value: str) -> str:
    if not isinstance(value, str) or len(value.encode(errors="replace")) < MIN_SECRET:
        raise BadRequest("auth", f"a secret has at least {MIN_SECRET} bytes")
    if len(value.encode(errors="replace")) > MAX_SECRET:
        raise TooLarge("auth", f"a secret has at most {MAX_SECRET} bytes")
    if "\0" in value:
        raise BadRequest("auth", "a secret has no NUL")
    return value


def metadata_of(values: Mapping[str, str]) -> dict[str, str]:
    if len(values) > MAX_METADATA:
        raise TooLarge("auth", f"{len(values)} entries of metadata; {MAX_METADATA} allowed")
    size = 0
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise BadRequest("auth", "metadata are texts by text")
        size += len(key.encode(errors="replace")) + len(value.encode(errors="replace"))
    if size > MAX_METADATA_BYTES:
        raise TooLarge("auth", f"{size} bytes of metadata; {MAX_METADATA_BYTES} allowed")
    return dict(values)


def rule_of(rule: Rule) -> Rule:
    id_of("rule", rule.id)
    if rule.scope not in ("", "*", "+"):
        scopes_of([rule.scope])
    for what in ("type", "name", "endpoint"):
        _pattern(what, getattr(rule.resource, what))
    if isinstance(rule.priority, bool) or not -MAX_PRIORITY <= rule.priority <= MAX_PRIORITY:
        raise BadRequest("auth", f"priority {rule.priority!r}: within {MAX_PRIORITY} of 0")
    return rule


def _pattern(what: str, value: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= 253:
        raise BadRequest(
            "auth", f"resource {what} {str(value)[:80]!r}: 1 to 253 characters; * is anything"
        )
    if not all(_PATTERN.fullmatch(part) for part in re.split(r"[./]", value)):
        raise BadRequest(
            "auth", f"resource {what} {value[:80]!r}: * is a whole part, between dots or slashes"
        )


# -- who may ---------------------------------------------------------------------------------------


def somebody(by: Identity | None) -> Identity:
    if by is None:
        raise Unauthorized("auth", "an account is required: log in")
    return by


def within(by: Identity | None, namespace: str) -> Identity:
    """An account of this namespace, or one that may act in all."""
    account = somebody(by)
    if account.namespace != namespace and not account.everywhere:
        raise Forbidden("auth", f"access denied to namespace {namespace}")
    return account


def administers(by: Identity | None, namespace: str) -> Identity:
    account = within(by, namespace)
    if not account.admin and not account.everywhere:
        raise Forbidden("auth", f"{account.id} does not administer {namespace}: scope {ADMIN} does")
    return account


def followed(by: Identity | None, namespace: str | None) -> str | None:
    """Whose rules somebody is told who asks to follow those of a namespace (None: whatever he
    may): None for all. Raises Forbidden for who is no service, or of another namespace."""
    account = somebody(by)
    if account.everywhere:
        return None if namespace == DEFAULT else namespace
    service = account.kind is Kind.SERVICE and SERVICE in account.grants[1]
    if not (service or account.admin) or namespace not in (None, account.namespace):
        raise Forbidden("auth", f"{account.id} does not act for {namespace or DEFAULT}")
    return account.namespace


def grants(by: Identity, kind: Kind, scopes: Sequence[str]) -> None:
    """Raises Forbidden when he, who acts within a namespace that is his, would give more than he
    holds. Who administers holds all."""
    if by.admin:
        return
    for scope in scopes:
        if scope.lower() not in by.grants[1]:
            raise Forbidden("auth", f"{by.id} does not hold the scope {scope}, and cannot give it")
    if kind is Kind.ADMIN:
        raise Forbidden("auth", f"{by.id} does not administer, and cannot make who does")
