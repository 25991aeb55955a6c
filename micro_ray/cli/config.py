"""config: get, set, del, list, merge, history, diff, rollback, watch, rotate."""

from __future__ import annotations

import json
import os
import pwd
import sys
import time
from typing import Any

import click

from micro_ray.cli.arguments import Numbers
from micro_ray.cli.exits import Usage
from micro_ray.cli.group import Subcommands
from micro_ray.cli.output import ago, as_json, bytes_out, columns, json_line, output, visible
from micro_ray.cli.session import Session

__all__ = ["config"]

_SECRETS = click.option("-s", "--secret", is_flag=True, help="Show secrets; it is logged.")
_SEAL = click.option("-s", "--secret", is_flag=True, help="Seal it; it is shown as [secret].")
_EXPECTED = click.option(
    "--expected", type=int, help="Only over this version of it (0: only if nothing is there)."
)


@click.group(cls=Subcommands)
def config() -> None:
    """Read and write config: values under dotted paths, with their history.

    `micro config set mail.port 25` makes `mail` an object with the member `port`.
    """


def _call(session: Session, endpoint: str, request: dict[str, Any]) -> Any:
    """Without the options that were not given, and with who asks."""
    given = {k: v for k, v in request.items() if v is not None or k == "value"}
    return session.call("config", f"Config.{endpoint}", {**given, "by": _user()})


