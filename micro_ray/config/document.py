"""The document: what a write makes of it, decided without asking anybody.

It is kept flat, as its leaves by path: values that are not objects, and objects without members.
A write works on a tree of them, and :func:`commit` finds what has changed, which is what the
history keeps: from the newest document back, each entry's changes undone give the version before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from micro_ray.errors import BadRequest, PreconditionFailed, TooLarge
from micro_ray.settings import Config as Limits

__all__ = [
    "Document",
    "Edit",
    "Entry",
    "Leaf",
    "Node",
    "Sealing",
    "below",
    "commit",
    "dressed",
    "find",
    "merged",
    "plain",
    "put",
    "remove",
    "text",
    "tree",
    "undone",
]


class Leaf(msgspec.Struct, frozen=True, array_like=True):
    """A value; a sealed text in its place when it is ``sealed``. ``version`` is 0 until a commit
    gives it one."""

    version: int
    value: Any
    sealed: bool = False


Edit = tuple[str, Leaf | None, Leaf | None]
Node = dict[str, Any] | Leaf


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """``branches`` are the objects that have members, with the versions that last changed
    something below them; the blank path is always one."""

    version: int = 0
    leaves: dict[str, Leaf] = msgspec.field(default_factory=dict)
    branches: dict[str, int] = msgspec.field(default_factory=lambda: {"": 0})

    def at(self, path: str) -> int:
        """The version of a path, 0 when nothing is there."""
        leaf = self.leaves.get(path)
        return leaf.version if leaf is not None else self.branches.get(path, 0)

    def has(self, path: str) -> bool:
        return path in self.leaves or path in self.branches


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A version as it is kept. ``id`` is the write's own, by which it knows its outcome."""

    id: str
    version: int
    time: float
    author: str
    action: str
    path: str
    changes: list[Edit]


class Sealing:
    """How a write seals: ``seal(path, text)`` and ``open(path, sealed)``."""

    def __init__(
        self, seal: Callable[[str, bytes], str], open: Callable[[str, str], bytes]
    ) -> None:
        self._seal = seal
        self._open = open

    def leaf(self, path: str, value: Any, old: Node | None) -> Leaf:
        """A value sealed; as it was, when the secret that is there is the same."""
        wanted = text(value)
        if isinstance(old, Leaf) and old.sealed:
            try:
                same = self._open(path, old.value) == wanted
            except Exception:  # its key is lost, which is no reason to refuse a new value
                same = False
            if same:
                return old
        return Leaf(0, self._seal(path, wanted), True)


def text(value: Any) -> bytes:
    """A value as JSON, the same for the same value."""
    return msgspec.json.encode(value, order="sorted")


def below(path: str, root: str) -> bool:
    """Whether a path is ``root`` or in it."""
    return not root or path == root or path.startswith(root + ".")


def tree(leaves: Mapping[str, Leaf]) -> dict[str, Any]:
    """The leaves as objects in objects."""
    root: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split(".")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = {} if not leaf.sealed and leaf.value == {} else leaf
    return root


def plain(node: Node, path: str, show: Callable[[str, Leaf], Any]) -> Any:
    """A tree as JSON, each leaf as ``show`` gives it."""
    if isinstance(node, Leaf):
        return show(path, node)
    return {k: plain(v, f"{path}.{k}" if path else k, show) for k, v in node.items()}


def find(root: Node, parts: Iterable[str]) -> Node | None:
    """What is at a path of a tree."""
    node: Node | None = root
    for part in parts:
        node = node.get(part) if isinstance(node, dict) else None
    return node


def undone(leaves: dict[str, Leaf], entry: Entry) -> None:
    """Make the leaves what they were before an entry."""
    for path, old, _ in entry.changes:
        if old is None:
            leaves.pop(path, None)
        else:
            leaves[path] = old


# -- writing ---------------------------------------------------------------------------------------


def put(root: dict[str, Any], parts: tuple[str, ...], node: Node) -> dict[str, Any]:
    """The tree with a node at a path. Raises PreconditionFailed for a value on the way, BadRequest
    for one in the place of the whole."""
    if not parts:
        if not isinstance(node, dict):
            raise BadRequest("config", "the whole document is an object: a value needs a path")
        return node
    _parent(root, parts)[parts[-1]] = node
    return root


