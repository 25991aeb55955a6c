"""The words of a command line: commands, programs, services, and what was probably meant."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from micro_ray.cli.app import cli
from micro_ray.cli.group import COMMANDS
from tests.fixtures.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["stauts"], "status"),
        (["serivces"], "services"),
        (["Logs"], "logs"),
        (["helloword"], "helloworld"),
        (["helloword", "call", "--name=x"], "helloworld"),
        (["TOOLBOKS", "call"], "toolbox"),
    ],
)
async def test_a_word_that_is_nearly_one(terminal: Terminal, args: list[str], meant: str) -> None:
    done = await terminal.inside(*args)
    assert done.code == 1
    assert done.err.startswith(f"Unrecognized micro command: {args[0]}. Did you mean ")
    assert meant in done.err
    assert done.err.endswith(" Please refer to 'micro --help'\n")


async def test_a_word_that_is_far_from_any(terminal: Terminal) -> None:
    done = await terminal.inside("qqqqqqqq")
    assert done.err == "Unrecognized micro command: qqqqqqqq. Please refer to 'micro --help'\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["store", "raed"], "Unrecognized subcommand for micro store: raed. Did you mean read?"),
        (["network", "ndoes"], "Did you mean nodes? Please refer to 'micro network --help'"),
        (["get", "servce"], "Did you mean service?"),
        (["env", "rai"], "Did you mean ray?"),
        (["call", "helloword", "Helloworld.Call"], "did you mean helloworld"),
        (["stream", "strems", "Streams.Ticks"], "did you mean streams"),
        (["health", "helloword"], "did you mean helloworld"),
        (["stats", "helloword"], "did you mean helloworld"),
        (["call", "helloworld", "Helloworld.Cal"], "there is Helloworld.Call"),
        (["helloworld", "cal"], "No endpoint cal in helloworld; there is call"),
        (["logs", "x", "--folow"], "Did you mean '--follow'"),
        (["run", "--replica=3"], "Did you mean '--replicas'"),
        (["store", "read", "k", "--tabel=x"], "'--table'"),
        (["helloworld", "call", "--nam=x"], "did you mean --name?"),
    ],
)  # fmt: skip
async def test_what_was_meant(terminal: Terminal, args: list[str], said: str) -> None:
    done = await terminal.inside(*args)
    assert done.code
    assert said in done.err


async def test_no_command_at_all(terminal: Terminal) -> None:
    done = await terminal.micro()
    assert done.code == 1
    assert done.err == "No command provided to micro. Please refer to 'micro --help'\n"


async def test_version_and_help(lonely: Terminal) -> None:
    version = await lonely.micro("--version")
    assert version.code == 0
    assert version.out.startswith("micro-ray ")
    for flag in ("--help", "-h"):
        help_ = await lonely.inside(flag)
        assert help_.code == 0
        for name, (_, text) in COMMANDS.items():
            assert any(line.split()[:1] == [name] and text in line for line in help_.lines), name


async def test_help_is_a_word_too(terminal: Terminal) -> None:
    for words, line in (
        (["help"], ["--help"]),
        (["help", "run"], ["run", "--help"]),
        (["help", "store", "read"], ["store", "read", "--help"]),
        (["help", "toolbox", "everything"], ["toolbox", "everything", "--help"]),
    ):
        done = await terminal.inside(*words)
        assert done.code == 0
        assert done.out == (await terminal.inside(*line)).out
        assert done.out
    assert "Did you mean" in (await terminal.inside("help", "stauts")).err


async def test_a_group_alone_shows_its_commands(terminal: Terminal) -> None:
    for group in ("store", "network", "get"):
        done = await terminal.inside(group)
        assert done.code == 2
        assert "Commands:" in done.out + done.err


def program(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text('#!/bin/sh\nprintf "%s|" "$@"\nexit 7\n')
    path.chmod(0o755)


async def test_a_program_of_the_path_is_a_command(lonely: Terminal, here_folder: Path) -> None:
    """``micro-WORD`` takes over with its arguments as they are, with and without a platform."""
    program(here_folder, "micro-extra")
    path = f"{here_folder}{os.pathsep}{os.environ['PATH']}"
    done = await lonely.within(PATH=path).micro(
        "extra", "--help", "-o", "json", "--", "a b", "--", "-x"
    )
    assert done.code == 7
    assert done.out == "--help|-o|json|--|a b|--|-x|"


async def test_a_command_is_never_a_program(terminal: Terminal, here_folder: Path) -> None:
    program(here_folder, "micro-services")
    path = f"{here_folder}{os.pathsep}{os.environ['PATH']}"
    assert "helloworld" in (await terminal.within(PATH=path).inside("services")).lines


async def test_every_command_and_option_has_a_help() -> None:
    def walk(command: click.Command, path: str, parent: click.Context | None) -> int:
        context = click.Context(command, parent=parent, info_name=path.split()[-1])
        text = command.get_short_help_str(200)
        assert text, f"{path} says nothing of itself"
        assert command.help
        assert len(command.help.strip().split("\n")[0]) <= 100, path
        for parameter in command.get_params(context):
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{path} {parameter.opts[0]} has no help"
        assert command.get_help(context)
        if not isinstance(command, click.Group):
            return 1
        seen = 1
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            assert inner.name == name
            seen += walk(inner, f"{path} {name}", context)
        return seen

    assert walk(cli, "micro", None) >= 30


async def test_the_list_of_commands_says_what_each_is() -> None:
    """The list in ``micro --help`` is kept apart from the commands, so that it loads none."""
    context = click.Context(cli)
    for name in COMMANDS:
        assert cli.get_command(context, name) is not None
