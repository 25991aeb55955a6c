"""From a path to an endpoint.

====================  ===========  =============
path                  service      endpoint
====================  ===========  =============
/foo                  foo          Foo.Call
/foo/bar              foo          Foo.Bar
/foo/bar/baz          foo          Bar.Baz
/foo/bar/baz/cat      foo.bar      Baz.Cat
/v1/foo/bar           v1.foo       Foo.Bar
====================  ===========  =============

Names match without regard to case, dashes and underscores. An endpoint may bind a path of its own
by its metadata ``path`` (a template: ``/users/{id}``, ``/files/{name=**}``, ``*``, ``**``) and
``method``; these win over the rule above, the most specific first: more literal segments, then
fewer ``**``, then service and endpoint by name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from micro_ray.errors import BadRequest, MethodNotAllowed, NotFound
from micro_ray.registry import Endpoint
from micro_ray.router import Entry
from micro_ray.router.table import Table

__all__ = ["Paths", "Target"]

MAX_PATH = 4096
#: Resolved paths that are remembered.
CACHE = 10_000

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_VERSION = re.compile(r"v[0-9]+")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_PART = re.compile(r"\{([A-Za-z_][\w.]*)(?:=([^}]*))?\}|\*\*|\*|[^{}*]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a request goes; ``fields`` were captured from the path."""

    service: str
    endpoint: str
    stream: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    response: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Template:
    pattern: re.Pattern[str]
    methods: tuple[str, ...]
    order: tuple[int, int, str, str]
    target: Target


