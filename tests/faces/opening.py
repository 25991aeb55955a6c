"""A way to a subject by its name, the same for every noun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import pytest

from tests.faces.terminal import Zygote

__all__ = ["chosen"]

Opener = TypeVar("Opener")


def chosen(
    name: str,
    request: pytest.FixtureRequest,
    openers: Mapping[str, Opener],
    handle: Opener,
    terminal: Callable[[Zygote], Opener],
) -> Opener:
    """One of ``openers``, or a face of a platform with what it needs: a Ray that was joined, or
    where commands come from."""
    if name == "handle":
        request.getfixturevalue("joined")
        return handle
    if name == "terminal":
        return terminal(request.getfixturevalue("zygote"))
    return openers[name]
