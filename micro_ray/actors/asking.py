"""Verbs of a Ray handle ask who calls: that a call came over a handle proves nothing.

Who reaches Ray owns the machines, and namespaces are no walls there; so a handle is for who acts in
every namespace, and each call of a verb says by an access token, ``credential=``, that it is his.
Without accounts (``auth.mode = off``) nobody asks, as on frames.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncGenerator, Callable
from typing import Any

from micro_ray.auth import Identity, Resource
from micro_ray.errors import Forbidden, Unauthorized
from micro_ray.wire.endpoints import endpoint_name
from micro_ray.wire.trust import Trust

__all__ = ["asking"]

Verb = Callable[..., Any]

CREDENTIAL = inspect.Parameter(
    "credential", inspect.Parameter.KEYWORD_ONLY, default="", annotation=str
)


def asking(verb: Verb, service: str, *, authored: bool = False) -> Verb:
    """A verb of an actor, which may stream, that asks first. One that is ``authored`` is told the
    id of the account as ``by``."""
    resource = Resource(name=service, endpoint=endpoint_name(service, verb.__name__))

    def asked(trust: Trust | None, credential: str, options: dict[str, Any]) -> None:
        if trust is not None:
            caller = _operator(trust, credential, resource)
            if authored:
                options["by"] = caller.id

    async def answer(self: Any, *args: Any, credential: str = "", **options: Any) -> Any:
        asked(self.trust, credential, options)
        return await verb(self, *args, **options)

    async def stream(
        self: Any, *args: Any, credential: str = "", **options: Any
    ) -> AsyncGenerator[Any, None]:
        asked(self.trust, credential, options)
        async with contextlib.aclosing(verb(self, *args, **options)) as items:
            async for item in items:
                yield item

    made: Verb = stream if inspect.isasyncgenfunction(verb) else answer
    vars(made).update(vars(verb))  # what Ray has been told of it
    made.__name__, made.__qualname__, made.__doc__ = verb.__name__, verb.__qualname__, verb.__doc__
    vars(made)["__signature__"] = _signature(verb)
    return made


def _signature(verb: Verb) -> inspect.Signature:
    """With the credential, before what takes any name."""
    signature = inspect.signature(verb)
    known = list(signature.parameters.values())
    place = len(known) - (bool(known) and known[-1].kind is known[-1].VAR_KEYWORD)
    return signature.replace(parameters=[*known[:place], CREDENTIAL, *known[place:]])


def _operator(trust: Trust, credential: str, resource: Resource) -> Identity:
    """Whose token it is. Raises Unauthorized for none that is good, Forbidden for who does not act
    in every namespace, Unavailable before auth has told anything."""
    if not isinstance(credential, str) or not credential:
        raise Unauthorized(
            resource.name, "a handle asks for an access token: credential=..., see micro user token"
        )
    identity = trust.guard.verify(credential)
    if identity.key:
        raise Unauthorized("auth", "the token is of a process, which calls by its key")
    if not identity.everywhere:
        why = f"{identity.id} does not administer the platform: handles are for who does"
        trust.denials.add(identity, resource, identity.namespace, why)
        raise Forbidden(resource.name, why)
    return identity
