"""The words of a command line: what a command may be, and what was probably meant."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from micro_ray.cli.exits import Unrecognized
from micro_ray.cli.session import Session, near
from micro_ray.errors import Unauthorized, Unavailable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "Commands", "Interrupted", "ReaderGone", "Subcommands", "Verbatim"]

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
    "publish": ("broker", "Send a message to a topic"),
    "subscribe": ("broker", "Print the messages of a topic"),
    "events": ("events", "Publish and consume events"),
    "config": ("config", "Read and write config, with its history"),
    "login": ("auth", "Log in"),
    "logout": ("auth", "Forget who you are"),
    "user": ("auth", "Show who you are logged in as"),
    "auth": ("auth", "Accounts, rules and keys"),
    "certs": ("certs", "Identities of processes, and the authority behind them"),
    "limits": ("limits", "How much may be asked for, and how much is"),
    "network": ("network", "Nodes, routes and graph"),
    "health": ("debug", "Ask the nodes of a service for their health"),
    "stats": ("debug", "Ask the nodes of a service for their figures"),
    "new": ("new", "Make a new service"),
    "env": ("env", "The platforms that commands go to"),
    "doctor": ("doctor", "Find out what is wrong"),
    "completion": ("completion", "Print a shell's completion script"),
}


class ReaderGone(Exception):
    """What reads our output has gone."""


class Interrupted(Exception):
    """Somebody has pressed Ctrl-C."""


@contextlib.contextmanager
def _ours() -> Iterator[None]:
    """click would speak and end the process by itself; both is ours to do."""
    try:
        yield
    except BrokenPipeError:
        raise ReaderGone from None
    except KeyboardInterrupt:
        raise Interrupted from None


class Commands(click.Group):
    """Loads a command when it is used; unknown words are programs ``micro-WORD`` or services."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _ours():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _ours():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """A command, a program or a service. Raises Unavailable when only the platform could know
        the word and does not answer."""
        if name in COMMANDS:
            module = importlib.import_module(f"micro_ray.cli.{COMMANDS[name][0]}")
            command: click.Command = getattr(module, name)
            return command
        if name == "help":
            return _Help(name, help="The help of a command.", add_help_option=False)
        if re.fullmatch(r"[\w.-]+", name) and shutil.which(f"micro-{name}"):
            return _Program(name, help=f"The program micro-{name}.")
        from micro_ray.cli.dynamic import service_command

        return service_command(_session(ctx), name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if ctx.resilient_parsing:  # a shell asks for completions: never a word of complaint
            return name, self._known_at_once(ctx, name) or _nothing(name), args[1:]
        try:
            command = self.get_command(ctx, name)
        except Unavailable as error:
            if near(name, list(COMMANDS)):
                raise _unrecognized(name, near(name, list(COMMANDS))) from None
            raise Unavailable(
                error.id, f"{name!r} is no command, and no service can be looked up: {error.detail}"
            ) from None
        if command is None:
            session = _session(ctx)
            if session.bootstrap.platform and session.identity() is None:
                raise Unauthorized(
                    "client", f"{name!r} is no command; to call services, log in: micro login"
                )
            services = [entry.service for entry in _session(ctx).entries()]
            raise _unrecognized(name, near(name, [*COMMANDS, *services]))
        return name, command, args[1:]

    def _known_at_once(self, ctx: click.Context, name: str) -> click.Command | None:
        from micro_ray.cli.completion import quietly, services

        if name not in COMMANDS and not services(_session(ctx)):
            return None
        return quietly(lambda: self.get_command(ctx, name), None)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list without loading what is listed."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands and services, without loading what is listed."""
        from click.shell_completion import CompletionItem

        from micro_ray.cli.completion import services

        rows = [(name, text) for name, (_, text) in COMMANDS.items()]
        if not incomplete.startswith("-"):
            rows += [row for row in services(_session(ctx)) if row[0] not in COMMANDS]
        found = [CompletionItem(n, help=text) for n, text in rows if n.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


class Subcommands(click.Group):
    """A command of commands, such as ``store``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is not None:
            return super().resolve_command(ctx, args)
        if ctx.resilient_parsing:
            return args[0], _nothing(args[0]), args[1:]
        raise _unrecognized(args[0], near(args[0], self.list_commands(ctx)), ctx.info_name or "")


def _unrecognized(word: str, meant: list[str], group: str = "") -> Unrecognized:
    what = f"subcommand for micro {group}" if group else "micro command"
    hint = f" Did you mean {' or '.join(meant)}?" if meant else ""
    path = f"micro {group}" if group else "micro"
    return Unrecognized(
        "cli", f"Unrecognized {what}: {word}.{hint} Please refer to '{path} --help'"
    )


def _session(ctx: click.Context) -> Session:
    session: Session = ctx.find_root().obj
    return session


class Verbatim(click.Command):
    """A command that reads its arguments itself, from ``ctx.args``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return ctx.args


def _nothing(name: str) -> click.Command:
    """What a shell is told of a word that is none: nothing."""
    return Verbatim(name, add_help_option=False)


class _Help(Verbatim):
    """``micro help run`` is ``micro run --help``."""

    def invoke(self, ctx: click.Context) -> None:
        parent = ctx.find_root()
        if not ctx.args:
            click.echo(parent.get_help())
            return
        parent.command.main(
            args=[*ctx.args, "--help"], prog_name="micro", standalone_mode=False, obj=parent.obj
        )


class _Program(Verbatim):
    """A program ``micro-NAME`` of the PATH; it takes this process over."""

    def invoke(self, ctx: click.Context) -> None:
        os.execvp(f"micro-{self.name}", [f"micro-{self.name}", *ctx.args])
