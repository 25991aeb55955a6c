"""Uploaded sources: archives kept in the store, unpacked under the state folder when they are to
run, and removed from both when nothing names them any more."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import time
from collections.abc import AsyncIterable, Callable, Collection
from pathlib import Path

from micro_ray.errors import NotFound, TooLarge
from micro_ray.runtime import source
from micro_ray.runtime.folders import source_folder
from micro_ray.store import Blob, Store

__all__ = ["Archives"]

log = logging.getLogger(__name__)

PREFIX = "source/"
#: Seconds that a source which nothing names is kept: what was uploaded may be about to be run.
UNNAMED = 3600.0

#: The namespace and the digest of a source.
Key = tuple[str, str]


class Archives:
    """``namespace`` is the platform's own, where the archives of all are kept; ``limit`` is in
    bytes of an archive."""

    def __init__(
        self,
        store: Store,
        state: Path,
        *,
        namespace: str,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._state = state
        self._namespace = namespace
        self._limit = limit
        self._clock = clock
        self._unnamed: dict[Key, float] = {}
        self._writing = asyncio.Lock()

    async def keep(self, given: bytes | AsyncIterable[bytes], namespace: str) -> str:
        """Keep an archive; its digest. Raises TooLarge over the limit, BadRequest for what is no
        archive or a harmful one; nothing is kept then."""
        archive = bytearray()
        async for piece in source.pieces(given):
            archive += piece
            if len(archive) > self._limit:
                raise TooLarge("runtime", f"source over {self._limit} bytes")
        await asyncio.to_thread(source.verify, archive)
        digest = hashlib.sha256(archive).hexdigest()
        async with self._writing:
            await self._store.write_blob(
                _blob(namespace, digest), source.pieces(archive), namespace=self._namespace
            )
            self._unnamed[namespace, digest] = self._clock()
        return digest

    async def has(self, namespace: str, digest: str) -> bool:
        """Whether an archive is kept."""
        key = _blob(namespace, digest)
        return any(b.key == key for b in await self._blobs(key))

    async def unpacked(self, namespace: str, digest: str) -> Path:
        """The source in its folder, fetched from the store if it is not there. Raises NotFound."""
        folder = source_folder(self._state, namespace, digest)
        if not await asyncio.to_thread(folder.is_dir):
            archive = await self.packed(namespace, digest)
            await asyncio.to_thread(source.unpack, archive, folder)
        return folder

    async def packed(self, namespace: str, digest: str) -> bytes:
        """The archive, from the store. Raises NotFound."""
        archive = bytearray()
        key = _blob(namespace, digest)
        async for piece in self._store.read_blob(key, namespace=self._namespace):
            archive += piece
        if hashlib.sha256(archive).hexdigest() != digest:
            raise NotFound("runtime", f"source {digest[:12]} is damaged: upload it again")
        return bytes(archive)

    async def collect(self, named: Collection[Key]) -> None:
        """Remove what has not been among ``named`` for an hour, from the store and the disk."""
        now = self._clock()
        kept = {_key(blob.key) for blob in await self._blobs(PREFIX)}
        folders = await asyncio.to_thread(self._folders)
        there = kept | set(folders)
        self._unnamed = {key: self._unnamed.get(key, now) for key in there if key not in set(named)}
        for key, since in list(self._unnamed.items()):
            if now - since < UNNAMED:
                continue
            async with self._writing:
                if self._unnamed.get(key) != since:
                    continue  # it was uploaded again meanwhile
                if key in kept:
                    await self._store.delete_blob(_blob(*key), namespace=self._namespace)
                if key in folders:
                    await asyncio.to_thread(shutil.rmtree, folders[key], True)
                log.info("source %s of %s is no longer kept", key[1][:12], key[0])
                self._unnamed.pop(key, None)

    async def _blobs(self, prefix: str) -> list[Blob]:
        """All, however many."""
        try:
            return list(await self._store.blobs(prefix=prefix, namespace=self._namespace))
        except TooLarge:
            parts = [await self._blobs(f"{prefix}{digit}") for digit in "0123456789abcdef"]
            return [blob for part in parts for blob in part]

    def _folders(self) -> dict[Key, Path]:
        """What is unpacked. What an unpacking that was killed has left is removed."""
        old = time.time() - UNNAMED
        found: dict[Key, Path] = {}
        for folder in (self._state / "sources").glob("*/*"):
            if folder.suffix == ".new":
                if folder.stat().st_mtime < old:
                    shutil.rmtree(folder, ignore_errors=True)
            else:
                found[folder.parent.name, folder.name] = folder
        return found


def _blob(namespace: str, digest: str) -> str:
    # The digest first, so that a part of all can be listed.
    return f"{PREFIX}{digest}/{namespace}"


def _key(blob: str) -> Key:
    digest, _, namespace = blob.removeprefix(PREFIX).partition("/")
    return namespace, digest
