"""Logs as they are written: whole lines, bounded files, whatever comes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from micro_ray.runtime.logfile import MAX_LINE, Lines, LogFile
from micro_ray.runtime.logs import Reader


def texts(folder: Path, count: int = 10_000) -> list[str]:
    return [line.text for line in Reader(folder).tail(count)]


def feed(folder: Path, *pieces: bytes, limit: int = 2**24, stream: str = "out") -> list[str]:
    log = LogFile(folder / "r.log", limit)
    lines = Lines(log, stream)
    for piece in pieces:
        lines.feed(piece)
    lines.end()
    log.close()
    return texts(folder)


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"on", b"e\nt", b"wo", b"\n"], ["one", "two"]),
        ([b"no newline at the end"], ["no newline at the end"]),
        ([b"\n\nx\n"], ["", "", "x"]),
        ([b"a\r\nb\tc\n"], ["a\r", "b\tc"]),
        ([b"1.5 out looks like a record\n"], ["1.5 out looks like a record"]),
        ([], []),
        ([b"caf\xe9 \x00\xff\n"], ["caf\ufffd \x00\ufffd"]),
        (["ü".encode()[:1], "ü".encode()[1:] + b"\n"], ["ü"]),
    ],
    ids=lambda v: None,
)
def test_lines(tmp_path: Path, pieces: list[bytes], lines: list[str]) -> None:
    assert feed(tmp_path, *pieces) == lines


def test_a_very_long_line(tmp_path: Path) -> None:
    """Its beginning is kept and marked, once; the next line is whole."""
    piece = b"x" * 65_536
    said = feed(tmp_path, *([piece] * 50), b"the end of it\nnext\n")
    assert [len(line) for line in said] == [MAX_LINE + len(" ... (cut)"), 4]
    assert said[0].endswith("x ... (cut)")
    assert said[1] == "next"


@pytest.mark.parametrize("length", [MAX_LINE - 1, MAX_LINE, MAX_LINE + 1])
def test_around_the_longest_line(tmp_path: Path, length: int) -> None:
    """However it comes: in one piece with its newline, or before it."""
    line = b"y" * length
    whole = feed(tmp_path / "a", line + b"\n" + b"z\n")
    parts = feed(tmp_path / "b", line, b"\nz\n")
    assert whole == parts
    assert ("(cut)" in whole[0]) == (length > MAX_LINE)
    assert whole[1:] == ["z"]


def test_the_file_is_bounded(tmp_path: Path) -> None:
    """What is kept is the end, unbroken, between one and two times the limit."""
    limit = 10_000
    log = LogFile(tmp_path / "r.log", limit)
    for start in range(0, 5_000, 7):
        log.write("out", [b"line %d" % n for n in range(start, min(start + 7, 5_000))])
        sizes = [p.stat().st_size for p in tmp_path.iterdir()]
        assert max(sizes) <= limit
        assert len(sizes) <= 2
    log.close()
    assert sum(sizes) > limit
    said = texts(tmp_path)
    first = int(said[0].split()[1])
    assert said == [f"line {n}" for n in range(first, 5_000)]


def test_a_batch_larger_than_the_limit(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "r.log", 4096)
    log.write("out", [b"%04d" % n for n in range(1_000)])
    log.write("err", [b"z" * 100_000])
    log.close()
    assert all(p.stat().st_size <= 4096 for p in tmp_path.iterdir())
    said = texts(tmp_path)
    assert said[-1].startswith("zzz")
    assert said[-2] == "0999"


def test_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    feed(tmp_path, b"before\n")
    assert feed(tmp_path, b"after\n") == ["before", "after"]


def test_folders_are_private(tmp_path: Path) -> None:
    feed(tmp_path / "deep", b"x\n")
    assert (tmp_path / "deep").stat().st_mode & 0o077 == 0


def test_many_threads(tmp_path: Path) -> None:
    """Lines of several writers never mix."""
    log = LogFile(tmp_path / "r.log", 2**24)

    def write(number: int) -> None:
        for count in range(200):
            log.write("out", [b"%d %d " % (number, count) + b"x" * 500])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    said = texts(tmp_path)
    assert len(said) == 800
    for number in range(4):
        mine = [line for line in said if line.startswith(f"{number} ")]
        assert [int(line.split()[1]) for line in mine] == list(range(200))


def test_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    """Lines are lost, and those after them come through when there is room again."""
    (tmp_path / "r.log").symlink_to("/dev/full")
    log = LogFile(tmp_path / "r.log", 4096)
    log.write("out", [b"lost"])
    log.close()


def test_capture_takes_all_of_a_process(tmp_path: Path) -> None:
    """What Python prints, what C code writes, and what children say, in one log."""
    program = f"""
import os, subprocess, sys
from pathlib import Path
from micro_ray.runtime.logfile import Capture, LogFile
Capture(LogFile(Path({str(tmp_path)!r}) / "r.log", 10**6))
print("printed", flush=True)
os.write(2, b"from below\\n")
subprocess.run(["echo", "from a child"], check=True)
os.write(1, b"no newline")
for number in (1, 2):
    os.close(number)
import threading
for thread in threading.enumerate():
    if thread.name.startswith("log-"):
        thread.join(5)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30, env=dict(os.environ))
    lines = Reader(tmp_path).tail(10)
    assert sorted((line.stream, line.text) for line in lines) == [
        ("err", "from below"),
        ("out", "from a child"),
        ("out", "no newline"),
        ("out", "printed"),
    ]
