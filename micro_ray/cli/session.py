"""What commands are given: settings, the way out, and a blocking caller."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from micro_ray.cli.reader import Reader
from micro_ray.errors import MicroError, PreconditionFailed, Unauthorized, Unavailable

if TYPE_CHECKING:
    from micro_ray.registry import Endpoint
    from micro_ray.router import Entry
    from micro_ray.sdk.blocking import Client
    from micro_ray.sdk.environments import Environment
    from micro_ray.sdk.logins import Logins
    from micro_ray.settings import Bootstrap, Settings

__all__ = ["Session", "answers", "near"]

#: Seconds that an address of another machine has to accept.
DIAL = 2.0
#: Seconds that a stream was open which ended with its token: another is asked for again.
LIVED = 1.0


class Session:
    """``output`` is "table", "json" or a form of the command's own; ``named`` is the environment
    that the command line names. Settings are read when they are
    needed, so that commands without need run whatever they say; the connection is made by the
    first call."""

    def __init__(self) -> None:
        self.output = "table"
        self.named = ""
        self.reader = Reader()
        self._client: Client | None = None
        self._entries: list[Entry] | None = None

    @cached_property
    def settings(self) -> Settings:
        from micro_ray.settings import load

        return load()

    @cached_property
    def _goal(self) -> tuple[Environment, Bootstrap]:
        from micro_ray.sdk.environments import reach

        return reach(self.settings, self.named)

    @property
    def environment(self) -> Environment:
        """The one that commands go to. Raises NotFound for one that there is not."""
        return self._goal[0]

    @property
    def bootstrap(self) -> Bootstrap:
        """How it is reached. Raises NotFound for one that there is not."""
        return self._goal[1]

    def here(self, what: str) -> None:
        """Say that ``what`` is of this machine. Raises PreconditionFailed when commands go to
        another one."""
        where = self.environment
        if not where.is_local:
            raise PreconditionFailed(
                "env",
                f"{what}, and commands go to the environment {where.name} ({where.address}); for "
                "this machine: micro --env local",
            )

    @property
    def client(self) -> Client:
        """Raises Unavailable at once when nobody listens where the platform of this machine should
        be."""
        if self._client is None:
            routers = self.bootstrap.routers
            elsewhere = bool(self.bootstrap.door)
            if not elsewhere and not any(answers(address) for address in routers):
                left = any(os.path.exists(a.removeprefix("unix:")) for a in routers)
                ended = " (its socket is left, the server has ended)" if left else ""
                raise Unavailable(
                    "client",
                    f"no micro server at {routers[0]}{ended}; start one with `micro server`",
                )
            import logging

            from micro_ray.sdk.blocking import Client

            # What libraries log is for services; a command says what is wrong once, by itself.
            logging.basicConfig(handlers=[logging.NullHandler()])
            self._client = Client(self.bootstrap)
        return self._client

    def call(self, service: str, endpoint: str, value: Any = None, **options: Any) -> Any:
        return self.client.call(service, endpoint, value, **options)

    def stream(
        self, service: str, endpoint: str, value: Any = None, **options: Any
    ) -> Iterator[Any]:
        """The answers; ends also when nobody reads our output any more."""
        answers = self.client.stream(service, endpoint, value, **options)
        # Closed once the reader is no longer watched: its end must not interrupt that.
        with contextlib.closing(answers), self.reader.watched():
            for answer in answers:  # noqa: UP028 - `yield from` would close it within
                yield answer

    def follow(
        self,
        service: str,
        endpoint: str,
        request: Mapping[str, Any],
        onward: Callable[[Any], Mapping[str, Any]],
    ) -> Iterator[Any]:
        """The answers of a stream that may last longer than an access token, with which it ends: it
        is asked for again with the next token. ``onward(last)`` is then what is asked otherwise,
        after the last answer (None before the first)."""
        last: Any = None
        while True:
            begun = time.monotonic()
            try:
                for answer in self.stream(service, endpoint, request):
                    last = answer
                    yield answer
                return
            except Unauthorized:
                if time.monotonic() < begun + LIVED:
                    raise  # there is no other token
            request = {**request, **onward(last)}

    # -- who one is ------------------------------------------------------------------------------

    @cached_property
    def _logins(self) -> Logins:
        from micro_ray.sdk.logins import Logins

        return Logins(self.settings.credentials)

    def login(self, id: str, secret: str, namespace: str) -> None:
        """Raises what auth refuses."""
        from micro_ray.sdk.logins import Login

        request = {"id": id, "secret": secret, "namespace": namespace}
        nobody = {"authorization": ""}
        tokens = self.client.call("auth", "Auth.Token", request, metadata=nobody)
        found = self.client.call(
            "auth",
            "Auth.Inspect",
            {"token": tokens["access"]},
            metadata={"authorization": f"Bearer {tokens['access']}"},
        )
        known = Login(
            id=found["id"],
            namespace=namespace,
            access=tokens["access"],
            expires=tokens["expires"],
            refresh=tokens["refresh"],
        )
        self._logins.write(self.bootstrap.place, known)

    def logout(self) -> None:
        """Forget the tokens, and tell auth if it can be told."""
        known = self._logins.read(self.bootstrap.place)
        self._logins.write(self.bootstrap.place, None)
        if known is not None:
            along = {"authorization": f"Bearer {known.access}"}
            for token in (known.refresh, known.access):
                with contextlib.suppress(MicroError):
                    self.client.call("auth", "Auth.Revoke", {"token": token}, metadata=along)

    def identity(self) -> dict[str, Any] | None:
        """Who is logged in: id and namespace."""
        known = self._logins.read(self.bootstrap.place)
        return None if known is None else {"id": known.id, "namespace": known.namespace}

    def token(self) -> str:
        """An access token of who is logged in, good for a minute at least; blank for nobody."""
        return self.client.run(lambda client: client.token())

    @property
    def namespace(self) -> str:
        """The one that is meant: that of the settings, or of who is logged in."""
        given = self.settings.namespace
        known = self._logins.read(self.bootstrap.place)
        return known.namespace if known is not None and given == "micro" else given

    # -- what there is ---------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """The services that can be called, asked for once."""
        if self._entries is None:
            self._entries = self.client.entries()
        return self._entries

    @property
    def reached(self) -> bool:
        """Whether the platform has answered."""
        return self._entries is not None

    def known(self, entries: list[Entry]) -> None:
        """Take over entries that were asked for otherwise."""
        self._entries = entries

    def entry(self, name: str) -> Entry | None:
        """A service by its name, without regard to case: the version with most endpoints."""
        found = [entry for entry in self.entries() if entry.service.lower() == name.lower()]
        return max(found, key=lambda entry: len(entry.endpoints), default=None)

    def endpoint(self, service: str, name: str) -> Endpoint | None:
        """What is published of an endpoint (``Handler.Method``, or a method of the service's own
        handler), None for one that is not."""
        from micro_ray.wire.endpoints import endpoint_name, fold

        entry = self.entry(service)
        wanted = fold(name if "." in name else endpoint_name(service, name))
        for endpoint in entry.endpoints if entry is not None else ():
            if fold(endpoint.name) == wanted:
                return endpoint
        return None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def answers(address: str) -> bool:
    """Whether somebody accepts connections at an address (``unix:/path`` or ``tcp:host:port``).
    Raises BadRequest for what is none."""
    from micro_ray.wire.address import parse

    where = parse(address)
    with contextlib.suppress(OSError):
        if where.path:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(DIAL)
                probe.connect(where.path)
                return True
        with socket.create_connection((where.host, where.port), timeout=DIAL):
            return True
    return False


def near(word: str, names: Sequence[str]) -> list[str]:
    """The names that a word may have meant, nearest first."""
    import difflib

    folded = {name.lower(): name for name in names}
    return [folded[name] for name in difflib.get_close_matches(word.lower(), folded, n=3)]
