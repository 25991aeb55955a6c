"""Archives that were made to do harm: refused whole, in little memory, with nothing written."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import resource
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micro_ray.errors import BadRequest, TooLarge
from micro_ray.runtime import source

Member = tuple[str, dict[str, object], bytes]


def archive(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A gzipped tar of what the project's own packer would never make."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=format) as tar:
        for name, fields, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def refused(packed: bytes, target: Path, said: str) -> None:
    """By both, with the same words, and without a trace."""
    target.parent.mkdir(parents=True, exist_ok=True)
    outside = sorted(os.listdir(target.parent.parent))
    for attempt in (lambda: source.verify(packed), lambda: source.unpack(packed, target)):
        with pytest.raises((BadRequest, TooLarge), match=said):
            attempt()
    assert list(target.parent.iterdir()) == []
    assert sorted(os.listdir(target.parent.parent)) == outside


FILE = ("main.py", {}, b"1")

ROWS: list[tuple[str, list[Member], str]] = [
    ("a link", [FILE, ("l", {"type": tarfile.SYMTYPE, "linkname": "/etc"}, b"")], "'l' is a link"),
    ("a hard link", [("l", {"type": tarfile.LNKTYPE, "linkname": "main.py"}, b"")], "is a link"),
    ("a device", [("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b"")],
     "'null' is a link or a device"),
    ("a disk", [("sda", {"type": tarfile.BLKTYPE}, b"")], "is a link or a device"),
    ("a pipe", [("p", {"type": tarfile.FIFOTYPE}, b"")], "is a link or a device"),
    ("an absolute name", [("/tmp/evil", {}, b"x")], "leads out of the folder"),
    ("up", [("../evil", {}, b"x")], "'../evil' leads out of the folder"),
    ("up within", [("a/../../evil", {}, b"x")], "leads out of the folder"),
    ("a folder up", [("..", {"type": tarfile.DIRTYPE}, b"")], "leads out of the folder"),
    ("twice", [FILE, FILE], "'main.py' is there twice"),
    ("twice, spelled otherwise", [FILE, ("./main.py", {}, b"2")], "'main.py' is there twice"),
    ("a file without a name", [("", {}, b"x")], "leads out|not a gzipped tar"),
    ("deep", [("d/" * 80 + "f", {}, b"x")], "over 64 deep"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("members", "said"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_members(tmp_path: Path, members: list[Member], said: str) -> None:
    refused(archive(*members), tmp_path / "in" / "target", said)


def test_a_link_first_and_a_file_through_it(tmp_path: Path) -> None:
    link = ("sub", {"type": tarfile.SYMTYPE, "linkname": str(tmp_path)}, b"")
    refused(archive(link, ("sub/evil", {}, b"x")), tmp_path / "in" / "target", "is a link")
    assert not (tmp_path / "evil").exists()


def test_a_file_that_is_a_folder_too(tmp_path: Path) -> None:
    """Only writing it can tell."""
    for members in ([FILE, ("main.py/x", {}, b"")], [("a/b", {}, b""), ("a", {}, b"")]):
        with pytest.raises(BadRequest, match="is a file and a folder"):
            source.unpack(archive(*members), tmp_path / "target")
        assert list(tmp_path.iterdir()) == []


def test_what_other_packers_make_is_taken(tmp_path: Path) -> None:
    """The folder itself as a member, ``./`` before names, old formats, odd modes."""
    packed = archive(
        (".", {"type": tarfile.DIRTYPE}, b""),
        ("./sub/", {"type": tarfile.DIRTYPE, "mode": 0}, b""),
        ("./sub/run.sh", {"mode": 0o6755, "uid": 0, "uname": "root"}, b"x"),
        ("x" * 200, {}, b"y"),
        format=tarfile.GNU_FORMAT,
    )
    source.verify(packed)
    source.unpack(packed, tmp_path / "target")
    assert (tmp_path / "target" / "sub" / "run.sh").stat().st_mode & 0o7777 == 0o700
    assert (tmp_path / "target" / ("x" * 200)).read_bytes() == b"y"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: b"",
        lambda packed: b"not an archive at all",
        lambda packed: gzip.compress(b"not a tar at all"),
        lambda packed: gzip.decompress(packed),
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:-6],
        lambda packed: packed + b"trailing",
        lambda packed: packed[:20] + bytes(30) + packed[50:],
        lambda packed: packed[:10] + zlib.compress(b"x" * 100)[2:],
    ],
    ids=["empty", "text", "gzip", "tar", "half", "no end", "more", "holes", "no checksum"],
)
def test_what_is_no_archive(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    packed = archive(("main.py", {}, os.urandom(3000)))
    refused(spoil(packed), tmp_path / "in" / "target", "not a gzipped tar|cannot unpack")


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_FILES", 3)
    members: list[Member] = [(f"f{i}", {}, b"") for i in range(4)]
    refused(archive(*members), tmp_path / "in" / "target", "over 3 files")
    source.verify(archive(*members[:3]))


def test_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It unpacks to a hundred times the limit: no more than the limit is ever written, and memory
    does not grow by it."""
    monkeypatch.setattr(source, "MAX_UNPACKED", 2 * 2**20)
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    head = tarfile.TarInfo("zeros")
    head.size = 200 * 2**20
    parts = [packer.compress(head.tobuf())]
    parts += [packer.compress(bytes(2**20)) for _ in range(200)]
    packed = b"".join([*parts, packer.flush()])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(packed, tmp_path / "in" / "target", f"over {source.MAX_UNPACKED} bytes unpacked")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 40 * 2**20


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_head_that_claims_to_be_huge(tmp_path: Path, kind: bytes) -> None:
    """The names of a member are read at once, so their size is bounded by itself."""
    head = tarfile.TarInfo("x")
    head.type, head.size = kind, 80 * 2**20
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    parts = [packer.compress(head.tobuf())]
    parts += [packer.compress(bytes(2**20)) for _ in range(80)]
    packed = b"".join([*parts, packer.flush()])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(packed, tmp_path / "in" / "target", "a head that is too large")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 40 * 2**20


def test_a_sparse_file_that_claims_to_be_huge(tmp_path: Path) -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.GNUTYPE_SPARSE, 0
    block = bytearray(head.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"77777777777\0"  # the real size: eight gigabytes
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    refused(gzip.compress(bytes(block) + bytes(1024)), tmp_path / "in" / "target", "unpacked")


GOOD = gzip.decompress(archive(("a/b", {}, b"x" * 700), ("ü" * 60, {"mode": 0o755}, b"y")))


@settings(max_examples=150, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=12),
    cut=st.integers(0, len(GOOD)),
)
def test_anything(edits: list[tuple[int, int]], cut: int) -> None:
    """Whatever the bytes of the tar are, they are read or refused with an error of our own."""
    spoiled = bytearray(GOOD)
    for place, value in edits:
        spoiled[place] = value
    with contextlib.suppress(BadRequest, TooLarge):
        source.verify(gzip.compress(bytes(spoiled[:cut]), 1))
