"""Exit codes and what is said: each line of the package's docstring, over a real platform."""

from __future__ import annotations

import json

import pytest

from micro_ray import errors
from micro_ray.cli.exits import asks_json, exit_code
from micro_ray.cli.session import Session
from tests.fixtures.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="package")

CASES = [
    # 0: good
    (0, ["services"], ""),
    (0, ["toolbox", "nothing"], ""),
    # 1: failed, refused, timed out, not found, unknown command
    (1, [], "No command provided to micro. Please refer to 'micro --help'"),
    (1, ["zzzz"], "Unrecognized micro command: zzzz."),
    (1, ["store", "zzzz"], "Unrecognized subcommand for micro store: zzzz."),
    (1, ["toolbox", "fail", "--code=400"], "It went wrong"),
    (1, ["toolbox", "fail", "--code=404"], "It went wrong"),
    (1, ["toolbox", "fail", "--code=409"], "It went wrong"),
    (1, ["toolbox", "fail", "--code=413"], "It went wrong"),
    (1, ["toolbox", "fail", "--code=429"], "It went wrong"),
    (1, ["toolbox", "fail", "--code=408"], "It went wrong"),
    (1, ["toolbox", "fail", "--code=504"], "It went wrong"),
    (1, ["call", "toolbox", "slow", "{}", "--timeout=0.05"], ""),
    (1, ["call", "toolbox", "fail", '{"code": "x"}'], "Wrong input: Expected `int`"),
    (1, ["store", "read", "exits/none"], ""),
    (1, ["status", "exits-none"], "No workload 'exits-none'"),
    (1, ["kill", "exits-none"], "No workload 'exits-none'"),
    (1, ["logs", "exits-none"], "No workload 'exits-none'"),
    (1, ["update", "exits-none"], "'exits-none' neither runs nor is a folder"),
    (1, ["health", "ailing"], ""),
    (1, ["call", "toolbox", "reverse", "@nowhere"], "Nowhere: No such file or directory"),
    # 2: wrong usage, not allowed
    (2, ["services", "--zzzz"], "No such option '--zzzz'"),
    (2, ["logs"], "Missing argument 'NAME'"),
    (2, ["logs", "x", "-n", "many"], "Invalid value for '-n'"),
    (2, ["-o", "yaml", "services"], "Invalid value for '-o'"),
    (2, ["call", "toolbox", "nothing", "{"], "The request is not JSON"),
    (2, ["toolbox", "everything"], "Missing flags: --text (string), --count (integer)"),
    (2, ["toolbox", "fail", "--cod=3"], "Unknown flag: --cod; did you mean --code?"),
    (2, ["toolbox", "a", "b", "c"], "Incorrect number of arguments: a b c"),
    (2, ["toolbox", "fail", "--code=401"], "It went wrong"),
    (2, ["toolbox", "fail", "--code=403"], "It went wrong"),
    # 3: malformed endpoint
    (3, ["call", "toolbox", ".fail"], 'Method name ".fail" invalid format'),
    (3, ["call", "toolbox", "a..b"], 'Method name "a..b" invalid format'),
    (3, ["call", "toolbox", ""], 'Method name "" invalid format'),
    (3, ["call", "toolbox", "Toolbox/Fail"], "invalid format. Expecting Handler.Method"),
    (3, ["stream", "streams", "Streams."], "invalid format. Expecting Handler.Method"),
    # 4: service not found
    (4, ["call", "zzzz", "Zzzz.Call"], "No service 'zzzz'"),
    (4, ["stream", "zzzz", "Zzzz.Call"], "No service 'zzzz'"),
    (4, ["get", "service", "zzzz"], ""),
    (4, ["health", "zzzz"], "No service 'zzzz'"),
    (4, ["stats", "zzzz"], "No service 'zzzz'"),
    # 5: endpoint not found
    (5, ["call", "toolbox", "Toolbox.Zzzz"], "No endpoint 'Toolbox.Zzzz' in toolbox"),
    (5, ["stream", "streams", "Streams.Zzzz"], "No endpoint 'Streams.Zzzz' in streams"),
    (5, ["call", "network", "Network.Zzzz"], "No endpoint 'Network.Zzzz' in network"),
    (5, ["toolbox", "zzzz"], "No endpoint zzzz in toolbox"),
    # 127: another error of a service
    (127, ["toolbox", "fail", "--code=500"], "It went wrong"),
    (127, ["toolbox", "fail", "--code=501"], "It went wrong"),
    (127, ["toolbox", "fail", "--code=503"], "It went wrong"),
    (127, ["toolbox", "burst"], "ZeroDivisionError"),
]


