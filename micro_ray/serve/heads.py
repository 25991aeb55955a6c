"""The metadata of a gRPC call as the doors have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["head_of", "text_of"]


def head_of(sent: Mapping[str, str]) -> dict[bytes, bytes]:
    """The same as the HTTP door has it."""
    return {key.encode(): value.encode("latin-1", "replace") for key, value in sent.items()}


def text_of(metadata: Any) -> dict[str, str]:
    """The text of a call's metadata; values of a key that comes twice are joined, as HTTP says."""
    found: dict[str, str] = {}
    for key, value in metadata or ():
        if isinstance(value, str) and not key.endswith("-bin"):
            found[key] = f"{found[key]}, {value}" if key in found else value
    return found
