"""What a workload may be, and what an update may change of one."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any, get_type_hints

import msgspec

from micro_ray.errors import BadRequest, TooLarge
from micro_ray.runtime import Workload
from micro_ray.settings import PLATFORM

__all__ = ["CHANGEABLE", "RESERVED", "changed", "check", "check_place"]

#: What an update may change.
CHANGEABLE = (
    "source", "digest", "command", "env", "replicas", "cpu", "gpu", "memory", "metadata",
)  # fmt: skip
#: Names of the platform's own services, and of those who only call: a workload of such a name would
#: pass for one.
RESERVED = PLATFORM | {"client"}
#: Variables by which a replica is known, which the runtime sets.
OWN = (
    "MICRO_IDENTITY",
    "MICRO_INSTANCE",
    "MICRO_NAMESPACE",
    "MICRO_PLATFORM",
    "MICRO_ROOTS",
    "MICRO_SERVICE_NAME",
    "MICRO_SERVICE_VERSION",
    "MICRO_TICKET",
)

MAX_ENV = 200
MAX_ENV_BYTES = 64 * 2**10
MAX_METADATA = 64
MAX_METADATA_BYTES = 16 * 2**10
MAX_COMMAND = 256
MAX_COMMAND_BYTES = 64 * 2**10
MAX_SOURCE = 4096
MAX_AMOUNT = 2**50

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}|")
_KINDS: Mapping[str, Any] = get_type_hints(Workload)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


def check_place(name: str, namespace: str) -> None:
    """Raises BadRequest for what is no name of a workload, or of a namespace."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadRequest(
            "runtime",
            f"name {_shown(name)}: lower-case letters, digits, '-' and '.', at most 63, with a "
            "letter or digit at both ends",
        )
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
        raise BadRequest(
            "runtime",
            f"namespace {_shown(namespace)}: letters, digits, '.', '_' and '-', at most 63",
        )


def check(workload: Workload, drivers: Collection[str], max_replicas: int) -> Workload:
    """The workload with its fields as their types say. Raises BadRequest or TooLarge that names the
    field."""
    typed = {f.name: _typed(f.name, getattr(workload, f.name)) for f in fields(workload)}
    workload = replace(workload, **typed)
    check_place(workload.name, workload.namespace)
    if workload.name in RESERVED:
        raise BadRequest(
            "runtime", f"name {workload.name!r} is a service of the platform; choose another"
        )
    if not _VERSION.fullmatch(workload.version):
        raise BadRequest(
            "runtime",
            f"version {_shown(workload.version)}: letters, digits, '.', '_' and '-', at most 253",
        )
    if workload.driver not in drivers:
        raise BadRequest(
            "runtime", f"driver {_shown(workload.driver)}; there is {', '.join(sorted(drivers))}"
        )
    if not _DIGEST.fullmatch(workload.digest):
        raise BadRequest("runtime", f"digest {_shown(workload.digest)} is no SHA-256 in hex")
    _command(workload)
    if not 0 <= workload.replicas <= max_replicas:
        raise BadRequest(
            "runtime", f"replicas {workload.replicas} is not within 0 and {max_replicas}"
        )
    for what in ("cpu", "gpu", "memory"):
        amount = getattr(workload, what)
        if not math.isfinite(amount) or not 0 <= amount < MAX_AMOUNT:
            raise BadRequest("runtime", f"{what} {amount} is not an amount: 0 or more")
    if len(workload.source) > MAX_SOURCE:
        raise TooLarge("runtime", f"source of {len(workload.source)} characters, over {MAX_SOURCE}")
    _pairs("env", workload.env, MAX_ENV, MAX_ENV_BYTES)
    _pairs("metadata", workload.metadata, MAX_METADATA, MAX_METADATA_BYTES)
    _variables(workload.env)
    return workload


def changed(workload: Workload, changes: Mapping[str, Any]) -> Workload:
    """The workload after an update. Raises BadRequest for a field that cannot be changed, or to
    what it cannot be."""
    unknown = sorted(set(changes) - set(CHANGEABLE))
    if unknown:
        raise BadRequest(
            "runtime",
            f"{', '.join(unknown)[:200]} cannot be updated; what can: {', '.join(CHANGEABLE)}",
        )
    return replace(workload, **{name: _typed(name, value) for name, value in changes.items()})


def _typed(name: str, value: Any) -> Any:
    try:
        return msgspec.convert(value, _KINDS[name])
    except msgspec.ValidationError as error:
        raise BadRequest("runtime", f"{name}: {error}") from None


def _command(workload: Workload) -> None:
    command = workload.command
    if workload.driver == "ray" and command:
        raise BadRequest("runtime", "a command runs as a process: use driver 'process'")
    if not workload.digest and not command:
        raise BadRequest("runtime", "neither source nor command: nothing to run")
    if command and not command[0].strip():
        raise BadRequest("runtime", "command: its first word is blank")
    size = sum(len(_bytes("command", word)) for word in command)
    if len(command) > MAX_COMMAND or size > MAX_COMMAND_BYTES:
        raise TooLarge(
            "runtime",
            f"command of {len(command)} words and {size} bytes; {MAX_COMMAND} and "
            f"{MAX_COMMAND_BYTES} are allowed",
        )


def _pairs(what: str, pairs: Mapping[str, str], most: int, most_bytes: int) -> None:
    size = sum(len(_bytes(what, k)) + len(_bytes(what, v)) for k, v in pairs.items())
    if len(pairs) > most or size > most_bytes:
        raise TooLarge(
            "runtime",
            f"{what} of {len(pairs)} entries and {size} bytes; {most} and {most_bytes} are allowed",
        )


def _variables(env: Mapping[str, str]) -> None:
    for variable in env:
        if not _VARIABLE.fullmatch(variable):
            raise BadRequest("runtime", f"env: {_shown(variable)} is no variable's name")
        if variable in OWN:
            raise BadRequest("runtime", f"env: {variable} is set by the runtime")


def _bytes(what: str, text: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise BadRequest("runtime", f"{what} is not valid Unicode") from None
    if b"\0" in encoded:
        raise BadRequest("runtime", f"{what}: {_shown(text)} has a zero byte")
    return encoded


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
