"""Services as commands: ``micro helloworld call --name=Alice``, with flags of the endpoint types.

Words: ``micro W`` calls ``W.Call``; ``micro W a`` calls ``W.A``; ``micro W a b`` is ``A.B`` of W.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from micro_ray.cli.exits import NoEndpoint, Usage
from micro_ray.cli.flags import Flag, flags_of, request_of, split, takes_fields
from micro_ray.cli.group import Verbatim
from micro_ray.cli.output import bytes_out, encoded, json_line, pretty, raw, visible
from micro_ray.cli.session import Session, near
from micro_ray.cli.values import is_boolean, kind

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from micro_ray.registry import Endpoint
    from micro_ray.router import Entry

__all__ = ["is_bytes", "print_answer", "service_command"]


def service_command(session: Session, name: str) -> click.Command | None:
    """The command of a service, or None when no service is named so. Raises Unavailable when the
    platform does not answer."""
    entry = session.entry(name)
    return None if entry is None else _ServiceCommand(session, entry, name)


class _ServiceCommand(Verbatim):
    """The endpoints of a service as words, their fields as flags."""

    def __init__(self, session: Session, entry: Entry, name: str) -> None:
        text = visible(entry.metadata.get("description", ""))
        super().__init__(name, help=text, add_help_option=False)
        self._session = session
        self._entry = entry

    def invoke(self, ctx: click.Context) -> None:
        words, args = _words_first(ctx.args)
        if not words and any(arg in ("--help", "-h") for arg in args):
            _service_help(self._entry)
            return
        endpoint = _endpoint(self._entry, words)
        _invoke(self._session, self._entry, endpoint, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from micro_ray.cli.completion import quietly

        none: list[tuple[str, str]] = []
        rows = quietly(lambda: _completions(self._entry, ctx.args, incomplete), none)
        return [CompletionItem(name, help=text) for name, text in rows]


def _invoke(session: Session, entry: Entry, endpoint: Endpoint, args: list[str]) -> None:
    schema, call = endpoint.request, f"{entry.service} {endpoint.name}"
    given = split(args, schema)
    if given.help:
        _endpoint_help(entry, endpoint)
        return
    if endpoint.stream in ("client", "bidi"):
        raise Usage("cli", f"{endpoint.name} takes a stream; use `micro stream {call} -`")
    if not takes_fields(schema):
        how = "@FILE" if is_bytes(schema) else "JSON"
        raise Usage("cli", f"{endpoint.name} takes no fields; use `micro call {call} {how}`")
    body = json.dumps(request_of(given, schema)).encode()
    form = given.output or session.output
    if endpoint.stream:
        for answer in session.stream(entry.service, endpoint.name, body, into=bytes):
            print_answer(answer, endpoint, form, line=True)
    else:
        print_answer(session.call(entry.service, endpoint.name, body), endpoint, form)


def print_answer(body: bytes, endpoint: Endpoint | None, form: str, *, line: bool = False) -> None:
    """An answer as JSON for people, on one ``line`` within a stream; bytes as they came, unless
    JSON (``form``) was asked for."""
    binary = endpoint is not None and is_bytes(endpoint.response)
    text = None if binary or form == "raw" else pretty(body, line=line)
    if text is not None:
        raw(text)
    elif form == "json":
        json_line(encoded(body))
    else:
        bytes_out(body)


def is_bytes(schema: Any) -> bool:
    """Whether a type is bytes that cross untouched."""
    return bool(schema.get("contentEncoding") == "binary")


# -- words -----------------------------------------------------------------------------------------


def _words_first(args: list[str]) -> tuple[list[str], list[str]]:
    """What comes before the first flag, and the rest; ``-o`` may be before the words too."""
    words, first = [], []
    rest = list(args)
    while rest:
        if rest[0] in ("-o", "--output"):
            first += rest[:2]
            rest = rest[2:]
        elif rest[0].startswith("-o") or rest[0].startswith("--output="):
            first.append(rest.pop(0))
        elif rest[0].startswith("-"):
            break
        else:
            words.append(rest.pop(0))
    return words, first + rest


def _fold(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def _endpoint(entry: Entry, words: list[str]) -> Endpoint:
    if len(words) > 2:
        raise Usage("cli", f"Incorrect number of arguments: {' '.join(words)}")
    own = entry.service.rpartition(".")[2]
    handler, method = words if len(words) == 2 else (own, (words or ["call"])[0])
    # The whole name may be typed too, and a handler named as the service with all its dots.
    wanted = {_fold(f"{handler}.{method}"), _fold(method) if "." in method else ""}
    wanted.add(_fold(f"{entry.service.replace('.', '')}.{method}") if len(words) < 2 else "")
    for endpoint in entry.endpoints:
        if _fold(endpoint.name) in wanted:
            return endpoint
    names = [_words(entry, endpoint) for endpoint in entry.endpoints]
    there = near(" ".join(words), names) or names
    raise NoEndpoint(
        "cli",
        f"no endpoint {' '.join(words) or 'call'} in {entry.service}; "
        f"there is {', '.join(there) or 'none'}",
    )


def _words(entry: Entry, endpoint: Endpoint) -> str:
    """``Helloworld.Call`` -> ``call``, ``Foo.Bar`` -> ``foo bar``, as one types it."""
    handler, _, method = endpoint.name.partition(".")
    lowered = method[:1].lower() + method[1:]
    own = (entry.service.rpartition(".")[2], entry.service.replace(".", ""))
    if _fold(handler) in map(_fold, own):
        return lowered
    return f"{handler[:1].lower() + handler[1:]} {lowered}"


# -- help ------------------------------------------------------------------------------------------


def _section(name: str, *rows: str) -> None:
    click.echo(f"{name}:")
    for row in rows:
        click.echo(f"\t{visible(row)}".rstrip())


def _service_help(entry: Entry) -> None:
    _section("NAME", f"micro {entry.service}", "")
    if entry.metadata.get("description"):
        _section("DESCRIPTION", entry.metadata["description"], "")
    _section("VERSION", entry.version, "")
    _section("USAGE", f"micro {entry.service} [command]", "")
    rows = sorted((_words(entry, e), e.metadata.get("description", "")) for e in entry.endpoints)
    width = max((len(words) for words, _ in rows), default=0)
    _section("COMMANDS", *(f"{words.ljust(width)}  {text}" for words, text in rows))


def _endpoint_help(entry: Entry, endpoint: Endpoint) -> None:
    name = f"micro {entry.service} {_words(entry, endpoint)}"
    stream = {"client": "client", "bidi": "bidirectional", "server": "server"}.get(endpoint.stream)
    _section("NAME", name, "")
    if endpoint.metadata.get("description"):
        _section("DESCRIPTION", endpoint.metadata["description"], "")
    if stream:
        _section("STREAM", stream, "")
    _section("USAGE", f"{name} [flags]", "")
    found = flags_of(endpoint.request)
    rows = [(f"--{flag.name} {kind(flag.schema, endpoint.request)}", flag) for flag in
            sorted(found.values(), key=lambda flag: flag.name) if not flag.whole]  # fmt: skip
    width = max((len(head) for head, _ in rows), default=0)
    _section("FLAGS", *(f"{head.ljust(width)}  {_notes(flag)}" for head, flag in rows))


def _notes(flag: Flag) -> str:
    text = str(flag.schema.get("description", ""))
    if flag.required:
        return f"{text} (required)".strip()
    default = flag.schema.get("default")
    return f"{text} (default {json.dumps(default)})".strip() if default is not None else text


# -- completion ------------------------------------------------------------------------------------


def _completions(entry: Entry, args: list[str], incomplete: str) -> list[tuple[str, str]]:
    """What may come next, with what it means."""
    words, given = _words_first(args)
    if not incomplete.startswith("-") and not given:
        return _next_words(entry, words, incomplete)
    endpoint = _endpoint(entry, words)
    found = flags_of(endpoint.request)
    last = args[-2] if args[-1:] == ["="] else (args or [""])[-1]  # bash splits at the sign
    flag = found.get(last[2:].replace("-", "_")) if last.startswith("--") else None
    if flag is not None and not incomplete.startswith("-"):
        return [(c, "") for c in _choices(flag, endpoint) if c.startswith(incomplete)]
    typed = {arg.partition("=")[0] for arg in given}
    rows = [(f"--{f.name}", kind(f.schema, endpoint.request)) for f in found.values()]
    rows.append(("--help", "Show the flags."))
    return [row for row in rows if row[0] not in typed and row[0].startswith(incomplete)]


def _choices(flag: Flag, endpoint: Endpoint) -> list[str]:
    if is_boolean(flag.schema):
        return ["true", "false"]
    named = kind(flag.schema, endpoint.request)
    return named.split("|") if "enum" in flag.schema else []


def _next_words(entry: Entry, words: list[str], incomplete: str) -> list[tuple[str, str]]:
    rows: dict[str, str] = {}
    for endpoint in entry.endpoints:
        parts = _words(entry, endpoint).split()
        if parts[: len(words)] == words and len(parts) > len(words):
            text = endpoint.metadata.get("description", "")
            rows.setdefault(parts[len(words)], text if len(parts) == len(words) + 1 else "")
    return sorted(row for row in rows.items() if row[0].startswith(incomplete))
