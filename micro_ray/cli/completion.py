"""completion: a script for the shell, and what it is told: names that the platform knows now.

A completion is asked for while somebody types: what cannot be known at once is left out, and
nothing is ever said about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from micro_ray.cli.session import Session

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["completion", "endpoint_names", "quietly", "service_names", "services", "workloads"]

T = TypeVar("T")

#: Seconds that the platform has for an answer.
PATIENCE = 1.0


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print SHELL's completion script.

    \b
    bash: eval "$(micro completion bash)"
    zsh:  eval "$(micro completion zsh)"
    fish: micro completion fish | source
    """
    from click.shell_completion import get_completion_class

    from micro_ray.cli.app import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "micro", "_MICRO_COMPLETE").source())


def quietly(work: Callable[[], T], otherwise: T) -> T:
    """What ``work`` gives, or ``otherwise`` when it fails, for whatever reason."""
    try:
        return work()
    except Exception:
        return otherwise


def services(session: Session) -> list[tuple[str, str]]:
    """The services there are, with what they say of themselves."""

    def ask() -> list[tuple[str, str]]:
        import asyncio

        entries = session.client.run(lambda client: asyncio.wait_for(client.entries(), PATIENCE))
        session.known(entries)
        return sorted({e.service: e.metadata.get("description", "") for e in entries}.items())

    return quietly(ask, [])


def _items(rows: list[tuple[str, str]], incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name, help=text) for name, text in rows if name.startswith(incomplete)]


def service_names(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """For an argument that is a service."""
    return _items(services(ctx.find_root().obj), incomplete)


def endpoint_names(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """For an argument that is an endpoint of the service before it."""
    session: Session = ctx.find_root().obj
    services(session)
    entry = quietly(lambda: session.entry(str(ctx.params.get("service"))), None)
    rows = [(e.name, e.metadata.get("description", "")) for e in entry.endpoints] if entry else []
    return _items(rows, incomplete)


def workloads(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For an argument that is what runs."""
    session: Session = ctx.find_root().obj

    def ask() -> list[tuple[str, str]]:
        rows = session.call("runtime", "Runtime.Read", timeout=PATIENCE)
        return [(row["workload"]["name"], row["state"]) for row in rows]

    return _items(quietly(ask, []), incomplete)
