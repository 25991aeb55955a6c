"""A service's endpoints: typed async functions, found by name, served over frames.

A function's signature says what it is:

====================================================  =====================
``async def f(request: T) -> R``                      unary
``async def f(request: T) -> AsyncIterator[R]``       server stream
``async def f(requests: AsyncIterator[T]) -> R``      client stream
both                                                  bidirectional stream
====================================================  =====================

Several plain parameters (``name: str = "World", times: int = 1``) are the fields of the request. A
parameter annotated ``Context`` gets the call's context. A function that is not async runs in a
thread.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import inspect
import os
import re
import threading
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from micro_ray.auth import Identity, Resource
from micro_ray.context import CURRENT, DEFAULT_NAMESPACE, Context
from micro_ray.errors import BadRequest, MicroError, NotFound, Unavailable
from micro_ray.finding import Finding, Findings
from micro_ray.limits.gate import ADMITTED, FREE, Admission, Gate
from micro_ray.network import Refused
from micro_ray.registry import MAX_NAME, Endpoint
from micro_ray.wire.schema import Codec, codec
from micro_ray.wire.server import Incoming
from micro_ray.wire.signatures import Shape, invoker, shape_of

if TYPE_CHECKING:  # it loads what verifies tokens
    from micro_ray.auth.callers import Callers
    from micro_ray.auth.stays import Stay

__all__ = ["Endpoints", "endpoint_name", "fold"]

#: Calls that one service instance serves at once; more are refused with 503.
MAX_IN_FLIGHT = 10_000
#: Spellings of endpoint names that are remembered.
MAX_SPELLINGS = 1000
#: Seconds that a health check has; who asks waits five.
CHECK = 4.0

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z][A-Za-z0-9_-]*)+")

Check = Callable[[], Awaitable[None]]
Serve = Callable[[Incoming], Awaitable[None]]


def endpoint_name(service: str, function: str) -> str:
    """``("foo-bar", "say_hello")`` -> ``FooBar.SayHello``."""

    def title(text: str) -> str:
        parts = re.split(r"[-_./]", text)
        return "".join(part[:1].upper() + part[1:] for part in parts)

    return f"{title(service)}.{title(function)}"


def fold(name: str) -> str:
    """Endpoint names match without regard to case, dashes and underscores."""
    return name.replace("-", "").replace("_", "").lower()


@dataclass(frozen=True, slots=True)
class _Served:
    """An endpoint that is served, what rules call it, and whether it streams."""

    resource: Resource
    serve: Serve
    streams: bool


class Endpoints:
    """The endpoints of one service instance, and the handler that serves them."""

    def __init__(self, service: str, *, max_in_flight: int = MAX_IN_FLIGHT) -> None:
        self.service = service
        self.published: tuple[Endpoint, ...] = ()
        self.in_flight = 0
        #: What lets calls in that no door has let in; None: nothing limits them.
        self.gate: Gate | None = None
        #: Who decides who may call; None: everybody may, and nobody is known.
        self.callers: Callers | None = None
        self._max = max_in_flight
        self._serve: dict[str, _Served] = {}
        self._checks: list[Check] = []
        self._requests = 0
        self._errors = 0
        self._started = time.time()
        self._examinations: list[Findings] = []
        for name, function in (
            ("Debug.Health", self._health),
            ("Debug.Stats", self._stats),
            ("Debug.Backend", self._backend),
        ):
            self._keep(name, *self._build(name, function))

    def add(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> Endpoints:
        """Serve ``function`` as endpoint ``name`` (``Handler.Method``).

        Raises BadRequest for a bad or taken name, TypeError (naming the parameter) for a signature
        that cannot be an endpoint.
        """
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
            raise BadRequest(self.service, f"endpoint name {name!r} is not like Handler.Method")
        if fold(name) in self._serve:
            raise BadRequest(self.service, f"endpoint {name} is defined twice")
        shape, serve = self._build(name, function)
        said = inspect.getdoc(function)
        described = dict(metadata or {})
        if said:
            described.setdefault("description", said.split("\n\n")[0].replace("\n", " "))
        where = f"{self.service}.{name}"
        self.published += (
            Endpoint(
                name=name,
                request=codec(shape.request, where).schema,
                response=codec(shape.response, where).schema,
                stream=shape.stream,
                metadata=described,
            ),
        )
        self._keep(name, shape, serve)
        return self

    def _keep(self, name: str, shape: Shape, serve: Serve) -> None:
        resource = Resource(name=self.service, endpoint=name)
        self._serve[fold(name)] = _Served(resource, serve, bool(shape.stream))

    def check(self, function: Check) -> None:
        """Add a health check: an async function that raises when something is wrong."""
        self._checks.append(function)

    def examine(self, function: Findings) -> None:
        """Add an examination of what is behind this service, for ``micro doctor``."""
        self._examinations.append(function)

    async def _backend(self) -> list[Finding]:
        """What an examination of the servers behind this service finds."""
        return [finding for each in self._examinations for finding in await each()]

    async def handler(self, incoming: Incoming) -> None:
        """The ``wire.server.Handler`` of these endpoints."""
        head = incoming.head
        if head.service != self.service and head.service.lower() != self.service.lower():
            # An address that another service had before.
            raise Refused(
                self.service, f"this node serves {self.service}, not {head.service[:80]!r}"
            )
        served = self._serve.get(head.endpoint) or self._find(head.endpoint)
        if self.in_flight >= self._max:
            raise Refused(self.service, f"{self._max} calls are being served here", 0.1)
        metadata = head.metadata
        identity, namespace, trusted = self._admit(metadata, served.resource)
        account = "" if identity is None else identity.id
        if self.callers is None:
            account = metadata.get("micro-caller", "")  # nobody asks: it is what is said
        admission: Admission = FREE
        if self.gate is not None and not (trusted and ADMITTED in metadata):
            where = (namespace, account, self.service, head.endpoint)
            admission = self.gate.admit(*where) or await self.gate.obtain(*where)
        self.in_flight += 1
        self._requests += 1
        stay, token = None, None
        try:
            stay = self._stay(incoming, identity, namespace, served)
            token = CURRENT.set(
                Context(
                    namespace=namespace,
                    caller=account,
                    service=self.service,
                    endpoint=head.endpoint,
                    deadline=incoming.deadline,
                    trace=metadata.get("traceparent", ""),
                    request_id=metadata.get("x-request-id", ""),
                    metadata=metadata,
                    identity=identity,
                    trusted=trusted,
                    reach=self._reach(identity, served.resource, stay),
                    peer=incoming.proved,
                )
            )
            await served.serve(incoming)
        except MicroError as error:
            self._errors += error.code >= 500
            if isinstance(error, Refused):
                # What this call's own calls met. This one has been executed: it is no refusal.
                raise Unavailable(error.id, error.detail, error.retry_after) from None
            if not error.id:
                error.id = self.service
            raise
        except Exception:
            self._errors += 1
            raise
        finally:
            self.in_flight -= 1
            admission.release()
            if stay is not None:
                stay.leave()
            if token is not None:
                CURRENT.reset(token)

    def _admit(
        self, metadata: Mapping[str, str], resource: Resource
    ) -> tuple[Identity | None, str, bool]:
        if self.callers is None:
            return None, metadata.get("micro-namespace", DEFAULT_NAMESPACE), True
        return self.callers.admit(metadata, resource)

    def _stay(
        self, incoming: Incoming, identity: Identity | None, namespace: str, served: _Served
    ) -> Stay | None:
        """A stream ends when its caller may no more; a unary call is decided once."""
        if self.callers is None or not served.streams:
            return None
        stay = self.callers.stay(identity, served.resource, namespace)
        stay.over.add_done_callback(lambda over: incoming.end_by(over.result()))
        return stay

    def _reach(
        self, identity: Identity | None, resource: Resource, stay: Stay | None
    ) -> Callable[[str], None] | None:
        callers = self.callers
        if callers is None:
            return None
        if stay is None:
            return functools.partial(callers.check, identity, resource)

        def reach(namespace: str) -> None:
            callers.check(identity, resource, namespace)
            if namespace != "*":
                stay.also(namespace)

        return reach

    def _find(self, name: str) -> _Served:
        if len(name) > MAX_NAME:
            raise BadRequest(self.service, f"endpoint name of {len(name)} characters")
        served = self._serve.get(fold(name))
        if served is None:
            known = [endpoint.name for endpoint in self.published]
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)[:5]
            raise NotFound(
                self.service,
                f"no endpoint {name!r} in {self.service}; there is {', '.join(near) or 'none'}",
            )
        if len(self._serve) < MAX_SPELLINGS:
            self._serve[name] = served  # the caller's spelling, found at once the next time
        return served

    # -- building --------------------------------------------------------------------------------

    def _build(self, name: str, function: Callable[..., Any]) -> tuple[Shape, Serve]:
        where = f"{self.service}.{name}"
        shape = shape_of(where, function)
        request = codec(shape.request, where, f"parameter {shape.argument}")
        response = codec(shape.response, where, "the answer")
        invoke = invoker(function, shape)
        make = {
            "": _unary,
            "server": _server_stream,
            "client": _client_stream,
            "bidi": _bidi_stream,
        }[shape.stream]
        return shape, make(invoke, request, response)

    # -- what every service answers -----------------------------------------------------------

    async def _health(self) -> dict[str, Any]:
        failed = [why for why in await asyncio.gather(*map(_checked, self._checks)) if why]
        if failed:
            raise Unavailable(self.service, f"unhealthy: {'; '.join(failed)}")
        return {"status": "ok", "checks": len(self._checks)}

    async def _stats(self) -> dict[str, Any]:
        with open("/proc/self/statm") as file:  # noqa: ASYNC230 - /proc does not block
            pages = int(file.read().split()[1])
        return {
            "started": self._started,
            "uptime": time.time() - self._started,
            "memory": pages * os.sysconf("SC_PAGE_SIZE"),
            "requests": self._requests,
            "errors": self._errors,
            "in_flight": self.in_flight - 1,
            "threads": threading.active_count(),
            "tasks": len(asyncio.all_tasks()),
            "sockets": len(os.listdir("/proc/self/fd")),
            "pid": os.getpid(),
        }


async def _checked(check: Check) -> str:
    """What is wrong, "" when nothing is."""
    name = getattr(check, "__name__", "check")
    try:
        async with asyncio.timeout(CHECK):
            done = check()
            if inspect.isawaitable(done):
                await done
    except TimeoutError:
        return f"{name}: no answer within {CHECK:g} s"
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    return ""


def _unary(invoke: Callable[[Any], Any], request: Codec, response: Codec) -> Serve:
    decode, encode = request.decode, response.encode

    async def serve(incoming: Incoming) -> None:
        content = incoming.head.content
        body = await incoming.receive()
        answer = await invoke(decode(body or b"", content))
        await incoming.reply(encode(answer, content))

    return serve


def _server_stream(invoke: Callable[[Any], Any], request: Codec, response: Codec) -> Serve:
    async def serve(incoming: Incoming) -> None:
        content = incoming.head.content
        body = await incoming.receive()
        await _pour(invoke(request.decode(body or b"", content)), incoming, response)

    return serve


def _client_stream(invoke: Callable[[Any], Any], request: Codec, response: Codec) -> Serve:
    async def serve(incoming: Incoming) -> None:
        answer = await invoke(_messages(incoming, request))
        await incoming.reply(response.encode(answer, incoming.head.content))

    return serve


def _bidi_stream(invoke: Callable[[Any], Any], request: Codec, response: Codec) -> Serve:
    async def serve(incoming: Incoming) -> None:
        await _pour(invoke(_messages(incoming, request)), incoming, response)

    return serve


async def _messages(incoming: Incoming, request: Codec) -> AsyncIterator[Any]:
    while (body := await incoming.receive()) is not None:
        yield request.decode(body, incoming.head.content)


async def _pour(answers: Any, incoming: Incoming, response: Codec) -> None:
    """Send what an async iterator yields; it is closed however this ends."""
    if inspect.isawaitable(answers):
        answers = await answers
    try:
        async for answer in answers:
            await incoming.send(response.encode(answer, incoming.head.content))
    finally:
        close = getattr(answers, "aclose", None)
        if close is not None:
            await close()
    await incoming.end()
