"""Every config against a model: plain objects, and all of them that have been."""

from __future__ import annotations

import asyncio
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from micro_ray.config import Config
from micro_ray.errors import NotFound, PreconditionFailed
from tests.fixtures import configs
from tests.fixtures.configs import LIMITS, OPENERS, Opener, opener
from tests.fixtures.stores import Clock

NAMES = st.sampled_from(["a", "b", "a-b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(".".join)
SCALARS = st.sampled_from([None, True, 1, 1.0, 0, "", "x", "é"])
LEAVES = SCALARS | st.lists(SCALARS, max_size=2)
#: With a path of three parts just as deep as a document may be.
VALUES = LEAVES | st.dictionaries(
    NAMES, LEAVES | st.dictionaries(NAMES, LEAVES, max_size=3), max_size=3
)


def text(value: Any) -> str:
    """JSON, in which 1, 1.0 and true are three values."""
    return json.dumps(value, sort_keys=True)


def parent(root: dict[str, Any], path: str, make: bool) -> dict[str, Any] | None:
    """The object that a path is in; None where there is none, or a value is on the way."""
    node: Any = root
    for part in path.split(".")[:-1]:
        if part not in node:
            if not make:
                return None
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            return None
    return node  # type: ignore[no-any-return]


def merged(old: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for name, member in patch.items():
        if member is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), member)
    return result


class Model(RuleBasedStateMachine):
    """``past`` holds every version of the document, the empty one first."""

    opener: Opener = staticmethod(OPENERS["memory"])

    def __init__(self) -> None:
        super().__init__()
        self.past: list[dict[str, Any]] = [{}]
        self.folder = tempfile.TemporaryDirectory(prefix="cf-")
        self.runner = asyncio.Runner()
        self.opened = self.opener(Path(self.folder.name), Clock())
        self.config: Config = self.runner.run(self.opened.__aenter__())

    def teardown(self) -> None:
        self.runner.run(self.opened.__aexit__(None, None, None))
        self.runner.close()
        self.folder.cleanup()

    def became(self, version: int, document: dict[str, Any], hidden: bool = False) -> None:
        """``hidden`` may be another version of the same document: what is secret may be new."""
        if text(document) != text(self.past[-1]) or (hidden and version == len(self.past)):
            self.past.append(document)
        assert version == len(self.past) - 1

    def written(self, path: str, call: Any, change: Any, hidden: bool = False) -> None:
        """``change`` gets the object that the path is in, and its last part."""
        document = copy.deepcopy(self.past[-1])
        holder = parent(document, path, True)
        if holder is None:
            with pytest.raises(PreconditionFailed):
                self.runner.run(call)
            return
        change(holder, path.rpartition(".")[2])
        self.became(self.runner.run(call), document, hidden)

    @rule(path=PATHS, value=VALUES, secret=st.booleans())
    def set(self, path: str, value: Any, secret: bool) -> None:
        def change(holder: dict[str, Any], name: str) -> None:
            holder[name] = value

        self.written(path, self.config.set(path, value, secret=secret), change, secret)

    @rule(path=PATHS, patch=VALUES.filter(lambda v: v is not None))
    def merge(self, path: str, patch: Any) -> None:
        def change(holder: dict[str, Any], name: str) -> None:
            holder[name] = merged(holder.get(name), patch)

        self.written(path, self.config.merge(path, patch), change)

    @rule(path=PATHS)
    def delete(self, path: str) -> None:
        document = copy.deepcopy(self.past[-1])
        holder = parent(document, path, False)
        if holder is not None:
            holder.pop(path.rpartition(".")[2], None)
        self.became(self.runner.run(self.config.delete(path)), document)

    @rule(back=st.integers(0, LIMITS.history - 1))
    def rollback(self, back: int) -> None:
        version = max(0, len(self.past) - 1 - back)
        number = self.runner.run(self.config.rollback(version))
        self.became(number, copy.deepcopy(self.past[version]), True)

    @rule()
    def rotate(self) -> None:
        self.runner.run(self.config.rotate())

    @rule(path=PATHS)
    def read(self, path: str) -> None:
        node: Any = parent(self.past[-1], path, False) or {}
        name = path.rpartition(".")[2]
        call = self.config.read(path, secret=True)
        if name not in node:
            with pytest.raises(NotFound):
                self.runner.run(call)
            return
        assert text(self.runner.run(call).data) == text(node[name])

    @invariant()
    def every_version_can_be_had(self) -> None:
        newest = len(self.past) - 1
        oldest = max(1, newest - LIMITS.history + 1)
        for version in {newest, newest - 1, max(newest // 2, oldest), oldest}:
            if 0 < version <= newest:
                found = self.runner.run(self.config.read(at=version, secret=True))
                assert text(found.data) == text(self.past[version])


@pytest.mark.parametrize("name", configs.NAMES)
def test_like_plain_objects(name: str, request: pytest.FixtureRequest) -> None:
    way = staticmethod(opener(name, request))
    machine = type("Machine", (Model,), {"opener": way})
    case = machine.TestCase
    case.settings = settings(
        max_examples={"memory": 60, "handle": 3}.get(name, 15),
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=(Phase.generate, Phase.shrink),
    )
    case("runTest").runTest()
