"""A folder as one archive, and back. The archive is deterministic: the same files give the same
digest."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import gzip
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from pathlib import Path
from typing import IO, cast

from micro_ray.errors import BadRequest, MicroError, NotFound, TooLarge, Unavailable

__all__ = ["digest", "pack", "pieces", "unpack", "verify"]

MAX_FILES = 10_000
#: Largest archive, and largest folder, in bytes.
MAX_BYTES = 64 * 2**20
MAX_UNPACKED = 256 * 2**20
MAX_DEPTH = 64
#: Bytes read or written at once, and sent in one message.
PIECE = 2**20
SENT = 2**18
#: Never packed; a folder's ``.microignore`` adds patterns, one a line.
IGNORED = (
    ".git", "__pycache__", "*.pyc", ".venv", "venv", "node_modules", ".mypy_cache",
    ".pytest_cache", ".ruff_cache", ".DS_Store",
)  # fmt: skip


def digest(archive: bytes) -> str:
    """The SHA-256 of an archive in hex."""
    return hashlib.sha256(archive).hexdigest()


async def pieces(archive: bytes | bytearray | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """An archive in pieces that fit messages; one that comes in pieces, in pieces not larger."""
    if not isinstance(archive, AsyncIterable):
        for start in range(0, len(archive), SENT):
            yield bytes(archive[start : start + SENT])
        return
    async for part in archive:
        for start in range(0, len(part), SENT):
            yield part[start : start + SENT]


def pack(folder: Path, *, limit: int = MAX_BYTES) -> bytes:
    """The folder as a gzipped tar. Raises NotFound when it is no folder, TooLarge over the limits,
    BadRequest for links that lead out of it and for special files, each naming the file."""
    folder = folder.expanduser()
    if not folder.is_dir():
        what = "is a file; name its folder" if folder.exists() else "does not exist"
        raise NotFound("source", f"{folder} {what}")
    root = folder.resolve()
    out = io.BytesIO()
    total = 0
    with (
        gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for number, path in enumerate(_files(root, _patterns(root)), 1):
            name = path.relative_to(root).as_posix()
            if number > MAX_FILES:
                raise TooLarge("source", f"over {MAX_FILES} files; list some in .microignore")
            if path.is_symlink() and not _leads_into(root, path):
                raise BadRequest("source", f"{name} is a link that leads out of the folder")
            if path.is_dir():
                raise BadRequest("source", f"{name} is a link to a folder; put a copy there")
            if not path.is_file():
                raise BadRequest("source", f"{name} is neither a file nor a folder")
            total += path.stat().st_size
            if total > MAX_UNPACKED:
                raise TooLarge("source", f"over {MAX_UNPACKED} bytes at {name}")
            try:
                data = path.read_bytes()
            except OSError as error:
                raise BadRequest("source", f"{name} cannot be read: {error.strerror}") from None
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            archive.addfile(member, io.BytesIO(data))
    packed = out.getvalue()
    if len(packed) > limit:
        raise TooLarge("source", f"{folder} packs to {len(packed)} bytes; {limit} allowed")
    return packed


def _leads_into(root: Path, link: Path) -> bool:
    try:
        return link.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a link to itself
        return False


def _patterns(root: Path) -> list[str]:
    try:
        lines = (root / ".microignore").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    extra = [line.strip().rstrip("/") for line in lines if line.strip() and line[0] != "#"]
    return [*IGNORED, *extra]


def _files(root: Path, patterns: list[str]) -> Iterator[Path]:
    def ignored(path: Path) -> bool:
        name = path.relative_to(root).as_posix()
        return any(fnmatch.fnmatch(path.name, p) or fnmatch.fnmatch(name, p) for p in patterns)

    def unreadable(error: OSError) -> None:
        raise BadRequest("source", f"{error.filename} cannot be read: {error.strerror}")

    for folder, folders, files in os.walk(root, onerror=unreadable):
        here = Path(folder)
        folders[:] = sorted(f for f in folders if not ignored(here / f))
        links = [f for f in folders if (here / f).is_symlink()]
        for name in sorted([*files, *links]):
            if not ignored(here / name):
                yield here / name


def verify(archive: bytes | bytearray) -> None:
    """Raises what :func:`unpack` would raise of an archive, writing nothing."""
    try:
        for _ in _members(archive):
            pass
    except OSError as error:
        raise _unwritable(error) from None


def unpack(archive: bytes, target: Path) -> None:
    """Into a new folder, whole or not at all. Raises BadRequest for an archive that is none, that
    has links, devices, names that lead out or one name twice; TooLarge for one that would be over
    the limits; Unavailable when the disk is full."""
    # A name of its own: replicas of one source start side by side.
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".new", dir=target.parent))
    except OSError as error:
        raise _unwritable(error) from None
    try:
        for name, member, content in _members(archive):
            _write(fresh, name, member, content)
        try:
            os.replace(fresh, target)
        except OSError:
            if not target.is_dir():  # somebody else was faster: the digest says it is the same
                raise
    except OSError as error:
        raise _unwritable(error) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _members(
    archive: bytes | bytearray,
) -> Iterator[tuple[str, tarfile.TarInfo, IO[bytes] | None]]:
    """The files and folders of an archive, each checked before it is given."""
    total = 0
    names: set[str] = set()
    try:
        with (
            _plain(archive) as plain,
            tarfile.open(fileobj=cast(IO[bytes], _Careful(plain)), mode="r:") as tar,
        ):
            for number, member in enumerate(tar, 1):
                if number > MAX_FILES:
                    raise TooLarge("source", f"over {MAX_FILES} files in the archive")
                name = _inside(member)
                if not name:
                    continue  # the folder itself
                if name in names:
                    raise BadRequest("source", f"{_shown(name)} is there twice")
                names.add(name)
                total += member.size
                if total > MAX_UNPACKED:
                    raise TooLarge("source", f"over {MAX_UNPACKED} bytes unpacked")
                yield name, member, tar.extractfile(member) if member.isfile() else None
    except (tarfile.TarError, ValueError, UnicodeError, RecursionError) as error:
        raise BadRequest("source", f"not a gzipped tar: {error}") from None


def _inside(member: tarfile.TarInfo) -> str:
    """A member's name as a path inside the folder; "" for the folder itself."""
    parts = Path(member.name).parts
    if not member.isfile() and not member.isdir():
        raise BadRequest("source", f"{_shown(member.name)} is a link or a device")
    if ".." in parts or Path(member.name).is_absolute() or (member.isfile() and not parts):
        raise BadRequest("source", f"{_shown(member.name)} leads out of the folder")
    if "\0" in member.name or len(parts) > MAX_DEPTH:
        raise BadRequest("source", f"{_shown(member.name)} is no name, or over {MAX_DEPTH} deep")
    return "/".join(parts)


