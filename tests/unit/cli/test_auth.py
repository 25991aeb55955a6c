"""auth, login, logout, user: accounts and rules by who is logged in."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from micro_ray.actors.backends import open_broker, open_events
from micro_ray.auth.passwords import Passwords
from micro_ray.auth.stored import StoredAuth
from micro_ray.broker.nats import NatsBroker
from micro_ray.broker.nats_spaces import NatsSpaces
from micro_ray.errors import Unavailable
from micro_ray.nats_url import parse
from micro_ray.sdk.testing import Here
from micro_ray.sealing import KeyFile
from micro_ray.settings import Auth as Settings
from micro_ray.settings import Broker, Events
from micro_ray.settings import Settings as Platform
from micro_ray.store.memory import MemoryStore
from micro_ray.wire import auth as face
from tests.fixtures.brokers import up
from tests.fixtures.nats import jetstream
from tests.fixtures.terminal import Terminal
from tests.fixtures.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def password(town: Here, state: Path) -> AsyncIterator[str]:
    """The platform has auth, with its first account."""
    async with StoredAuth(
        MemoryStore(),
        KeyFile(state / "auth.keys", "auth"),
        settings=Settings(publish=0),
        passwords=Passwords(memory=8, passes=1),
    ) as auth:
        secret = await auth.ensure_admin()
        host = await town.host("auth", face.endpoints(auth), socket_name="auth-0")
        await town.known("auth")
        yield secret
        await host.close()


@pytest_asyncio.fixture(loop_scope="package")
async def admin(terminal: Terminal, password: str) -> AsyncIterator[Terminal]:
    """Logged in as who administers."""
    done = await terminal.micro("login", "--username", "admin", "--password", password)
    assert (done.code, done.out, done.err) == (0, "Successfully logged in.\n", "")
    yield terminal
    await terminal.inside("logout")


async def test_logging_in_and_out(terminal: Terminal, password: str, state: Path) -> None:
    done = await terminal.inside("user")
    assert (done.code, done.out) == (0, "You are not logged in.\n")
    done = await terminal.inside("login", "--username", "admin", "--password", "not this")
    assert (done.code, done.out) == (2, "")
    assert "not correct" in done.err
    assert (await terminal.inside("auth", "list", "accounts")).code == 2
    done = await terminal.micro("login", "--username", "admin", "--password", password)
    assert (done.code, done.err) == (0, "")
    file = state / "credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert password not in file.read_text()
    done = await terminal.inside("user")
    assert done.out == "You are logged in as admin of micro.\n"
    refresh = next(iter(json.loads(file.read_text()).values()))["refresh"]
    assert (await terminal.inside("logout")).code == 0
    assert (await terminal.inside("user", "-o", "json")).json() is None
    asked = json.dumps({"token": refresh})
    done = await terminal.inside("call", "auth", "Auth.Refresh", asked)
    assert (done.code, "session has ended" in done.err) == (2, True)


async def test_a_file_that_others_may_read(admin: Terminal, state: Path) -> None:
    file = state / "credentials.json"
    file.chmod(0o644)
    done = await admin.inside("user")
    assert done.code != 0
    assert f"chmod 600 {file}" in done.err
    file.chmod(0o600)
    assert (await admin.inside("user")).code == 0


async def test_tokens_are_refreshed(admin: Terminal, state: Path) -> None:
    """Before they end, and once: the file has the new ones."""
    file = state / "credentials.json"
    rows = json.loads(file.read_text())
    (place,) = rows
    before = dict(rows[place])
    rows[place]["expires"] = 0
    file.write_text(json.dumps(rows))
    assert (await admin.inside("auth", "list", "accounts")).code == 0
    after = json.loads(file.read_text())[place]
    assert after["refresh"] != before["refresh"]
    assert after["access"] != before["access"]


async def test_accounts(admin: Terminal) -> None:
    done = await admin.inside(
        "auth", "create", "account", "jane", "--scopes", "a,b", "--name", "j@acme.org",
        "--metadata", "team=x",
    )  # fmt: skip
    assert done.code == 0, done
    assert done.lines[0] == "Account created: jane"
    secret = done.lines[1].removeprefix("Secret: ")
    row = next(r for r in (await admin.inside("auth", "list", "accounts")).rows() if r[0] == "jane")
    assert row[:6] == ["jane", "j@acme.org", "user", "a,", "b", "yes"]
    assert row[-1] == "team=x"
    assert secret not in (await admin.inside("auth", "list", "accounts", "-o", "json")).out
    done = await admin.inside("auth", "create", "account", "jane")
    assert (done.code, "already exists" in done.err) == (1, True)
    done = await admin.inside("auth", "update", "secret", "jane", "--new-secret", "a new secret")
    assert done.out == "Secret changed\n"
    assert (await admin.inside("auth", "update", "account", "jane", "--disable")).code == 0
    asked = json.dumps({"id": "jane", "secret": "a new secret"})
    assert (await admin.inside("call", "auth", "Auth.Token", asked)).code == 2
    assert (await admin.inside("auth", "update", "account", "jane", "--enable")).code == 0
    assert (await admin.inside("call", "auth", "Auth.Token", asked)).json()["access"]
    done = await admin.inside("auth", "delete", "account", "jane")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (await admin.inside("auth", "delete", "account", "jane")).code == 1


async def test_rules_and_why(admin: Terminal) -> None:
    args = ["--resource", "service:store:Store.Read", "--scope", "ops", "--priority", "600"]
    done = await admin.inside("auth", "create", "rule", "ops", *args)
    assert (done.code, done.out) == (0, "Rule created\n")
    rows = (await admin.inside("auth", "list", "rules")).rows()
    assert ["ops", "ops", "GRANTED", "service:store:Store.Read", "600"] in rows
    assert rows[-1] == ["default", "*", "GRANTED", "service:*:*", "0"]
    assert (await admin.inside("auth", "create", "account", "olga", "--scopes", "ops")).code == 0
    done = await admin.inside("auth", "explain", "service:store:Store.Read", "--account", "olga")
    assert done.lines[0] == "allowed: granted to the scope ops"
    done = await admin.inside("auth", "explain", "service:store:Store.Write", "--account", "olga")
    assert done.lines[0].startswith("refused: denied to every account")
    done = await admin.inside("auth", "delete", "rule", "ops")
    assert (done.code, done.out) == (0, "Rule deleted\n")
    await admin.inside("auth", "delete", "account", "olga")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["create", "rule", "r", "--resource", "store"], "format type:name:endpoint"),
        (["create", "rule", "r", "--resource", "a:b:c", "--access", "maybe"], "granted or denied"),
        (["create", "account", "a b"], "letters, digits"),
        (["create", "account"], "Missing argument"),
        (["explain", "a"], "format type:name:endpoint"),
    ],
)
async def test_what_cannot_be(admin: Terminal, args: list[str], said: str) -> None:
    done = await admin.inside("auth", *args)
    assert done.code in (1, 2)
    assert said in done.err


async def test_keys(admin: Terminal) -> None:
    rows = (await admin.inside("auth", "list", "keys")).rows()
    assert [row[1] for row in rows] == ["active", "next"]
    assert (await admin.inside("auth", "rotate")).out == "Key rotated\n"
    rows = (await admin.inside("auth", "list", "keys")).rows()
    assert [row[1] for row in rows] == ["retired", "active", "next"]
    assert (await admin.inside("auth", "list", "accounts")).code == 0, "no break"


async def test_revoking(admin: Terminal) -> None:
    await admin.inside("auth", "create", "account", "rita", "--secret", "her own secret")
    asked = json.dumps({"id": "rita", "secret": "her own secret"})
    token = (await admin.inside("call", "auth", "Auth.Token", asked)).json()["access"]
    inspect = json.dumps({"token": token})
    assert (await admin.inside("call", "auth", "Auth.Inspect", inspect)).json()["id"] == "rita"
    assert (await admin.inside("auth", "revoke", "--account", "rita")).out == "Revoked\n"
    assert (await admin.inside("call", "auth", "Auth.Inspect", inspect)).code == 2
    await admin.inside("auth", "delete", "account", "rita")


async def test_files_for_nats(lonely: Terminal, here_folder: Path) -> None:
    """With them servers keep the platform's namespaces apart, and let in nobody else."""
    done = await lonely.micro("auth", "nats", "walls")
    assert (done.code, done.err) == (0, "")
    assert done.lines == ["walls/account.key", "walls/nats.conf"]
    key, conf = (here_folder / line for line in done.lines)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    again = await lonely.micro("auth", "nats", "walls")
    assert again.code == 1
    assert "already exists" in again.err
    async with jetstream(conf.read_text()) as server:
        url = f"nats://{server.address}"
        given = Broker(url=url, account_key=str(key))
        kept = Events(url=url, account_key=str(key))
        settings = replace(Platform(), broker=given, events=kept)
        async with open_broker(settings) as broker, open_events(settings) as events:
            await eventually(lambda: up(broker))
            assert isinstance(broker, NatsSpaces)
            assert "NATS keeps namespaces apart" in (await broker.examine())[-1].text
            assert (await events.publish("t", b"1", namespace="acme")).sequence == 1
        async with NatsBroker(parse(url), patience=0.5) as stranger:
            with pytest.raises(Unavailable, match="Authorization"):
                await stranger.publish("t", b"")
