"""What the door tells auth of who asks, and nobody else."""

from __future__ import annotations

import pytest

from micro_ray.context import current
from micro_ray.sdk.testing import Here
from micro_ray.wire.endpoints import Endpoints
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.api.door import Door

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_credentials_are_for_auth_alone(door: Door, town: Here) -> None:
    seen: dict[str, dict[str, str]] = {}

    async def call() -> None:
        """Note who asks."""
        seen[current().service] = dict(current().metadata)

    hosts = []
    for name in ("auth", "other"):
        hosts.append(await town.host(name, Endpoints(name).add(f"{name.title()}.Call", call)))
        await town.known(name)
    network = door.api.network
    for name in ("auth", "other"):
        await eventually(lambda: network.table.known("micro", name), within=PROMPT)  # noqa: B023 - awaited here
        sent = {"authorization": "Bearer abc", "micro-source": "10.9.9.9"}
        answer = await door.http.post(f"/{name}", json={}, headers=sent)
        assert answer.status_code == 200, answer.text
    assert seen["auth"]["authorization"] == "Bearer abc"
    assert seen["auth"]["micro-source"] == "127.0.0.1"
    assert not {"authorization", "micro-source"} & set(seen["other"])
    answer = await door.http.post("/auth", json={}, headers={"authorization": "x" * 8193})
    assert answer.status_code == 431
    for host in hosts:
        await host.close()
