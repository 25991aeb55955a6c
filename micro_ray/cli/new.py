"""new: a service to begin with."""

from __future__ import annotations

import re
from pathlib import Path

import click

from micro_ray.cli.exits import Usage
from micro_ray.cli.group import COMMANDS
from micro_ray.cli.output import as_json, output
from micro_ray.cli.session import Session
from micro_ray.errors import Conflict

__all__ = ["new"]

#: Services of the platform itself.
TAKEN = (
    "registry", "router", "network", "store", "broker", "events", "config", "runtime", "api",
)  # fmt: skip

MAIN = '''"""The service {name}."""

from micro_ray import Service

service = Service("{name}")


@service.endpoint
async def call(name: str = "World") -> dict[str, str]:
    """Greet somebody."""
    return {{"message": f"Hello {{name}}"}}


if __name__ == "__main__":
    service.run()
'''

TEST = '''"""Tests of {name}, on a platform inside this process."""

import asyncio

from main import service
from micro_ray.sdk.testing import platform


def test_call() -> None:
    async def check() -> None:
        async with platform() as here:
            await here.serve(service)
            answer = await here.client.call("{name}", "call", {{"name": "Alice"}})
            assert answer == {{"message": "Hello Alice"}}

    asyncio.run(check())
'''

README = """# {name}

    micro run .
    micro {name} call --name=Alice
    curl -d '{{"name":"Alice"}}' localhost:8080/{name}/call

Tests: `pytest`.
"""


@click.command()
@click.argument("name")
@output()
@click.pass_obj
def new(session: Session, name: str) -> None:
    """Make a new service NAME in a folder of that name."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) or len(name) > 63:
        raise Usage("cli", f"name {name!r}: lower-case letters, digits and '-', at most 63")
    if name in COMMANDS or name in TAKEN:
        raise Usage("cli", f"name {name!r} is taken by micro itself; choose another")
    folder = Path(name)
    try:
        folder.mkdir()
    except FileExistsError:
        raise Conflict("cli", f"{name} already exists") from None
    files = {
        "main.py": MAIN,
        "test_main.py": TEST,
        "README.md": README,
        ".microignore": "test_*.py\n",
    }
    for file, text in files.items():
        (folder / file).write_text(text.format(name=name))
    if session.output == "json":
        as_json({"name": name, "files": [f"{name}/{file}" for file in files]})
        return
    for file in files:
        click.echo(f"{name}/{file}")
