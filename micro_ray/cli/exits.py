"""How a command ends: what is said of a failure, and the exit code (see the package)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import ClassVar

import click

from micro_ray.cli.output import visible
from micro_ray.errors import BadRequest, InternalError, MicroError, NotFound

__all__ = [
    "Failed",
    "MalformedEndpoint",
    "NoEndpoint",
    "Unrecognized",
    "Usage",
    "asks_json",
    "exit_code",
    "say",
    "say_system",
    "say_usage",
]

#: Who raises what is wrong between here and the service: nobody took the call.
_WAY = ("api", "client", "network", "proxy", "registry", "wire")
#: Who raises what is wrong with this machine or this folder, whatever the code.
_HERE = ("server", "settings", "source")


class Usage(BadRequest):
    """The command line is wrong."""

    exit: ClassVar[int] = 2


class MalformedEndpoint(BadRequest):
    """An endpoint that is not like Handler.Method."""

    exit: ClassVar[int] = 3


class Unrecognized(NotFound):
    """A word that is neither command nor service."""

    exit: ClassVar[int] = 1


class NoEndpoint(NotFound):
    """The service has no such endpoint."""

    exit: ClassVar[int] = 5


class Failed(InternalError):
    """What was asked for was begun and did not succeed."""

    exit: ClassVar[int] = 1


def exit_code(error: MicroError) -> int:
    """Micro's exit codes, see the package's docstring."""
    own = getattr(error, "exit", None)
    if own is not None:
        return int(own)
    if error.code == 404 and error.detail.startswith("no endpoint "):
        return 5
    if error.id in _WAY and error.code in (404, 503):
        return 4
    if error.code in (401, 403):
        return 2
    if error.code < 500 or error.code == 504 or error.id in _HERE:
        return 1
    return 127


def asks_json(args: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, however wrong it may be otherwise."""
    wanted = False
    for arg, after in zip(args, [*args, ""][1:], strict=True):
        if arg == "--":
            break
        if arg in ("-o", "--output"):
            wanted = after == "json"
        elif arg.startswith(("-ojson", "-o=", "--output=")):
            wanted = arg.partition("=")[2] == "json" or arg == "-ojson"
    return wanted


def say(error: MicroError, *, as_json: bool) -> int:
    """Say on standard error what was wrong; the exit code."""
    if as_json:
        click.echo(json.dumps(error.to_dict(), ensure_ascii=False), err=True)
    else:
        detail = error.detail or error.status
        click.echo(visible(detail[:1].upper() + detail[1:], "\n\t"), err=True)
    return exit_code(error)


def say_usage(error: click.ClickException, *, as_json: bool) -> int:
    """The same for what click has found."""
    if as_json:
        say(Usage("cli", error.format_message()), as_json=True)
    else:
        error.show()
    return error.exit_code


def say_system(error: OSError, *, as_json: bool) -> int:
    """The same for what the system refuses: which file, and why."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return say(Failed("cli", f"{where}{reason}"), as_json=as_json)
