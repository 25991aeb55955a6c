"""call and stream."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from micro_ray.cli.output import as_json
from micro_ray.cli.session import Session
from micro_ray.errors import BadRequest

__all__ = ["call", "stream"]


def _request(text: str) -> bytes:
    """JSON from the argument, ``-`` (stdin) or ``@file``."""
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise BadRequest("cli", f"cannot read {text[1:]}: {error}") from None
    try:
        json.loads(text)
    except ValueError as error:
        raise BadRequest("cli", f"the request is not JSON: {error}") from None
    return text.encode()


def _metadata(rows: tuple[str, ...]) -> dict[str, str]:
    pairs = dict(row.partition("=")[::2] for row in rows)
    if "" in pairs:
        raise BadRequest("cli", "--metadata is like name=value")
    return {name.lower(): value for name, value in pairs.items()}


def _check(ctx: click.Context, endpoint: str) -> None:
    if endpoint.count(".") > 1 or endpoint.startswith(".") or endpoint.endswith("."):
        click.echo(f'Method name "{endpoint}" invalid format. Expecting Handler.Method', err=True)
        ctx.exit(3)


@click.command()
@click.argument("service")
@click.argument("endpoint")
@click.argument("request_", metavar="[JSON | - | @FILE]", default="{}")
@click.option("--metadata", multiple=True, metavar="K=V", help="Metadata of the call.")
@click.option("--timeout", "--request_timeout", type=float, default=15.0, help="Seconds.")
@click.option("-o", "--output", type=click.Choice(["json", "raw"]), default="json")
@click.pass_context
def call(
    ctx: click.Context,
    service: str,
    endpoint: str,
    request_: str,
    metadata: tuple[str, ...],
    timeout: float,
    output: str,
) -> None:
    """Call ENDPOINT (Handler.Method) of SERVICE with a JSON request."""
    _check(ctx, endpoint)
    session: Session = ctx.obj
    answer: bytes = session.call(
        service, endpoint, _request(request_), timeout=timeout, metadata=_metadata(metadata)
    )
    _print(answer, output)


def _print(answer: bytes, output: str) -> None:
    if output == "json":
        try:
            as_json(json.loads(answer))
            return
        except ValueError:
            pass  # not JSON: bytes as they came
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


@click.command()
@click.argument("service")
@click.argument("endpoint")
@click.argument("request_", metavar="[JSON | - | @FILE]", default="{}")
@click.option("--metadata", multiple=True, metavar="K=V", help="Metadata of the call.")
@click.pass_context
def stream(
    ctx: click.Context, service: str, endpoint: str, request_: str, metadata: tuple[str, ...]
) -> None:
    """Call a streaming ENDPOINT and print its answers as they come.

    For endpoints that take a stream, `-` reads a request from each line of standard input.
    """
    _check(ctx, endpoint)
    session: Session = ctx.obj
    sent: Any = _lines() if request_ == "-" else _request(request_)
    for answer in session.stream(service, endpoint, sent, metadata=_metadata(metadata)):
        click.echo(json.dumps(answer, ensure_ascii=False))


async def _lines() -> Any:
    import asyncio

    while line := await asyncio.to_thread(sys.stdin.readline):
        if line.strip():
            yield _request(line)
