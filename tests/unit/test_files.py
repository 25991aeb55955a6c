"""Files that are replaced whole, and locks."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from micro_ray.files import locked, replace_file


def test_it_is_its_owners_alone_whatever_lay_there(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    left = tmp_path / "a.key.new"
    for content in (b"one", b"two"):
        left.write_bytes(b"half of")
        left.chmod(0o666)
        replace_file(path, content)
        assert path.read_bytes() == content
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [file.name for file in tmp_path.iterdir()] == ["a.key"]


def test_the_one_before_stays_when_it_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    replace_file(path, b"one")
    (tmp_path / "a.key.new").mkdir()
    with pytest.raises(OSError, match=r"a\.key\.new"):
        replace_file(path, b"two")
    assert path.read_bytes() == b"one"


def test_a_lock_is_for_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    order: list[str] = []

    def other() -> None:
        with locked(path):
            order.append("other")

    with locked(path):
        waiting = threading.Thread(target=other)
        waiting.start()
        waiting.join(0.2)
        order.append("one")
    waiting.join(5)
    assert order == ["one", "other"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
