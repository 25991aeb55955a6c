"""What a journey has at hand: folders with services, and a driver on the platform's Ray."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.stack import ROOT, Server, joining

Source = Callable[..., str]
Driver = Callable[[Server, str], str]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """``source(name, code)`` makes a folder with a ``main.py``; its path."""

    def make(name: str, code: str, **files: str) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "main.py").write_text(textwrap.dedent(code))
        for file, text in files.items():
            (folder / file).write_text(textwrap.dedent(text))
        return str(folder)

    return make


@pytest.fixture
def driver() -> Driver:
    """``driver(server, code)`` runs Python on the platform's Ray; what it prints."""

    def run(at: Server, code: str) -> str:
        head = "import ray\nray.init(logging_level='error', log_to_driver=False)\n"
        done = subprocess.run(
            [sys.executable, "-c", head + textwrap.dedent(code)],
            env=joining(at),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
