"""The environments: what is kept, what is refused, and which one is meant."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest

from micro_ray.sdk import environments
from micro_ray.sdk.logins import Login, Logins
from tests.fixtures.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.fixture
def there(lonely: Terminal) -> Terminal:
    """A terminal with files of its own."""
    return lonely.within(MICRO_CREDENTIALS=f"{lonely.environ['MICRO_STATE']}/mine/credentials.json")


def kept(terminal: Terminal) -> Path:
    return Path(terminal.environ["MICRO_CREDENTIALS"]).with_name("environments.json")


async def test_from_the_first_to_the_last(there: Terminal) -> None:
    assert (await there.inside("env", "get")).lines == ["local"]
    assert (await there.inside("env", "list")).rows() == [["*", "local", "this", "machine"]]
    done = await there.inside("env", "add", "prod", "grpcs://Prod.example.com:8081")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (await there.inside("env", "add", "near", "127.0.0.1:9000")).err == ""
    assert stat.S_IMODE(kept(there).stat().st_mode) == 0o600
    assert stat.S_IMODE(kept(there).parent.stat().st_mode) == 0o700
    assert (await there.inside("env", "set", "prod")).code == 0
    assert (await there.inside("env", "get", "-o", "json")).json() == "prod"
    assert (await there.inside("env", "list", "-o", "json")).json() == [
        {"name": "local", "address": "", "ca": "", "current": False},
        {"name": "prod", "address": "grpcs://prod.example.com:8081", "ca": "", "current": True},
        {"name": "near", "address": "grpc://127.0.0.1:9000", "ca": "", "current": False},
    ]
    done = await there.inside("env", "del", "prod")
    assert (done.code, done.err) == (1, "Prod is the current one: micro env set local\n")
    assert (await there.inside("env", "set", "local")).code == 0
    assert (await there.inside("env", "del", "prod")).code == 0
    assert [row[-1] for row in (await there.inside("env", "list")).rows()] == [
        "machine", "grpc://127.0.0.1:9000",
    ]  # fmt: skip


async def test_which_one_is_meant(there: Terminal) -> None:
    """What the command line names, else the variable, else the current one."""
    for name in ("one", "two", "three"):
        await there.inside("env", "add", name, "127.0.0.1:9000")
    await there.inside("env", "set", "one")
    two = there.within(MICRO_ENV="two")
    assert (await there.inside("env", "get")).lines == ["one"]
    assert (await two.inside("env", "get")).lines == ["two"]
    assert (await two.inside("-e", "three", "env", "get")).lines == ["three"]
    assert (await two.inside("--env=local", "env", "get")).lines == ["local"]
    rows = (await two.inside("env", "-o", "json")).json()
    assert rows == {
        "environment": "two",
        "proxy": "grpc://127.0.0.1:9000",
        "ca": "none",
        "namespace": "micro",
        "user": "none",
    }


async def test_one_that_there_is_not(there: Terminal) -> None:
    await there.inside("env", "add", "prod", "127.0.0.1:9000")
    for args in (["env", "set", "prd"], ["env", "del", "prd"], ["--env", "prd", "services"]):
        done = await there.inside(*args)
        assert (done.code, done.raw) == (1, b"")
        assert done.err == "Environment 'prd' does not exist. Did you mean prod?\n"
    nowhere = there.within(MICRO_ENV="zzz")
    assert (await nowhere.inside("services")).err.endswith("See `micro env list`.\n")
    assert (await nowhere.inside("env", "list")).code == 0  # and it can be put right


@pytest.mark.parametrize("name", ["", "-x", ".x", "a b", "a/b", "ü", "a\nb", "x" * 64])
async def test_no_name(there: Terminal, name: str) -> None:
    done = await there.inside("env", "add", "--", name, "127.0.0.1:9000")
    assert (done.code, "letters, digits" in done.err) == (1, True), done


@pytest.mark.parametrize(
    "address",
    [
        "", "host", "host:", ":8081", "host:0", "host:65536", "host:x", "http://host:80",
        "grpc://", "grpc://user@host:80", "grpcs://host:80/path", "host:80?x", "a b:80", "ü:80",
        "unix:/tmp/x", "grpc://grpc://host:80", "::1:80", "[::1]", f"{'a' * 300}:80",
    ],
)  # fmt: skip
async def test_no_address(there: Terminal, address: str) -> None:
    done = await there.inside("env", "add", "x", address)
    assert (done.code, "host:port" in done.err) == (1, True), done
    assert not kept(there).exists()


@pytest.mark.parametrize(
    ("given", "kept_as"),
    [
        ("host:1", "grpc://host:1"),
        ("GRPC://HOST:1", "grpc://host:1"),
        ("grpcs://[::1]:443", "grpcs://[::1]:443"),
        ("10.0.0.1:65535", "grpc://10.0.0.1:65535"),
    ],
)
async def test_addresses(given: str, kept_as: str) -> None:
    assert environments.address_of(given) == kept_as


async def test_a_name_that_is_taken(there: Terminal) -> None:
    await there.inside("env", "add", "x", "127.0.0.1:9000")
    for name in ("x", "local"):
        done = await there.inside("env", "add", name, "127.0.0.1:9001")
        assert (done.code, "exists already" in done.err) == (1, True)
    done = await there.inside("env", "del", "local")
    assert (done.code, "always there" in done.err) == (1, True)


async def test_as_many_as_there_may_be(there: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "MOST", 2)
    for name in ("a", "b"):
        assert (await there.inside("env", "add", name, "127.0.0.1:9000")).code == 0
    done = await there.inside("env", "add", "c", "127.0.0.1:9000")
    assert (done.code, done.err) == (1, "There are 2 environments; 2 allowed\n")


async def test_added_at_once(there: Terminal) -> None:
    """None is lost."""
    names = [f"n{i}" for i in range(6)]
    done = await asyncio.gather(*(there.micro("env", "add", n, "127.0.0.1:9000") for n in names))
    assert all(each.code == 0 for each in done)
    rows = (await there.inside("env", "list", "-o", "json")).json()
    assert {row["name"] for row in rows} == {"local", *names}


async def test_tokens_that_others_could_read(there: Terminal) -> None:
    done = await there.inside("env", "add", "x", "db.example.com:8081")
    assert done.code == 0
    assert "unencrypted; use grpcs://" in done.err


async def test_a_file_that_others_may_read(there: Terminal) -> None:
    await there.inside("env", "add", "x", "127.0.0.1:9000")
    kept(there).chmod(0o644)
    done = await there.inside("env", "list")
    assert (done.code, f"chmod 600 {kept(there)}" in done.err) == (1, True)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", '{"environments": []}', '{"environments": {"x": 3}}',
        '{"environments": {"x": {}}}', '{"environments": {"x": {"address": "no"}}}',
        '{"environments": {"x y": {"address": "h:1"}}}', '{"current": 3}',
        '{"environments": {"x": {"address": "h:1", "ca": 3}}}', "[" * 100_000,
    ],
)  # fmt: skip
async def test_a_damaged_file(there: Terminal, text: str) -> None:
    kept(there).parent.mkdir()
    kept(there).write_text(text)
    kept(there).chmod(0o600)
    done = await there.inside("env", "list")
    assert (done.code, "is damaged: remove it" in done.err) == (1, True), done
    assert "Traceback" not in done.err


async def test_a_current_one_that_is_gone_is_this_machine(there: Terminal) -> None:
    kept(there).parent.mkdir()
    kept(there).write_text(json.dumps({"current": "gone"}))
    kept(there).chmod(0o600)
    assert (await there.inside("env", "get")).lines == ["local"]


async def test_who_one_is_goes_with_the_last_of_an_address(there: Terminal) -> None:
    logins = Logins(Path(there.environ["MICRO_CREDENTIALS"]))
    known = Login(id="jane", namespace="micro", access="a", expires=0, refresh="r")
    for name in ("a", "b"):
        await there.inside("env", "add", name, "127.0.0.1:9000")
    logins.write("grpc://127.0.0.1:9000", known)
    await there.inside("env", "del", "a")
    assert logins.read("grpc://127.0.0.1:9000") == known
    await there.inside("env", "del", "b")
    assert logins.read("grpc://127.0.0.1:9000") is None


async def test_certificates(there: Terminal, here_folder: Path) -> None:
    text = here_folder / "no.pem"
    text.write_text("none")
    done = await there.inside("env", "add", "x", "grpcs://h:1", "--ca", "no.pem")
    assert (done.code, done.err) == (1, "No.pem: it has no certificates (PEM)\n")
    done = await there.inside("env", "add", "x", "grpcs://h:1", "--ca", "gone.pem")
    assert (done.code, done.err) == (1, "Gone.pem: No such file or directory\n")
    text.write_bytes(b"x" * (environments.MAX_CA + 1))
    done = await there.inside("env", "add", "x", "grpcs://h:1", "--ca", "no.pem")
    assert (done.code, "allowed" in done.err) == (1, True)


async def test_what_is_of_this_machine_says_so(there: Terminal) -> None:
    await there.inside("env", "add", "far", "127.0.0.1:9000")
    for args in (["env", "ray"], ["server"], ["health", "x"], ["stats", "x"]):
        done = await there.inside("-e", "far", *args)
        assert (done.code, done.raw) == (1, b"")
        assert "commands go to the environment far (grpc://127.0.0.1:9000)" in done.err
