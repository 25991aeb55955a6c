"""What an author says of a service, and what is said back to him."""

from __future__ import annotations

from typing import Any

import pytest

from micro_ray import Service
from micro_ray.errors import BadRequest, NotFound, TooLarge, Unavailable
from micro_ray.registry import Endpoint
from micro_ray.sdk.testing import Here


@pytest.mark.parametrize("name", ["a", "a" * 63, "foo-bar", "v1.foo", "0"])
def test_names(name: str) -> None:
    assert Service(name).name == name


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a.", "a" * 64, "a b", "a/b", "ü"])
def test_bad_names(name: str) -> None:
    with pytest.raises(BadRequest, match="lower-case letters, digits, '-' and"):
        Service(name)


async def published(here: Here, service: Service) -> dict[str, Endpoint]:
    await here.serve(service)
    (entry,) = [e for e in await here.client.entries() if e.service == service.name]
    return {endpoint.name: endpoint for endpoint in entry.endpoints}


async def test_endpoints(here: Here) -> None:
    """Bare, with options, by hand; the function stays what it was."""
    service = Service("foo-bar")

    @service.endpoint
    async def call(name: str = "World") -> dict[str, str]:
        """Greet.

        At length."""
        return {"message": f"Hello {name}"}

    @service.endpoint(name="Other.Method", metadata={"k": "v"})
    async def anything() -> int:
        return 1

    @service.endpoint(path="/users/{id}, /people/{id}", method="get,put")
    async def say_hello(id: str) -> str:
        return id

    @service.endpoint()
    def blocking(number: int) -> int:
        return number + 1

    @service.endpoint(idempotent=False)
    async def once() -> int:
        return 1

    @service.endpoint(idempotent=True)
    async def often() -> int:
        return 2

    async def later() -> str:
        return "later"

    assert service.endpoint(later) is later
    assert await call("you") == {"message": "Hello you"}
    found = await published(here, service)
    assert set(found) == {
        "FooBar.Call", "FooBar.SayHello", "Other.Method", "FooBar.Blocking", "FooBar.Later",
        "FooBar.Once", "FooBar.Often",
    }  # fmt: skip
    assert found["FooBar.Call"].metadata == {"description": "Greet."}
    assert found["Other.Method"].metadata == {"k": "v"}
    assert found["FooBar.SayHello"].metadata == {
        "path": "/users/{id}, /people/{id}", "method": "GET,PUT",
    }  # fmt: skip
    assert found["FooBar.Once"].metadata == {"idempotent": "false"}
    assert found["FooBar.Often"].metadata == {"idempotent": "true"}
    client = here.client
    assert await client.call("foo-bar") == {"message": "Hello World"}
    assert await client.call("foo-bar", "say-hello", {"id": "7"}) == "7"
    assert await client.call("foo-bar", "other.method") == 1
    assert await client.call("foo-bar", "blocking", {"number": 1}) == 2
    assert await client.call("FOO-BAR", "later") == "later"


async def test_handlers(here: Here) -> None:
    """Public methods of one instance: plain, static and of the class; nothing else."""
    service = Service("shop")

    @service.handler
    class Cart:
        limit = 3

        def __init__(self) -> None:
            self.items: list[str] = []

        async def add(self, item: str) -> int:
            self.items.append(item)
            return len(self.items)

        @staticmethod
        async def ping() -> str:
            return "pong"

        @classmethod
        async def kind(cls) -> str:
            return cls.__name__

        async def _private(self) -> None: ...

        @property
        def broken(self) -> str:
            raise AssertionError("nobody asked for it")

        class Inner:
            """No method."""

    assert isinstance(Cart, type)
    assert set(await published(here, service)) == {"Cart.Add", "Cart.Ping", "Cart.Kind"}
    for count in (1, 2):
        assert await here.client.call("shop", "Cart.Add", {"item": "x"}) == count
    assert await here.client.call("shop", "Cart.Ping") == "pong"
    assert await here.client.call("shop", "Cart.Kind") == "Cart"
    with pytest.raises(NotFound, match=r"no endpoint 'Cart._Private'"):
        await here.client.call("shop", "Cart._Private")


