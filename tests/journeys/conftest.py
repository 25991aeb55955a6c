"""What a journey has at hand: folders with services, and a driver on the platform's Ray."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.stack import ROOT, Server, joining, micro

#: What drivers begin with. ``handle`` is a named actor whose verbs are called by who is logged in.
HEAD = """
import os, ray
ray.init(logging_level="error", log_to_driver=False)

class Verb:
    def __init__(self, method):
        self.method = method
    def remote(self, *args, **options):
        return self.method.remote(*args, credential=os.environ["MICRO_TOKEN"], **options)

class handle:
    def __init__(self, name):
        self.actor = ray.get_actor(name, namespace="micro")
    def __getattr__(self, name):
        method = getattr(self.actor, name)
        return method if name in ("ping", "stop", "__ray_call__") else Verb(method)

"""

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
        token = micro(at, "user", "token").strip()
        done = subprocess.run(
            [sys.executable, "-c", HEAD + textwrap.dedent(code)],
            env={**joining(at), "MICRO_TOKEN": token},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
