"""The top of the command line: what is said when something goes wrong, and the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from micro_ray.cli.exits import Failed, Unrecognized, asks_json, say, say_system, say_usage
from micro_ray.cli.group import Commands, Interrupted, ReaderGone
from micro_ray.cli.output import Form
from micro_ray.cli.session import Session
from micro_ray.errors import MicroError

__all__ = ["cli", "run"]


def _named(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """At once, not with the command: a shell that asks for completions runs none."""
    if value is not None and ctx.obj is not None:
        ctx.obj.named = value


@click.command(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="micro-ray", message="micro-ray %(version)s")
@click.option(
    "-o",
    "--output",
    type=Form(["table", "json"]),
    help="How to print (default: table); also after the command.",
)
@click.option(
    "-e",
    "--env",
    metavar="NAME",
    callback=_named,
    expose_value=False,
    help="The environment to go to (default: the current one, see `micro env list`).",
)
@click.pass_context
def cli(ctx: click.Context, output: str | None) -> None:
    """micro: run services, find them, call them.

    A word that is no command is a service: `micro helloworld call --name=Alice`.
    """
    if output is not None:
        ctx.obj.output = output
    if ctx.invoked_subcommand is None:
        raise Unrecognized("cli", "No command provided to micro. Please refer to 'micro --help'")


def run(args: list[str]) -> int:
    """Run a command line and give its exit code; what it has to say has been said."""
    session = Session()
    json = asks_json(args)
    try:
        code = _told(lambda: _main(args, session), json)
        code = _told(session.close, json) or code
    except KeyboardInterrupt:  # a second time, while the connection was being closed
        code = 130
    return _reader_gone() if code == 130 and session.reader.gone else code


def _main(args: list[str], session: Session) -> int:
    code = cli.main(args=args, prog_name="micro", standalone_mode=False, obj=session)
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _told(work: Callable[[], int | None], json: bool) -> int:
    """The exit code of some work, once its failure has been told."""
    try:
        return work() or 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, Interrupted, KeyboardInterrupt):
        if sys.stderr.isatty():
            click.echo(err=True)  # after the ^C that the terminal shows
        return 130
    except click.ClickException as error:
        return say_usage(error, as_json=json)
    except MicroError as error:
        return say(error, as_json=json)
    except SystemExit as error:  # of a shell's completions
        return error.code if isinstance(error.code, int) else 1
    except (ReaderGone, BrokenPipeError):
        return _reader_gone()
    except OSError as error:
        return say_system(error, as_json=json)
    except Exception as error:
        say(Failed("cli", f"{type(error).__name__}: {error}"), as_json=json)
        return 128


def _reader_gone() -> int:
    """What reads our output has gone (``micro logs x | head -1``): no failure of ours. Python must
    not try to write the rest when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return 0
