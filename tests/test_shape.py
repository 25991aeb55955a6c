"""The shape of the project: where things are, how large they may be, what must exist per noun."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from micro_ray import errors
from micro_ray.wire import statuses

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "micro_ray"
SOURCES = sorted(PACKAGE.rglob("*.py"))

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py", "base.py", "util.py", "misc.py"}


@dataclass(frozen=True, slots=True)
class Without:
    """What a noun does not have, and why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Noun:
    """Where the parts of a noun are: the interface in its package, the modules of its backends, its
    class in ``actors/``, its face in ``wire/``, its module in ``cli/``, its suite."""

    interface: str | Without
    backends: tuple[str, ...]
    actor: str | Without
    face: bool | Without = True
    cli: str | Without
    suite: str


NOUNS = {
    "registry": Noun(
        interface="Registry",
        backends=("memory", "etcd"),
        actor="RegistryActor",
        cli="registry",
        suite="test_registry.py",
    ),
    "router": Noun(
        interface=Without("its table is derived: there is one way to have it"),
        backends=("derive",),
        actor="RouterActor",
        cli="network",
        suite="router",
    ),
    "network": Noun(
        interface="Peer",
        backends=("network",),
        actor="NetworkActor",
        cli="network",
        suite="network",
    ),
    "store": Noun(
        interface="Store",
        backends=("memory", "sqlite", "postgres"),
        actor="StoreActor",
        cli="store",
        suite="test_store.py",
    ),
    "broker": Noun(
        interface="Broker",
        backends=("memory", "nats"),
        actor="BrokerActor",
        cli="broker",
        suite="test_broker.py",
    ),
    "events": Noun(
        interface="Events",
        backends=("sqlite", "jetstream"),
        actor="EventsActor",
        cli="events",
        suite="test_events.py",
    ),
    "config": Noun(
        interface="Config",
        backends=("stored",),
        actor="ConfigActor",
        cli="config",
        suite="test_config.py",
    ),
    "auth": Noun(
        interface="Auth",
        backends=("stored",),
        actor="AuthActor",
        cli="auth",
        suite="test_auth.py",
    ),
    "certs": Noun(
        interface="Certs",
        backends=("issuing", "local"),
        actor="CertsActor",
        cli="certs",
        suite="test_certs.py",
    ),
    "limits": Noun(
        interface="Limits",
        backends=("stored",),
        actor="LimitsActor",
        cli="limits",
        suite="limits",
    ),
    "runtime": Noun(
        interface="Runtime",
        backends=("ray", "process"),
        actor="RuntimeActor",
        cli="runtime",
        suite="runtime",
    ),
    "api": Noun(
        interface=Without("its verbs are those of HTTP: it is an ASGI application"),
        backends=("app",),
        actor=Without("it is a deployment of Ray Serve, in serve/api.py"),
        face=Without("a door calls and is not called: it speaks HTTP to whoever comes"),
        cli=Without("micro server starts it, and curl is its command line"),
        suite="api",
    ),
}

#: Packages that are not nouns but hold one outside technology, or what a service is made with.
ROOMS = {"wire", "actors", "serve", "cli", "sdk"}

#: Files that may be long, with the reason.
LONG_FILES: dict[str, str] = {
    "micro_ray/settings.py": "a section per noun, in the one file that may read the environment",
}


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("noun", NOUNS)
def test_every_noun_has_its_parts(noun: str) -> None:
    has = NOUNS[noun]
    module = importlib.import_module(f"micro_ray.{noun}")
    assert module.__doc__, f"micro_ray/{noun}/__init__.py says nothing"
    if isinstance(has.interface, str):
        assert inspect.isabstract(getattr(module, has.interface))
    for backend in has.backends:
        assert (PACKAGE / noun / f"{backend}.py").exists()
    there = (PACKAGE / "wire" / f"{noun}.py").exists()
    assert there == (has.face is True)
    if there:
        assert callable(importlib.import_module(f"micro_ray.wire.{noun}").endpoints)
    actor = PACKAGE / "actors" / f"{noun}.py"
    assert actor.exists() == isinstance(has.actor, str)
    if actor.exists():
        assert f"class {has.actor}(" in actor.read_text()
    if isinstance(has.cli, str):
        assert (PACKAGE / "cli" / f"{has.cli}.py").exists()
    found = [*(ROOT / "tests").rglob(has.suite)]
    assert found, f"no tests named {has.suite}"


def test_every_package_is_a_noun_or_a_room() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == {*NOUNS, *ROOMS}


def test_the_doors_are_deployments() -> None:
    """What stands in for the actors that they do not have."""
    assert "class ApiDoor" in (PACKAGE / "serve" / "api.py").read_text()
    assert "class ProxyDoor" in (PACKAGE / "serve" / "proxy_door.py").read_text()


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_sizes(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= MAX_FILE_LINES or _id(path) in LONG_FILES, f"{lines} lines"
    assert path.name not in FORBIDDEN_NAMES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_documented(path: Path) -> None:
    """Modules say what they are."""
    tree = ast.parse(path.read_text())
    if not tree.body:
        return
    assert ast.get_docstring(tree), "no module docstring"


def test_no_import_cycle() -> None:
    """Modules import each other without a cycle (imports of the module level; later ones may)."""
    graph: dict[str, set[str]] = {}
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in SOURCES}
    names = {k.removesuffix(".__init__"): p for k, p in names.items()}
    for name, path in names.items():
        targets: set[str] = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    targets.add(full if full in names else node.module)
            elif isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
        graph[name] = {t for t in targets if t in names and t != name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("cls", errors.CODES.values(), ids=lambda c: c.__name__)
def test_every_error_survives_its_journeys(cls: type[errors.MicroError]) -> None:
    """Pickling (Ray), the dictionary form (frames, HTTP) and gRPC's status details keep the type
    and all fields."""
    error = cls("store.Store.Read", "nothing under 'ä\u2028'", 1.5)
    for copy in (
        pickle.loads(pickle.dumps(error)),
        errors.from_dict(json.loads(json.dumps(error.to_dict()))),
        statuses.error_of([(statuses.DETAILS, statuses.details_of(error))]),
    ):
        assert type(copy) is cls
        assert (copy.id, copy.detail, copy.retry_after) == (error.id, error.detail, 1.5)
        assert (copy.code, copy.status, str(copy)) == (error.code, error.status, str(error))


def test_a_peer_may_send_any_error() -> None:
    for form in ({}, {"code": "x"}, {"code": 418, "detail": 3}, {"code": -1, "retry_after": []}):
        assert isinstance(errors.from_dict(form), errors.MicroError)
    assert errors.from_dict({"code": 418}).code == 400
    assert len(errors.NotFound("x", "y" * 10**6).detail) == errors.MAX_DETAIL


def test_decisions_have_a_revision_table() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert decisions
    numbers = [path.name.partition("-")[0] for path in decisions]
    assert len(set(numbers)) == len(numbers), "two decisions have the same number"
    for path in decisions:
        assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", path.name)
        assert "| revision | date | change |" in path.read_text()


def test_links_in_the_docs_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"
