"""Platform services through Ray's own handles: every verb, and errors with their types."""

from __future__ import annotations

import pytest

from bench.stack import Server
from tests.journeys.conftest import Driver, Source

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


def test_every_platform_service_is_a_named_actor(server: Server, driver: Driver) -> None:
    printed = driver(
        server,
        """
        for name in (
            "registry", "router", "router-1", "store", "store-1", "broker", "events", "events-1",
            "config", "config-1", "network", "runtime",
        ):
            actor = ray.get_actor(name, namespace="micro")
            said = ray.get(actor.ping.remote())
            index = int(name.partition("-")[2] or 0)
            assert (said["service"], said["index"]) == (name.partition("-")[0], index)
            assert any(a.startswith("unix:/") for a in said["addresses"]), said
        print("good")
        """,
    )
    assert printed == "good\n"


def test_the_store_by_handle(server: Server, driver: Driver) -> None:
    """The verbs of the interface; what one actor writes the other reads."""
    printed = driver(
        server,
        """
        from micro_ray.errors import Conflict, NotFound
        from micro_ray.store import Check, Delete, Put

        one = ray.get_actor("store", namespace="micro")
        two = ray.get_actor("store-1", namespace="micro")
        place = {"table": "handles"}
        version = ray.get(one.write.remote("k", b"\\x00v", **place)).version
        assert ray.get(two.read.remote("k", **place)).value == b"\\x00v"
        assert ray.get(two.keys.remote(prefix="k", **place)) == ["k"]
        assert [r.key for r in ray.get(two.query.remote(**place))] == ["k"]
        assert "handles" in ray.get(one.tables.remote())
        assert "micro" in ray.get(one.databases.remote())
        try:
            ray.get(two.write.remote("k", b"w", expected=version + 1, **place))
        except Conflict as error:
            assert error.code == 409 and error.id == "store" and "handles/k" in error.detail, error
        else:
            raise AssertionError
        rows = [Check(key="k", expected=version, table="handles"),
                Put(key="m", value=b"1", table="handles"),
                Delete(key="k", table="handles")]
        assert len(ray.get(one.transact.remote(rows))) == 3
        ray.get(one.delete.remote("m", **place))
        try:
            ray.get(two.read.remote("k", **place))
        except NotFound as error:
            assert (error.code, error.status, error.retry_after) == (404, "Not Found", None)
        else:
            raise AssertionError
        print("good")
        """,
    )
    assert printed == "good\n"


def test_the_broker_by_handle(server: Server, driver: Driver) -> None:
    printed = driver(
        server,
        """
        from micro_ray.errors import BadRequest

        broker = ray.get_actor("broker", namespace="micro")
        listening = broker.subscribe.remote("handles.*", limit=2)
        while not ray.wait([listening], timeout=0.05)[0]:
            ray.get(broker.publish.remote("handles.a", b"\\x00v", headers={"k": "v"}))
        one, two = ray.get(listening)
        assert (one.topic, one.body, one.headers) == ("handles.a", b"\\x00v", {"k": "v"})
        assert ray.get(broker.subscribe.remote("handles.b", timeout=0.1)) == []
        try:
            ray.get(broker.publish.remote("handles.*", b""))
        except BadRequest as error:
            assert "subscribers" in error.detail
        else:
            raise AssertionError
        print("good")
        """,
    )
    assert printed == "good\n"


def test_events_by_handle(server: Server, driver: Driver) -> None:
    """What one actor takes the other gives, and either settles."""
    printed = driver(
        server,
        """
        from micro_ray.errors import Conflict, NotFound

        one = ray.get_actor("events", namespace="micro")
        two = ray.get_actor("events-1", namespace="micro")
        topic, place = "handles", {"start": "beginning", "retry_limit": 0}
        assert ray.get(one.publish.remote(topic, b"\\x00e", id="x")).sequence == 1
        assert ray.get(two.publish.remote(topic, b"", id="x")).duplicate
        try:
            ray.get(two.publish.remote(topic, b"", expected=0))
        except Conflict as error:
            assert error.code == 409 and error.id == "events", error
        else:
            raise AssertionError
        assert [e.payload for e in ray.get(two.read.remote(topic))] == [b"\\x00e"]
        (given,) = ray.get(two.fetch.remote(topic, "g", limit=5, **place))
        assert ray.get(one.fetch.remote(topic, "g", limit=5, **place)) == []
        assert ray.get(one.progress.remote(given.token)) == 1
        assert ray.get(one.nack.remote(given.token)) == 1
        (letter,) = ray.get(two.dead.remote(topic, "g"))
        assert letter.event == given.event
        assert ray.get(one.requeue.remote(topic, "g")) == 1
        (given,) = ray.get(one.fetch.remote(topic, "g", wait=5, **place))
        assert ray.get(two.ack.remote(given.token)) == 1
        (group,) = ray.get(two.groups.remote(topic))
        assert (group.name, group.pending, group.dead) == ("g", 0, 0)
        try:
            ray.get(two.discard.remote(topic, "none"))
        except NotFound as error:
            assert error.code == 404, error
        else:
            raise AssertionError
        assert ray.get(one.retain.remote(topic, ttl=60)).ttl == 60
        assert topic in [t.name for t in ray.get(two.topics.remote())]
        assert ray.get(one.delete_group.remote(topic, "g"))
        assert ray.get(one.delete.remote(topic))
        print("good")
        """,
    )
    assert printed == "good\n"


