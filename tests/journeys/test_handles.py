"""Platform services through Ray's own handles: every verb, and errors with their types."""

from __future__ import annotations

import textwrap

import pytest

from bench.stack import Server
from tests.journeys.conftest import Driver, Source

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

#: For drivers: how many generators of a name run in an actor, and waiting for something.
RUNNING = """
import time

def count(actor, name):
    import gc, types
    return sum(
        isinstance(each, types.AsyncGeneratorType)
        and each.ag_frame is not None
        and each.ag_code.co_name == name
        for each in gc.get_objects()
    )

def running(actor, name="watch"):
    return ray.get(actor.__ray_call__.remote(count, name))

def eventually(good):
    end = time.monotonic() + 20
    while not good():
        assert time.monotonic() < end, good
        time.sleep(0.05)
"""


def test_every_platform_service_is_a_named_actor(server: Server, driver: Driver) -> None:
    printed = driver(
        server,
        """
        for name in (
            "registry", "router", "router-1", "store", "store-1", "broker", "events", "events-1",
            "config", "config-1", "auth", "authcache", "limits", "network", "runtime", "certs",
        ):
            actor = handle(name)
            said = ray.get(actor.ping.remote())
            index = int(name.partition("-")[2] or 0)
            assert (said["service"], said["index"]) == (name.partition("-")[0], index)
            assert any(a.startswith("unix:/") for a in said["addresses"]), said
        print("good")
        """,
    )
    assert printed == "good\n"


