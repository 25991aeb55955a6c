"""A folder as one archive, and back. The archive is deterministic: the same files give the same
digest."""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from micro_ray.errors import BadRequest, NotFound, TooLarge

__all__ = ["digest", "pack", "unpack"]

MAX_FILES = 10_000
#: Largest archive, and largest folder, in bytes.
MAX_BYTES = 64 * 2**20
MAX_UNPACKED = 256 * 2**20
#: Never packed; a folder's ``.microignore`` adds patterns, one a line.
IGNORED = (
    ".git", "__pycache__", "*.pyc", ".venv", "venv", "node_modules", ".mypy_cache",
    ".pytest_cache", ".ruff_cache", ".DS_Store",
)  # fmt: skip


def digest(archive: bytes) -> str:
    """The SHA-256 of an archive in hex."""
    return hashlib.sha256(archive).hexdigest()


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
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise BadRequest("source", f"{name} is a link that leads out of the folder")
            if not path.is_file():
                raise BadRequest("source", f"{name} is neither a file nor a folder")
            data = path.read_bytes()
            total += len(data)
            if total > MAX_UNPACKED:
                raise TooLarge("source", f"over {MAX_UNPACKED} bytes at {name}")
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            archive.addfile(member, io.BytesIO(data))
    packed = out.getvalue()
    if len(packed) > limit:
        raise TooLarge("source", f"{folder} packs to {len(packed)} bytes; {limit} allowed")
    return packed


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

    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(f for f in folders if not ignored(here / f))
        for name in sorted(files):
            if not ignored(here / name):
                yield here / name


def unpack(archive: bytes, target: Path) -> None:
    """Into a new folder, whole or not at all. Raises BadRequest for an archive that is none, or
    that has links, devices or names that lead out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: replicas of one source start side by side.
    fresh = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".new", dir=target.parent))
    try:
        _extract(archive, fresh)
        try:
            os.replace(fresh, target)
        except OSError:
            if not target.is_dir():  # somebody else was faster: the digest says it is the same
                raise
    except (tarfile.TarError, gzip.BadGzipFile, EOFError) as error:
        raise BadRequest("source", f"not a gzipped tar: {error}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _extract(archive: bytes, folder: Path) -> None:
    total = 0
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for number, member in enumerate(tar, 1):
            if number > MAX_FILES:
                raise TooLarge("source", f"over {MAX_FILES} files in the archive")
            parts = Path(member.name).parts
            if not member.isfile() and not member.isdir():
                raise BadRequest("source", f"{member.name[:200]!r} is a link or a device")
            if not parts or ".." in parts or Path(member.name).is_absolute():
                raise BadRequest("source", f"{member.name[:200]!r} leads out of the folder")
            path = folder / member.name
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            total += member.size
            if total > MAX_UNPACKED:
                raise TooLarge("source", f"over {MAX_UNPACKED} bytes unpacked")
            path.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            path.write_bytes(content.read() if content is not None else b"")
            path.chmod(0o700 if member.mode & 0o100 else 0o600)
