"""Starting fast: what is loaded, by command. Times are for ``bench``; what costs them is here."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tests.fixtures.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="package")

PROBE = """
import sys
from micro_ray.cli.app import run
code = run(sys.argv[1:])
print(code, *sorted(sys.modules), file=sys.stderr)
"""

#: Half a second and more each.
HEAVY = {"ray", "grpc", "uvicorn", "starlette", "pydantic", "numpy", "hypothesis"}


async def loaded(terminal: Terminal, *args: str) -> set[str]:
    """The modules that a command has loaded when it ends well."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROBE, *args, env=terminal.environ, cwd=terminal.folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, said = await process.communicate()
    code, *modules = said.decode().splitlines()[-1].split()
    assert code == "0", said
    return set(modules)


@pytest.mark.parametrize("flag", ["--version", "--help"])
async def test_to_say_what_it_is_needs_next_to_nothing(lonely: Terminal, flag: str) -> None:
    modules = await loaded(lonely, flag)
    assert not modules & HEAVY
    assert not modules & {"asyncio", "msgspec", "ssl", "micro_ray.settings"}
    assert not {name for name in modules if name.startswith(("micro_ray.wire", "micro_ray.sdk"))}


@pytest.mark.parametrize(
    "args",
    [
        ["helloworld", "call"],
        ["services"],
        ["status"],
        ["call", "helloworld", "call"],
        ["store", "list"],
        ["network", "nodes"],
        ["health", "helloworld"],
        ["env"],
        ["server", "--help"],
        ["completion", "bash"],
        ["new", "light"],
    ],
    ids=" ".join,
)
async def test_no_command_loads_what_it_does_not_need(terminal: Terminal, args: list[str]) -> None:
    modules = await loaded(terminal, *args)
    assert not modules & HEAVY
    assert not {
        name for name in modules if name.startswith(("micro_ray.actors", "micro_ray.serve"))
    }


async def test_a_service_command_connects_once(terminal: Terminal) -> None:
    """Looking a service up and calling it share a connection."""
    from micro_ray.cli.app import run
    from micro_ray.sdk import blocking

    made = 0

    class Counted(blocking.Client):
        def __init__(self, *args: object, **options: object) -> None:
            nonlocal made
            made += 1
            super().__init__(*args, **options)  # type: ignore[arg-type]

    original, blocking.Client = blocking.Client, Counted  # type: ignore[misc]
    try:
        assert (await terminal.inside("helloworld", "call")).code == 0
    finally:
        blocking.Client = original  # type: ignore[misc]
    assert made == 1
    assert run is not None