def test_a_handle_asks_who_calls(server: Server, driver: Driver) -> None:
    """And says why not, as an error of the platform with its fields."""
    printed = driver(
        server,
        """
        from micro_ray.errors import Unauthorized

        calls = {
            "store": lambda a, **me: ray.get(a.databases.remote(**me)),
            "store-1": lambda a, **me: ray.get(next(a.watch.remote(revision=0, **me))),
            "config": lambda a, **me: ray.get(a.get.remote(**me)),
            "broker": lambda a, **me: ray.get(a.publish.remote("t", b"", **me)),
            "events": lambda a, **me: ray.get(a.publish.remote("t", b"", **me)),
            "registry": lambda a, **me: ray.get(a.snapshot.remote(**me)),
            "router": lambda a, **me: ray.get(next(a.watch.remote(**me))),
            "network": lambda a, **me: ray.get(a.call.remote("store", "Store.Query", **me)),
            "runtime": lambda a, **me: ray.get(a.read.remote(**me)),
            "limits": lambda a, **me: ray.get(a.usage.remote(**me)),
            "certs": lambda a, **me: ray.get(a.renew.remote(**me)),
            "authcache": lambda a, **me: ray.get(a.status.remote(**me)),
        }
        for name, call in calls.items():
            for me in ({}, {"credential": "x"}):
                try:
                    call(ray.get_actor(name, namespace="micro"), **me)
                except Unauthorized as error:
                    assert error.code == 401 and error.detail, error
                else:
                    raise AssertionError(name)
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

        one = handle("store")
        two = handle("store-1")
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


def test_a_watch_of_the_store_by_handle(server: Server, driver: Driver) -> None:
    """From a revision on, with what another actor writes; who leaves by ``ray.cancel`` leaves
    nothing behind."""
    code = """
        one = handle("store")
        two = handle("store-1")
        place = {"table": "watched"}
        before = running(one)
        ray.get(two.write.remote("a", b"0", **place))
        revision = ray.get(one.revision.remote())
        first = ray.get(two.write.remote("a", b"1", **place)).version
        changes = one.watch.remote(revision=revision, prefix="a", **place)
        ray.get(two.write.remote("b", b"2", **place))
        ray.get(two.delete.remote("a", **place))
        put, delete = (ray.get(next(changes)) for _ in range(2))
        assert (put.revision, put.action, put.key) == (first, "put", "a"), put
        assert (delete.action, delete.key, delete.table) == ("delete", "a", "watched"), delete
        assert running(one) > before
        ray.cancel(changes)
        eventually(lambda: running(one) == before)
        print("good")
        """
    assert driver(server, RUNNING + textwrap.dedent(code)) == "good\n"


def test_a_reader_that_dies_is_found_out(server: Server, driver: Driver) -> None:
    """It could not cancel: its stream ends when it next has something for it."""
    code = """
        store = handle("store")
        print(running(store))
        revision = ray.get(store.revision.remote())
        changes = store.watch.remote(revision=revision, table="orphans")
        ray.get(store.write.remote("a", b"", table="orphans"))
        assert ray.get(next(changes)).key == "a"
        assert running(store) > 0
        import os, sys
        sys.stdout.flush()
        os._exit(0)
        """
    before = int(driver(server, RUNNING + textwrap.dedent(code)))
    code = f"""
        store = handle("store")
        def gone():
            ray.get(store.write.remote("a", b"", table="orphans"))
            return running(store) == {before}
        eventually(gone)
        print("good")
        """
    assert driver(server, RUNNING + textwrap.dedent(code)) == "good\n"


def test_blobs_by_handle(server: Server, driver: Driver) -> None:
    """In and out as streams; a reader that stops holds the actor back."""
    code = """
        from micro_ray.errors import BadRequest, NotFound

        one = handle("store")
        two = handle("store-1")

        @ray.remote
        def piece(index):
            return bytes([index]) * 300_000

        @ray.remote
        def broken():
            raise ValueError("no piece of mine")

        parts = [ray.put(bytes([index]) * 300_000) for index in range(23)]
        parts = [b"head", *parts, piece.remote(23), bytearray(b"tail")]
        blob = ray.get(one.write_blob.remote("handles/big", parts))
        whole = b"head" + b"".join(bytes([i]) * 300_000 for i in range(24)) + b"tail"
        assert (blob.key, blob.size) == ("handles/big", len(whole)), blob
        read = [ray.get(piece) for piece in two.read_blob.remote("handles/big")]
        assert b"".join(read) == whole
        assert max(map(len, read)) <= 65536
        assert ray.get(one.write_blob.remote("handles/small", ray.put(b"whole"))).size == 5
        listed = ray.get(two.blobs.remote(prefix="handles/"))
        assert [blob.key for blob in listed] == ["handles/big", "handles/small"]
        for wrong, said in (
            (["text"], "a piece of the stream is str"),
            ("text", "a piece of the stream is str"),
            (7, "int is no stream"),
            ([b"x", broken.remote()], "no piece of mine"),
        ):
            try:
                ray.get(one.write_blob.remote("handles/wrong", wrong))
            except BadRequest as error:
                assert said in error.detail and error.id == "store", error
            else:
                raise AssertionError(wrong)
        before = running(two, "read_blob")
        reading = two.read_blob.remote("handles/big")
        assert ray.get(next(reading))[:4] == b"head"
        time.sleep(0.5)
        assert running(two, "read_blob") > before
        ray.cancel(reading)
        eventually(lambda: running(two, "read_blob") == before)
        for key in ("handles/big", "handles/small"):
            assert ray.get(two.delete_blob.remote(key))
        try:
            ray.get(next(one.read_blob.remote("handles/big")))
        except NotFound as error:
            assert error.code == 404
        else:
            raise AssertionError
        print("good")
        """
    assert driver(server, RUNNING + textwrap.dedent(code)) == "good\n"


def test_the_broker_by_handle(server: Server, driver: Driver) -> None:
    code = """
        from micro_ray.errors import BadRequest

        broker = handle("broker")
        ray.get(broker.check.remote())
        before = running(broker, "subscribe")
        messages = broker.subscribe.remote("handles.*", queue="q", confirm=True)
        assert ray.get(next(messages)).topic == "handles.*"
        for topic in ("handles.a", "handles.b"):
            ray.get(broker.publish.remote(topic, b"\\x00v", headers={"k": "v"}))
        one, two = (ray.get(next(messages)) for _ in range(2))
        assert (one.topic, one.body, one.headers) == ("handles.a", b"\\x00v", {"k": "v"})
        assert two.topic == "handles.b"
        ray.cancel(messages)
        eventually(lambda: running(broker, "subscribe") == before)
        for call in (
            lambda: broker.publish.remote("handles.*", b""),
            lambda: next(broker.subscribe.remote("a..b")),
        ):
            try:
                ray.get(call())
            except BadRequest as error:
                assert error.id == "broker", error
            else:
                raise AssertionError
        print("good")
        """
    assert driver(server, RUNNING + textwrap.dedent(code)) == "good\n"


def test_config_by_handle(server: Server, driver: Driver) -> None:
    """What one actor is told to write the other's watch tells."""
    code = """
        one = handle("config")
        two = handle("config-1")
        begun = ray.get(one.version.remote())
        before = running(two)
        written = ray.get(one.set.remote("handles.a", 1, by="me"))
        versions = two.watch.remote("handles", version=begun)
        again = ray.get(one.merge.remote("handles", {"a": 2}))
        first, second = (ray.get(next(versions)) for _ in range(2))
        assert (first.version, first.author, second.version) == (written, "admin", again)
        assert [c.new for c in (*first.changes, *second.changes)] == [1, 2]
        ray.cancel(versions)
        eventually(lambda: running(two) == before)
        assert ray.get(two.get.remote("handles.a")) == 2
        ray.get(one.delete.remote("handles"))
        print("good")
        """
    assert driver(server, RUNNING + textwrap.dedent(code)) == "good\n"


def test_events_by_handle(server: Server, driver: Driver) -> None:
    """What one actor takes the other gives, and either settles."""
    printed = driver(
        server,
        """
        from micro_ray.errors import Conflict, NotFound

        one = handle("events")
        two = handle("events-1")
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
        taken = one.consume.remote(topic, "held", start="beginning", auto_ack=False)
        held = ray.get(next(taken))
        assert ray.get(two.fetch.remote(topic, "held")) == []
        ray.cancel(taken)  # what it was given goes to another at once
        (given,) = ray.get(two.fetch.remote(topic, "held", wait=10))
        assert (given.event, given.attempt) == (held.event, 2), given
        told = [ray.get(event) for event in two.replay.remote(topic)]
        assert [event.payload for event in told] == [b"\\x00e"]
        assert ray.get(one.delete_group.remote(topic, "g"))
        assert ray.get(one.delete.remote(topic))
        print("good")
        """,
    )
    assert printed == "good\n"


def test_a_stream_of_events_is_not_ahead_of_its_reader(server: Server, driver: Driver) -> None:
    """What is settled by itself has been taken: the rest goes to others when the reader leaves."""
    code = """
        one = handle("events")
        two = handle("events-1")
        for _ in range(5):
            ray.get(one.publish.remote("ahead", b""))
        taken = one.consume.remote("ahead", "g", start="beginning")
        assert [ray.get(next(taken)).event.sequence for _ in range(2)] == [1, 2]
        time.sleep(0.3)  # had it run ahead of its reader, it would be at the end by now
        ray.cancel(taken)
        given = []
        def all_given():
            found = ray.get(two.fetch.remote("ahead", "g", limit=5, wait=5))
            given.extend(delivery.event.sequence for delivery in found)
            return 5 in given
        eventually(all_given)
        # Whether the second was taken may not have been known yet.
        assert given in ([3, 4, 5], [2, 3, 4, 5]), given
        ray.get(one.delete.remote("ahead"))
        print("good")
        """
    assert driver(server, RUNNING + textwrap.dedent(code)) == "good\n"


def test_registry_and_router_by_handle(server: Server, driver: Driver) -> None:
    """Both tell who watches of a node that comes and goes."""
    code = """
        from micro_ray.errors import BadRequest, Conflict
        from micro_ray.registry import Instance, Node
        from micro_ray.router import Filter

        registry = handle("registry")
        router = handle("router")
        (store,) = ray.get(registry.get.remote("micro", "store"))
        assert len(store.nodes) == 2 and {e.name for e in store.endpoints} >= {"Store.Read"}
        assert "runtime" in {s.name for s in ray.get(registry.list.remote("micro"))}
        before = running(registry), running(router)
        known = ray.get(registry.snapshot.remote())
        changes = registry.watch.remote(epoch=known.epoch, revision=known.revision)
        deltas = router.watch.remote()
        delta = ray.get(next(deltas))
        assert delta.full
        node = Node(id="far-1", addresses=("tcp:127.0.0.1:9",))
        ray.get(registry.register.remote(Instance(service="far", node=node), ttl=5.0))
        assert ray.get(registry.renew.remote("micro", ["far-1", "nobody"])) == ["nobody"]
        assert any(i.node.id == "far-1" for i in ray.get(registry.snapshot.remote()).instances)
        while (change := ray.get(next(changes))).instance.service != "far":
            pass
        assert (change.action, change.instance.node) == ("put", node), change
        while "far" not in {route.service for route in delta.routes}:
            delta = ray.get(next(deltas))
        assert not delta.full
        assert [r.id for r in ray.get(router.lookup.remote("far"))] == ["far-1"]
        assert ray.get(router.lookup.remote("far", filter=Filter(version="v9"))) == []
        assert [r.id for r in ray.get(router.read.remote("FAR"))] == ["far-1"]
        assert {r.service for r in ray.get(router.read.remote())} >= {"far", "store"}
        assert "far" in {e.service for e in ray.get(router.entries.remote())}
        ray.get(registry.deregister.remote("micro", "far-1"))
        while (change := ray.get(next(changes))).action != "delete":
            pass
        assert change.instance.node.id == "far-1"
        while ("micro", "far-1") not in ray.get(next(deltas)).gone:
            pass
        assert running(registry) > before[0] and running(router) > before[1]
        ray.cancel(changes)
        ray.cancel(deltas)
        eventually(lambda: (running(registry), running(router)) == before)
        for wrong, call in (
            (BadRequest, lambda: registry.register.remote(Instance(service="no name", node=node))),
            (Conflict, lambda: next(registry.watch.remote(epoch="another", revision=0))),
        ):
            try:
                ray.get(call())
            except wrong as error:
                assert error.id == "registry", error
            else:
                raise AssertionError
        print("good")
        """
    assert driver(server, RUNNING + textwrap.dedent(code)) == "good\n"


def test_the_network_by_handle(server: Server, driver: Driver) -> None:
    printed = driver(
        server,
        """
        import json
        from micro_ray.errors import NotFound

        network = handle("network")
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
        assert {r.id for r in ray.get(network.routes.remote(service="Router"))} == {
            n.id for n in ray.get(network.nodes.remote()) if n.service == "router"
        }
        assert "store" in ray.get(network.services.remote())
        assert len(ray.get(network.graph.remote())["services"]["store"]) == 2
        status = ray.get(network.status.remote())
        assert status["routes"] and not status["stale"], status
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
        print("loaded")
        @service.endpoint
        async def call() -> str:
            print("called")
            return "here"
        """,
    )
    code = f"""
        from micro_ray import Client
        from micro_ray.errors import BadRequest, Conflict, NotFound
        from micro_ray.runtime import State, Workload
        from micro_ray.runtime.source import pack
        from pathlib import Path

        archive = pack(Path({folder!r}))
        runtime = handle("runtime")
        digest = ray.get(runtime.upload.remote(archive))
        assert digest == ray.get(runtime.upload.remote([archive[:100], ray.put(archive[100:])]))
        workload = Workload(name="handled", source="x", digest=digest)
        ray.get(runtime.create.remote(workload))
        steps = [ray.get(step) for step in runtime.progress.remote("handled")]
        assert steps[-1].state == State.RUNNING, steps
        assert ray.get(runtime.read.remote("handled"))[0].ready == 1
        before = running(runtime, "logs")
        following = runtime.logs.remote("handled", follow=True)
        while ray.get(next(following)).text != "loaded":
            pass
        with Client() as client:
            assert client.call("handled") == "here"
        while ray.get(next(following)).text != "called":
            pass
        ray.cancel(following)
        eventually(lambda: running(runtime, "logs") == before)
        lines = [ray.get(line).text for line in runtime.logs.remote("handled", tail=9)]
        assert "called" in lines, lines
        for wrong, call in (
            (Conflict, lambda: runtime.create.remote(workload)),
            (BadRequest, lambda: runtime.upload.remote(b"no archive")),
            (NotFound, lambda: next(runtime.progress.remote("nobody"))),
        ):
            try:
                ray.get(call())
            except wrong:
                pass
            else:
                raise AssertionError(wrong)
        ray.get(runtime.update.remote("handled", "micro", {{"replicas": 0}}))
        ray.get(runtime.delete.remote("handled"))
        try:
            ray.get(runtime.read.remote("handled"))
        except NotFound:
            print("good")
        """
    assert driver(server, RUNNING + textwrap.dedent(code)) == "good\n"


def test_certs_by_handle(server: Server, driver: Driver) -> None:
    """A ticket is good for one key also where certs was killed in between; issuing, the list, the
    roots, and a stream of them through a change."""
    printed = driver(
        server,
        RUNNING
        + textwrap.dedent(
            """
        import os
        from micro_ray.certs import Identity
        from micro_ray.certs.keys import new_key, prove, signing_request
        from micro_ray.errors import Forbidden, MicroError
        from ray.exceptions import RayError

        certs = ray.get_actor("certs", namespace="micro")
        owned = handle("certs")
        who = Identity(namespace="micro", service="orders", node="orders-1")
        ticket = ray.get(certs.ticket.remote(who))
        key = new_key()
        first = ray.get(certs.sign.remote(signing_request(key), ticket=ticket.secret))
        assert first.identity == who.uri
        request = signing_request(new_key())
        again = {"certificate": first.certificate, "proof": prove(key, request)}
        assert ray.get(certs.sign.remote(request, **again)).identity == who.uri

        os.kill(ray.get(certs.ping.remote())["pid"], 9)

        def back():
            try:
                return ray.get(certs.ping.remote(), timeout=20)
            except RayError:
                return False

        eventually(back)
        try:
            ray.get(certs.sign.remote(request, ticket=ticket.secret))
        except Forbidden as error:
            assert (error.code, error.id) == (403, "certs"), error
        else:
            raise AssertionError
        assert "orders-1" in [row.node for row in ray.get(owned.list.remote())]

        changes = certs.watch.remote()
        (before,) = ray.get(next(changes)).roots
        assert [r.state for r in ray.get(owned.renew.remote()).roots] == ["next", "signs"]
        assert [r.state for r in ray.get(next(changes)).roots] == ["next", "signs"]
        issued = ray.get(certs.issue.remote(signing_request(new_key()), who, ttl=60.0))
        assert [r.state for r in ray.get(next(changes)).roots] == ["signs", "former"]
        ray.get(certs.issue.remote(signing_request(new_key()), who))
        (after,) = ray.get(next(changes)).roots
        assert after.id != before.id and ray.get(certs.roots.remote()).roots == (after,)
        ray.cancel(changes)
        eventually(lambda: running(certs) == 0)
        print("good")
        """
        ),
    )
    assert printed == "good\n"
