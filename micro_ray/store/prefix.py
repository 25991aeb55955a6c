"""A prefix as a range of keys, which an index can walk."""

from __future__ import annotations

__all__ = ["after"]


def after(prefix: str) -> str:
    """The first string that sorts after all that begin with ``prefix``; "" when there is none."""
    for at in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[at])
        if point < 0x10FFFF:
            point += 1
            if 0xD800 <= point <= 0xDFFF:  # surrogates are no characters
                point = 0xE000
            return prefix[:at] + chr(point)
    return ""
