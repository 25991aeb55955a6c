"""limits: list, set, unset, usage."""

from __future__ import annotations

import os
import pwd
from typing import Any

import click

from micro_ray.cli.group import Subcommands
from micro_ray.cli.output import as_json, columns, output, visible
from micro_ray.cli.session import Session
from micro_ray.limits import WHOLE, Kind

__all__ = ["limits"]

_KIND = click.argument("kind", type=click.Choice([str(kind) for kind in Kind]))
#: What may be kept, and where.
_QUOTAS = (
    ("store", "in the store", ("bytes", "records")),
    ("events", "in events", ("bytes", "events", "topics")),
)
_NAME = click.argument("name", default="")


@click.group(cls=Subcommands)
def limits() -> None:
    """Say how much may be asked for, in all.

    A limit is of the namespace, of an account, of a service or of a route
    (`service.Handler.Method`); without a name, of each account, service or route that has none of
    its own. That of `store`, `events` or `broker` is what the namespace may do there, whichever way
    it comes: operations, and what is published. They are kept in config under `limits`, with their
    history.
    """


@limits.command("list")
@output()
@click.pass_obj
def list_(session: Session) -> None:
    """Print the limits of the namespace."""
    found = session.call("limits", "Limits.List", {})
    if session.output == "json":
        as_json(found)
        return
    columns(
        ("KIND", "NAME", "RATE", "BURST", "CONCURRENCY"),
        [(rule["kind"], _name(rule), *_numbers(rule["limit"])) for rule in found["rules"]],
    )
    for word, where, names in _QUOTAS:
        if found[word]:
            parts = [f"{found[word][name]} {name}" for name in names if found[word][name]]
            click.echo(f"\n{where}: at most {' and '.join(parts)}")
    if found["problem"]:
        click.echo(visible(f"not in force, as config has it: {found['problem']}"), err=True)


@limits.command("set")
@_KIND
@_NAME
@click.option("--rate", type=float, help="How many per second (0: no limit).")
@click.option("--burst", type=int, help="How many may come at once (0: a second's).")
@click.option("--concurrency", type=int, help="How many may be under way (0: no limit).")
@output()
@click.pass_obj
def set_(session: Session, /, **request: Any) -> None:
    """Set the limit of KIND NAME; what is not given stays as it was.

    It is in force everywhere at once.
    """
    given = {name: value for name, value in request.items() if value is not None}
    done = session.call("limits", "Limits.Set", {**given, "by": _user()})
    if session.output == "json":
        as_json(done)


@limits.command()
@_KIND
@_NAME
@output()
@click.pass_obj
def unset(session: Session, /, **request: Any) -> None:
    """Remove the limit of KIND NAME."""
    session.call("limits", "Limits.Unset", {**request, "by": _user()})
    if session.output == "json":
        as_json({})


@limits.command()
@output()
@click.pass_obj
def usage(session: Session) -> None:
    """Print the limits that are being used: what is left of the burst, what is under way."""
    found = session.call("limits", "Limits.Usage", {})["limits"]
    if session.output == "json":
        as_json(found)
        return
    columns(
        ("KIND", "NAME", "RATE", "LEFT", "CONCURRENCY", "LENT", "ADMITTED", "DOORS"),
        [
            (
                use["kind"],
                _name(use),
                _number(use["limit"]["rate"]),
                int(use["left"]),
                _number(use["limit"]["concurrency"]),
                use["lent"],
                use["admitted"],
                use["doors"],
            )
            for use in found
        ],
    )


def _name(rule: dict[str, Any]) -> str:
    return rule["name"] or ("(all)" if rule["kind"] in WHOLE else "(each)")


def _numbers(limit: dict[str, Any]) -> list[str]:
    burst = _number(limit["burst"]) or (_number(limit["rate"]) and "(1 s)")
    return [_number(limit["rate"]), burst, _number(limit["concurrency"])]


def _number(value: float) -> str:
    return f"{value:g}" if value else ""


def _user() -> str:
    """Whoever runs this, for the history."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
