"""store: read, write, list, delete, databases, tables."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Callable
from typing import Any

import click

from micro_ray.cli.output import as_json, columns
from micro_ray.cli.session import Session
from micro_ray.errors import BadRequest, NotFound

__all__ = ["store"]

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _place(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("-t", "--table", default="micro", show_default=True)(command)
    return click.option("-d", "--database", default="micro", show_default=True)(command)


def _page(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("-l", "--limit", default=0, help="At most so many (0: all).")(command)
    command = click.option("--offset", default=0, help="Leave so many out.")(command)
    return click.option("--order", type=click.Choice(["asc", "desc"]), default="asc")(command)


@click.group()
def store() -> None:
    """Read and write records."""


@store.command()
@click.argument("key")
@click.option("-p", "--prefix", is_flag=True, help="All whose key begins so.")
@click.option("-s", "--suffix", is_flag=True, help="All whose key ends so.")
@_page
@_place
@click.option("-v", "--verbose", is_flag=True, help="With key and expiry.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]))
@click.pass_obj
def read(session: Session, /, verbose: bool, output: str | None, **request: Any) -> None:
    """Print the value under KEY."""
    records = session.call("store", "Store.Read", request)["records"]
    if (output or session.output) == "json":
        as_json(records)
    elif not records:
        raise NotFound("store", "not found")
    elif verbose:
        columns(
            ("KEY", "VALUE", "EXPIRY", "VERSION"),
            [(r["key"], r["value"], _expiry(r["expiry"]), r["version"]) for r in records],
        )
    else:
        for record in records:
            if record["encoding"] == "base64":
                sys.stdout.flush()
                sys.stdout.buffer.write(base64.b64decode(record["value"]))
                sys.stdout.buffer.flush()
            else:
                click.echo(record["value"])


def _expiry(seconds: float | None) -> str:
    return "None" if seconds is None else f"{seconds:.0f}s"


@store.command()
@click.argument("key")
@click.argument("value", nargs=-1, required=True)
@click.option("-e", "--expiry", default="", help="Like 90s, 5m, 1h30m.")
@click.option("--expected", type=int, help="Only over this version (0: only if it is not there).")
@_place
@click.pass_obj
def write(
    session: Session, /, key: str, value: tuple[str, ...], expiry: str, **request: Any
) -> None:
    """Write VALUE (or standard input, for -) under KEY."""
    text = " ".join(value)
    if text == "-":
        data = sys.stdin.buffer.read()
        text, request["encoding"] = base64.b64encode(data).decode(), "base64"
    if expiry:
        request["expiry"] = duration(expiry)
    session.call("store", "Store.Write", {"key": key, "value": text, **request})


def duration(text: str) -> float:
    """``1h30m`` in seconds. Raises BadRequest."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise BadRequest("cli", f"{text!r} is no duration, such as 90s, 5m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


@store.command("list")
@click.option("-p", "--prefix", default="", help="Keys that begin so.")
@click.option("-s", "--suffix", default="", help="Keys that end so.")
@_page
@_place
@click.option("-o", "--output", type=click.Choice(["table", "json"]))
@click.pass_obj
def list_(session: Session, /, output: str | None, **request: Any) -> None:
    """Print the keys."""
    keys = session.call("store", "Store.List", request)["keys"]
    if (output or session.output) == "json":
        as_json(keys)
    else:
        for key in keys:
            click.echo(key)


@store.command()
@click.argument("key")
@_place
@click.pass_obj
def delete(session: Session, /, **request: Any) -> None:
    """Remove the record under KEY."""
    session.call("store", "Store.Delete", request)


@store.command()
@click.pass_obj
def databases(session: Session) -> None:
    """Print the databases."""
    for name in session.call("store", "Store.Databases")["databases"]:
        click.echo(name)


@store.command()
@click.option("-d", "--database", default="micro", show_default=True)
@click.pass_obj
def tables(session: Session, database: str) -> None:
    """Print the tables of a database."""
    for name in session.call("store", "Store.Tables", {"database": database})["tables"]:
        click.echo(name)
