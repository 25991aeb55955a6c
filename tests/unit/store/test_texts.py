"""Bytes as texts on frames, and back."""

from __future__ import annotations

import pytest

from micro_ray.errors import BadRequest
from micro_ray.wire.store_records import from_text, to_text


@pytest.mark.parametrize("value", [b"", b"hello", "\u00fc".encode(), b"\xff\x00"])
def test_there_and_back(value: bytes) -> None:
    assert from_text(*to_text(value)) == value


@pytest.mark.parametrize("text", ["?", "abc", "\u00cb", "YQ==\n", "\ud800"])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(BadRequest, match="is not base64"):
        from_text(text, "base64")
