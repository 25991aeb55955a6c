"""Rules, compiled: who may call what is decided from an index, in the order of Micro.

Rules are tried by priority, the highest first, and among equals by their ids. The first that is
about the resource and about who asks decides; when none does, the answer is no. A rule about a
scope of this namespace ends the search for an account of another one: it may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from micro_ray.auth import Access, Decision, Identity, Resource, Rule

__all__ = ["DEFAULTS", "Rules", "loose", "matches", "order"]

#: Resources and askers whose decisions are remembered; more, and it begins anew.
REMEMBERED = 20_000


def _service(
    id: str,
    scope: str,
    names: str,
    endpoint: str = "*",
    access: Access = Access.GRANTED,
    priority: int = 0,
) -> tuple[Rule, ...]:
    several = names.split()
    return tuple(
        Rule(
            id=id if len(several) == 1 else f"{id}-{name}",
            scope=scope,
            resource=Resource(name=name, endpoint=endpoint),
            access=access,
            priority=priority,
        )
        for name in several
    )


#: What holds in a namespace that has said nothing else. A rule with the same id takes the place of
#: one of these. Services of the namespace may be called by its accounts; of the platform's own what
#: changes or shows more than one's own is for who administers and for services.
DEFAULTS: tuple[Rule, ...] = (
    *_service("default-login", "", "auth", "Auth.Token", priority=1000),
    *_service("default-refresh", "", "auth", "Auth.Refresh", priority=1000),
    *_service("default-keys", "", "auth", "Auth.Keys", priority=1000),
    *_service("default-sign", "", "certs", "Certs.Sign", priority=1000),
    *_service("default-roots", "", "certs", "Certs.Roots", priority=1000),
    *_service("default-roots-watch", "", "certs", "Certs.Watch", priority=1000),
    *_service("default-routes", "", "router", "Router.Watch", priority=1000),
    *_service("default-admin", "admin", "*", priority=500),
    *_service("default-service", "service", "*", priority=500),
    *_service("default-runtime-read", "*", "runtime", "Runtime.Read", priority=400),
    *_service(
        "default-closed",
        "*",
        "api certs config limits runtime store",
        access=Access.DENIED,
        priority=300,
    ),
    *_service("default-attach", "*", "registry", "Registry.Attach", Access.DENIED, 300),
    *_service("default-register", "*", "registry", "Registry.Register", Access.DENIED, 300),
    *_service("default-renew", "*", "registry", "Registry.Renew", Access.DENIED, 300),
    *_service("default-deregister", "*", "registry", "Registry.Deregister", Access.DENIED, 300),
    *_service("default", "*", "*"),
)


def order(rules: Iterable[Rule]) -> list[Rule]:
    """The order in which rules are tried, with the default ones whose ids none has."""
    given = {rule.id: rule for rule in DEFAULTS}
    given.update({rule.id: rule for rule in rules})
    return sorted(given.values(), key=_place)


def _place(rule: Rule) -> tuple[int, str]:
    return -rule.priority, rule.id


class _Endpoints:
    """Rules of one type and name, by their endpoints."""

    def __init__(self) -> None:
        self.exact: dict[str, dict[str, Rule]] = {}
        self.patterns: dict[str, tuple[str, Rule]] = {}

    def add(self, endpoint: str, rule: Rule) -> None:
        if "*" in endpoint:
            self.patterns[rule.id] = endpoint, rule
        else:
            self.exact.setdefault(endpoint, {})[rule.id] = rule

    def remove(self, endpoint: str, id: str) -> None:
        self.patterns.pop(id, None)
        at = self.exact.get(endpoint, {})
        at.pop(id, None)
        if not at:
            self.exact.pop(endpoint, None)

    def find(self, endpoint: str) -> list[Rule]:
        found = [rule for pattern, rule in self.patterns.values() if matches(pattern, endpoint)]
        return [*self.exact.get(endpoint, {}).values(), *found]


class Rules:
    """The rules of a namespace. What is decided is remembered until they change."""

    def __init__(self, namespace: str, rules: Iterable[Rule] = ()) -> None:
        self.namespace = namespace
        self._rules: dict[str, Rule] = {}
        self._named: dict[tuple[str, str], _Endpoints] = {}
        #: Those whose type or name is a pattern other than ``*``.
        self._loose: dict[str, tuple[Resource, Rule]] = {}
        self._about: dict[Resource, Sequence[Rule]] = {}
        self._decided: dict[tuple[object, Resource], Decision] = {}
        for rule in order(rules):
            self._add(rule)

    @property
    def ordered(self) -> list[Rule]:
        """In the order in which they are tried."""
        return sorted(self._rules.values(), key=_place)

    def put(self, rule: Rule) -> None:
        """Add a rule, or put it in the place of that with its id."""
        self._remove(rule.id)
        self._add(rule)
        self._forget()

    def remove(self, id: str) -> None:
        """Take a rule out; a default one with its id holds again."""
        self._remove(id)
        for rule in DEFAULTS:
            if rule.id == id:
                self._add(rule)
        self._forget()

    def _forget(self) -> None:
        self._about.clear()
        self._decided.clear()

    def _add(self, rule: Rule) -> None:
        self._rules[rule.id] = rule
        resource = _folded(rule.resource)
        if _plain(resource.type) and _plain(resource.name):
            key = resource.type, resource.name
            self._named.setdefault(key, _Endpoints()).add(resource.endpoint, rule)
        else:
            self._loose[rule.id] = resource, rule

    def _remove(self, id: str) -> None:
        rule = self._rules.pop(id, None)
        if rule is None or self._loose.pop(id, None) is not None:
            return
        resource = _folded(rule.resource)
        self._named[resource.type, resource.name].remove(resource.endpoint, id)

    def decide(self, identity: Identity | None, resource: Resource) -> Decision:
        """Whether ``identity`` (None: nobody) may call ``resource``, which is no pattern."""
        key = (None if identity is None else identity.grants, resource)
        decision = self._decided.get(key)
        if decision is None:
            decision = self._search(identity, resource)
            if len(self._decided) >= REMEMBERED:
                self._decided.clear()
            self._decided[key] = decision
        return decision

    def _search(self, identity: Identity | None, resource: Resource) -> Decision:
        for rule in self._rules_about(resource):
            said = self._says(rule, identity)
            if said is not None:
                return said
        whom = "nobody" if identity is None else f"an account of {identity.namespace}"
        return Decision(allowed=False, rule=None, why=f"no rule lets {whom} call {resource}")

    def _says(self, rule: Rule, identity: Identity | None) -> Decision | None:
        """What a rule that is about the resource says; None for nothing."""
        granted = rule.access is Access.GRANTED
        if not rule.scope:
            return Decision(allowed=granted, rule=rule, why=f"{rule.access} to everybody")
        if identity is None:
            return None
        namespace, scopes = identity.grants
        if rule.scope != "+" and namespace != self.namespace:
            why = f"an account of {namespace} is none of {self.namespace}"
            return Decision(allowed=False, rule=rule, why=why)
        if rule.scope == "+":
            return Decision(allowed=granted, rule=rule, why=f"{rule.access} to every account")
        if rule.scope == "*":
            whom = f"every account of {self.namespace}"
            return Decision(allowed=granted, rule=rule, why=f"{rule.access} to {whom}")
        if rule.scope.lower() in scopes:
            why = f"{rule.access} to the scope {rule.scope}"
            return Decision(allowed=granted, rule=rule, why=why)
        return None

    def _rules_about(self, resource: Resource) -> Sequence[Rule]:
        found = self._about.get(resource)
        if found is None:
            found = self._look(_folded(resource))
            if len(self._about) >= REMEMBERED:
                self._about.clear()
            self._about[resource] = found
        return found

    def _look(self, resource: Resource) -> Sequence[Rule]:
        found: list[Rule] = []
        for type in {resource.type, "*"}:
            for name in {resource.name, "*"}:
                endpoints = self._named.get((type, name))
                if endpoints is not None:
                    found += endpoints.find(resource.endpoint)
        found += [
            rule
            for pattern, rule in self._loose.values()
            if matches(pattern.type, resource.type)
            and matches(pattern.name, resource.name)
            and matches(pattern.endpoint, resource.endpoint)
        ]
        return sorted(found, key=_place)


def loose(resource: Resource) -> bool:
    """Whether type or name is a pattern other than ``*``, so that no index finds the rule."""
    return not (_plain(resource.type) and _plain(resource.name))


def _plain(pattern: str) -> bool:
    return pattern == "*" or "*" not in pattern


def _folded(resource: Resource) -> Resource:
    return Resource(
        type=resource.type.lower(), name=resource.name.lower(), endpoint=resource.endpoint.lower()
    )


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern is about a text; both in lower case. Parts are between slashes where the
    pattern has any, else between dots."""
    if pattern == "*" or pattern == text:
        return True
    if "*" not in pattern:
        return False
    mark = "/" if "/" in pattern else "."
    asked, given = pattern.split(mark), text.split(mark)
    if asked[-1] == "*" and len(given) >= len(asked):
        given = given[: len(asked)]
    return len(asked) == len(given) and all(
        a in ("*", g) for a, g in zip(asked, given, strict=True)
    )
