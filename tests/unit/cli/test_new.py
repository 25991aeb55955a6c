"""new: what it makes runs, and its own test passes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from micro_ray.cli.group import COMMANDS
from micro_ray.sdk.testing import Here
from tests.fixtures.terminal import Terminal

CONFIG = Path(__file__).resolve().parents[3] / "pyproject.toml"

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_a_service_is_made(lonely: Terminal, here_folder: Path) -> None:
    done = await lonely.micro("new", "my-greeter")
    assert (done.code, done.err) == (0, "")
    assert done.lines == [
        "my-greeter/main.py",
        "my-greeter/test_main.py",
        "my-greeter/README.md",
        "my-greeter/.microignore",
    ]
    assert all((here_folder / line).is_file() for line in done.lines)


async def test_its_own_test_passes_and_can_fail(lonely: Terminal, here_folder: Path) -> None:
    await lonely.inside("new", "tested")

    async def tests() -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
            cwd=here_folder / "tested", env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        await process.communicate()
        assert process.returncode is not None
        return process.returncode

    assert await tests() == 0
    main = here_folder / "tested" / "main.py"
    main.write_text(main.read_text().replace("Hello", "Goodbye"))
    assert await tests() == 1


async def test_it_runs_as_its_readme_says(
    terminal: Terminal, here_folder: Path, town: Here
) -> None:
    await terminal.inside("new", "fresh-one")
    readme = (here_folder / "fresh-one" / "README.md").read_text()
    folder = terminal.within(here_folder / "fresh-one")
    assert "    micro run .\n    micro fresh-one call --name=Alice\n" in readme
    try:
        assert (await folder.inside("run", ".")).code == 0
        await town.known("fresh-one")
        done = await folder.inside("fresh-one", "call", "--name=Alice")
        assert done.json() == {"message": "Hello Alice"}
    finally:
        await folder.inside("kill", "fresh-one")


async def test_what_it_makes_keeps_to_the_rules(lonely: Terminal, here_folder: Path) -> None:
    await lonely.inside("new", "tidy")
    for command in (["check"], ["format", "--check"]):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ruff", *command, "--config", str(CONFIG), "--no-cache", "tidy",
            cwd=here_folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()


@pytest.mark.parametrize(
    "name", ["", "Upper", "under_score", "-dash", "dash-", "a/b", "..", "a b", "x" * 64, "zażółć"]
)
async def test_names_that_are_none(lonely: Terminal, here_folder: Path, name: str) -> None:
    done = await lonely.inside("new", "--", name)
    assert done.code == 2
    assert done.err == f"Name {name!r}: lower-case letters, digits and '-', at most 63\n"
    assert not os.listdir(here_folder)


@pytest.mark.parametrize("name", [*COMMANDS, "registry", "broker", "runtime", "api"])
async def test_names_that_micro_has(lonely: Terminal, here_folder: Path, name: str) -> None:
    """A service of such a name could not be called from the terminal."""
    done = await lonely.inside("new", name)
    assert done.code == 2
    assert done.err == f"Name {name!r} is taken by micro itself; choose another\n"
    assert not os.listdir(here_folder)


async def test_nothing_is_written_over(lonely: Terminal, here_folder: Path) -> None:
    (here_folder / "mine").mkdir()
    (here_folder / "mine" / "main.py").write_text("precious")
    (here_folder / "file").touch()
    for name in ("mine", "file"):
        done = await lonely.inside("new", name)
        assert (done.code, done.err) == (1, f"{name.capitalize()} already exists\n")
    assert (here_folder / "mine" / "main.py").read_text() == "precious"


async def test_a_folder_that_cannot_be_made(lonely: Terminal) -> None:
    done = await lonely.within(Path("/proc")).inside("new", "impossible")
    assert (done.code, done.raw) == (1, b"")
    assert done.err == "Impossible: No such file or directory\n"