def remove(root: dict[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
    """The tree without what is at a path."""
    if not parts:
        return {}
    parent = find(root, parts[:-1])
    if isinstance(parent, dict):
        parent.pop(parts[-1], None)
    return root


def _parent(root: dict[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
    node = root
    for depth, part in enumerate(parts[:-1], 1):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise PreconditionFailed(
                "config",
                f"{'.'.join(parts[:depth])} is a value and no object, so it has no "
                f"{parts[depth]!r}: delete it, or set an object there",
            )
    return node


def dressed(path: str, data: Any, old: Node | None, secret: bool, sealing: Sealing | None) -> Node:
    """JSON as nodes. A value is sealed when it is asked for, and when a secret was at its place,
    above or below it: what is secret stays so. An object without members has nothing to hide."""
    if isinstance(data, dict):
        secret = secret or (isinstance(old, Leaf) and old.sealed)
        olds = old if isinstance(old, dict) else {}
        return {
            k: dressed(f"{path}.{k}" if path else k, v, olds.get(k), secret, sealing)
            for k, v in data.items()
        }
    if secret or _secret(old):
        assert sealing is not None
        return sealing.leaf(path, data, old)
    return Leaf(0, data)


def _secret(node: Node | None) -> bool:
    if isinstance(node, dict):
        return any(map(_secret, node.values()))
    return node is not None and node.sealed


def merged(
    path: str, old: Node | None, patch: Any, secret: bool, sealing: Sealing | None
) -> Node | None:
    """What a patch makes of a node (RFC 7396), None for nothing."""
    if patch is None:
        return None
    if not isinstance(patch, dict):
        return dressed(path, patch, old, secret, sealing)
    secret = secret or (isinstance(old, Leaf) and old.sealed)
    result = dict(old) if isinstance(old, dict) else {}
    for name, member in patch.items():
        inner = f"{path}.{name}" if path else name
        node = merged(inner, result.get(name), member, secret, sealing)
        if node is None:
            result.pop(name, None)
        else:
            result[name] = node
    return result


def commit(
    document: Document, root: dict[str, Any], limits: Limits
) -> tuple[Document, list[Edit]] | None:
    """The next document and what changed; None when nothing did. Raises TooLarge."""
    number = document.version + 1
    leaves: dict[str, Leaf] = {}
    _flatten(root, "", leaves)
    changes: list[Edit] = []
    for path, leaf in leaves.items():
        old = document.leaves.get(path)
        if old is not None and _same(old, leaf):
            leaves[path] = old
        else:
            leaves[path] = Leaf(number, leaf.value, leaf.sealed)
            changes.append((path, old, leaves[path]))
    changes += [(p, old, None) for p, old in document.leaves.items() if p not in leaves]
    if not changes:
        return None
    changes.sort(key=lambda edit: edit[0])
    branches = dict.fromkeys(("", *(a for path in leaves for a in _above(path))), 0)
    for path in branches:
        branches[path] = document.branches.get(path, number)
    for path, _, _ in changes:
        branches[""] = number
        for above in _above(path):
            if above in branches:
                branches[above] = number
    _bounded(leaves, branches, limits)
    return Document(version=number, leaves=leaves, branches=branches), changes


def _flatten(node: Node, path: str, into: dict[str, Leaf]) -> None:
    if isinstance(node, Leaf):
        into[path] = node
    elif node:
        for name, member in node.items():
            _flatten(member, f"{path}.{name}" if path else name, into)
    elif path:
        into[path] = Leaf(0, {})


def _above(path: str) -> Iterable[str]:
    """The objects that a path is in, but for the whole document."""
    end = path.find(".")
    while end >= 0:
        yield path[:end]
        end = path.find(".", end + 1)


def _same(one: Leaf, other: Leaf) -> bool:
    """As JSON: 1, 1.0 and true are three values. A leaf keeps its version when it is sealed
    anew."""
    if one is other or one.version == other.version:
        return True
    return one.sealed == other.sealed and text(one.value) == text(other.value)


def _bounded(leaves: Mapping[str, Leaf], branches: Mapping[str, int], limits: Limits) -> None:
    names = len(leaves) + len(branches) - 1
    if names > limits.max_keys:
        raise TooLarge(
            "config", f"a document of {names} keys; {limits.max_keys} allowed (config.max_keys)"
        )
    size = sum(map(len, branches))
    for path, leaf in leaves.items():
        length = len(text(leaf.value))
        size += len(path) + length
        length = _opened(leaf.value) if leaf.sealed else length
        if length > limits.max_value:
            raise TooLarge(
                "config",
                f"{path}: a value of {length} bytes; {limits.max_value} allowed (config.max_value)",
            )
    if size > limits.max_document:
        raise TooLarge(
            "config",
            f"a document of {size} bytes; {limits.max_document} allowed (config.max_document)",
        )


def _opened(sealed: str) -> int:
    """Bytes of what was sealed: of the base64 without nonce (12) and tag (16)."""
    body = sealed.rpartition(":")[2]
    return len(body) // 4 * 3 - body.count("=") - 28