@pytest.mark.parametrize(
    ("code", "args", "said"), CASES, ids=[f"{c}-{' '.join(a)}" for c, a, _ in CASES]
)
async def test_exit_codes(terminal: Terminal, code: int, args: list[str], said: str) -> None:
    done = await terminal.inside(*args)
    assert done.code == code, done
    assert said in done.err
    if code and args[0:1] != ["health"]:
        assert done.err.strip()
        assert not done.raw  # what went wrong is not on standard output


JSON_CASES = [(code, args) for code, args, _ in CASES if code and args and "yaml" not in args]


@pytest.mark.parametrize(
    ("code", "args"),
    [case for case in JSON_CASES if case[1][0] != "health"],
    ids=[f"{c}-{' '.join(a)}" for c, a in JSON_CASES if a[0] != "health"],
)
async def test_errors_as_json(terminal: Terminal, code: int, args: list[str]) -> None:
    done = await terminal.inside("-o", "json", *args)
    assert done.code == code
    assert not done.raw
    form = json.loads(done.err)
    assert set(form) - {"retry_after"} == {"id", "code", "detail", "status"}
    assert form["detail"]
    assert form["code"] >= 400


async def test_errors_as_json_after_the_command_too(terminal: Terminal) -> None:
    for args in (
        ["call", "zzzz", "Zzzz.Call", "-o", "json"],
        ["services", "--zzzz", "--output=json"],
        ["toolbox", "fail", "--code=409", "-o", "json"],
        ["toolbox", "zzzz", "-o", "json"],
        ["zzzz", "-o", "json"],
    ):
        done = await terminal.inside(*args)
        assert done.code
        assert set(json.loads(done.err)) >= {"id", "code", "detail", "status"}, args


async def test_anything_else(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody has foreseen is 128, in one line, also as JSON."""

    def burst(*args: object, **options: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(Session, "call", burst)
    done = await terminal.inside("services")
    assert (done.code, done.raw, done.err) == (128, b"", "ZeroDivisionError: by nothing\n")
    done = await terminal.inside("services", "-o", "json")
    assert (done.code, json.loads(done.err)["detail"]) == (128, "ZeroDivisionError: by nothing")


async def test_the_fields_of_a_service_error_arrive(terminal: Terminal) -> None:
    done = await terminal.inside("toolbox", "fail", "--code=409", "--detail=twice", "-o", "json")
    assert json.loads(done.err) == {
        "id": "toolbox", "code": 409, "detail": "twice", "status": "Conflict",
    }  # fmt: skip


async def test_an_error_cannot_drive_a_terminal(terminal: Terminal) -> None:
    done = await terminal.inside("toolbox", "fail", "--code=409", "--detail=\x1b[2Jgone\nnext")
    assert done.err == "\\x1b[2Jgone\nnext\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Unavailable("client", "no micro server"), 4),
        (errors.Unavailable("network", "no node"), 4),
        (errors.Unavailable("wire", "refused"), 4),
        (errors.BadGateway("network", "the node died"), 127),
        (errors.NotFound("registry", "no service"), 4),
        (errors.NotFound("store", "nothing"), 1),
        (errors.Unavailable("server", "cannot make the folder"), 1),
        (errors.BadRequest("settings", "bad"), 1),
        (errors.InternalError("", ""), 127),
        (errors.Cancelled("x", "gone"), 1),
    ],
)
async def test_codes_of_errors(error: errors.MicroError, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("line", "json_"),
    [
        ("services", False),
        ("-o json services", True),
        ("services -o json", True),
        ("services -ojson", True),
        ("services -o=json", True),
        ("services --output json", True),
        ("services --output=json", True),
        ("-o json call x y -o raw", False),
        ("store write k -- -o json", False),
        ("services -o", False),
        ("", False),
    ],
)
async def test_what_asks_for_json(line: str, json_: bool) -> None:
    assert asks_json(line.split()) is json_
