"""Path templates that endpoints bind: ``/users/{id}``, ``/files/{name=**}``, ``/feeds/*``.

``{id}`` and ``*`` are one segment, ``{name=**}`` and ``**`` any number, ``{name=a/*}`` is what its
pattern matches. A segment has one variable at most, beside literal text
(``/files/{name}.json``), and a template one ``**`` at most: so matching takes time in proportion to
the path, whatever a service has published.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["MAX_TEMPLATE", "Template", "parse"]

#: Longest template, in characters.
MAX_TEMPLATE = 512

_PART = re.compile(r"\{([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:=([^{}]*))?\}|\*\*|\*|[^{}*]+")
_ANY = "[^/]+"
_REST = ".*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A template that was read. ``literals`` counts its segments without a variable; ``rests`` its
    ``**``. ``shown`` is the path as OpenAPI writes it, with the names of ``parameters``, which has
    one for each variable; those that bind no field are named ``segment`` and ``rest``."""

    text: str
    literals: int
    rests: int
    shown: str
    parameters: tuple[str, ...]
    pattern: re.Pattern[str]
    fields: tuple[str, ...]

    def match(self, path: str) -> dict[str, str] | None:
        """The fields that a path gives, None when it is another's. A slash at the end of the path
        does not count."""
        found = self.pattern.fullmatch(path)
        if found is None and path.endswith("/") and len(path) > 1:
            found = self.pattern.fullmatch(path[:-1])
        return None if found is None else dict(zip(self.fields, found.groups(), strict=True))


def parse(text: str) -> Template:
    """Read a template. Raises ValueError that says what is wrong with it."""
    if not text.startswith("/"):
        raise ValueError("a template begins with '/'")
    if len(text) > MAX_TEMPLATE:
        raise ValueError(f"a template has at most {MAX_TEMPLATE} characters")
    if any(ord(c) < 32 or c in "?#" for c in text):
        raise ValueError("a template is a path, without '?', '#' or control characters")
    parts = _parts(text)
    fields = [name for _, name, _ in parts if name]
    if len(set(fields)) != len(fields):
        raise ValueError("a field is named twice")
    if sum(body.count(_REST) for _, _, body in parts) > 1:
        raise ValueError("'**' comes once at most")
    marked = "".join("*" if body else literal for literal, _, body in parts).split("/")
    if any(segment.count("*") > 1 for segment in marked):
        raise ValueError("a segment has one variable at most")
    pattern, shown, parameters = "", "", list[str]()
    for literal, name, body in parts:
        pattern += re.escape(literal) or (f"({body})" if name else body)
        if body:
            parameters.append(name or _unnamed(body, parameters))
        shown += literal or f"{{{parameters[-1]}}}"
    return Template(
        text=text,
        literals=sum(1 for segment in marked if segment and "*" not in segment),
        rests=pattern.count(_REST),
        shown=shown,
        parameters=tuple(parameters),
        pattern=re.compile(pattern, re.DOTALL),
        fields=tuple(fields),
    )


def _parts(text: str) -> list[tuple[str, str, str]]:
    """(literal text, name of the variable, its expression) for each part."""
    parts = []
    position = 0
    for match in _PART.finditer(text):
        if match.start() != position:
            break
        position = match.end()
        name, inner = match[1], match[2]
        if name is not None:
            parts.append(("", name, _inner(inner) if inner else _ANY))
        elif match[0] in ("*", "**"):
            parts.append(("", "", _REST if match[0] == "**" else _ANY))
        else:
            parts.append((match[0], "", ""))
    if position != len(text):
        raise ValueError(f"{text[position : position + 20]!r} is no part of a template")
    return parts


def _inner(text: str) -> str:
    """The expression of what stands behind ``=``."""
    segments = text.split("/")
    for segment in segments:
        if "*" in segment and segment not in ("*", "**"):
            raise ValueError("'*' and '**' are whole segments")
    return "/".join({"*": _ANY, "**": _REST}.get(s) or re.escape(s) for s in segments)


def _unnamed(body: str, taken: list[str]) -> str:
    name = "rest" if body == _REST else "segment"
    number = sum(1 for other in taken if other.startswith(name))
    return f"{name}{number + 1}" if number else name
