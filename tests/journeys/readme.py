"""The README's console sessions, run on a real platform.

``python -m tests.journeys.readme`` runs them and writes what they print into the README;
``test_readme.py`` runs them and compares. What differs from run to run (times, ids, pids, ports)
is compared by its form.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.stack import MICRO, ROOT, Server, server

README = ROOT / "README.md"
SESSION = re.compile(r"```console\n(.*?)```", re.DOTALL)
#: The command whose output is what the fixture's server has printed.
START = "micro server"
#: Commands that print progress.
PROGRESS = (START, "micro run", "micro update")

#: What differs from run to run -> how it is written for comparing, in this order.
FORMS = (
    (r"\b\d+\.\d s\b", "T s"),
    (r"\b(\d+[dhm])*\d+s ago", "T ago"),
    (r"-[0-9a-f]{12}\b", "-ID"),
    (r"\b[0-9a-f]{7}\b", "DIGEST"),
    (r"(127\.0\.0\.1|localhost):\d+", "HOST:PORT"),
    (r"unix:\S+/", "unix:FOLDER/"),
    (r'"version": ?\d+', '"version":N'),
    (r'"request_id": ?"\w+"', '"request_id":"ID"'),
    (r"shown this once: \S+", "shown this once: PASSWORD"),
    (r" +", " "),
)


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a session and what it is said to print."""

    command: str
    output: str


def steps(text: str) -> list[Step]:
    """The steps of all sessions, in order."""
    return [step for match in SESSION.finditer(text) for step in _session(match[1])]


def _session(text: str) -> Iterator[Step]:
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield Step(command, output)


def form(text: str) -> list[str]:
    """The lines of an output with what differs from run to run taken out."""
    for pattern, written in FORMS:
        text = re.sub(pattern, written, text)
    return [line.rstrip() for line in text.splitlines()]


def same(command: str, said: str, printed: str) -> bool:
    """Whether a command printed what it is said to. Lines of progress are compared as a set: which
    replica is faster differs from run to run."""
    if command.startswith(PROGRESS):
        return set(form(said)) == set(form(printed))
    return form(said) == form(printed)


def run(command: str, at: Server) -> str:
    """What a command prints, with the server's ports in place of the README's."""
    command = command.replace("localhost:8080", f"localhost:{at.port}")
    told = re.search(r"shown this once: (\S+)", "".join(at.lines))
    path = f"{MICRO.parent}{os.pathsep}{at.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**at.environ, "PATH": path, "PASSWORD": told[1] if told else ""},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    output = done.stdout
    return output if not output or output.endswith("\n") else output + "\n"


def written(text: str, outputs: Iterator[str]) -> str:
    """The README with these outputs under its commands."""

    def session(match: re.Match[str]) -> str:
        parts = [f"$ {step.command}\n{next(outputs)}" for step in _session(match[1])]
        return f"```console\n{''.join(parts)}```"

    return SESSION.sub(session, text)


def main() -> None:
    """Write the README's outputs anew."""
    text = README.read_text()
    with server(open=False) as up:
        shown = "".join(up.lines).replace(f":{up.port}", ":8080")
        shown = shown.replace(f":{up.serve_port}", ":8000")
        shown = shown.replace(f":{up.proxy_port}", ":8081")
        shown = re.sub(r"shown this once: \S+", "shown this once: ygha6HdDI8...", shown)
        outputs = [
            shown if step.command == START else _tidy(run(step.command, up), up)
            for step in steps(text)
        ]
    README.write_text(written(text, iter(outputs)))


def _tidy(text: str, at: Server) -> str:
    state = Path.home() / ".micro" / "server"
    text = text.replace(str(at.state), str(state).replace(str(Path.home()), "~"))
    return text.replace(f":{at.port}", ":8080")


if __name__ == "__main__":
    main()
