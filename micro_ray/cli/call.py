"""call and stream."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from micro_ray.cli.arguments import Numbers, pairs, seconds
from micro_ray.cli.completion import endpoint_names, service_names
from micro_ray.cli.dynamic import is_bytes, print_answer
from micro_ray.cli.exits import MalformedEndpoint, Usage
from micro_ray.cli.output import output
from micro_ray.cli.session import Session

if TYPE_CHECKING:
    from micro_ray.registry import Endpoint

__all__ = ["call", "stream"]

#: Bytes of a file or standard input that make one message of a stream of bytes.
PIECE = 64 * 1024

_ENDPOINT = re.compile(r"[A-Za-z][\w-]*(\.[A-Za-z][\w-]*)*", re.ASCII)


def _arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.argument("request_", metavar="[JSON | - | @FILE]", default="{}")(command)
    command = click.argument("endpoint", shell_complete=endpoint_names)(command)
    return click.argument("service", shell_complete=service_names)(command)


def _checked(endpoint: str) -> None:
    if not _ENDPOINT.fullmatch(endpoint):
        raise MalformedEndpoint(
            "cli", f'Method name "{endpoint}" invalid format. Expecting Handler.Method'
        )


_metadata = click.option("--metadata", multiple=True, metavar="K=V", help="Metadata of the call.")


@click.command(cls=Numbers)
@_arguments
@_metadata
@click.option(
    "--timeout",
    "--request_timeout",
    default="15s",
    callback=seconds,
    metavar="DURATION",
    help="Longest wait, like 15s or 1m30s (default: 15s).",
)
@output("raw", default="json")
@click.pass_obj
def call(
    session: Session,
    service: str,
    endpoint: str,
    request_: str,
    metadata: tuple[str, ...],
    timeout: float,
) -> None:
    """Call ENDPOINT (Handler.Method) of SERVICE with a request of JSON.

    The request is the argument, a file (@FILE) or standard input (-). Endpoints of bytes take and
    give them as they are; with `-o json` such an answer is {"value", "encoding"}.
    """
    _checked(endpoint)
    along = pairs(metadata, "--metadata", fold=True)
    with _source(request_) as source:
        body = source.read()
    found = session.endpoint(service, endpoint)
    if found is not None and found.stream:
        raise Usage("cli", f"{found.name} is a stream; use `micro stream {service} {found.name}`")
    if found is None or not is_bytes(found.request):
        body = _json(body)
    answer = session.call(service, endpoint, body, timeout=timeout, metadata=along)
    print_answer(answer, found, session.output)


@click.command(cls=Numbers)
@_arguments
@_metadata
@output("raw", default="json")
@click.pass_obj
def stream(
    session: Session, service: str, endpoint: str, request_: str, metadata: tuple[str, ...]
) -> None:
    """Call a streaming ENDPOINT and print its answers as they come, one a line.

    For endpoints that take a stream, standard input (-) or a file (@FILE) is sent line by line, one
    request each; bytes are sent in pieces as they come.
    """
    _checked(endpoint)
    along = pairs(metadata, "--metadata", fold=True)
    found = session.endpoint(service, endpoint)
    sent = _messages(_source(request_), found)
    for answer in session.stream(service, endpoint, sent, into=bytes, metadata=along):
        print_answer(answer, found, session.output, line=True)


def _messages(source: BinaryIO, endpoint: Endpoint | None) -> bytes | AsyncIterator[bytes]:
    """What is sent: one message, or those of a stream."""
    binary = endpoint is not None and is_bytes(endpoint.request)
    if endpoint is not None and endpoint.stream in ("client", "bidi"):
        return _fed(_pieces(source) if binary else _rows(source))
    with source:
        return source.read() if binary else _json(source.read())


def _rows(source: BinaryIO) -> Iterator[bytes]:
    with source:
        for line in source:
            if line.strip():
                yield _json(line)


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    """What there is, without waiting for more."""
    with source:
        while piece := source.read1(PIECE):  # type: ignore[attr-defined]
            yield piece


async def _fed(messages: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The messages of a source that blocks, read no faster than they are taken. The thread that
    waits for the source is a daemon: an endpoint that ends early does not wait for a person to
    press a key."""
    import asyncio
    import threading

    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(1)

    def put(message: bytes | Exception | None) -> None:
        work = queue.put(message)
        try:
            asyncio.run_coroutine_threadsafe(work, loop).result()
        except RuntimeError:
            work.close()  # the loop has ended, and with it the call
            raise

    def pump() -> None:
        with contextlib.suppress(RuntimeError):
            try:
                for message in messages:
                    put(message)
            except Exception as error:
                put(error)
            else:
                put(None)

    threading.Thread(target=pump, name="requests", daemon=True).start()
    while (message := await queue.get()) is not None:
        if isinstance(message, Exception):
            raise message
        yield message


def _source(text: str) -> BinaryIO:
    """The argument, ``-`` (standard input) or ``@file`` as something to read."""
    if text == "-":
        # A reader of its own: a thread that waits in it holds up nobody who ends this process.
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    if text.startswith("@"):
        return open(text[1:], "rb")
    return io.BytesIO(os.fsencode(text))


def _json(body: bytes) -> bytes:
    """The request if it is JSON. Raises Usage that says where it is not."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        json.loads(body.decode(), parse_constant=refuse)
    except RecursionError:
        raise Usage("cli", "the request is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise Usage("cli", f"the request is not UTF-8: byte {error.start}") from None
    except ValueError as error:
        raise Usage("cli", f"the request is not JSON: {error}") from None
    return body
