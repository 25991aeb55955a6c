"""What a gRPC door's reflection says is so: a client that knows nothing else calls every method of
every service by it, as grpcurl does, and is answered in the described types.

``MICRO_SURFACE`` is how many messages are made for each method (default 6).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import message_factory
from hypothesis import HealthCheck, Phase, given, seed, settings

from micro_ray.auth import Access, Resource, Rule
from micro_ray.sdk.authority import ITSELF
from tests.fixtures.explorer import Explorer, NotThere
from tests.fixtures.wait import PROMPT, eventually
from tests.security.guarded import Guarded, guarded
from tests.security.messages import filled, spoken
from tests.security.shapes import shapes
from tests.security.test_refusals import PUBLIC

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Messages of each method.
EXAMPLES = int(os.environ.get("MICRO_SURFACE", "6"))
#: Seconds after which a stream that goes on is left.
WITHIN = 0.2
#: What the door itself serves.
OWN = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}
#: What a door or a service says that has failed.
FAILED = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at() -> AsyncIterator[Guarded]:
    async with guarded() as found:
        yield found


async def token(at: Guarded, id: str, *scopes: str) -> str:
    return (await at.authority.login(id, scopes=scopes)).access


def explorer(at: Guarded, access: str = "") -> Explorer:
    return Explorer(at.channel, metadata=(("authorization", f"Bearer {access}"),) if access else ())


async def described(at: Guarded, client: Explorer) -> dict[str, Any]:
    """Every method that a client is shown, by its path."""
    found = {}
    for name in await client.services():
        if name not in OWN:
            service = await client.describe(name)
            found |= {f"{name}/{method.name}": method for method in service.methods}
    return found


#: What ``called`` says of a call that was answered.
ANSWERED = "answered"


async def called(at: Guarded, path: str, method: Any, access: str, message: Any) -> str:
    """What is wrong with what a method says to a message, "" for one that is refused rightly."""
    answer = message_factory.GetMessageClass(method.output_type)
    call = at.channel.stream_stream(f"/{path}", response_deserializer=answer.FromString)(
        iter([message.SerializeToString()]), metadata=(("authorization", f"Bearer {access}"),)
    )
    count = 0
    try:
        async with asyncio.timeout(WITHIN if method.server_streaming else PROMPT):
            async for each in call:
                count += 1
                assert isinstance(each, answer)
    except TimeoutError:
        return ANSWERED if method.server_streaming else "no answer"
    except grpc.aio.AioRpcError as error:
        wrong = error.code() in FAILED
        return f"{error.code()} {error.details()}; asked {str(message)[:300]}" if wrong else ""
    finally:
        call.cancel()
    return ANSWERED if method.server_streaming or count == 1 else f"{count} answers"


@pytest.mark.timeout(60 + EXAMPLES * 20)
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # the door does, meanwhile
async def test_every_method_answers_as_it_is_described() -> None:
    async with guarded() as at:  # of its own: what is made are rules too
        await at.here.serve(shapes())
        await every_method(at)


async def every_method(at: Guarded) -> None:
    access = await token(at, "explorer", "admin")
    methods = await described(at, explorer(at, access))
    assert {f"{verb.service}.{verb.endpoint}".lower() for verb in at.verbs()} == {
        path.replace("/", ".").lower() for path in methods
    }
    loop, wrong, answered = asyncio.get_running_loop(), {}, set()

    def ask(path: str, method: Any, message: Any) -> None:
        coming = called(at, path, method, access, message)
        why = asyncio.run_coroutine_threadsafe(coming, loop).result()
        if why == ANSWERED:
            answered.add(path)
        elif why:
            wrong.setdefault(path, why)

    def all_of(path: str, method: Any) -> None:
        kind = message_factory.GetMessageClass(method.input_type)
        ask(path, method, kind())

        @seed(1)
        @settings(
            max_examples=EXAMPLES,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(filled(kind))
        def examine(message: Any) -> None:
            ask(path, method, message)
            ask(path, method, spoken(message, random.Random(message.ByteSize())))

        examine()

    for path, method in methods.items():
        await asyncio.to_thread(all_of, path, method)
    assert not wrong, "\n".join(f"{path}: {why}" for path, why in wrong.items())
    # It is about what the services say, not about how they refuse.
    assert len(answered) > len(methods) / 2


async def test_who_may_less_sees_what_he_may_call(at: Guarded) -> None:
    """And nothing else can be described, or is called."""
    reads = Resource(name="store", endpoint="Store.Read")
    for rule in (
        Rule(id="no", scope="reader", resource=Resource(), access=Access.DENIED, priority=350),
        Rule(id="reads", scope="reader", resource=reads, access=Access.GRANTED, priority=400),
    ):
        await at.authority.auth.create_rule(rule, by=ITSELF)
    access = await token(at, "reader-of-reflection", "reader")
    client = explorer(at, access)

    async def seen() -> bool:
        services = await client.services()
        return "store.Store" in services and "events.Events" not in services

    await eventually(seen, within=PROMPT)
    methods = await described(at, client)
    shown = {path.replace("/", ".") for path in methods}
    public = {name.replace(":", ".") for name in PUBLIC}
    assert shown == public | {"store.Store.Read"}
    everything = await described(at, explorer(at, await token(at, "whole", "admin")))
    for path in everything.keys() - methods.keys():
        call = at.channel.stream_stream(f"/{path}")(
            iter([b""]), metadata=(("authorization", f"Bearer {access}"),)
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            [_ async for _ in call]
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED, path
    with pytest.raises(NotThere):
        await client.describe("config.Config")


async def test_nobody_sees_what_all_may_call(at: Guarded) -> None:
    """Health, reflection, and what makes somebody of nobody."""
    client = explorer(at)
    methods = await described(at, client)
    assert set(await client.services()) >= OWN
    assert {path.replace("/", ".") for path in methods} == {n.replace(":", ".") for n in PUBLIC}
    with pytest.raises(NotThere):
        await client.describe("store.Store")
