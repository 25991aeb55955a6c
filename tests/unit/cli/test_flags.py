"""Flags from types: every type, every way to give it, and what is said when it is wrong."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from micro_ray.cli.exits import Usage
from micro_ray.cli.flags import flags_of, request_of, split, takes_fields
from micro_ray.cli.values import kind
from micro_ray.wire.schema import codec
from tests.unit.cli.services import Everything, Nested, Person, Tree

SCHEMA = codec(Everything, "test").schema
NEEDED = ["--text=x", "--count=1"]


def made(*args: str, of: Any = SCHEMA) -> dict[str, Any]:
    return request_of(split(args, of), of)


def refusal(*args: str, of: Any = SCHEMA) -> str:
    with pytest.raises(Usage) as raised:
        made(*args, of=of)
    assert raised.value.exit == 2
    return raised.value.detail


@pytest.mark.parametrize(
    ("args", "field", "value"),
    [
        (["--text=a b"], "text", "a b"),
        (["--text", "a"], "text", "a"),
        (["--text="], "text", ""),
        (["--text", ""], "text", ""),
        (["--text=a=b=c"], "text", "a=b=c"),
        (["--text=--loud"], "text", "--loud"),
        (["--text", "--other-thing"], "text", "--other-thing"),
        (["--text", "-5"], "text", "-5"),
        (["--text=first", "--text=last"], "text", "last"),
        (["--TEXT=x"], "text", "x"),
        (["--count=-5"], "count", -5),
        (["--count", "-5"], "count", -5),
        (["--count=+7"], "count", 7),
        (["--count=007"], "count", 7),
        (["--count=0x1F"], "count", 31),
        (["--count=-0b11"], "count", -3),
        (["--count=12345678901234567890"], "count", 12345678901234567890),
        (["--ratio=-1.5e-3"], "ratio", -0.0015),
        (["--ratio=.5"], "ratio", 0.5),
        (["--ratio", "3"], "ratio", 3.0),
        (["--loud"], "loud", True),
        (["--loud=false"], "loud", False),
        (["--loud", "false"], "loud", False),
        (["--loud", "--age=3"], "loud", True),
        (["--loud=YES"], "loud", True),
        (["--no-loud"], "loud", False),
        (["--no_loud"], "loud", False),
        (["--no-on"], "on", False),
        (["--on"], "on", True),
        (["--colour=green"], "colour", "green"),
        (["--level=3"], "level", 3),
        (["--level=low"], "level", "low"),
        (["--tags=a,b"], "tags", ["a", "b"]),
        (["--tags=a,b", "--tags=c"], "tags", ["a,b", "c"]),
        (["--tags="], "tags", []),
        (["--tags=a"], "tags", ["a"]),
        (['--tags=["a,b", "c"]'], "tags", ["a,b", "c"]),
        (["--numbers=1,-2,0x3"], "numbers", [1, -2, 3]),
        (["--numbers", "1", "--numbers", "2"], "numbers", [1, 2]),
        (["--pair=5,five"], "pair", [5, "five"]),
        (["--labels=a=1", "--labels=b=-2"], "labels", {"a": 1, "b": -2}),
        (['--labels={"a": 1}'], "labels", {"a": 1}),
        (["--either=5"], "either", 5),
        (["--either=five"], "either", "five"),
        (["--maybe=5"], "maybe", 5),
        (["--address_street=Elm"], "address", {"street": "Elm"}),
        (["--address-street=Elm", "--address.number=3"], "address", {"street": "Elm", "number": 3}),
        (['--address={"street": "Elm"}'], "address", {"street": "Elm"}),
        (
            ["--address_number=3", '--address={"street": "Elm"}'],
            "address",
            {"street": "Elm", "number": 3},
        ),
        (['--places={"street": "A"}'], "places", [{"street": "A"}]),
        (['--places=[{"street": "A"}]'], "places", [{"street": "A"}]),
        (
            ['--places={"street": "A,B"}', '--places={"street": "C"}'],
            "places",
            [{"street": "A,B"}, {"street": "C"}],
        ),
        (["--tree_value=1", '--tree_left={"value": 2}'], "tree",
         {"value": 1, "left": {"value": 2}}),
        (["--data=hi"], "data", base64.b64encode(b"hi").decode()),
        (["--data=\udcff"], "data", base64.b64encode(b"\xff").decode()),
        (['--anything={"a": [1]}'], "anything", {"a": [1]}),
        (["--anything=word"], "anything", "word"),
        (["--anything=NaN"], "anything", "NaN"),
    ],
)  # fmt: skip
def test_a_flag_makes_its_value(args: list[str], field: str, value: Any) -> None:
    found = made(*NEEDED, *args)[field]
    assert found == value
    assert type(found) is type(value)
    # And the service's own decoder takes it, wherever its type allows such a value at all.
    if value != 12345678901234567890:
        import json

        request = made(*NEEDED, *args)
        codec(Everything, "test").decode(json.dumps(request).encode(), "application/json")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--count=five"], "flag --count: 'five' is no integer"),
        (["--count=1.5"], "flag --count: '1.5' is no integer"),
        (["--count=1e3"], "flag --count: '1e3' is no integer"),
        (["--count="], "flag --count: '' is no integer"),
        (["--count=" + "9" * 5000], "is no integer"),
        (["--count=٣"], "flag --count: '٣' is no integer"),
        (["--ratio=nan"], "flag --ratio: 'nan' is no number"),
        (["--ratio=1e999"], "flag --ratio: '1e999' is no number"),
        (["--ratio=1_0"], "flag --ratio: '1_0' is no number"),
        (["--loud=perhaps"], "flag --loud: 'perhaps' is no boolean"),
        (["--colour=gren"], "'gren' is none of green, red; did you mean green?"),
        (["--level=4"], "flag --level: '4' is none of 3, low"),
        (["--numbers=1,x"], "flag --numbers: 'x' is no integer"),
        (["--tags=[1"], "flag --tags: '[1' is no []string"),
        (["--pair=a,b"], "flag --pair: 'a' is no integer"),
        (["--labels=a"], "flag --labels: 'a' is no object"),
        (["--labels=a=x"], "flag --labels: 'x' is no integer"),
        (["--labels={"], "flag --labels: '{' is no object"),
        (["--places=x"], "flag --places: 'x' is no object"),
        (["--maybe=x"], "flag --maybe: 'x' is no integer"),
        (["--text=\udcff"], "flag --text: the value is not UTF-8"),
        (["--adress_street=x"], "Unknown flag: --adress_street; did you mean --address_street"),
        (["--lod"], "Unknown flag: --lod; did you mean --loud?"),
        (["--zzz=1"], "Unknown flag: --zzz"),
        (["--no-text"], "Unknown flag: --no-text"),
        (["--=x"], "Unknown flag: --"),
        (["word"], "'word' is no flag; expected --name=value"),
        (["-x"], "'-x' is no flag; expected --name=value"),
        (["--"], "'--' is no flag"),
        (["--text"], "flag --text has no value"),
        (["--text", "--count=1"], "flag --text has no value; expected --text=value"),
        (["--address=5"], "flag --address: '5' is no object"),
        (["--address=[]"], "flag --address: '[]' is no object"),
        (["-o", "yaml"], "-o 'yaml' is no form of output; there is table, json"),
        (["-o"], "-o '' is no form of output"),
    ],
)
def test_a_wrong_flag_is_named_and_what_was_expected(args: list[str], said: str) -> None:
    assert said in refusal(*NEEDED, *args)


def test_what_is_required_is_asked_for_by_name() -> None:
    assert refusal() == "Missing flags: --text (string), --count (integer)"
    assert refusal("--text=x") == "Missing flag: --count (integer)"


def test_what_is_required_within_an_object_is_asked_for_once_the_object_is_given() -> None:
    assert refusal(*NEEDED, "--other_number=3") == "Missing flag: --other_street (string)"
    assert refusal(*NEEDED, '--other={"number": 3}') == "Missing flag: --other_street (string)"
    assert made(*NEEDED) == {"text": "x", "count": 1}


def test_flags_that_begin_alike_lead_to_their_own_fields() -> None:
    schema = codec(Nested, "test").schema
    assert set(flags_of(schema)) == {
        "user", "user_street", "user_number", "user_name", "user_street_old",
    }  # fmt: skip
    made_of = made("--user_street=A", "--user_name=a=b", "--user_street_old=C", of=schema)
    assert made_of == {
        "user": {"street": "A"},
        "user_name": {"a": "b"},
        "user_street_old": "C",
    }
    assert refusal("--user_street_old=C", of=schema) == "Missing flag: --user_street (string)"


def test_a_required_object_of_defaults_needs_no_flag() -> None:
    schema = {
        "type": "object",
        "properties": {
            "page": {"type": "object", "properties": {"size": {"type": "integer", "default": 5}}}
        },
        "required": ["page"],
    }
    assert made(of=schema) == {"page": {}}
    assert made("--page_size=3", of=schema) == {"page": {"size": 3}}


def test_a_type_within_itself_has_flags_of_one_level() -> None:
    assert set(flags_of(codec(Tree, "test").schema)) == {"value", "left"}


def test_very_deep_types_end() -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for depth in range(50):
        schema = {"type": "object", "properties": {f"f{depth}": schema}}
    assert len(flags_of(schema)) == 6


def test_a_type_without_fields_takes_any() -> None:
    free = codec(dict[str, Any], "test").schema
    assert made("--a=1", "--b=x", "--no-c", "d", of=free) == {"a": 1, "b": "x", "no-c": "d"}
    numbers = codec(dict[str, int], "test").schema
    assert made("--a=1", of=numbers) == {"a": 1}
    assert refusal("--a=x", of=numbers) == "flag --a: 'x' is no integer"
    assert refusal("--a=1", of=codec(None, "test").schema) == "Unknown flag: --a"


def test_models_of_pydantic_have_flags_too() -> None:
    schema = codec(Person, "test").schema
    assert made("--name=A", "--nick=B", "--home=city=C", of=schema) == {
        "name": "A",
        "nick": "B",
        "home": {"city": "C"},
    }
    assert refusal(of=schema) == "Missing flag: --name (string)"
    assert flags_of(schema)["name"].schema["description"] == "who it is"


@pytest.mark.parametrize(("type_", "does"), [(dict, True), (None, True), (list, False),
                                             (bytes, False), (int, False)])  # fmt: skip
def test_which_types_can_be_made_from_flags(type_: Any, does: bool) -> None:
    assert takes_fields(codec(type_, "test").schema) is does


def test_bytes_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\x00\xff")
    request = made(*NEEDED, f"--data=@{tmp_path}/file")
    assert base64.b64decode(request["data"]) == b"\x00\xff"


@pytest.mark.parametrize(
    ("args", "form"),
    [
        (["-o", "json"], "json"),
        (["-ojson"], "json"),
        (["-o=json"], "json"),
        (["--output", "json"], "json"),
        (["--output=table"], "table"),
        ([], ""),
    ],
)
def test_output_may_be_among_the_flags(args: list[str], form: str) -> None:
    given = split(["--text=x", *args, "--count=1"], SCHEMA)
    assert given.output == form
    assert given.values == {"text": ["x"], "count": ["1"]}


def test_a_field_called_output_keeps_its_flag() -> None:
    schema = {"type": "object", "properties": {"output": {"type": "string"}}}
    given = split(["--output=file", "-o", "json"], schema)
    assert (given.values, given.output) == ({"output": ["file"]}, "json")


def test_help_is_no_value_of_a_flag() -> None:
    assert split(["--text=--help"], SCHEMA).help is False
    assert split(["--count=1", "--help"], SCHEMA).help is True
    assert split(["-h"], SCHEMA).help is True


def test_types_have_names_for_people() -> None:
    flags = flags_of(SCHEMA)
    names = {name: kind(flag.schema, SCHEMA) for name, flag in flags.items()}
    assert names["text"] == "string"
    assert names["colour"] == "green|red"
    assert names["numbers"] == "[]integer"
    assert names["pair"] == "[integer, string]"
    assert names["either"] == "integer|string"
    assert names["maybe"] == "integer"
    assert names["data"] == "bytes"
    assert names["places"] == "[]object"
    assert names["anything"] == "any"
