"""Config as a service has it, on a whole platform in this process."""

from __future__ import annotations

import asyncio

import pytest

from micro_ray import Service
from micro_ray.config.stored import StoredConfig
from micro_ray.errors import BadRequest, Unavailable
from micro_ray.sdk.config import ServiceConfig
from micro_ray.sdk.testing import Here
from micro_ray.sealing import KeyFile
from micro_ray.wire import config as face
from tests.fixtures.wait import eventually


async def test_a_service_reads_and_writes(here: Here) -> None:
    service = Service("settled")

    @service.endpoint
    async def call(name: str) -> dict[str, str]:
        await service.config.set(f"seen.{name}", True)
        return {"greeting": await service.config.get("greeting", "Hello")}

    with pytest.raises(Unavailable):
        _ = service.config
    await here.serve(service)
    assert await here.client.call("settled", "call", {"name": "ann"}) == {"greeting": "Hello"}
    await here.config.set("greeting", "Ahoi")
    assert await here.client.call("settled", "call", {"name": "bob"}) == {"greeting": "Ahoi"}
    assert await here.config.get("seen") == {"ann": True, "bob": True}
    assert (await here.config.history("seen"))[0].author == "settled"


async def test_a_watched_value(here: Here) -> None:
    config = ServiceConfig(here.client)
    async with (
        asyncio.timeout(20),
        config.watched("mail.port", 25) as port,
        config.watched("mail") as mail,
        config.watched("mail.key", secret=True) as key,
    ):
        assert (port.value, mail.value, port.stale) == (25, None, False)
        waiting = asyncio.ensure_future(port.changed())
        await asyncio.sleep(0)
        await here.config.set("mail.port", 26)
        assert await waiting == 26
        await here.config.set("mail.key", "hunter2", secret=True)
        await eventually(lambda: key.value == "hunter2")
        await eventually(lambda: mail.value == {"port": 26, "key": "[secret]"})
        await here.config.delete("mail.port")
        await eventually(lambda: port.value == 25)
        for i in range(50):
            await here.config.set("mail.port", i)
        await eventually(lambda: port.value == 49)
    before = len(asyncio.all_tasks())
    async with config.watched("mail.port") as port:
        pass
    await eventually(lambda: len(asyncio.all_tasks()) <= before)
    with pytest.raises(BadRequest):
        async with config.watched("a..b"):
            pass


async def test_a_watched_value_stays_while_config_is_gone(here: Here) -> None:
    """And is followed again when another node is there."""
    config = ServiceConfig(here.client, patience=0.1)
    await here.config.set("a", 1)
    async with config.watched("a") as value:
        await here.config.close()  # every watch and call is refused from now on
        await eventually(lambda: value.stale)
        assert value.value == 1
        keys = KeyFile(here.bootstrap.run / "config.keys")
        async with StoredConfig(here.store, keys) as other:
            await here.host("config", face.endpoints(other), socket_name="config-1")
            await other.set("a", 2)
            await eventually(lambda: (value.value, value.stale) == (2, False), within=20)


async def test_endpoints_are_published(here: Here) -> None:
    (entry,) = [e for e in await here.client.entries() if e.service == "config"]
    streams = {e.name: e.stream for e in entry.endpoints}
    assert streams.pop("Config.Watch") == "server"
    assert set(streams) == {
        f"Config.{name}"
        for name in ("Get", "List", "Set", "Delete", "Merge", "Version", "History", "Diff",
                     "Rollback", "Rotate")
    }  # fmt: skip
    assert all(not stream for stream in streams.values())


async def test_defaults_over_the_wire(here: Here) -> None:
    given = await here.client.call("config", "get", {"path": "none", "default": [1]})
    assert (given["data"], given["version"]) == ([1], 0)
    await here.client.call("config", "set", {"path": "a.b", "value": None})
    found = await here.client.call("config", "get", {"path": "a.b", "default": 1})
    assert found["data"] is None
    listed = await here.client.call("config", "list")
    assert [item["path"] for item in listed["items"]] == ["a.b"]
