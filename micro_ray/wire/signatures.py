"""What a function's signature says of the endpoint that it is: whether it streams, the types of its
messages, and how it is called."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Mapping,
)
from dataclasses import dataclass, is_dataclass
from typing import Any, get_args, get_origin

import msgspec

from micro_ray.context import CURRENT, Context
from micro_ray.wire.schema import kind_of_fields

__all__ = ["Shape", "invoker", "shape_of"]

_STREAMS = (AsyncIterator, AsyncIterable, AsyncGenerator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a signature says."""

    stream: str
    request: Any
    response: Any
    context: str
    argument: str
    fields: tuple[str, ...]


def shape_of(where: str, function: Callable[..., Any]) -> Shape:
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
    return Shape(
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


def invoker(function: Callable[..., Any], shape: Shape) -> Callable[[Any], Any]:
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
