"""Sealing secrets: AES-256-GCM, with the keys in a file. Each noun that seals has its
own.

A sealed text is ``1:<key id>:<base64 of nonce and ciphertext>``. Noun, namespace and path are its
associated data: moved to another place, it does not open. The id of a key is made from the key.

The file has one key a line, ``<id> <base64 of 32 bytes>``; the last seals, all open. It is made at
first use, readable by its owner alone, and may be put together again by hand from a backup: lines
may be added in any order but for the last.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from micro_ray.errors import InternalError, PreconditionFailed, Unavailable
from micro_ray.files import locked, replace_file

__all__ = ["KeyFile", "Keys"]

_FORM = "1"
_NONCE = 12
_KEY = 32
#: Bytes of a key file that is read: some ten thousand keys.
_MAX_FILE = 2**20


class Keys:
    """The keys as they were at one time; ``newest`` is the id of the one that seals."""

    def __init__(self, keys: Mapping[str, AESGCM], newest: str, place: Path, noun: str) -> None:
        self.newest = newest
        self._keys = keys
        self._place = place
        self._noun = noun

    def seal(self, namespace: str, path: str, text: bytes) -> str:
        """``text`` sealed for its place."""
        nonce = os.urandom(_NONCE)
        sealed = self._keys[self.newest].encrypt(nonce, text, _place(self._noun, namespace, path))
        return f"{_FORM}:{self.newest}:{base64.b64encode(nonce + sealed).decode()}"

    def open(self, namespace: str, path: str, sealed: str) -> bytes:
        """What was sealed. Raises PreconditionFailed when its key is not in the file,
        InternalError when it has been altered or moved."""
        form, _, rest = sealed.partition(":")
        id, _, body = rest.partition(":")
        if form != _FORM:
            raise InternalError(self._noun, f"the secret {path!r} is sealed in an unknown form")
        key = self._keys.get(id)
        if key is None:
            raise PreconditionFailed(
                self._noun,
                f"the secret {path!r} is sealed with key {id[:32]}, which is not in {self._place}: "
                f"add its line from a backup of the file ({self._noun}.key_file), or set the "
                "secret again",
            )
        try:
            data = base64.b64decode(body, validate=True)
            return key.decrypt(data[:_NONCE], data[_NONCE:], _place(self._noun, namespace, path))
        except (InvalidTag, binascii.Error, ValueError):
            raise InternalError(
                self._noun,
                f"the secret {path!r} does not open: it was altered, or belongs elsewhere; set it "
                "again, or go back to a version that opens",
            ) from None

    def sealed_by_newest(self, sealed: str) -> bool:
        return sealed.startswith(f"{_FORM}:{self.newest}:")


class KeyFile:
    """The file; what another process adds to it is seen. All verbs raise PreconditionFailed for a
    file that others may read or that is malformed, Unavailable when it cannot be read or made."""

    def __init__(self, path: Path, noun: str = "config") -> None:
        self._path = path
        self._noun = noun
        self._keys: Keys | None = None
        self._seen: tuple[int, ...] = ()

    async def keys(self) -> Keys:
        """The keys as they are now; makes the file at first use."""
        return await asyncio.to_thread(self._current)

    async def rotate(self) -> Keys:
        """Add a new key, which seals from now on."""
        return await asyncio.to_thread(self._rotate)

    def _current(self) -> Keys:
        with _system(self._path, self._noun):
            try:
                return self._load()
            except FileNotFoundError:
                pass
            with self._locked():
                if not self._path.exists():
                    replace_file(self._path, _line(self._noun).encode())
            return self._load()

    def _rotate(self) -> Keys:
        self._current()
        with _system(self._path, self._noun), self._locked():
            text = self._path.read_text()
            text = text if text.endswith("\n") else text + "\n"
            replace_file(self._path, f"{text}{_line(self._noun)}".encode())
            return self._load()

    def _load(self) -> Keys:
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            seen = (status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode)
            if self._keys is not None and seen == self._seen:
                return self._keys
            if status.st_mode & 0o077:
                raise PreconditionFailed(
                    self._noun,
                    f"{self._path} holds keys and can be read by others: chmod 600 {self._path}",
                )
            self._keys = _parsed(file, self._path, self._noun)
            self._seen = seen
            return self._keys

    def _locked(self) -> AbstractContextManager[None]:
        """One process at a time adds a key."""
        return locked(self._path.with_name(f"{self._path.name}.lock"))


def _place(noun: str, namespace: str, path: str) -> bytes:
    return f"micro-{noun}\0{namespace}\0{path}".encode()


def _id(key: bytes, noun: str) -> str:
    return hashlib.sha256(f"micro-{noun}".encode() + key).hexdigest()[:12]


def _line(noun: str) -> str:
    key = secrets.token_bytes(_KEY)
    return f"{_id(key, noun)} {base64.b64encode(key).decode()}\n"


def _parsed(file: IO[bytes], path: Path, noun: str) -> Keys:
    keys: dict[str, AESGCM] = {}
    newest = ""
    for number, line in enumerate(file.read(_MAX_FILE).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        with contextlib.suppress(binascii.Error, ValueError, UnicodeDecodeError):
            key = base64.b64decode(words[-1], validate=True)
            if len(words) == 2 and len(key) == _KEY and words[0].decode() == _id(key, noun):
                newest = words[0].decode()
                keys[newest] = AESGCM(key)
                continue
        # What is on the line may be most of a key: it is not shown.
        raise PreconditionFailed(
            noun, f"{path}, line {number}: no key and its id; restore it from a backup"
        )
    if not newest:
        raise PreconditionFailed(
            noun, f"{path} has no key: restore it from a backup, or remove it to begin anew"
        )
    return Keys(keys, newest, path, noun)


@contextlib.contextmanager
def _system(path: Path, noun: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(noun, f"the key file {path}: {error.strerror}") from error
