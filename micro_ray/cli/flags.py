"""Flags from the types that an endpoint publishes, and the request that given flags make.

====================  ==========================================================================
field                 flag
====================  ==========================================================================
string, number, ...   ``--name=value`` or ``--name value``; ``_`` may be typed ``-`` or ``.``
boolean               ``--loud``, ``--loud=false``, ``--no-loud``
choice                one of its values
bytes                 ``--data=text`` or ``--data=@file``
list                  ``--tag=a,b``, ``--tag=a --tag=b`` or JSON
map, any object       ``--label=a=1 --label=b=2`` or JSON
nested object         ``--user_email=...``, or the whole as JSON: ``--user='{...}'``
====================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from micro_ray.cli.exits import Usage
from micro_ray.cli.session import near
from micro_ray.cli.values import boolean, converted, is_boolean, kind, resolved

__all__ = ["Flag", "Given", "flags_of", "request_of", "split", "takes_fields"]

#: Nested objects have flags of their own down to this depth.
DEPTH = 6

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """``path`` leads to the field; ``whole`` is an object whose fields have flags too."""

    name: str
    path: tuple[str, ...]
    schema: Schema
    required: bool
    whole: bool = False


class Given:
    """What a command line has given: values by flag, the form of output, whether help is asked."""

    def __init__(self) -> None:
        self.values: dict[str, list[str]] = {}
        self.output = ""
        self.help = False


def takes_fields(schema: Schema) -> bool:
    """Whether a request of this type can be made from flags."""
    shape = resolved(schema, schema)
    return not shape or shape.get("type") == "object" or bool(shape.get("properties"))


def flags_of(schema: Schema) -> dict[str, Flag]:
    """The flags of a request's type, in its order; nested fields are joined by ``_``."""
    found: dict[str, Flag] = {}
    shape = resolved(schema, schema)
    _collect(shape, schema, (), True, frozenset({str(shape.get("title", ""))}), found)
    return found


def _collect(
    shape: Schema,
    root: Schema,
    path: tuple[str, ...],
    needed: bool,
    trail: frozenset[str],
    found: dict[str, Flag],
) -> None:
    required = shape.get("required", ())
    for name, part in shape.get("properties", {}).items():
        inner = resolved(part, root)
        here = (*path, name)
        title = str(inner.get("title", name))
        nested = bool(inner.get("properties")) and len(here) < DEPTH and title not in trail
        must = needed and name in required
        flag = Flag(
            name="_".join(here), path=here, schema=inner, required=must and not nested, whole=nested
        )
        found.setdefault(flag.name, flag)
        if nested:
            _collect(inner, root, here, must, trail | {title}, found)


def request_of(given: Given, schema: Schema) -> dict[str, Any]:
    """The request that given flags make. Raises Usage that names the flag."""
    flags = flags_of(schema)
    request: dict[str, Any] = {}
    # Objects that are given as a whole come before their parts.
    for name in sorted(given.values, key=lambda n: len(flags[n].path) if n in flags else 1):
        flag = flags.get(name) or _free(name, schema)
        _put(request, flag.path, converted(f"--{name}", given.values[name], flag.schema, schema))
    missing = list(_missing(request, resolved(schema, schema), schema, (), flags))
    if missing:
        rows = ", ".join(f"--{flag.name} ({kind(flag.schema, schema)})" for flag in missing)
        raise Usage("cli", f"Missing flag{'s' if len(missing) > 1 else ''}: {rows}")
    return request


def split(args: Sequence[str], schema: Schema) -> Given:
    """Values by flag, as they were typed. Raises Usage that names what is no flag."""
    flags = flags_of(schema)
    known = {_folded(name): name for name in reversed(flags)} | {name: name for name in flags}
    rest = list(args)
    given = Given()
    while rest:
        arg = rest.pop(0)
        if arg in ("--help", "-h"):
            given.help = True
            continue
        if arg.startswith("-o") or (arg.partition("=")[0] == "--output" and "output" not in known):
            given.output = _output(arg, rest)
            continue
        if not arg.startswith("--") or arg == "--":
            raise Usage("cli", f"{arg!r} is no flag; expected --name=value")
        typed, sign, value = arg[2:].partition("=")
        name = _named(typed, known)
        negated = _negated(typed, known, flags) if not name and not sign else ""
        if negated:
            given.values.setdefault(negated, []).append("false")
            continue
        if not name:
            name = _unknown(typed, flags, schema)
        if not sign:
            value = _next(typed, flags.get(name), rest, known)
        given.values.setdefault(name, []).append(value)
    return given


