"""What a face cannot do, as data: for each noun and face the verbs it lacks, and the tests that are
not for it, each with the reason.

A test of ``Rows.fail`` is run and must fail: a row that is no longer needed fails the suite. One of
``Rows.dear`` is left out, because it would say no more than it costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import pytest

from micro_ray.errors import MicroError

__all__ = ["CLUSTER", "Rows", "apply", "lacks", "ways"]

#: The faces whose tests need a whole platform, or take as long.
CLUSTER = ("handle", "terminal")


#: Parameters that name a way.
_SUBJECTS = ("store", "config", "subject", "registry", "events", "name", "way")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """``verbs``: what the face has no word for. ``fail`` and ``dear`` are tests by their name, or
    their name with a case in brackets."""

    verbs: Mapping[str, str] = field(default_factory=dict)
    fail: Mapping[str, str] = field(default_factory=dict)
    dear: Mapping[str, str] = field(default_factory=dict)

    def lacks(self, verb: str) -> NoReturn:
        """End a test that needs a verb that the face does not have."""
        lacks(f"{verb}: {self.verbs[verb]}")


def lacks(reason: str) -> NoReturn:
    """End a test that asks a face for what it cannot be asked."""
    pytest.skip(reason)


def _fails(reason: str) -> pytest.MarkDecorator:
    """The test must fail, and by what it says: not because there is no platform to ask."""
    said = (AssertionError, MicroError, ValueError, pytest.fail.Exception)
    return pytest.mark.xfail(reason=reason, strict=True, raises=said)


def ways(item: pytest.Function) -> list[str]:
    """The ways to its subject that a test is run over."""
    callspec = getattr(item, "callspec", None)
    given = callspec.params if callspec is not None else {}
    return [given[name] for name in _SUBJECTS if isinstance(given.get(name), str)]


def apply(rows: Rows, item: pytest.Function, face: str) -> None:
    """Mark a test of a face as its row says. ``face`` is left out of the case in brackets."""
    if face in CLUSTER:
        item.add_marker(pytest.mark.cluster)
        item.add_marker(pytest.mark.timeout(120))
    name = item.originalname
    case = item.name.removeprefix(f"{name}[{face}").removeprefix("-").removesuffix("]")
    for key in (name, f"{name}[{case}]"):
        if key in rows.dear:
            item.add_marker(pytest.mark.skip(reason=f"{face}: {rows.dear[key]}"))
        elif key in rows.fail:
            item.add_marker(_fails(f"{face}: {rows.fail[key]}"))