def test_what_cannot_be_an_endpoint() -> None:
    service = Service("w")

    async def call() -> None: ...

    service.endpoint(call)
    for options, said in (
        ({}, "endpoint W.Call is defined twice"),
        ({"name": "w.call"}, "defined twice"),
        ({"name": "nodot"}, "is not like Handler.Method"),
        ({"name": "A.x", "path": "no/slash"}, "path 'no/slash' does not begin with '/'"),
        ({"name": "A.x", "path": "/a,b"}, "path 'b' does not begin with '/'"),
        ({"name": "A.x", "method": "FETCH"}, "method 'FETCH' is none of GET, POST"),
        ({"name": "A.x", "method": "GET,"}, "method '' is none of"),
    ):
        with pytest.raises(BadRequest, match=said):
            service.endpoint(**options)(call)  # type: ignore[arg-type]

    async def many(*numbers: int) -> None: ...

    with pytest.raises(TypeError, match="numbers cannot be a field"):
        service.endpoint(many)

    class Empty:
        def _private(self) -> None: ...

    with pytest.raises(BadRequest, match="handler Empty has no public method"):
        service.handler(Empty)

    class Needy:
        def __init__(self, what: str) -> None: ...

    with pytest.raises(TypeError, match="what"):
        service.handler(Needy)


@pytest.mark.parametrize("hook", ["health", "on_start", "on_stop"])
def test_hooks_are_async(hook: str) -> None:
    """One that is not would never be awaited, and fail when it is too late."""

    def plain() -> None: ...

    with pytest.raises(TypeError, match=f"{hook}: plain is not async"):
        getattr(Service("w"), hook)(plain)

    async def good() -> None: ...

    assert getattr(Service("w"), hook)(good) is good


async def test_nothing_is_added_once_it_runs(here: Here) -> None:
    """Callers would not learn of it."""
    service = Service("w")

    @service.endpoint
    async def call() -> None: ...

    await here.serve(service)
    for add in (lambda: service.endpoint(call), lambda: service.endpoint(name="A.b")):
        with pytest.raises(BadRequest, match="the service has started; define its endpoints befor"):
            add()

    class Handler:
        def method(self) -> None: ...

    with pytest.raises(BadRequest, match="the service has started"):
        service.handler(Handler)


async def test_health(here: Here) -> None:
    service, well = Service("w"), True

    @service.health
    async def database() -> None:
        if not well:
            raise ConnectionError("no database")

    @service.endpoint
    async def call() -> None: ...

    await here.serve(service)
    assert (await here.client.call("w", "Debug.Health"))["status"] == "ok"
    well = False
    with pytest.raises(Unavailable, match=r"database.*ConnectionError: no database"):
        await here.client.call("w", "Debug.Health")
    assert await here.client.call("w") == {}, "who is unhealthy still answers"


async def test_metadata(here: Here) -> None:
    service = Service("w", version="v2", metadata={"owner": "me"}, description="Does things")
    await here.serve(service)
    (entry,) = [e for e in await here.client.entries() if e.service == "w"]
    assert (entry.version, entry.metadata) == ("v2", {"owner": "me", "description": "Does things"})


async def test_metadata_that_is_refused(here: Here) -> None:
    """The registry's word comes back at the start, at once."""
    for service in (Service("w", version="a b"), Service("w", metadata={"k": "x" * 20_000})):
        with pytest.raises((BadRequest, TooLarge), match=r"version|metadata"):
            await service.start(here.bootstrap)
        assert "w" not in await here.client.services()


def test_what_is_not_there_before_the_start() -> None:
    service = Service("w")
    assert service.in_flight == 0
    attempts: list[Any] = [lambda: service.client, lambda: service.store]
    for attempt in attempts:
        with pytest.raises(Unavailable, match="the client is there once the service has started"):
            attempt()
