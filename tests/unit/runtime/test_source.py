"""A folder as an archive and back: what is in it, what is left out, what is refused."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from micro_ray.errors import BadRequest, MicroError, NotFound, TooLarge
from micro_ray.runtime import source


def tree(root: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def round_trip(folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "unpacked"
    source.unpack(source.pack(folder), target)
    return target


def test_there_and_back(tmp_path: Path) -> None:
    """Names, bytes and whether it may be executed; nothing else of the modes goes along."""
    folder = tree(tmp_path / "a", main=b"print()\n", deep__er__data=bytes(range(256)), empty=b"")
    (folder / "ümläut und leer.py").write_bytes(b"x")
    os.chmod(folder / "main", 0o4755)
    os.chmod(folder / "empty", 0o666)
    back = round_trip(folder, tmp_path)
    assert names(back) == names(folder)
    for name in names(folder):
        assert (back / name).read_bytes() == (folder / name).read_bytes()
    assert stat.S_IMODE((back / "main").stat().st_mode) == 0o700
    assert stat.S_IMODE((back / "empty").stat().st_mode) == 0o600
    assert stat.S_IMODE(back.stat().st_mode) == 0o700


def test_the_same_files_give_the_same_digest(tmp_path: Path) -> None:
    """Whoever made them, whenever, in whatever order."""
    one = tree(tmp_path / "one", b=b"2", a=b"1", c__d=b"3")
    two = tree(tmp_path / "two", c__d=b"3", a=b"1", b=b"2")
    for number, path in enumerate(sorted(two.rglob("*"))):
        os.utime(path, (number, number))
    archive = source.pack(one)
    assert archive == source.pack(two)
    assert source.digest(archive) == hashlib.sha256(archive).hexdigest()
    (two / "a").write_bytes(b"other")
    assert source.pack(two) != archive


def test_what_is_left_out(tmp_path: Path) -> None:
    folder = tree(tmp_path / "a", main=b"1", keep__me=b"1")
    for ignored in (".git/config", "__pycache__/x.pyc", "deep/x.pyc", ".venv/bin/python",
                    "node_modules/a/b.js", "deep/.DS_Store", ".ruff_cache/x"):  # fmt: skip
        tree(folder, **{ignored.replace("/", "__"): b"no"}) if "__" not in ignored else None
        (folder / ignored).parent.mkdir(parents=True, exist_ok=True)
        (folder / ignored).write_bytes(b"no")
    assert names(round_trip(folder, tmp_path)) == {"main", "keep/me"}


def test_microignore(tmp_path: Path) -> None:
    """Patterns of names, of paths and of folders; comments and blank lines; the file stays."""
    folder = tree(
        tmp_path / "a",
        main=b"",
        notes__one=b"",
        data__big=b"",
        data__small=b"",
        sub__secret=b"",
        secret=b"",
    )
    (folder / ".microignore").write_text("# not these\n\nsecret\ndata/b*\nnotes/\n")
    assert names(round_trip(folder, tmp_path)) == {".microignore", "main", "data/small"}


def test_links(tmp_path: Path) -> None:
    """One that stays inside becomes what it leads to; any other is named and refused."""
    folder = tree(tmp_path / "a", data=b"here", sub__x=b"")
    (folder / "link").symlink_to("data")
    assert (round_trip(folder, tmp_path) / "link").read_bytes() == b"here"
    for name, target, said in (
        ("out", "/etc/passwd", "out is a link that leads out of the folder"),
        ("up", "../elsewhere", "up is a link that leads out of the folder"),
        ("round", "round", "round is "),
        ("folder", "sub", "folder is a link to a folder"),
        ("nowhere", "missing", "nowhere is neither a file nor a folder"),
    ):
        (folder / name).symlink_to(target)
        with pytest.raises(BadRequest, match=said):
            source.pack(folder)
        (folder / name).unlink()


def test_special_files(tmp_path: Path) -> None:
    """A pipe would be read for ever."""
    folder = tree(tmp_path / "a", main=b"")
    os.mkfifo(folder / "pipe")
    with pytest.raises(BadRequest, match="pipe is neither a file nor a folder"):
        source.pack(folder)


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotFound, match="is a file; name its folder"):
        source.pack(tmp_path / "file")
    with pytest.raises(NotFound, match="does not exist"):
        source.pack(tmp_path / "missing")


def test_limits_of_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tree(tmp_path / "a", one=os.urandom(1000), two=os.urandom(1000))
    with pytest.raises(TooLarge, match=r"packs to \d+ bytes; 500 allowed"):
        source.pack(folder, limit=500)
    monkeypatch.setattr(source, "MAX_UNPACKED", 1500)
    with pytest.raises(TooLarge, match="over 1500 bytes at two"):
        source.pack(folder)
    monkeypatch.setattr(source, "MAX_FILES", 1)
    with pytest.raises(TooLarge, match=r"over 1 files; list some in \.microignore"):
        source.pack(folder)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """A terabyte with nothing in it is refused for its size before memory is taken for it."""
    folder = tree(tmp_path / "a", main=b"")
    with (folder / "disk.img").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(TooLarge, match=r"at disk\.img"):
        source.pack(folder)


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert names(round_trip(tmp_path / "a", tmp_path)) == set()


def test_unpacking_beside_another(tmp_path: Path) -> None:
    """Who comes second finds what the first has made, and nothing of his own is left."""
    archive = source.pack(tree(tmp_path / "a", main=b"1"))
    target = tmp_path / "deep" / "target"
    source.unpack(archive, target)
    source.unpack(archive, target)
    assert names(target) == {"main"}
    assert [p.name for p in target.parent.iterdir()] == ["target"]


async def test_in_pieces(tmp_path: Path) -> None:
    """Whatever pieces come, those that go fit a message, and say the same."""
    archive = os.urandom(700_000)

    async def given() -> object:  # type: ignore[misc]
        yield archive[:600_000]
        yield b""
        yield archive[600_000:]

    for pieces in (archive, bytearray(archive), given()):
        parts = [piece async for piece in source.pieces(pieces)]
        assert b"".join(parts) == archive
        assert max(map(len, parts)) <= 2**18
        assert all(isinstance(part, bytes) for part in parts)


def test_errors_are_the_platforms_own(tmp_path: Path) -> None:
    """A target that cannot be written is told, not thrown."""
    archive = source.pack(tree(tmp_path / "a", main=b"1"))
    (tmp_path / "file").touch()
    with pytest.raises(MicroError, match="cannot unpack"):
        source.unpack(archive, tmp_path / "file" / "target")
