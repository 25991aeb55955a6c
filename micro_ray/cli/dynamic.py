"""Services as commands: ``micro helloworld call --name=Alice``, with flags of the endpoint types.

Words: ``micro W`` calls ``W.Call``; ``micro W a`` calls ``W.A``; ``micro W a b`` is ``A.B`` of W.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

import click

from micro_ray.cli.output import as_json
from micro_ray.cli.session import Session
from micro_ray.errors import BadRequest, NotFound, Unavailable

__all__ = ["service_command"]

_SETTINGS = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}


def service_command(ctx: click.Context, name: str) -> click.Command | None:
    """The command of a service, or None when no service is named so."""
    parent = ctx.find_root()
    session = parent.obj
    if session is None:  # the root's own callback has not run yet when commands are looked up
        from micro_ray.settings import load

        session = parent.obj = Session(settings=load(), output=parent.params.get("output", "table"))
        parent.call_on_close(session.close)
    try:
        entries = session.entries()
    except Unavailable:
        return None
    found = [entry for entry in entries if entry.service.lower() == name.lower()]
    if not found:
        return None
    entry = max(found, key=lambda e: len(e.endpoints))

    @click.command(name, context_settings=_SETTINGS, add_help_option=False)
    @click.argument("args", nargs=-1, type=click.UNPROCESSED)
    @click.pass_obj
    def command(session: Session, args: tuple[str, ...]) -> None:
        _invoke(session, entry, list(args))

    return command


def _invoke(session: Session, entry: Any, args: list[str]) -> None:
    words = []
    while args and not args[0].startswith("-"):
        words.append(args.pop(0))
    wants_help = any(arg in ("--help", "-h") for arg in args)
    if not words and wants_help:
        _service_help(entry)
        return
    endpoint = _endpoint(entry, words)
    if wants_help:
        _endpoint_help(entry, endpoint)
        return
    if args[:1] in (["-o"], ["--output"]) and len(args) > 1:
        args = args[2:]
    request = flags(args, endpoint.request)
    if endpoint.stream == "server":
        for answer in session.stream(entry.service, endpoint.name, request):
            as_json(answer)
    elif endpoint.stream:
        raise BadRequest("cli", f"{endpoint.name} takes a stream; use `micro stream`")
    else:
        as_json(session.call(entry.service, endpoint.name, request))


def _fold(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def _endpoint(entry: Any, words: list[str]) -> Any:
    if len(words) > 2:
        raise BadRequest("cli", f"Incorrect number of arguments: {' '.join(words)}")
    own = entry.service.rpartition(".")[2]
    handler, method = (own, *words)[-2:] if len(words) == 2 else (own, (words or ["call"])[0])
    wanted = _fold(f"{handler}.{method}")
    for endpoint in entry.endpoints:
        if _fold(endpoint.name) == wanted:
            return endpoint
    names = [_words(entry, endpoint) for endpoint in entry.endpoints]
    near = difflib.get_close_matches(" ".join(words), names, n=3, cutoff=0.4) or names
    raise NotFound(
        "cli",
        f"no endpoint {' '.join(words) or 'call'} in {entry.service}; there is " + ", ".join(near),
    )


def _words(entry: Any, endpoint: Any) -> str:
    """``Helloworld.Call`` -> ``call``, ``Foo.Bar`` -> ``foo bar``, as one types it."""
    handler, _, method = endpoint.name.partition(".")
    lowered = str(method[:1].lower() + method[1:])
    if _fold(handler) == _fold(entry.service.rpartition(".")[2]):
        return lowered
    return f"{handler[:1].lower() + handler[1:]} {lowered}"


def _service_help(entry: Any) -> None:
    click.echo(f"NAME:\n\tmicro {entry.service}\n")
    if entry.metadata.get("description"):
        click.echo(f"DESCRIPTION:\n\t{entry.metadata['description']}\n")
    click.echo(f"VERSION:\n\t{entry.version}\n")
    click.echo(f"USAGE:\n\tmicro {entry.service} [command]\n")
    click.echo("COMMANDS:")
    rows = sorted((_words(entry, e), e.metadata.get("description", "")) for e in entry.endpoints)
    width = max((len(words) for words, _ in rows), default=0)
    for words, text in rows:
        click.echo(f"\t{words.ljust(width)}  {text}".rstrip())


def _endpoint_help(entry: Any, endpoint: Any) -> None:
    click.echo(f"NAME:\n\tmicro {entry.service} {_words(entry, endpoint)}\n")
    if endpoint.metadata.get("description"):
        click.echo(f"DESCRIPTION:\n\t{endpoint.metadata['description']}\n")
    click.echo(f"USAGE:\n\tmicro {entry.service} {_words(entry, endpoint)} [flags]\n")
    click.echo("FLAGS:")
    for name, schema in sorted(_flat(endpoint.request, endpoint.request).items()):
        default = f"  (default {json.dumps(schema['default'])})" if "default" in schema else ""
        click.echo(f"\t--{name} {_kind(schema, endpoint.request)}{default}")


def _kind(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    kind = schema.get("type", "any")
    if kind == "array":
        return f"[]{_kind(_resolve(schema.get('items', {}), root), root)}"
    return str(kind)


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    for _ in range(8):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            schema = root.get("$defs", {}).get(reference.rpartition("/")[2], {})
        elif "anyOf" in schema:
            typed = [c for c in schema["anyOf"] if c.get("type") != "null"]
            default = {"default": schema["default"]} if "default" in schema else {}
            if len(typed) != 1:
                return {}
            schema = {**typed[0], **default}
        else:
            break
    return schema


def _flat(
    schema: Mapping[str, Any], root: Mapping[str, Any], prefix: str = "", depth: int = 0
) -> dict[str, Mapping[str, Any]]:
    """Fields by flag: nested ones are joined by ``_``."""
    fields: dict[str, Mapping[str, Any]] = {}
    for name, part in _resolve(schema, root).get("properties", {}).items():
        inner = _resolve(part, root)
        if inner.get("properties") and depth < 6:
            fields |= _flat(inner, root, f"{prefix}{name}_", depth + 1)
        else:
            fields[prefix + name] = inner
    return fields


def flags(args: list[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Flags as a request. Raises BadRequest naming the flag."""
    fields = _flat(schema, schema)
    known = {name.lower(): name for name in fields}
    given: dict[str, list[str]] = {}
    while args:
        arg = args.pop(0)
        if not arg.startswith("--"):
            raise BadRequest("cli", f"{arg!r} is no flag; expected --name=value")
        flag, sign, value = arg[2:].partition("=")
        name = known.get(flag.replace("-", "_").replace(".", "_").lower())
        if name is None:
            near = difflib.get_close_matches(flag, fields, n=3)
            hint = f"; did you mean {', '.join('--' + n for n in near)}?" if near else ""
            raise BadRequest("cli", f"Unknown flag: {flag}{hint}")
        if not sign:
            if fields[name].get("type") == "boolean" and (not args or args[0].startswith("--")):
                value = "true"
            elif args:
                value = args.pop(0)
            else:
                raise BadRequest("cli", f"flag --{flag} has no value")
        given.setdefault(name, []).append(value)
    request: dict[str, Any] = {}
    for name, values in given.items():
        _place(request, schema, schema, name, _value(name, values, fields[name], schema))
    return request


