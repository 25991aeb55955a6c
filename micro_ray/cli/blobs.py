"""store blob: list, read, write, delete."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import click

from micro_ray.cli.arguments import Numbers
from micro_ray.cli.group import Subcommands
from micro_ray.cli.output import as_json, columns, output, raw, size
from micro_ray.cli.session import Session

__all__ = ["blob"]

#: Bytes that are read from standard input at a time.
_PIECE = 256 * 1024


@click.group(cls=Subcommands)
def blob() -> None:
    """Read and write blobs: bytes of any amount, as streams."""


@blob.command("list")
@click.option("-p", "--prefix", default="", help="Keys that begin so.")
@output()
@click.pass_obj
def list_(session: Session, prefix: str) -> None:
    """Print the blobs with their sizes."""
    found = session.call("store", "BlobStore.List", {"prefix": prefix}, idempotent=True)["blobs"]
    if session.output == "json":
        as_json(found)
    else:
        columns(("KEY", "SIZE"), [(row["key"], size(row["size"])) for row in found])


@blob.command(cls=Numbers)
@click.argument("key")
@output("raw")
@click.pass_obj
def read(session: Session, key: str) -> None:
    """Write the blob under KEY to standard output, byte for byte."""
    from micro_ray.wire.store import RemoteStore

    pieces = session.client.run(lambda caller: _begun(RemoteStore(caller).read_blob(key)))
    with session.reader.watched():
        try:
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    raw(session.client.run(lambda _: anext(pieces)))
        finally:
            session.client.run(lambda _: pieces.aclose())  # type: ignore[attr-defined]


async def _begun(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    return pieces


@blob.command(cls=Numbers)
@click.argument("key")
@output()
@click.pass_obj
def write(session: Session, key: str) -> None:
    """Write standard input under KEY; it is there when it is there whole."""
    from micro_ray.wire.store import RemoteStore

    async def given() -> AsyncIterator[bytes]:
        while piece := await asyncio.to_thread(sys.stdin.buffer.read, _PIECE):
            yield piece

    done = session.client.run(lambda caller: RemoteStore(caller).write_blob(key, given()))
    if session.output == "json":
        as_json({"key": done.key, "size": done.size})


@blob.command(cls=Numbers)
@click.argument("key")
@output()
@click.pass_obj
def delete(session: Session, key: str) -> None:
    """Remove the blob under KEY; it is no error when it is not there."""
    done = session.call("store", "BlobStore.Delete", {"key": key})
    if session.output == "json":
        as_json(done)
