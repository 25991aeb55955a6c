"""The README is true: its sessions are run, its commands exist."""

from __future__ import annotations

import re

import pytest

from bench import stack
from bench.stack import ROOT, Server
from tests.journeys.readme import README, START, run, same, steps


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_the_sessions_print_what_they_say() -> None:
    """Every command of the README in its order, on a platform that nobody has used before."""
    with stack.server(open=False) as server:
        _run_all(server)


def _run_all(server: Server) -> None:
    for step in steps(README.read_text()):
        printed = "".join(server.lines) if step.command == START else run(step.command, server)
        assert same(step.command, step.output, printed), f"$ {step.command}\n{printed}"


def test_the_service_shown_is_the_example() -> None:
    shown = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert shown is not None
    assert shown[1].strip() in (ROOT / "examples" / "helloworld" / "main.py").read_text()


def test_the_two_commands_are_what_ci_runs() -> None:
    text = README.read_text()
    for script in ("./scripts/setup", "./scripts/test"):
        assert script in text
        assert script in (ROOT / ".ci" / "run").read_text()
