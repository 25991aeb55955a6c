"""The top of the command line: the commands there are, errors and exit codes."""

from __future__ import annotations

import difflib
import importlib
import os
import shutil
import sys

import click

from micro_ray.cli.session import Session
from micro_ray.errors import MicroError

__all__ = ["cli", "run"]

#: command -> (module, what it does). Modules are loaded when their command is used.
COMMANDS = {
    "server": ("server", "Run the platform on this machine"),
    "run": ("runtime", "Run a service from a folder or a command"),
    "update": ("runtime", "Change or restart a running service"),
    "kill": ("runtime", "Stop a service"),
    "status": ("runtime", "Show what runs"),
    "logs": ("runtime", "Show the logs of a service"),
    "services": ("registry", "List the services that can be called"),
    "get": ("registry", "Show a service as it is registered"),
    "call": ("call", "Call an endpoint"),
    "stream": ("call", "Call a streaming endpoint"),
    "store": ("store", "Read and write records"),
    "network": ("network", "Nodes, routes and graph"),
    "health": ("debug", "Ask the nodes of a service for their health"),
    "stats": ("debug", "Ask the nodes of a service for their figures"),
    "new": ("new", "Make a new service"),
    "env": ("env", "Show how to reach the platform"),
    "doctor": ("doctor", "Find out what is wrong"),
    "completion": ("completion", "Print a shell's completion script"),
}


class Commands(click.Group):
    """Loads a command when it is used; unknown words are programs ``micro-WORD`` or services."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            module = importlib.import_module(f"micro_ray.cli.{COMMANDS[name][0]}")
            command: click.Command = getattr(module, name)
            return command
        if shutil.which(f"micro-{name}"):
            return _program(name)
        from micro_ray.cli.dynamic import service_command

        return service_command(ctx, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None:
            near = difflib.get_close_matches(name, COMMANDS, n=3)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            click.echo(
                f"Unrecognized micro command: {name}.{hint} Please refer to 'micro --help'",
                err=True,
            )
            ctx.exit(1)
        return name, command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list without loading what is listed."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _program(name: str) -> click.Command:
    @click.command(name, context_settings={"ignore_unknown_options": True, "help_option_names": []})
    @click.argument("args", nargs=-1, type=click.UNPROCESSED)
    def program(args: tuple[str, ...]) -> None:
        os.execvp(f"micro-{name}", [f"micro-{name}", *args])

    return program


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="micro-ray", message="micro-ray %(version)s")
@click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", help="How to print."
)
@click.pass_context
def cli(ctx: click.Context, output: str) -> None:
    """micro: run services, find them, call them.

    A word that is no command is a service: `micro helloworld call --name=Alice`.
    """
    from micro_ray.settings import load

    session = Session(settings=load(), output=output)
    ctx.obj = session
    ctx.call_on_close(session.close)


def run(args: list[str]) -> int:
    """Run a command line and give its exit code."""
    try:
        code = cli.main(args=args, prog_name="micro", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        click.echo("", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except MicroError as error:
        return _say(error)
    except BrokenPipeError:
        # What reads our output has gone: keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        return 128


def _say(error: MicroError) -> int:
    detail = error.detail or error.status
    click.echo(detail[:1].upper() + detail[1:], err=True)
    return exit_code(error)


def exit_code(error: MicroError) -> int:
    """Micro's exit codes, see the package's docstring."""
    if error.id in ("client", "network") and error.code in (404, 503):
        return 4
    if error.code == 404 and error.detail.startswith("no endpoint"):
        return 5
    if error.code in (404, 408, 400, 409, 413) or error.id in ("server", "settings", "source"):
        return 1
    if error.code in (401, 403):
        return 2
    return 127