def _user() -> str:
    """Whoever runs this, for the history."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@config.command()
@click.argument("key", default="")
@_SECRETS
@click.option("--at", type=click.IntRange(1), help="As it was in this version.")
@click.option("--default", metavar="VALUE", help="Print this when nothing is there.")
@click.option("-v", "--verbose", is_flag=True, help="With its version.")
@output()
@click.pass_obj
def get(session: Session, /, key: str, default: str | None, verbose: bool, **request: Any) -> None:
    """Print the value at KEY, or the whole document.

    A text is printed as it is, anything else as JSON.
    """
    if default is not None:
        request["default"] = _value(default)
    found = _call(session, "Get", {"path": key, **request})
    if session.output == "json":
        as_json(found)
    elif verbose:
        columns(
            ("KEY", "VALUE", "VERSION", "DOCUMENT"),
            [(key or "(all)", _shown(found["data"]), found["version"], found["document"])],
        )
    elif isinstance(found["data"], str):
        bytes_out(found["data"].encode(), b"\n")
    else:
        as_json(found["data"])


@config.command("set", cls=Numbers)
@click.argument("key")
@click.argument("value", nargs=-1, required=True)
@_SEAL
@_EXPECTED
@output()
@click.pass_obj
def set_(session: Session, /, key: str, value: tuple[str, ...], **request: Any) -> None:
    """Put VALUE (or standard input, for -) at KEY, in place of what is there.

    VALUE is JSON, and a text when it is not; several words are joined by spaces. What is secret
    stays secret.
    """
    _done(session, _call(session, "Set", {"path": _named(key), "value": _given(value), **request}))


@config.command("del")
@click.argument("key")
@_EXPECTED
@output()
@click.pass_obj
def del_(session: Session, /, key: str, **request: Any) -> None:
    """Remove what is at KEY."""
    _done(session, _call(session, "Delete", {"path": _named(key), **request}))


@config.command("list")
@click.argument("key", default="")
@_SECRETS
@output()
@click.pass_obj
def list_(session: Session, /, key: str, **request: Any) -> None:
    """Print the values at and below KEY, one a line."""
    items = _call(session, "List", {"path": key, **request})["items"]
    if session.output == "json":
        as_json(items)
    else:
        columns(
            ("KEY", "VALUE", "VERSION"),
            [(item["path"], _shown(item["data"]), item["version"]) for item in items],
        )


@config.command()
@click.argument("key")
@click.argument("patch", nargs=-1, required=True)
@_SEAL
@_EXPECTED
@output()
@click.pass_obj
def merge(session: Session, /, key: str, patch: tuple[str, ...], **request: Any) -> None:
    """Merge PATCH, an object of JSON (or standard input, for -), into what is at KEY.

    Members that it has are set, those that are null are removed, others stay. For the whole
    document KEY is "".
    """
    value = _given(patch)
    if not isinstance(value, dict):
        raise Usage("cli", "a patch is an object of JSON, such as '{\"port\": 25}'")
    _done(session, _call(session, "Merge", {"path": key, "value": value, **request}))


@config.command()
@click.argument("key", default="")
@click.option("-l", "--limit", default=20, show_default=True, help="At most so many.")
@click.option("--before", type=click.IntRange(1), help="Those below this version.")
@_SECRETS
@output()
@click.pass_obj
def history(session: Session, /, key: str, **request: Any) -> None:
    """Print the versions that changed something at or below KEY, newest first."""
    versions = _call(session, "History", {"path": key, **request})["versions"]
    if session.output == "json":
        as_json(versions)
    else:
        columns(
            ("VERSION", "WHEN", "AUTHOR", "ACTION", "KEY", "CHANGES"),
            [
                (v["version"], ago(v["time"]), v["author"], v["action"], v["path"] or "(all)",
                 _summary(v["changes"]))
                for v in versions
            ],
        )  # fmt: skip


@config.command()
@click.argument("old", type=click.IntRange(0))
@click.argument("new", type=click.IntRange(0), default=0)
@click.option("-k", "--key", "path", default="", help="At and below this key only.")
@_SECRETS
@output()
@click.pass_obj
def diff(session: Session, /, **request: Any) -> None:
    """Print what became of version OLD in version NEW (default: now)."""
    changes = _call(session, "Diff", request)["changes"]
    if session.output == "json":
        as_json(changes)
    else:
        _changes(changes)


@config.command()
@click.argument("version", type=click.IntRange(0))
@click.argument("key", default="")
@_EXPECTED
@output()
@click.pass_obj
def rollback(session: Session, /, key: str, **request: Any) -> None:
    """Make KEY, or the whole document, as it was in VERSION.

    It is a write like any other: what was between stays in the history.
    """
    _done(session, _call(session, "Rollback", {"path": key, **request}))


@config.command()
@click.argument("key", default="")
@click.option("--from", "version", type=click.IntRange(0), help="What came after this version.")
@_SECRETS
@output()
@click.pass_obj
def watch(session: Session, /, key: str, version: int | None, secret: bool) -> None:
    """Print the versions that change something at or below KEY, as they come."""
    request = {
        "path": key,
        "version": -1 if version is None else version,
        "secret": secret,
        "by": _user(),
    }

    def onward(item: Any) -> dict[str, int]:
        return {} if item is None else {"version": item["version"]}

    for item in session.follow("config", "Config.Watch", request, onward):
        if session.output == "json":
            json_line(item)
            continue
        when = time.strftime("%H:%M:%S", time.localtime(item["time"]))
        author = item["author"] or "unknown"
        click.echo(visible(f"version {item['version']}  {when}  {item['action']} by {author}"))
        _changes(item["changes"])


@config.command()
@output()
@click.pass_obj
def rotate(session: Session) -> None:
    """Make a new key and seal all secrets with it."""
    done = _call(session, "Rotate", {})
    if session.output == "json":
        as_json(done)
    else:
        click.echo(f"{done['sealed']} secrets are sealed with key {done['key']}")


def _named(key: str) -> str:
    if not key:
        raise Usage("cli", "key cannot be blank")
    return key


def _given(words: tuple[str, ...]) -> Any:
    """The value of arguments, or of standard input."""
    text = sys.stdin.read() if words == ("-",) else " ".join(words)
    return _value(text)


def _value(text: str) -> Any:
    """JSON, or else the text itself. What only Python takes for JSON (NaN) is a text."""
    try:
        return json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return text


def _not_json(word: str) -> Any:
    raise ValueError(word)


def _done(session: Session, answer: dict[str, Any]) -> None:
    """A write prints nothing, but for programs."""
    if session.output == "json":
        as_json(answer)


def _shown(value: Any) -> str:
    """A value on one line: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _summary(changes: list[dict[str, Any]]) -> str:
    first = ", ".join(change["path"] for change in changes[:3])
    return first + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")


def _changes(changes: list[dict[str, Any]]) -> None:
    """Lines that begin with - for what was and + for what is."""
    for change in changes:
        if change["kind"] != "added":
            click.echo(visible(f"- {change['path']}  {_shown(change['old'])}"))
        if change["kind"] != "removed":
            click.echo(visible(f"+ {change['path']}  {_shown(change['new'])}"))