def test_registry_router_and_network_by_handle(server: Server, driver: Driver) -> None:
    printed = driver(
        server,
        """
        import json
        from micro_ray.errors import BadRequest, NotFound
        from micro_ray.registry import Instance, Node
        from micro_ray.router import Filter

        registry = ray.get_actor("registry", namespace="micro")
        (store,) = ray.get(registry.get.remote("store"))
        assert len(store.nodes) == 2 and {e.name for e in store.endpoints} >= {"Store.Read"}
        assert "runtime" in {s.name for s in ray.get(registry.services.remote())}
        node = Node(id="far-1", addresses=("tcp:127.0.0.1:9",))
        ray.get(registry.register.remote(Instance(service="far", node=node), ttl=5.0))
        assert ray.get(registry.renew.remote("micro", ["far-1", "nobody"])) == ["nobody"]
        assert any(i.node.id == "far-1" for i in ray.get(registry.snapshot.remote()).instances)
        router = ray.get_actor("router", namespace="micro")
        import time
        end = time.monotonic() + 5
        while not (routes := ray.get(router.lookup.remote("far"))) and time.monotonic() < end:
            pass
        assert [r.id for r in routes] == ["far-1"], routes
        assert ray.get(router.lookup.remote("far", filter=Filter(version="v9"))) == []
        assert "far" in ray.get(router.services.remote())
        ray.get(registry.deregister.remote("micro", "far-1"))
        try:
            ray.get(registry.register.remote(Instance(service="no name", node=node)))
        except BadRequest as error:
            assert "service" in error.detail
        else:
            raise AssertionError
        network = ray.get_actor("network", namespace="micro")
        answer = ray.get(network.call.remote("store", "Store.Databases", b"{}"))
        assert "databases" in json.loads(answer)
        try:
            ray.get(network.call.remote("stor", "Store.Databases", b"{}"))
        except NotFound as error:
            assert "store" in error.detail
        else:
            raise AssertionError
        assert {"store", "router"} <= {n.service for n in ray.get(network.nodes.remote())}
        assert {r.service for r in ray.get(network.routes.remote())} >= {"store", "network"}
        print("good")
        """,
    )
    assert printed == "good\n"


def test_the_runtime_by_handle(server: Server, driver: Driver, source: Source) -> None:
    """A workload from its source to its end, without the command line."""
    folder = source(
        "handled",
        """
        from micro_ray import Service
        service = Service("handled")
        @service.endpoint
        async def call() -> str:
            return "here"
        """,
    )
    printed = driver(
        server,
        f"""
        import time
        from micro_ray import Client
        from micro_ray.errors import Conflict, NotFound
        from micro_ray.runtime import State, Workload
        from micro_ray.runtime.source import pack
        from micro_ray.wire.runtime import RemoteRuntime
        from pathlib import Path

        with Client() as client:
            archive = pack(Path({folder!r}))
            digest = client.run(lambda c: RemoteRuntime(c).upload(archive))
            runtime = ray.get_actor("runtime", namespace="micro")
            workload = Workload(name="handled", source="x", digest=digest)
            ray.get(runtime.create.remote(workload))
            try:
                ray.get(runtime.create.remote(workload))
            except Conflict:
                pass
            else:
                raise AssertionError
            end = time.monotonic() + 30
            while ray.get(runtime.read.remote("handled"))[0].state != State.RUNNING:
                assert time.monotonic() < end
                time.sleep(0.05)
            assert client.call("handled") == "here"
            ray.get(runtime.update.remote("handled", {{"replicas": 0}}))
            assert ray.get(runtime.logs.remote("handled"))
            ray.get(runtime.remove.remote("handled"))
            try:
                ray.get(runtime.read.remote("handled"))
            except NotFound:
                print("good")
        """,
    )
    assert printed == "good\n"
