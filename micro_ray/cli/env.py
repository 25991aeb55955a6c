"""env: how to reach the platform from elsewhere."""

from __future__ import annotations

import json
import shlex

import click

from micro_ray.cli.session import Session
from micro_ray.errors import Unavailable

__all__ = ["env"]


@click.group()
def env() -> None:
    """Show how to reach the platform."""


@env.command()
@click.pass_obj
def ray(session: Session) -> None:
    """Shell lines with which Python reaches the platform's Ray: `eval "$(micro env ray)"`."""
    path = session.settings.state / "ray.json"
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        raise Unavailable(
            "client", f"no micro server at {session.settings.state}; start one with `micro server`"
        ) from None
    variables = {
        "RAY_ADDRESS": known["address"],
        "RAY_AUTH_MODE": known["auth_mode"],
        "RAY_AUTH_TOKEN_PATH": known["token_path"],
    }
    for name, value in variables.items():
        if value:
            click.echo(f"export {name}={shlex.quote(value)}")
