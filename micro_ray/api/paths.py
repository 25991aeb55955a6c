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

Names match without regard to case, dashes and underscores. The handler of a service whose name has
dots is its last part or all of it: ``/v1/foo/bar`` finds ``Foo.Bar`` and ``V1Foo.Bar``.

An endpoint may bind paths of its own by its metadata ``path`` (a comma list of templates, see
``templates.py``) and ``method`` (a comma list; none: any). These win over the rule above, but for
what it says of the platform's own services, the most specific first: more literal segments, then
fewer ``**``, then service and endpoint by name. A template without a literal segment (``/**``,
``/{code}``) is taken only where the rule finds nothing, so that no service takes the paths of all
others. A path whose templates are all for other methods goes by the rule too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote_to_bytes

from micro_ray.api.templates import Template, parse
from micro_ray.auth import Resource
from micro_ray.errors import BadRequest, MethodNotAllowed, NotFound, Unavailable
from micro_ray.registry import MAX_NAME, Endpoint
from micro_ray.router import Entry
from micro_ray.router.table import Table
from micro_ray.settings import PLATFORM

__all__ = ["METHODS", "AllPaths", "Paths", "Target", "idempotent_of", "methods_of", "templates_of"]

MAX_PATH = 4096
#: Templates that one endpoint may bind; further ones are passed over.
MAX_TEMPLATES = 16
#: Resolved paths that are remembered, and the longest of them.
CACHE = 10_000
CACHED_PATH = 256

#: Namespaces whose paths are remembered.
NAMESPACES = 1000
#: The same for strangers, who may name any: namespaces, and paths of each.
STRANGERS, STRANGE = 100, 1000

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_VERSION = re.compile(r"v[0-9]+")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_DOTS = re.compile(r"/\.\.?(?:/|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a request goes; ``fields`` were captured from the path. ``raw_in`` and ``raw_out`` say
    that request and answer are bytes that mean nothing to the door; ``read`` that the endpoint
    binds GET itself, and so only reads; ``idempotent`` what it says of itself, None for nothing;
    ``resource`` is what rules call it."""

    service: str
    endpoint: str
    stream: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    response: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    raw_in: bool = False
    raw_out: bool = False
    read: bool = False
    idempotent: bool | None = None
    resource: Resource = field(default_factory=Resource)

    def repeatable(self, method: str) -> bool:
        """Whether a call that a node has failed may be made on another: what the endpoint says, or
        else what HTTP says of the method."""
        return method in ("GET", "HEAD") if self.idempotent is None else self.idempotent


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """A template with what it leads to."""

    template: Template
    methods: tuple[str, ...]
    target: Target


def fold(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def templates_of(endpoint: Endpoint) -> list[Template]:
    """The templates an endpoint binds. One that cannot be read is passed over: one service's
    mistake must not take the door down."""
    found = []
    for text in endpoint.metadata.get("path", "").split(",", MAX_TEMPLATES)[:MAX_TEMPLATES]:
        try:
            found.append(parse(text.strip()))
        except ValueError:
            continue
    return found


def methods_of(endpoint: Endpoint) -> tuple[str, ...]:
    """The methods an endpoint binds its templates for; none is any."""
    given = endpoint.metadata.get("method", "").upper().split(",")
    return tuple(method.strip() for method in given if method.strip())


def idempotent_of(endpoint: Endpoint) -> bool | None:
    """What an endpoint says of being called twice; None for nothing, or nothing that is known."""
    return {"true": True, "false": False}.get(endpoint.metadata.get("idempotent", "").lower())


class Paths:
    """Resolves paths against a table; what it remembers goes with each change of the table. To a
    ``stranger`` it names nothing that he has not named."""

    def __init__(self, table: Table, namespace: str, *, stranger: bool = False) -> None:
        self._table = table
        self._namespace = namespace
        self._stranger = stranger
        self._most = STRANGE if stranger else CACHE
        self._version = -1
        self._cache: dict[tuple[str, str], Target] = {}
        self._first: list[_Bound] = []
        self._last: list[_Bound] = []
        self._folded: dict[str, str] = {}
        self._read: dict[str, list[Template]] = {}

    def resolve(self, method: str, path: str, raw: bytes = b"") -> Target:
        """Raises NotFound saying what is near, MethodNotAllowed, BadRequest for a bad path."""
        if self._version != self._table.version:
            self._refresh()
        found = self._cache.get((method, path))
        if found is not None:
            return found
        _check(path, raw)
        target = self._find(method, path)
        # What has a '%' is looked at again: another spelling of the same path may be a bad one.
        if len(path) <= CACHED_PATH and "%" not in path:
            if len(self._cache) >= self._most:
                self._cache.clear()
            self._cache[method, path] = target
        return target

    def named(self, service: str, handler: str, name: str) -> Target:
        """The endpoint of this service, handler and name, whatever paths it binds; names without
        regard to case, dashes and underscores. Raises NotFound saying what is near, Unavailable
        before the first table."""
        if self._version != self._table.version:
            self._refresh()
        asked = ("", f"{service}.{handler}/{name}")  # no path of HTTP has a blank method
        found = self._cache.get(asked)
        if found is None:
            found = self._of(self._entry(service), handler, name, {fold(f"{handler}.{name}")})
            if len(asked[1]) <= CACHED_PATH:
                if len(self._cache) >= self._most:
                    self._cache.clear()
                self._cache[asked] = found
        return found

    def allowed(self, path: str) -> list[str]:
        """The methods that some endpoint has for a path."""
        if self._version != self._table.version:
            self._refresh()
        bound = [b for b in (*self._first, *self._last) if b.template.match(path) is not None]
        methods = {method for b in bound for method in b.methods or METHODS}
        if not methods:
            return list(METHODS)
        try:
            self._by_rule("POST", path)
        except NotFound:
            return sorted(methods)
        return list(METHODS)

    def _refresh(self) -> None:
        self._version = self._table.version
        self._cache.clear()
        read: dict[str, list[Template]] = {}
        rows: list[_Bound] = []
        self._folded = {}
        for entry in self._table.entries(self._namespace):
            self._folded[fold(entry.service)] = entry.service
            for endpoint in entry.endpoints:
                text = endpoint.metadata.get("path", "")
                if not text:
                    continue
                # Reading a template costs far more than a change of the table may.
                templates = self._read[text] if text in self._read else templates_of(endpoint)
                read[text] = templates
                methods = methods_of(endpoint)
                target = replace(_target(entry, endpoint), read="GET" in methods)
                rows += [_Bound(template=t, methods=methods, target=target) for t in templates]
        self._read = read
        rows.sort(key=_order)
        self._first = [row for row in rows if row.template.literals]
        self._last = [row for row in rows if not row.template.literals]

    def _find(self, method: str, path: str) -> Target:
        others: list[str] = []
        target = _by_template(self._first, method, path, others)
        if target is not None:
            return (self._platforms(path) if method in METHODS else None) or target
        try:
            return self._by_rule(method, path)
        except (NotFound, MethodNotAllowed) as error:
            target = _by_template(self._last, method, path, others)
            if target is not None:
                return target
            if others or isinstance(error, MethodNotAllowed):
                use = ", ".join(sorted(set(others or METHODS)))
                raise MethodNotAllowed("api", f"{method} is not for {path}; use {use}") from None
            raise

    def _platforms(self, path: str) -> Target | None:
        """What a path is by the rule of a service of the platform: no other service takes it, or it
        would be told what is said to that one, secrets among it."""
        parts = [part for part in path.split("/") if part]
        if not parts or fold(parts[0]) not in PLATFORM:
            return None
        service, _, _, wanted = _asked(parts)
        entry = self._table.entry(self._namespace, service)
        if entry is None or entry.service.lower() not in PLATFORM:
            return None
        found = (e for e in entry.endpoints if fold(e.name) in wanted)
        return next((_target(entry, endpoint) for endpoint in found), None)

    def _by_rule(self, method: str, path: str) -> Target:
        if method not in METHODS:
            raise MethodNotAllowed("api", method)
        parts = [part for part in path.split("/") if part]
        if not parts:
            raise NotFound("api", "no service is named; /openapi.json lists what there is")
        service, handler, name, wanted = _asked(parts)
        return self._of(self._entry(service), handler, name, wanted)

    def _entry(self, service: str) -> Entry:
        table, namespace = self._table, self._namespace
        entry = table.entry(namespace, service)
        if entry is None:
            entry = table.entry(namespace, self._folded.get(fold(service), ""))
        if entry is not None:
            return entry
        if not table.version:
            raise Unavailable("api", "no route table yet: no router has answered", 1.0)
        if self._stranger:
            raise _nothing()
        near = table.near(namespace, service) if len(service) <= MAX_NAME else []
        hint = f"; did you mean {', '.join(f'/{n}' for n in near)}?" if near else ""
        raise NotFound("api", f"no service {service!r}{hint}")

    def _of(self, entry: Entry, handler: str, name: str, wanted: set[str]) -> Target:
        """The endpoint of an entry whose folded name is wanted. Raises NotFound saying what is
        near."""
        for endpoint in entry.endpoints:
            if fold(endpoint.name) in wanted:
                return _target(entry, endpoint)
        if self._stranger:
            raise _nothing()
        names = [endpoint.name for endpoint in entry.endpoints]
        near = difflib.get_close_matches(f"{handler}.{name}"[:MAX_NAME], names, n=3, cutoff=0.4)
        raise NotFound(
            "api",
            f"no endpoint {handler}.{name} in {entry.service}; "
            f"there is {', '.join(near or names[:8]) or 'none'}",
        )


class AllPaths:
    """The paths of each namespace that is asked for, of the newest thousand at least."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._known: dict[str, Paths] = {}
        self._strange: dict[str, Paths] = {}

    def of(self, namespace: str, *, stranger: bool = False) -> Paths:
        """As they are told to who is of the namespace, or to a ``stranger``."""
        known, most = (self._strange, STRANGERS) if stranger else (self._known, NAMESPACES)
        paths = known.get(namespace)
        if paths is None:
            if len(known) >= most:
                known.clear()
            paths = known[namespace] = Paths(self._table, namespace, stranger=stranger)
        return paths


def _asked(parts: list[str]) -> tuple[str, str, str, set[str]]:
    """The service, handler and name that a path is by the rule, and the folded names of endpoints
    that are meant."""
    if len(parts) > 1 and _VERSION.fullmatch(parts[0].lower()):
        parts = [f"{parts[0]}.{parts[1]}", *parts[2:]]
    name = parts[-1] if len(parts) > 1 else "call"
    if len(parts) > 2:
        handler = parts[-2]
        return ".".join(parts[:-2]), handler, name, {fold(f"{handler}.{name}")}
    service = parts[0]
    handler = service.rpartition(".")[2]
    wanted = {fold(f"{handler}.{name}"), fold(f"{service.replace('.', '')}.{name}")}
    return service, handler, name, wanted


def _nothing() -> NotFound:
    return NotFound("api", "there is nothing of this name that you may call")


def _order(row: _Bound) -> tuple[int, int, str, str]:
    template, target = row.template, row.target
    return (-template.literals, template.rests, target.service, target.endpoint)


def _by_template(rows: list[_Bound], method: str, path: str, others: list[str]) -> Target | None:
    """The target of the first template that fits; ``others`` gets the methods of those that fit
    but for the method."""
    for row in rows:
        fields = row.template.match(path)
        if fields is None:
            continue
        if not row.methods or method in row.methods:
            return replace(row.target, fields=fields) if fields else row.target
        others += row.methods
    return None


def _target(entry: Entry, endpoint: Endpoint) -> Target:
    return Target(
        service=entry.service,
        endpoint=endpoint.name,
        stream=endpoint.stream,
        request=endpoint.request,
        response=endpoint.response,
        raw_in=endpoint.request.get("contentEncoding") == "binary",
        raw_out=endpoint.response.get("contentEncoding") == "binary",
        idempotent=idempotent_of(endpoint),
        resource=Resource(name=entry.service, endpoint=endpoint.name),
    )


def _check(path: str, raw: bytes) -> None:
    if len(path) > MAX_PATH:
        raise BadRequest("api", f"path over {MAX_PATH} characters")
    if b"%" in raw and _BAD_ESCAPE.search(raw):
        raise BadRequest("api", "path has a '%' that is not followed by two hexadecimal digits")
    if (
        "\ufffd" in path
    ):  # what the server put in the place of bytes that are no UTF-8, or a real one
        try:
            unquote_to_bytes(raw or b"\xff").decode()
        except UnicodeDecodeError:
            raise BadRequest("api", "path is not UTF-8") from None
    if _CONTROL.search(path):
        raise BadRequest("api", "path has control characters")
    if _DOTS.search(path):
        raise BadRequest("api", "path has '.' or '..' segments")