def _value(name: str, values: list[str], schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    if schema.get("type") == "array":
        if len(values) == 1:
            if values[0].startswith("["):
                return _one(name, values[0], {"type": "object"})
            values = values[0].split(",")
        inner = _resolve(schema.get("items", {}), root)
        return [_one(name, value, inner) for value in values]
    return _one(name, values[-1], schema)


def _one(name: str, text: str, schema: Mapping[str, Any]) -> Any:
    kind = schema.get("type")
    try:
        if kind == "string":
            return text
        if kind == "boolean":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind == "integer":
            return int(text, 0)
        if kind == "number":
            return float(text)
        if kind == "object":
            return json.loads(text)
    except (ValueError, KeyError):
        raise BadRequest("cli", f"flag --{name}: {text!r} is no {kind}") from None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _place(
    request: dict[str, Any],
    schema: Mapping[str, Any],
    root: Mapping[str, Any],
    name: str,
    value: Any,
) -> None:
    """Put a value where its flag says: ``user_email`` is ``{"user": {"email": ...}}`` if ``user``
    is an object."""
    properties = _resolve(schema, root).get("properties", {})
    if name in properties:
        request[name] = value
        return
    for field, part in properties.items():
        if name.startswith(field + "_"):
            inner = request.setdefault(field, {})
            _place(inner, part, root, name[len(field) + 1 :], value)
            return
