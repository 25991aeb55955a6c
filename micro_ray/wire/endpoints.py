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
import sys
import threading
import time
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
)
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, get_args, get_origin

import msgspec

from micro_ray.auth import Identity, Resource
from micro_ray.context import CURRENT, DEFAULT_NAMESPACE, Context
from micro_ray.errors import BadRequest, MicroError, NotFound, Unavailable
from micro_ray.finding import Finding, Findings
from micro_ray.limits.gate import ADMITTED, FREE, Admission, Gate
from micro_ray.network import Refused
from micro_ray.registry import MAX_NAME, Endpoint
from micro_ray.wire.schema import Codec, codec, kind_of_fields
from micro_ray.wire.server import Incoming

if TYPE_CHECKING:  # it loads what verifies tokens
    from micro_ray.auth.callers import Callers

__all__ = ["Endpoints", "endpoint_name", "fold"]

#: Calls that one service instance serves at once; more are refused with 503.
MAX_IN_FLIGHT = 10_000
#: Spellings of endpoint names that are remembered.
MAX_SPELLINGS = 1000
#: Seconds that a health check has; who asks waits five.
CHECK = 4.0

_STREAMS = (AsyncIterator, AsyncIterable, AsyncGenerator)
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
    """An endpoint that is served, and what rules call it."""

    resource: Resource
    serve: Serve


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What a signature says."""

    stream: str
    request: Any
    response: Any
    context: str
    argument: str
    fields: tuple[str, ...]


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
            self._keep(name, self._build(name, function)[1])

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
        self._keep(name, serve)
        return self

    def _keep(self, name: str, serve: Serve) -> None:
        self._serve[fold(name)] = _Served(Resource(name=self.service, endpoint=name), serve)

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
                reach=self._reach(identity, served.resource),
                peer=incoming.proved,
            )
        )
        try:
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
            CURRENT.reset(token)

    def _admit(
        self, metadata: Mapping[str, str], resource: Resource
    ) -> tuple[Identity | None, str, bool]:
        if self.callers is None:
            return None, metadata.get("micro-namespace", DEFAULT_NAMESPACE), True
        return self.callers.admit(metadata, resource)

    def _reach(self, identity: Identity | None, resource: Resource) -> Callable[[str], None] | None:
        if self.callers is None:
            return None
        return functools.partial(self.callers.check, identity, resource)

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

    def _build(self, name: str, function: Callable[..., Any]) -> tuple[_Shape, Serve]:
        where = f"{self.service}.{name}"
        shape = _shape(where, function)
        request = codec(shape.request, where, f"parameter {shape.argument}")
        response = codec(shape.response, where, "the answer")
        invoke = _invoker(function, shape)
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


def _shape(where: str, function: Callable[..., Any]) -> _Shape:
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"{where}: a stream of answers takes an async function")
    signature = inspect.signature(function)
    try:
        hints = typing.get_type_hints(_unwrapped(function), include_extras=True)
    except NameError as error:
        raise TypeError(f"{where}: {error} in its annotations") from None
    context, parameters = "", []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{where}: *{parameter.name} cannot be a field of a request")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(f"{where}: {parameter.name} is positional only; remove the '/'")
        if hints.get(parameter.name) is Context:
            context = parameter.name
        else:
            parameters.append(parameter)
    response = hints.get("return", Any)
    streams_out = get_origin(response) in _STREAMS
    if streams_out:
        response = (get_args(response) or (Any,))[0]
    elif inspect.isasyncgenfunction(function):
        streams_out, response = True, Any
    argument, request = "", None
    fields: tuple[str, ...] = ()
    streams_in = False
    if len(parameters) == 1:
        kind = hints.get(parameters[0].name, Any)
        if get_origin(kind) in _STREAMS:
            streams_in, argument = True, parameters[0].name
            request = (get_args(kind) or (Any,))[0]
        elif _whole(kind):
            argument, request = parameters[0].name, kind
    if parameters and not argument:
        fields = tuple(p.name for p in parameters)
        request = kind_of_fields(
            where, [(p.name, hints.get(p.name, Any), _default(p)) for p in parameters]
        )
    stream = {
        (False, False): "", (False, True): "server", (True, False): "client", (True, True): "bidi",
    }[streams_in, streams_out]  # fmt: skip
    return _Shape(
        stream=stream,
        request=request,
        response=response,
        context=context,
        argument=argument,
        fields=fields,
    )


def _unwrapped(function: Callable[..., Any]) -> Any:
    if isinstance(function, functools.partial):
        return _unwrapped(function.func)
    if not inspect.isroutine(function) and not isinstance(function, type):
        function = type(function).__call__  # an object that can be called
    return getattr(function, "__func__", function)


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.default is parameter.empty:
        return msgspec.NODEFAULT
    return parameter.default


def _whole(kind: Any) -> bool:
    """Whether a single parameter of this type is the whole request, not a field of it."""
    origin = get_origin(kind)
    if kind in (bytes, Any, dict, Mapping) or origin in (dict, Mapping):
        return True
    if isinstance(origin, type):
        kind = origin  # Page of Page[int]
    if not isinstance(kind, type):
        return False
    if is_dataclass(kind) or issubclass(kind, msgspec.Struct) or typing.is_typeddict(kind):
        return True
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(kind, pydantic.BaseModel)


def _invoker(function: Callable[..., Any], shape: _Shape) -> Callable[[Any], Any]:
    """``invoke(request)`` -> what the function returns (awaitable or async iterator)."""
    if not inspect.iscoroutinefunction(function) and not inspect.isasyncgenfunction(function):
        if shape.stream in ("server", "bidi"):
            target = function  # a plain function that returns an async iterator
        else:
            target = functools.partial(_threaded, function)
    else:
        target = function
    if not shape.context and shape.argument:
        argument = shape.argument
        first = next(iter(inspect.signature(function).parameters.values()))
        if first.kind is first.POSITIONAL_OR_KEYWORD:
            return target
        return lambda request: target(**{argument: request})

    def invoke(request: Any) -> Any:
        given: dict[str, Any] = {}
        if shape.argument:
            given[shape.argument] = request
        for field in shape.fields:
            given[field] = getattr(request, field)
        if shape.context:
            given[shape.context] = CURRENT.get()
        return target(**given)

    return invoke


async def _threaded(function: Callable[..., Any], /, *args: Any, **given: Any) -> Any:
    """Run a function in a thread; what it returns may be for the loop to await."""

    def run() -> Any:
        try:
            return function(*args, **given)
        except StopIteration as raised:  # a future cannot carry it, and would wait for ever
            raise RuntimeError("the service raised StopIteration") from raised

    answer = await asyncio.to_thread(run)
    return await answer if inspect.isawaitable(answer) else answer


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
