"""store: read, query, write, list, delete, transact, revision, watch, databases, tables, usage,
blob."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from micro_ray.cli.arguments import Numbers, duration, pairs
from micro_ray.cli.blobs import blob
from micro_ray.cli.exits import Usage
from micro_ray.cli.group import Subcommands
from micro_ray.cli.output import (
    as_json,
    bytes_out,
    columns,
    json_line,
    lines,
    output,
    raw,
    visible,
)
from micro_ray.cli.session import Session
from micro_ray.errors import NotFound
from micro_ray.wire.store_records import to_text

__all__ = ["store"]


def _place(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option(
        "-t", "--table", default="micro", show_default=True, help="The table, made at first use."
    )(command)
    return _database(command)


def _database(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-d", "--database", default="micro", show_default=True, help="The database."
    )(command)


def _page(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--order", type=click.Choice(["asc", "desc"]), default="asc", help="By key (asc)."
        ),
        click.option("--offset", default=0, help="Leave so many out."),
        click.option("-l", "--limit", default=0, help="At most so many (0: all)."),
    ):
        command = option(command)
    return command


@click.group(cls=Subcommands)
def store() -> None:
    """Read and write records."""


store.add_command(blob)


@store.command(cls=Numbers)
@click.argument("key")
@click.option("-p", "--prefix", is_flag=True, help="All whose key begins so.")
@click.option("-s", "--suffix", is_flag=True, help="All whose key ends so.")
@_page
@_place
@click.option("-v", "--verbose", is_flag=True, help="With key, expiry and version.")
@output("raw")
@click.pass_obj
def read(session: Session, /, verbose: bool, **request: Any) -> None:
    """Print the value under KEY, one a line where there are several.

    Values that are not text, and all with `-o raw`, are written as they are, byte for byte.
    """
    records = session.call("store", "Store.Read", request)["records"]
    if session.output == "json":
        as_json(records)
    elif not records:
        raise NotFound("store", "not found")
    elif verbose:
        _table(records)
    else:
        for record in records:
            value = _bytes(record)
            if session.output == "raw":
                raw(value)
            else:
                bytes_out(value, b"\n" if _is_text(value) else b"")


@store.command()
@click.option("-p", "--prefix", default="", help="Keys that begin so.")
@click.option("-s", "--suffix", default="", help="Keys that end so.")
@_page
@_place
@output()
@click.pass_obj
def query(session: Session, /, **request: Any) -> None:
    """Print records with key, expiry and version; all, or those whose key begins and ends so."""
    records = session.call("store", "Store.Query", request, idempotent=True)["records"]
    if session.output == "json":
        as_json(records)
    else:
        _table(records)


def _table(records: list[dict[str, Any]]) -> None:
    columns(
        ("KEY", "VALUE", "EXPIRY", "VERSION"),
        [(r["key"], _shown(r), _expiry(r["expiry"]), r["version"]) for r in records],
    )


def _bytes(record: dict[str, Any]) -> bytes:
    value: str = record["value"]
    return base64.b64decode(value) if record["encoding"] == "base64" else value.encode()


def _is_text(value: bytes) -> bool:
    try:
        return "\0" not in value.decode()
    except UnicodeDecodeError:
        return False


def _shown(record: dict[str, Any]) -> str:
    """A value for a table: text as it is, other bytes as base64."""
    value = _bytes(record)
    return value.decode() if _is_text(value) else base64.b64encode(value).decode()


def _expiry(seconds: float | None) -> str:
    return "None" if seconds is None else f"{seconds:.0f}s"


@store.command(cls=Numbers)
@click.argument("key")
@click.argument("value", nargs=-1, required=True)
@click.option("-e", "--expiry", default="", metavar="DURATION", help="Like 90s, 5m, 1h30m.")
@click.option("--expected", type=int, help="Only over this version (0: only if it is not there).")
@click.option("--metadata", multiple=True, metavar="K=V", help="Metadata of the record.")
@_place
@output()
@click.pass_obj
def write(
    session: Session,
    /,
    key: str,
    value: tuple[str, ...],
    expiry: str,
    metadata: tuple[str, ...],
    **request: Any,
) -> None:
    """Write VALUE (or standard input, for -) under KEY.

    Several words are joined by spaces. A VALUE that begins with a dash comes after `--`.
    """
    data = os.fsencode(" ".join(value))
    if value == ("-",):
        data = sys.stdin.buffer.read()
    request["value"], request["encoding"] = to_text(data)
    if expiry:
        request["expiry"] = duration(expiry)
    request["metadata"] = pairs(metadata, "--metadata")
    record = session.call("store", "Store.Write", {"key": key, **request})
    if session.output == "json":
        as_json(record)


@store.command("list")
@click.option("-p", "--prefix", default="", help="Keys that begin so.")
@click.option("-s", "--suffix", default="", help="Keys that end so.")
@_page
@_place
@output()
@click.pass_obj
def list_(session: Session, /, **request: Any) -> None:
    """Print the keys."""
    _names(session, session.call("store", "Store.List", request)["keys"])


@store.command(cls=Numbers)
@click.argument("key")
@click.option("--expected", type=int, help="Only this version.")
@_place
@output()
@click.pass_obj
def delete(session: Session, /, **request: Any) -> None:
    """Remove the record under KEY."""
    session.call("store", "Store.Delete", request)


@store.command()
@click.argument("operations")
@_database
@output()
@click.pass_obj
def transact(session: Session, operations: str, database: str) -> None:
    """Do all of OPERATIONS (or of standard input, for -) or none; prints the versions given.

    OPERATIONS is an array of JSON: {"kind": "put", "key": "k", "value": "v"}, {"kind": "delete",
    "key": "k"} or {"kind": "check", "key": "k", "expected": 3}; each may have "table" and
    "expected", a put "encoding" (base64), "metadata" and "expiry" (seconds).
    """
    text = sys.stdin.read() if operations == "-" else operations
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Usage("cli", f"the operations are not JSON: {error}") from None
    request = {"operations": rows, "database": database}
    versions = session.call("store", "Store.Transaction", request)["versions"]
    if session.output == "json":
        as_json(versions)
    else:
        lines([str(version) for version in versions])


@store.command()
@output()
@click.pass_obj
def revision(session: Session) -> None:
    """Print the newest version given, to watch from."""
    found = session.call("store", "Store.Revision", idempotent=True)["revision"]
    if session.output == "json":
        as_json(found)
    else:
        click.echo(found)


@store.command()
@click.option("-p", "--prefix", default="", help="Of keys that begin so.")
@click.option("--from", "revision", type=click.IntRange(0), help="What came after this version.")
@_place
@output()
@click.pass_obj
def watch(session: Session, /, revision: int | None, **request: Any) -> None:
    """Print the changes of a table as they come, one a line."""
    request["revision"] = -1 if revision is None else revision
    for change in session.stream("store", "Store.Watch", request):
        if session.output == "json":
            json_line(change)
        else:
            click.echo(visible(f"{change['revision']}  {change['action']}  {change['key']}"))


@store.command()
@output()
@click.pass_obj
def databases(session: Session) -> None:
    """Print the databases."""
    _names(session, session.call("store", "Store.Databases")["databases"])


@store.command()
@_database
@output()
@click.pass_obj
def tables(session: Session, database: str) -> None:
    """Print the tables of a database."""
    _names(session, session.call("store", "Store.Tables", {"database": database})["tables"])


@store.command()
@output()
@click.pass_obj
def usage(session: Session) -> None:
    """Print what the namespace keeps, counted now."""
    found = session.call("store", "Store.Usage")
    if session.output == "json":
        as_json(found)
    else:
        columns(
            ("RECORDS", "BYTES", "BLOBS", "BYTES OF BLOBS"),
            [(found["records"], found["bytes"], found["blobs"], found["blob_bytes"])],
        )


def _names(session: Session, found: list[str]) -> None:
    if session.output == "json":
        as_json(found)
    else:
        lines(found)