def fold(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


class Paths:
    """Resolves paths against a table; what it remembers goes with each change of the table."""

    def __init__(self, table: Table, namespace: str) -> None:
        self._table = table
        self._namespace = namespace
        self._version = -1
        self._cache: dict[tuple[str, str], Target] = {}
        self._templates: list[_Template] = []

    def resolve(self, method: str, path: str, raw: bytes = b"") -> Target:
        """Raises NotFound saying what is near, MethodNotAllowed, BadRequest for a bad path."""
        if self._version != self._table.version:
            self._refresh()
        found = self._cache.get((method, path))
        if found is not None:
            return found
        _check(path, raw)
        target = self._by_template(method, path) or self._by_rule(method, path)
        if len(self._cache) >= CACHE:
            self._cache.clear()
        self._cache[method, path] = target
        return target

    def allowed(self, path: str) -> list[str]:
        """The methods that some endpoint has for a path."""
        if self._version != self._table.version:
            self._refresh()
        bound = [m for t in self._templates if t.pattern.fullmatch(path) for m in t.methods]
        return sorted(set(bound)) or list(METHODS)

    def _refresh(self) -> None:
        self._version = self._table.version
        self._cache.clear()
        self._templates = sorted(
            (
                template
                for entry in self._table.entries(self._namespace)
                for endpoint in entry.endpoints
                if endpoint.metadata.get("path")
                for template in _compile(entry, endpoint)
            ),
            key=lambda t: t.order,
        )

    def _by_template(self, method: str, path: str) -> Target | None:
        others: list[str] = []
        for template in self._templates:
            match = template.pattern.fullmatch(path)
            if match is None:
                continue
            if template.methods and method not in template.methods:
                others += template.methods
                continue
            captured = {k.replace("__", "."): v for k, v in match.groupdict().items()}
            return _target(template.target.service, template.target, captured)
        if others:
            raise MethodNotAllowed(
                "api", f"{method} is not for {path}; use {', '.join(sorted(set(others)))}"
            )
        return None

    def _by_rule(self, method: str, path: str) -> Target:
        if method not in METHODS:
            raise MethodNotAllowed("api", f"{method} is not served; use {', '.join(METHODS)}")
        parts = [part for part in path.split("/") if part]
        if not parts:
            raise NotFound("api", "no service is named")
        if len(parts) > 1 and _VERSION.fullmatch(parts[0]):
            parts = [f"{parts[0]}.{parts[1]}", *parts[2:]]
        if len(parts) == 1:
            service, handler, name = parts[0], parts[0].rpartition(".")[2], "call"
        elif len(parts) == 2:
            service, handler, name = parts[0], parts[0].rpartition(".")[2], parts[1]
        else:
            service, (handler, name) = ".".join(parts[:-2]), parts[-2:]
        entry = self._table.entry(self._namespace, service)
        if entry is None:
            near = self._table.near(self._namespace, service)
            hint = f"; did you mean {', '.join(f'/{n}' for n in near)}?" if near else ""
            raise NotFound("api", f"no service {service!r}{hint}")
        wanted = fold(f"{handler}.{name}")
        for endpoint in entry.endpoints:
            if fold(endpoint.name) == wanted:
                return _of(entry, endpoint)
        names = [endpoint.name for endpoint in entry.endpoints]
        near = difflib.get_close_matches(f"{handler}.{name}", names, n=3, cutoff=0.4)
        raise NotFound(
            "api",
            f"no endpoint {handler}.{name} in {entry.service}; "
            f"there is {', '.join(near or names[:8]) or 'none'}",
        )


def _of(entry: Entry, endpoint: Endpoint) -> Target:
    return Target(
        service=entry.service,
        endpoint=endpoint.name,
        stream=endpoint.stream,
        request=endpoint.request,
        response=endpoint.response,
    )


def _target(service: str, target: Target, fields: Mapping[str, str]) -> Target:
    return Target(
        service=service,
        endpoint=target.endpoint,
        stream=target.stream,
        request=target.request,
        response=target.response,
        fields=fields,
    )


def _check(path: str, raw: bytes) -> None:
    if len(path) > MAX_PATH:
        raise BadRequest("api", f"path over {MAX_PATH} characters")
    if b"%" in raw and _BAD_ESCAPE.search(raw):
        raise BadRequest("api", "path has a '%' that is not followed by two hexadecimal digits")
    if "�" in path:
        raise BadRequest("api", "path is not UTF-8")
    if any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise BadRequest("api", "path has control characters")
    if "/../" in f"{path}/" or "/./" in f"{path}/":
        raise BadRequest("api", "path has '.' or '..' segments")


def _compile(entry: Entry, endpoint: Endpoint) -> list[_Template]:
    """The templates an endpoint binds (a comma list); one that does not parse is passed over, as
    one service's mistake must not take the door down."""
    rows = []
    methods = tuple(
        m.strip().upper() for m in endpoint.metadata.get("method", "").split(",") if m.strip()
    )
    for text in endpoint.metadata["path"].split(","):
        template = text.strip()
        if not template.startswith("/") or len(template) > 512:
            continue
        try:
            pattern = re.compile(_regex(template))
        except (re.error, ValueError):
            continue
        literal = sum(
            1 for part in template.split("/") if part and "{" not in part and "*" not in part
        )
        rows.append(
            _Template(
                pattern=pattern,
                methods=methods,
                order=(-literal, template.count("**"), entry.service, endpoint.name),
                target=_of(entry, endpoint),
            )
        )
    return rows


def _regex(template: str) -> str:
    """``{id}`` is one segment, ``{name=**}`` the rest, ``*`` one segment, ``**`` any number."""
    out, position = [], 0
    for match in _PART.finditer(template):
        if match.start() != position:
            raise ValueError(template)
        position = match.end()
        name, inner = match[1], match[2]
        if name is not None:
            body = _regex(inner) if inner else "[^/]+"
            out.append(f"(?P<{name.replace('.', '__')}>{body})")
        elif match[0] == "**":
            out.append(".*")
        elif match[0] == "*":
            out.append("[^/]+")
        else:
            out.append(re.escape(match[0]))
    if position != len(template):
        raise ValueError(template)
    return "".join(out)