def _folded(name: str) -> str:
    return name.replace("-", "_").replace(".", "_").lower()


def _named(typed: str, known: Mapping[str, str]) -> str:
    return known.get(typed) or known.get(_folded(typed), "")


def _negated(typed: str, known: Mapping[str, str], flags: Mapping[str, Flag]) -> str:
    """The boolean that ``--no-NAME`` means."""
    folded = _folded(typed)
    name = known.get(folded.removeprefix("no_"), "") if folded.startswith("no_") else ""
    return name if name and is_boolean(flags[name].schema) else ""


def _unknown(typed: str, flags: Mapping[str, Flag], schema: Schema) -> str:
    """The name of a field that no flag has: of a type without fixed fields it may be any."""
    shape = resolved(schema, schema)
    if typed and not shape.get("properties") and _is_open(shape):
        return typed
    meant = near(_folded(typed), list(flags))
    hint = f"; did you mean {' or '.join(f'--{name}' for name in meant)}?" if meant else ""
    raise Usage("cli", f"Unknown flag: --{typed}{hint}")


def _is_open(shape: Schema) -> bool:
    return shape.get("type") == "object" and shape.get("additionalProperties", True) is not False


def _free(name: str, schema: Schema) -> Flag:
    part = resolved(schema, schema).get("additionalProperties", {})
    inner = resolved(part, schema) if isinstance(part, Mapping) else {}
    return Flag(name=name, path=(name,), schema=inner, required=False)


def _next(typed: str, flag: Flag | None, rest: list[str], known: Mapping[str, str]) -> str:
    """The value of a flag without ``=``: the word after it, which need not be there for a boolean,
    and is no value when it is a flag."""
    if flag is not None and is_boolean(flag.schema):
        return rest.pop(0) if rest and boolean(rest[0]) is not None else "true"
    if not rest or (rest[0].startswith("--") and _named(rest[0][2:].partition("=")[0], known)):
        raise Usage("cli", f"flag --{typed} has no value; expected --{typed}=value")
    return rest.pop(0)


def _output(arg: str, rest: list[str]) -> str:
    long = arg.startswith("--")
    form = arg.partition("=")[2] if long or arg.startswith("-o=") else arg[2:]
    if not form and "=" not in arg:
        form = rest.pop(0) if rest else ""
    if form not in ("table", "json"):
        raise Usage("cli", f"-o {form!r} is no form of output; there is table, json")
    return form


def _put(request: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        inner = request.setdefault(name, {})
        if not isinstance(inner, dict):
            raise Usage("cli", f"--{'_'.join(path)} is within {name}, which was given as a whole")
        request = inner
    request[path[-1]] = value


def _missing(
    request: dict[str, Any],
    shape: Schema,
    root: Schema,
    path: tuple[str, ...],
    flags: Mapping[str, Flag],
) -> Any:
    """The flags of required fields that have no value; required objects whose fields all have
    defaults are put in."""
    for name, part in shape.get("properties", {}).items():
        inner = resolved(part, root)
        flag = flags.get("_".join((*path, name)))
        if flag is None or flag.path != (*path, name):
            continue  # below the depth of flags
        if name in request:
            if flag.whole and isinstance(request[name], dict):
                yield from _missing(request[name], inner, root, flag.path, flags)
        elif name in shape.get("required", ()):
            if not flag.whole:
                yield flag
                continue
            fresh: dict[str, Any] = {}
            needed = list(_missing(fresh, inner, root, flag.path, flags))
            yield from needed
            if not needed:
                request[name] = fresh
