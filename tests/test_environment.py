"""The environment is read in ``settings.py`` only: what else speaks of it is in a list, with its
reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "micro_ray"
SOURCES = sorted(PACKAGE.rglob("*.py"))

#: Names by which Python gives, changes or reads the environment, of whatever module.
NAMES = {
    "environ", "environb", "getenv", "getenvb", "putenv", "unsetenv", "expandvars",
}  # fmt: skip
#: Where they come from, and what such a module would hide.
MODULES = {"os", "posix", "nt", "os.path", "posixpath", "ntpath"}
#: Arguments by which libraries read it for whoever asks.
ARGUMENTS = {"envvar", "auto_envvar_prefix", "show_envvar"}

#: file -> what it may say of the environment, and why. Nothing here reads.
ALLOWED: dict[str, tuple[set[str], str]] = {
    "runtime/ray.py": (
        {"os.environ.update", "os.environ[] ="},
        "a replica's actor is a process of the author's, who finds the workload's environment",
    ),
    "cluster.py": (
        {"os.environ.update", "os.environ[] =", "os.environ.pop"},
        "Ray and its processes take their configuration from it: it is set before they start",
    ),
}
#: The file that reads.
READER = "settings.py"


def said(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Each mention of the environment: its line, and what it is."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield line, _use(node, parents)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                if alias.name in NAMES | {"*"}:
                    yield line, f"from {node.module} import {alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                # By another name it could be handed on unseen.
                if alias.name in MODULES - {"os"} or (alias.name == "os" and alias.asname):
                    yield line, f"import {alias.name} as {alias.asname or alias.name}"
        elif isinstance(node, ast.Call):
            yield from ((line, f"{ast.unparse(node.func)}({found})") for found in _hidden(node))
        elif isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            yield from ((line, f"{{{key}: ...}}") for key in sorted(keys & ARGUMENTS))
        elif isinstance(node, ast.Attribute) and _is_dictionary(node):
            yield line, ast.unparse(node)


def _is_dictionary(node: ast.Attribute) -> bool:
    return node.attr == "__dict__" and ast.unparse(node.value) in MODULES


def _use(node: ast.Attribute, parents: Mapping[ast.AST, ast.AST]) -> str:
    """What is done with ``os.environ``: read unless it is surely not."""
    text, parent = ast.unparse(node), parents.get(node)
    if isinstance(parent, ast.Attribute):
        call = parents.get(parent)
        told = call is not None and not isinstance(parents.get(call), ast.Expr)
        return f"{text}.{parent.attr}" + (" for its answer" if told else "")
    if isinstance(parent, ast.Subscript) and parent.value is node:
        written = isinstance(parent.ctx, ast.Store)
        return f"{text}[] =" if written else f"{text}[]"
    return text


def _hidden(call: ast.Call) -> Iterator[str]:
    """Names that are looked up by a string, modules that are imported by one, and arguments that
    make a library read."""
    function = ast.unparse(call.func)
    texts = {a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    if function in ("getattr", "attrgetter", "operator.attrgetter"):
        # ``attrgetter("environ.get")`` too.
        yield from sorted(t for t in texts if NAMES & set(t.split(".")))
    if function.rpartition(".")[2] in ("import_module", "__import__"):
        yield from sorted(texts & MODULES)
    if function in ("vars", "dir", "getmembers", "inspect.getmembers"):
        yield from (name for a in call.args if (name := ast.unparse(a)) in MODULES)
    yield from (word.arg for word in call.keywords if word.arg in ARGUMENTS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_it_is_read_in_settings_only(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    if name == READER:
        return
    allowed, _ = ALLOWED.get(name, (set[str](), ""))
    found = list(said(ast.parse(path.read_text())))
    wrong = [f"line {line}: {what}" for line, what in found if what not in allowed]
    assert not wrong, f"{name}: {wrong}; a setting belongs into settings.py"
    unused = allowed - {what for _, what in found}
    assert not unused, f"{name} no longer says {unused}: take it off the list"


def test_the_list_is_of_files_that_are_there() -> None:
    names = {str(path.relative_to(PACKAGE)) for path in SOURCES}
    assert {*ALLOWED, READER} <= names
    assert all(reason for _, reason in ALLOWED.values())


@pytest.mark.parametrize(
    "code",
    [
        "import os\nx = os.environ['A']",
        "import os\nx = os.environ.get('A')",
        "import os\nx = dict(os.environ)",
        "import os\nx = {**os.environ}",
        "import os\nx = 'A' in os.environ",
        "import os\nfor x in os.environ: pass",
        "import os\nx = os.environ.copy()",
        "import os\nx = os.getenv('A')",
        "import os\nread = os.getenv",
        "import os\nx = os.environb[b'A']",
        "import os\nos.putenv('A', 'b')",
        "import os\nos.unsetenv('A')",
        "import os\ndel os.environ['A']",
        "import os\nx = os.path.expandvars('$A')",
        "import os as o\nx = o.environ",
        "import os as o\nx = o",
        "import posix\nx = posix.environ",
        "from os import environ\nx = environ['A']",
        "from os import environ as e\nx = e['A']",
        "from os import getenv as g\nx = g('A')",
        "from os import *\nx = getenv('A')",
        "from os.path import expandvars",
        "def f():\n    from os import environ",
        "import os\nx = getattr(os, 'environ')",
        "from operator import attrgetter\nx = attrgetter('environ.get')",
        "import os\nx = os.__dict__['environ']",
        "import os\nx = vars(os)['environ']",
        "import importlib\nx = importlib.import_module('os')",
        "x = __import__('os')",
        "import click\nx = click.option('--x', envvar='A')",
        "import click\nx = click.group(context_settings=dict(auto_envvar_prefix='A'))",
        "import click\nx = click.group(context_settings={'auto_envvar_prefix': 'A'})",
        "import os\nx = os.environ.pop('A')",
        "import os\nx = os.environ.setdefault('A', 'b')",
        "import os\nprint(os.environ.pop('A', None))",
    ],
)
def test_the_check_sees(code: str) -> None:
    """Every way to it, none of which is on the list."""
    found = {what for _, what in said(ast.parse(code))}
    assert found
    assert not any(found & allowed for allowed, _ in ALLOWED.values())


@pytest.mark.parametrize(
    "code",
    [
        "import os\nx = os.path.join('a', 'environ')",
        "from os import fsync",
        "def f(environ):\n    return environ.get('A')",
        "x = getattr(y, 'value')",
    ],
)
def test_the_check_leaves_alone(code: str) -> None:
    assert not list(said(ast.parse(code)))


def test_the_check_sees_what_is_set() -> None:
    code = "import os\nos.environ['A'] = 'b'\nos.environ.update(a='b')\nos.environ.pop('A')"
    found = [what for _, what in said(ast.parse(code))]
    assert found == ["os.environ[] =", "os.environ.update", "os.environ.pop"]
