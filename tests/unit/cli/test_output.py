"""Tables, JSON, and what may reach a terminal."""

from __future__ import annotations

import json
import os
import pty
import time

import pytest

from micro_ray.cli import output


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("żółw 漢字 é", "żółw 漢字 é"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x00\x07\x7f\x9b", r"\x00\x07\x7f\x9b"),
        ("a\u202eb\u200fc", r"a\u202eb\u200fc"),  # bidirectional overrides
        ("a\u2028b\u0085c", r"a\u2028b\x85c"),  # line ends of other sorts
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),  # spaces of other widths are harmless
        ("a\udcffb", r"a\udcffb"),  # what was not UTF-8 in a file name
        ("", ""),
    ],
)
def test_control_characters_are_made_visible(text: str, shown: str) -> None:
    assert output.visible(text) == shown


def test_what_may_be_kept_is_kept() -> None:
    assert output.visible("a\nb\tc\rd", "\n\t") == "a\nb\tc\\rd"


def test_colours_go_through_and_are_ended_but_nothing_else_does() -> None:
    text = "\x1b[1;31mred\x1b[2J\x1b]0;title\x07"
    assert output.visible(text, colours=True) == ("\x1b[1;31mred\\x1b[2J\\x1b]0;title\\x07\x1b[0m")


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.columns(("NAME", "N"), [("a", 1), ("漢字", 22), ("e\u0301e", 333)])
    assert capsys.readouterr().out == "NAME  N\na     1\n漢字  22\ne\u0301e    333\n"


def test_blanks_are_shown_and_zero_is_no_blank(capsys: pytest.CaptureFixture[str]) -> None:
    output.columns(("A", "B", "C"), [("", None, 0)])
    assert capsys.readouterr().out == "A    B    C\nn/a  n/a  0\n"


def test_an_empty_table_is_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    output.columns(("A", "B"), [])
    assert capsys.readouterr().out == "A  B\n"


def test_no_cell_can_break_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    output.columns(("A", "B"), [("one\ntwo", "\x1b[2J"), ("x", "y")])
    assert capsys.readouterr().out == "A         B\none\\ntwo  \\x1b[2J\nx         y\n"


def test_names_are_one_a_line_whatever_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    output.lines(["a\nb", "c"])
    assert capsys.readouterr().out == "a\\nb\nc\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s ago"),
        (15, "15s ago"),
        (75, "1m15s ago"),
        (3600, "1h0m0s ago"),
        (4532, "1h15m32s ago"),
        (11 * 86400 + 15 * 3600 + 33 * 60 + 20, "11d15h33m20s ago"),
        (-100, "0s ago"),  # clocks of two machines differ
    ],
)
def test_ago(seconds: float, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert output.ago(2e9 - seconds) == text


def test_what_is_unknown_is_blank() -> None:
    assert output.ago(None) == output.ago(0) == output.size(None) == ""
    assert output.size(0) == "0.00mb"
    assert output.size(12.5 * 2**20) == "12.50mb"


def test_json_is_indented_with_tabs_and_its_numbers_stay_as_they_are() -> None:
    body = b'{"a":[1,2.50,1e400,{"b":"  x\\n"}],"c":{},"d":12345678901234567890}'
    shown = output.pretty(body)
    assert shown is not None
    assert shown.startswith(
        b'{\n\t"a": [\n\t\t1,\n\t\t2.50,\n\t\t1e400,\n\t\t{\n\t\t\t"b": "  x\\n"'
    )
    assert b"12345678901234567890" in shown
    line = output.pretty(body, line=True)
    assert line is not None
    assert line.count(b"\n") == 1
    assert line.replace(b" ", b"") == body.replace(b" ", b"") + b"\n"


@pytest.mark.parametrize("body", [b"", b"plain", b"{", b"\xff", b"[" * 100_000, b"NaN"])
def test_what_is_not_json_is_not_called_so(body: bytes) -> None:
    assert output.pretty(body) is None


@pytest.mark.parametrize("body", [b"text", "żółw".encode(), b"\xff\x00", b""])
def test_bytes_are_a_value_of_json(body: bytes) -> None:
    import base64

    form = json.loads(json.dumps(output.encoded(body)))
    decode = {"text": str.encode, "base64": base64.b64decode}[form["encoding"]]
    assert decode(form["value"]) == body


def test_a_lone_surrogate_is_valid_json(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    output.json_line({"name": "a\udcff"})
    assert json.loads(capfdbinary.readouterr().out) == {"name": "a\udcff"}


def test_values_go_raw_into_a_pipe(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    output.bytes_out(b"\x1b[2J\xff\x00", b"\n")
    assert capfdbinary.readouterr().out == b"\x1b[2J\xff\x00\n"


def test_values_cannot_drive_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as shown, open(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        output.bytes_out(b"\x1b[2J\xff\x1b[32mgreen\tx\ny\x08", b"\n")
        text = os.read(shown.fileno(), 1000)
        monkeypatch.undo()
    assert text == b"\\x1b[2J\\xff\x1b[32mgreen\tx\r\ny\\x08\x1b[0m\r\n"
