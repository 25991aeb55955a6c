"""certs: who has a certificate, the authority's keys, and their replacement."""

from __future__ import annotations

import pytest

from micro_ray.certs import Identity
from micro_ray.sdk.testing import Here
from micro_ray.wire.enrolment import enrolled
from tests.fixtures.terminal import Terminal
from tests.fixtures.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_what_there_is_and_a_new_key(terminal: Terminal, town: Here) -> None:
    (root,) = (await terminal.micro("certs", "root", "-o", "json")).json()["roots"]
    table = await terminal.inside("certs", "root")
    assert table.lines[1].split() == [root["id"][:12], "3649", "d", "signs"]
    who = Identity(namespace="micro", service="orders", node="orders-1")
    async with enrolled(town.bootstrap, who):
        (row,) = (await terminal.inside("certs", "list", "-o", "json")).json()
        assert (row["service"], row["node"], row["root"]) == ("orders", "orders-1", root["id"])
        (_, line) = (await terminal.inside("certs", "list")).lines
        assert line.split() == ["micro", "orders", "orders-1", "59", "min", root["id"][:12]]
        done = await terminal.inside("certs", "renew", "-o", "json")
        assert [one["state"] for one in done.json()["roots"]] == ["next", "signs"]

        async def over() -> bool:
            roots = (await terminal.inside("certs", "root", "-o", "json")).json()["roots"]
            return len(roots) == 1 and roots[0]["id"] != root["id"]

        await eventually(over, within=60, every=0.2)
