"""Completion: what is offered where, through click's protocol as each shell speaks it, and in a
real bash."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from micro_ray.cli.group import COMMANDS
from micro_ray.sdk import client
from micro_ray.sdk.testing import Here
from tests.fixtures.terminal import MICRO, Terminal
from tests.fixtures.wait import PROMPT
from tests.unit.cli.test_no_server import mute

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def offered(terminal: Terminal, line: str) -> list[str]:
    """What bash would be told to offer at the end of a line."""
    words = shlex.split(line)
    if line.endswith(" "):
        words.append("")
    asking = terminal.within(
        _MICRO_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(words),
        COMP_CWORD=str(len(words) - 1),
    )
    done = await asking.inside()
    assert (done.code, done.err) == (0, "")
    return [row.partition(",")[2] for row in done.lines if row]


async def test_commands_and_services(terminal: Terminal) -> None:
    everything = await offered(terminal, "micro ")
    assert set(COMMANDS) <= set(everything)
    assert {"helloworld", "toolbox", "registry"} <= set(everything)
    assert len(everything) == len(set(everything))  # `store` is a service and a command
    assert await offered(terminal, "micro st") == [
        "status", "stream", "store", "stats", "streams",
    ]  # fmt: skip
    assert await offered(terminal, "micro hello") == ["helloworld"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (
            "micro store ",
            [
                "blob",
                "databases",
                "delete",
                "list",
                "query",
                "read",
                "revision",
                "tables",
                "transact",
                "usage",
                "watch",
                "write",
            ],
        ),
        ("micro store re", ["read", "revision"]),
        ("micro logs --f", ["--follow"]),
        ("micro store read --order ", ["asc", "desc"]),
        ("micro -o ", ["table", "json"]),
        ("micro completion ", ["bash", "zsh", "fish"]),
        ("micro call help", []),
        ("micro call hello", ["helloworld"]),
        ("micro call helloworld ", ["Helloworld.Call"]),
        ("micro stream streams Streams.T", ["Streams.Ticks", "Streams.Total"]),
        ("micro get service hello", ["helloworld"]),
        ("micro health ail", ["ailing"]),
        ("micro network routes --service hello", ["helloworld"]),
        # services as commands
        ("micro helloworld ", ["call"]),
        ("micro toolbox e", ["everything", "exact"]),
        ("micro toolbox greeter ", ["hello"]),
        ("micro toolbox greeter hello --", ["--name", "--help"]),
        ("micro helloworld call --", ["--name", "--help"]),
        ("micro helloworld call --name=x --", ["--help"]),
        ("micro toolbox everything --ad", ["--address", "--address_street", "--address_number"]),
        ("micro toolbox everything --colour ", ["green", "red"]),
        ("micro toolbox everything --colour = r", ["red"]),  # as bash splits --colour=r
        ("micro toolbox everything --loud t", ["true"]),
        ("micro toolbox everything --text ", []),
        ("micro toolbox nowhere --", []),
        ("micro nowhere ", []),
        ("micro nowhere --", []),
        ("micro store nowhere ", []),
    ],
)
async def test_what_is_offered(terminal: Terminal, line: str, names: list[str]) -> None:
    assert await offered(terminal, line) == names


async def test_what_runs_is_offered(terminal: Terminal) -> None:
    args = ["--name=completed", "--command=sleep 60", "-r", "0", "--no-wait"]
    assert (await terminal.inside("run", *args)).code == 0
    try:
        for command in ("kill", "logs", "status", "update"):
            assert await offered(terminal, f"micro {command} com") == ["completed"]
    finally:
        await terminal.inside("kill", "completed")


async def test_without_a_server_commands_are_offered_and_nothing_is_said(lonely: Terminal) -> None:
    assert set(await offered(lonely, "micro ")) == set(COMMANDS)
    for line in ("micro hello", "micro helloworld ", "micro call ", "micro kill ", "micro call x "):
        assert await offered(lonely, line) == []
    assert await offered(lonely.within(MICRO_API_PORT="wrong"), "micro hello") == []


async def test_a_server_that_hangs_is_not_waited_for(
    lonely: Terminal, town: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_TABLE", 60.0)
    async with mute(town) as router:
        begun = time.monotonic()
        hung = lonely.within(MICRO_ROUTER=router)
        assert await offered(hung, "micro hello") == []
        assert await offered(hung, "micro helloworld ") == []
        assert time.monotonic() - begun < PROMPT


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_scripts(lonely: Terminal, shell: str) -> None:
    done = await lonely.micro("completion", shell)
    assert (done.code, done.err) == (0, "")
    assert f"_MICRO_COMPLETE={shell}_complete" in done.out
    assert "micro" in done.out


async def test_a_shell_that_is_none(lonely: Terminal) -> None:
    done = await lonely.inside("completion", "csh")
    assert done.code == 2
    assert "'bash', 'zsh', 'fish'" in done.err


async def test_zsh_and_fish_are_told_what_things_are(terminal: Terminal) -> None:
    zsh = terminal.within(
        _MICRO_COMPLETE="zsh_complete", COMP_WORDS="micro helloworld ca", COMP_CWORD="2"
    )
    assert (await zsh.inside()).lines == ["plain", "call", "Greet somebody."]
    fish = terminal.within(
        _MICRO_COMPLETE="fish_complete", COMP_WORDS="micro hello", COMP_CWORD="hello"
    )
    assert (await fish.inside()).lines == ["plain,helloworld\tGreets"]


async def test_in_a_real_bash(terminal: Terminal) -> None:
    """The script that is printed, evaluated; then the words as bash gives them on Tab."""
    script = """
        eval "$(micro completion bash)"
        complete -p micro
        try() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _micro_completion micro "${COMP_WORDS[COMP_CWORD]}"
            echo "${COMPREPLY[@]}"
        }
        try micro hello
        try micro helloworld call --na
        try micro toolbox everything --colour = g
        try micro logs --fol
    """
    path = f"{MICRO.parent}:{terminal.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        "bash", "--norc", "-c", script, env={**terminal.environ, "PATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    registered, *rows = out.decode().splitlines()
    assert err == b""
    assert registered.endswith("-F _micro_completion micro")
    assert rows == ["helloworld", "--name", "green", "--follow"]


async def test_help_says_how_to_use_it(lonely: Terminal, here_folder: Path) -> None:
    done = await lonely.inside("completion", "--help")
    assert 'bash: eval "$(micro completion bash)"' in done.out
    assert "fish: micro completion fish | source" in done.out
