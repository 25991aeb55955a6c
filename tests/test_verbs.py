"""Each verb of a noun is on its Ray handle and on frames, under its own name: the verbs of the
interface, the public methods of the actor and the endpoints of the wire face are compared."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from micro_ray.actors.member import Member
from micro_ray.actors.streams import streamed
from micro_ray.wire.endpoints import endpoint_name
from tests.test_shape import NOUNS

#: noun -> the class whose public methods are its verbs.
VERBS = {
    "registry": "registry.Registry",
    "router": "router.derive.Router",
    "network": "network.network.Network",
    "store": "store.Store",
    "broker": "broker.Broker",
    "events": "events.Events",
    "config": "config.Config",
    "auth": "auth.Auth",
    "certs": "certs.Certs",
    "limits": "limits.Limits",
    "runtime": "runtime.Runtime",
}

#: Verbs whose endpoint has another name: those of Micro, which its clients know, or one of a second
#: handler beside the noun's own.
ENDPOINTS = {
    ("registry", "get"): "Registry.GetService",
    ("registry", "list"): "Registry.ListServices",
    ("router", "read"): "Table.Read",
    ("router", "entries"): "Table.Entries",
    ("store", "keys"): "Store.List",
    ("store", "transact"): "Store.Transaction",
    ("store", "read_blob"): "BlobStore.Read",
    ("store", "write_blob"): "BlobStore.Write",
    ("store", "delete_blob"): "BlobStore.Delete",
    ("store", "blobs"): "BlobStore.List",
    ("config", "read"): "Config.Get",  # what it gives is the whole value,
    ("config", "get"): "Config.Get",  # of which this is the data
    ("config", "items"): "Config.List",
    ("auth", "accounts"): "Accounts.List",
    ("auth", "account"): "Accounts.Read",
    ("auth", "delete"): "Accounts.Delete",
    ("auth", "change_secret"): "Accounts.ChangeSecret",
    ("auth", "enable"): "Accounts.Enable",
    ("auth", "create_rule"): "Rules.Create",
    ("auth", "delete_rule"): "Rules.Delete",
    ("auth", "rules"): "Rules.List",
    ("auth", "explain"): "Rules.Explain",
    ("runtime", "upload"): "Source.Upload",
}

CLOSES = "the end of the backend is its owner's to choose: a member's is Member.stop"
OWNER = "who may say whom a certificate is for owns the machine; others ask by certs.sign"

#: Verbs, also those that only frames have, that are not on the handle, and why.
NOT_ON_HANDLE = {
    ("registry", "attach"): "lasts as long as the stream of the process that it registers",
    ("registry", "close"): CLOSES,
    ("router", "prune"): "the router does it by itself, twice a second",
    ("network", "open"): "both ways of a stream are held by one process, which has frames for it",
    ("network", "close"): CLOSES,
    ("store", "close"): CLOSES,
    ("broker", "close"): CLOSES,
    ("events", "close"): CLOSES,
    ("config", "close"): CLOSES,
    ("auth", "close"): CLOSES,
    ("limits", "lend"): "lasts as long as the line of the door that borrows",
}

#: Verbs that have no endpoint, and why.
NOT_ON_FRAMES = {
    ("registry", "close"): CLOSES,
    ("router", "prune"): "the router does it by itself, twice a second",
    ("network", "call"): "who has frames calls the service itself",
    ("network", "open"): "who has frames calls the service itself",
    ("network", "close"): CLOSES,
    ("store", "close"): CLOSES,
    ("broker", "check"): "it is the endpoint Debug.Health of every service",
    ("broker", "close"): CLOSES,
    ("events", "close"): CLOSES,
    ("config", "close"): CLOSES,
    ("auth", "close"): CLOSES,
    ("certs", "issue"): OWNER,
    ("certs", "ticket"): OWNER,
    ("auth", "ensure_admin"): "the first account is made by who owns the machine, on the handle",
}

ITSELF = "asks by its own parameter ``by``"
PUBLIC = "is for everybody on frames too"
BEFORE = "makes members known before anybody can be"

#: Verbs of a handle that are not asked who calls, and why.
UNASKED = {
    **{("auth", verb): ITSELF for verb in (
        "generate", "accounts", "account", "delete", "change_secret", "enable", "issue", "revoke",
        "create_rule", "delete_rule", "rules", "explain", "rotate", "follow", "note", "audits",
        "settle",
    )},
    **{("auth", verb): PUBLIC for verb in ("token", "refresh", "inspect", "keys")},
    ("auth", "ensure_admin"): OWNER,
    ("certs", "issue"): BEFORE,
    ("certs", "ticket"): BEFORE,
    **{("certs", verb): PUBLIC for verb in ("sign", "roots", "watch")},
}  # fmt: skip

#: What an interface says that a verb gives when it streams.
STREAMS = ("AsyncIterator[", "AsyncGenerator[", "Subscription")

Verbs = dict[str, Callable[..., Any]]


def public(cls: type) -> Verbs:
    """The public methods of a class, its own and those it inherits."""
    found = inspect.getmembers(cls, inspect.isroutine)
    return {name: function for name, function in found if not name.startswith("_")}


def interface(noun: str) -> Verbs:
    module, _, name = VERBS[noun].rpartition(".")
    return public(getattr(importlib.import_module(f"micro_ray.{module}"), name))


def on_handle(noun: str) -> type:
    module = importlib.import_module(f"micro_ray.actors.{noun}")
    cls: type = getattr(module, str(NOUNS[noun].actor))
    return cls


def on_frames(noun: str) -> set[str]:
    face = importlib.import_module(f"micro_ray.wire.{noun}").endpoints(None)
    return {endpoint.name for endpoint in face.published}


def verbs_of_frames(noun: str) -> set[str]:
    """The verbs of the endpoints; one that only frames have is named as its endpoint."""
    named = {e: verb for (of, verb), e in ENDPOINTS.items() if of == noun}
    return {
        named.get(endpoint, re.sub(r"(?<!^)(?=[A-Z])", "_", endpoint.partition(".")[2]).lower())
        for endpoint in on_frames(noun)
    }


def off_handle(noun: str, actor: type) -> list[str]:
    """What is wrong with the verbs of a handle."""
    wanted = {*interface(noun), *verbs_of_frames(noun)}
    wanted -= {verb for of, verb in NOT_ON_HANDLE if of == noun}
    offered = public(actor).keys() - public(Member).keys()
    return [
        *(f"{verb} is not on the handle" for verb in sorted(wanted - offered)),
        *(f"{verb} is on the handle only" for verb in sorted(offered - wanted)),
    ]


def off_signature(verb: Callable[..., Any], offered: Callable[..., Any]) -> list[str]:
    """Why a call of the interface's verb is not one of the handle's."""
    theirs = list(inspect.signature(verb).parameters.values())
    ours = inspect.signature(offered).parameters
    places = [p.name for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    any_name = any(p.kind is p.VAR_KEYWORD for p in ours.values())
    wrong = []
    for place, parameter in enumerate(p for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD):
        if places[place : place + 1] != [parameter.name]:
            wrong.append(f"{parameter.name} is not parameter {place}")
    for parameter in theirs:
        if parameter.kind is parameter.KEYWORD_ONLY and not (any_name or parameter.name in ours):
            wrong.append(f"{parameter.name} is missing")
    wrong += [
        f"{parameter.name} has no default"
        for parameter in theirs
        if parameter.default is not parameter.empty
        and parameter.name in ours
        and ours[parameter.name].default is parameter.empty
    ]
    known = {parameter.name for parameter in theirs}
    wrong += [
        f"{name} must be given"
        for name, parameter in ours.items()
        if name not in known
        and parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    streams = str(inspect.signature(verb).return_annotation).startswith(STREAMS)
    if inspect.isasyncgenfunction(offered) != streams:
        wrong.append("it streams" if not streams else "it does not stream")
    return wrong


@pytest.mark.parametrize("noun", VERBS)
def test_each_verb_is_on_the_handle(noun: str) -> None:
    assert off_handle(noun, on_handle(noun)) == []


@pytest.mark.parametrize("noun", VERBS)
def test_a_verb_of_the_handle_is_called_as_that_of_the_interface(noun: str) -> None:
    verbs, offered = interface(noun), public(on_handle(noun))
    wrong = {
        verb: said
        for verb in verbs.keys() & offered.keys()
        if (noun, verb) not in NOT_ON_HANDLE and (said := off_signature(verbs[verb], offered[verb]))
    }
    assert wrong == {}


@pytest.mark.parametrize("noun", VERBS)
def test_a_verb_of_the_handle_asks_who_calls(noun: str) -> None:
    """But those of the list; and whoever does something is who has called."""
    actor, verbs = on_handle(noun), interface(noun)
    for name in public(actor).keys() - public(Member).keys():
        asks = "credential" in inspect.signature(getattr(actor, name)).parameters
        assert asks != ((noun, name) in UNASKED), name
        if asks and name in verbs:
            authored = "by" in inspect.signature(verbs[name]).parameters
            assert authored == (name in actor.authored), name


@pytest.mark.parametrize("noun", VERBS)
def test_no_stream_of_a_handle_piles_up(noun: str) -> None:
    for name, method in public(on_handle(noun)).items():
        function = inspect.unwrap(method)  # as Ray does
        if inspect.isasyncgenfunction(function):
            limit = getattr(function, "__ray_generator_backpressure_num_objects__", None)
            assert isinstance(limit, int), f"{name} is not made by streamed()"
        else:
            assert inspect.iscoroutinefunction(function) or name in public(Member), name


@pytest.mark.parametrize("noun", VERBS)
def test_each_verb_is_on_frames(noun: str) -> None:
    endpoints = on_frames(noun)
    wanted = {
        ENDPOINTS.get((noun, verb), endpoint_name(noun, verb).replace("_", ""))
        for verb in interface(noun)
        if (noun, verb) not in NOT_ON_FRAMES
    }
    missing = {name for name in wanted if _fold(name) not in map(_fold, endpoints)}
    assert missing == set()


def _fold(name: str) -> str:
    return name.replace("_", "").lower()


def test_every_noun_is_compared() -> None:
    assert VERBS.keys() == {noun for noun, has in NOUNS.items() if isinstance(has.actor, str)}


def test_the_exceptions_are_of_what_there_is() -> None:
    """A verb that is gone, or has come, takes its row with it."""
    for noun, verb in NOT_ON_HANDLE:
        assert verb in {*interface(noun), *verbs_of_frames(noun)}, (noun, verb)
        assert verb not in public(on_handle(noun)).keys() - public(Member).keys(), (noun, verb)
    for noun, verb in NOT_ON_FRAMES:
        assert verb in interface(noun), (noun, verb)
        assert endpoint_name(noun, verb) not in on_frames(noun), (noun, verb)
    for (noun, verb), endpoint in ENDPOINTS.items():
        assert verb in {*interface(noun), *public(on_handle(noun))}, (noun, verb)
        assert endpoint in on_frames(noun), endpoint
    assert all([*NOT_ON_HANDLE.values(), *NOT_ON_FRAMES.values()])


class _Lame(Member):
    """A handle of the broker that lacks a verb, and has one too many."""

    async def publish(self, topic: str, headers: Any = None, *, body: bytes) -> None: ...

    async def subscribe(self, topic: str, *, namespace: str, limit: int) -> list[Any]: ...

    async def listen(self) -> None: ...


def test_the_comparison_sees() -> None:
    assert off_handle("broker", _Lame) == [
        "check is not on the handle",
        "listen is on the handle only",
    ]
    verbs = interface("broker")
    assert off_signature(verbs["publish"], _Lame.publish) == [
        "body is not parameter 2",
        "namespace is missing",
    ]
    assert off_signature(verbs["subscribe"], _Lame.subscribe) == [
        "queue is missing",
        "namespace has no default",
        "limit must be given",
        "it does not stream",
    ]

    @streamed()
    async def check(self: object) -> AsyncGenerator[int, None]:
        yield 1

    assert off_signature(verbs["check"], check) == ["it streams"]
