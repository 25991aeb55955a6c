"""What a command does when a stream that it follows ends with the access token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from micro_ray.cli import session as module
from micro_ray.cli.session import Session
from micro_ray.errors import NotFound, Unauthorized


class Cut(Session):
    """Its streams give numbers from the one that is asked for, and end after two each."""

    def __init__(self, ends: list[Exception | None]) -> None:
        self.ends = ends
        self.asked: list[Mapping[str, Any]] = []

    def stream(
        self, service: str, endpoint: str, value: Any = None, **options: Any
    ) -> Iterator[Any]:
        self.asked.append(value)
        yield from range(value["after"], value["after"] + 2)
        end = self.ends.pop(0)
        if end is not None:
            raise end


def onward(last: Any) -> dict[str, int]:
    return {"after": last + 1}


def test_it_goes_on_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIVED", 0.0)
    cut = Cut([Unauthorized("auth", "expired"), Unauthorized("auth", "expired"), None])
    assert list(cut.follow("s", "e", {"after": 0, "x": 1}, onward)) == [0, 1, 2, 3, 4, 5]
    assert cut.asked == [{"after": n, "x": 1} for n in (0, 2, 4)]


def test_who_has_no_other_token_is_told() -> None:
    cut = Cut([Unauthorized("auth", "void")])
    with pytest.raises(Unauthorized, match="void"):
        list(cut.follow("s", "e", {"after": 0}, onward))
    assert len(cut.asked) == 1


def test_other_errors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIVED", 0.0)
    cut = Cut([NotFound("runtime", "gone")])
    with pytest.raises(NotFound):
        list(cut.follow("s", "e", {"after": 0}, onward))
