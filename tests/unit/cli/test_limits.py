"""limits: set, listed, used and removed."""

from __future__ import annotations

import pytest

from micro_ray.sdk.testing import Here
from tests.fixtures.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_set_list_unset(terminal: Terminal, town: Here) -> None:
    """Setting and removing print nothing; what is not given stays."""
    done = await terminal.micro("limits", "set", "account", "ada@x.org", "--rate", "5")
    assert (done.code, done.raw, done.err) == (0, b"", "")
    done = await terminal.inside(
        "limits", "set", "account", "ada@x.org", "--concurrency", "2", "--burst", "7"
    )
    assert done.code == 0
    await terminal.inside("limits", "set", "route", "--rate", "0.5")
    assert (await terminal.inside("limits", "list")).lines == [
        "KIND     NAME       RATE  BURST  CONCURRENCY",
        "account  ada@x.org  5     7      2",
        "route    (each)     0.5   (1 s)  n/a",
    ]
    (rule, _) = (await terminal.inside("limits", "list", "-o", "json")).json()["rules"]
    assert rule["limit"] == {"rate": 5.0, "burst": 7, "concurrency": 2}
    history = await town.config.history("limits")
    assert history[0].author, "whoever ran the command"
    for args in (("account", "ada@x.org"), ("route",)):
        done = await terminal.inside("limits", "unset", *args)
        assert (done.code, done.raw, done.err) == (0, b"", "")
    done = await terminal.inside("limits", "unset", "route")
    assert done.code == 1
    assert "route has no limit in namespace micro" in done.err
    assert (await terminal.inside("limits", "list", "-o", "json")).json()["rules"] == []


async def test_what_cannot_be_is_said(terminal: Terminal, town: Here) -> None:
    done = await terminal.inside("limits", "set", "namespace", "--rate", "-1")
    assert done.code == 1
    assert "ate is '-1.0', not a number from 0.001 to 1000000" in done.err
    done = await terminal.inside("limits", "set", "realm", "--rate", "1")
    assert done.code == 2
    await town.config.set("limits", {"namespace": {"rate": 3}})
    await town.config.set("limits", {"namespace": {"rate": "much"}})
    done = await terminal.inside("limits", "list")
    assert done.lines[1].split() == ["namespace", "(all)", "3", "(1", "s)", "n/a"]
    assert "not in force, as config has it: limits.namespace.rate is 'much'" in done.err
    await town.config.delete("limits")


async def test_what_may_be_done_and_kept_in_a_backend(terminal: Terminal, town: Here) -> None:
    await town.config.set("limits.store", {"bytes": 1000, "records": 5})
    await town.config.set("limits.events.topics", 7)
    done = await terminal.inside("limits", "set", "store", "--rate", "50")
    assert (done.code, done.raw) == (0, b"")
    assert (await terminal.inside("limits", "list")).lines == [
        "KIND   NAME   RATE  BURST  CONCURRENCY",
        "store  (all)  50    (1 s)  n/a",
        "",
        "in the store: at most 1000 bytes and 5 records",
        "",
        "in events: at most 7 topics",
    ]
    done = await terminal.inside("limits", "set", "events", "--concurrency", "5")
    assert done.code == 1
    assert "what is done in events has a rate alone" in done.err
    assert (await terminal.inside("limits", "unset", "store")).code == 0
    assert await town.config.get("limits.store") == {"bytes": 1000, "records": 5}
    await town.config.delete("limits")


async def test_usage(terminal: Terminal, town: Here) -> None:
    assert (await terminal.inside("limits", "usage", "-o", "json")).json() == []
    assert (await terminal.inside("limits", "usage")).lines[0].split()[0] == "KIND"
