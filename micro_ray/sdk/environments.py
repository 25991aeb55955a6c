"""The platforms one works with, in a file of one's own beside the logins: ``environments.json``,
mode 0600. One is always there: ``local``, that of this machine, which is reached by frames; the
others by their gRPC doors."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from micro_ray.errors import (
    BadRequest,
    Conflict,
    MicroError,
    NotFound,
    PreconditionFailed,
    TooLarge,
)
from micro_ray.sdk.logins import Logins
from micro_ray.sdk.private import PrivateFile
from micro_ray.settings import Bootstrap, Settings, bootstrap
from micro_ray.wire.address import parse

__all__ = ["LOCAL", "Environment", "Environments", "address_of", "by_settings", "reach"]

LOCAL = "local"
#: How many there may be, and bytes of a file of certificates.
MOST, MAX_CA = 100, 2**20
PLAIN, SECURE = "grpc://", "grpcs://"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """``address`` is that of the door, ``grpc://host:port`` or with TLS ``grpcs://host:port``;
    blank for this machine. ``ca`` is the file of the certificates that are trusted, blank for those
    of the system."""

    name: str
    address: str = ""
    ca: str = ""

    @property
    def is_local(self) -> bool:
        """Whether it is that of this machine."""
        return not self.address

    @property
    def is_open(self) -> bool:
        """Whether what is said there, tokens too, can be read on the way."""
        host = self.address.removeprefix(PLAIN)
        return self.address.startswith(PLAIN) and not parse(f"tcp:{host}").is_local


class Environments:
    """What the file has. ``logins`` are those of the same person."""

    def __init__(self, settings: Settings) -> None:
        path = settings.credentials.with_name("environments.json")
        self._file = PrivateFile(path, what="environments", cure="remove it, and add them again")
        self._logins = Logins(settings.credentials)

    def known(self) -> list[Environment]:
        """All of them, this machine's first. Raises PreconditionFailed for a file that others may
        read, or that is damaged."""
        return [Environment(name=LOCAL), *self._load()[1].values()]

    @property
    def current(self) -> str:
        """The name of the one that is meant when none is named."""
        return self._load()[0]

    def get(self, name: str) -> Environment:
        """Raises NotFound, which says what is near."""
        known = {each.name: each for each in self.known()}
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name[:80], known, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "See `micro env list`."
        raise NotFound("env", f"Environment {name[:80]!r} does not exist. {hint}")

    def add(self, name: str, address: str, ca: Path | None = None) -> Environment:
        """Add one. Raises BadRequest for a name, an address or a file that cannot be, Conflict for
        a name that is taken, TooLarge when there are too many."""
        if not _NAME.fullmatch(name):
            raise BadRequest(
                "env",
                f"name {name[:80]!r}: letters, digits, '.', '_' and '-', beginning with a letter "
                "or digit, at most 63 characters",
            )
        made = Environment(name=name, address=address_of(address), ca=_ca(ca))
        if made.ca and not made.address.startswith(SECURE):
            raise BadRequest("env", f"a file of certificates is for {SECURE} only")
        with self._file.locked():
            current, known = self._load()
            if name == LOCAL or name in known:
                advice = "it is this machine" if name == LOCAL else f"micro env del {name}"
                raise Conflict("env", f"Environment {name!r} exists already: {advice}")
            if len(known) >= MOST:
                raise TooLarge("env", f"there are {len(known)} environments; {MOST} allowed")
            self._save(current, {**known, name: made})
        return made

    def use(self, name: str) -> None:
        """Let one be meant when none is named. Raises NotFound."""
        with self._file.locked():
            self.get(name)
            self._save(name, self._load()[1])

    def remove(self, name: str) -> None:
        """Take one out, with its login. Raises NotFound, PreconditionFailed for the current one and
        for this machine's."""
        with self._file.locked():
            gone = self.get(name)
            current, known = self._load()
            if gone.is_local:
                raise PreconditionFailed("env", f"{LOCAL} is this machine, which is always there")
            if name == current:
                raise PreconditionFailed("env", f"{name} is the current one: micro env set {LOCAL}")
            del known[name]
            if all(each.address != gone.address for each in known.values()):
                self._logins.write(gone.address, None)
            self._save(current, known)

    def _load(self) -> tuple[str, dict[str, Environment]]:
        rows = self._file.read()
        try:
            known = {name: _row(name, row) for name, row in rows.get("environments", {}).items()}
            current = rows.get("current", LOCAL)
        except (LookupError, TypeError, AttributeError, MicroError):
            raise self._file.damaged() from None
        if not isinstance(current, str) or not all(map(_NAME.fullmatch, known)):
            raise self._file.damaged()
        return (current if current in known else LOCAL), known

    def _save(self, current: str, known: dict[str, Environment]) -> None:
        rows = {each.name: {"address": each.address, "ca": each.ca} for each in known.values()}
        self._file.write({"current": current, "environments": rows})


def _row(name: str, row: dict[str, Any]) -> Environment:
    ca = row.get("ca", "")
    if not isinstance(ca, str):
        raise TypeError("ca is a path")
    return Environment(name=name, address=address_of(row["address"]), ca=ca)


def address_of(text: str) -> str:
    """An address of a door as it is kept. Raises BadRequest for what is none."""
    if not isinstance(text, str):
        raise BadRequest("env", "an address is text")
    folded = text.lower()
    scheme = next((each for each in (SECURE, PLAIN) if folded.startswith(each)), "")
    try:
        found = parse(f"tcp:{folded.removeprefix(scheme)}")
    except BadRequest:
        found = None
    if found is None or not found.port:
        raise BadRequest(
            "env",
            f"address {text[:200]!r}: host:port, {PLAIN}host:port, or {SECURE}host:port for TLS",
        )
    return f"{scheme or PLAIN}{str(found).removeprefix('tcp:')}"


def _ca(path: Path | None) -> str:
    """A file of certificates, looked at. Raises BadRequest."""
    if path is None:
        return ""
    import ssl

    try:
        size = path.stat().st_size
        if size > MAX_CA:
            raise BadRequest("env", f"{path} has {size} bytes; {MAX_CA} allowed")
        ssl.create_default_context(cafile=str(path))
    except OSError as error:  # ssl's own errors are such, too
        reason = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else ""
        raise BadRequest("env", f"{path}: {reason or 'it has no certificates (PEM)'}") from None
    return str(path.absolute())


def reach(settings: Settings, name: str = "") -> tuple[Environment, Bootstrap]:
    """An environment and how it is reached: the one that is named, here or by the settings, else
    the current one. Raises NotFound for one that there is not."""
    known = Environments(settings)
    found = known.get(name or settings.env or known.current)
    boot = bootstrap(settings)
    if found.is_local:
        return found, boot
    # Nothing of this machine's platform is true of another's.
    elsewhere = replace(boot, registry=(), routers=(), auths=(), certs=(), platform="", identity="")
    return found, replace(elsewhere, door=found.address, ca=found.ca, place=found.address)


def by_settings(settings: Settings) -> Bootstrap:
    """Where a program goes that says nothing: to the environment of the settings, else to this
    machine. The current one is for commands: it must not move programs that run."""
    return reach(settings, settings.env or LOCAL)[1]