def _write(folder: Path, name: str, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
    path = folder / name
    try:
        if content is None:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("xb") as file:
            shutil.copyfileobj(content, file, PIECE)
        path.chmod(0o700 if member.mode & 0o100 else 0o600)
    except (FileExistsError, NotADirectoryError):
        raise BadRequest("source", f"{_shown(name)} is a file and a folder") from None


@contextlib.contextmanager
def _plain(archive: bytes | bytearray) -> Iterator[IO[bytes]]:
    """The archive decompressed, in a file that is gone afterwards."""
    with tempfile.TemporaryFile() as plain, gzip.GzipFile(fileobj=io.BytesIO(archive)) as packed:
        size = 0
        try:
            while piece := packed.read(PIECE):
                size += len(piece)
                if size > MAX_UNPACKED + MAX_FILES * 2048:  # the heads of files come on top
                    raise TooLarge("source", f"over {MAX_UNPACKED} bytes unpacked")
                plain.write(piece)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise BadRequest("source", f"not a gzipped tar: {error}") from None
        plain.seek(0)
        yield cast(IO[bytes], plain)


class _Careful:
    """A file of which nobody reads much at once: the head of a member may claim any length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= PIECE:
            raise TooLarge("source", "the archive has a head that is too large")
        return self._file.read(size)


def _unwritable(error: OSError) -> MicroError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable("source", f"cannot unpack: {os.strerror(error.errno)}")
    return BadRequest("source", f"cannot unpack {_shown(str(error.filename))}: {error.strerror}")


def _shown(name: str) -> str:
    return repr(name[:200])
