"""Users of NATS that the platform makes for itself: one for each namespace, whom the servers let
into the subjects of that namespace alone.

Servers in operator mode know an account by its key and let in whoever shows a token (a JWT) that
the key has signed, with the permissions that it has. So nothing need be told to the servers when a
namespace comes or goes. A user's own key is made here, is in no file, and ends with the process.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from micro_ray.errors import BadRequest

__all__ = ["Account", "Key", "configuration", "read"]

#: The first byte of a key in base32: what it is of, as its first letter shows.
_KINDS = {"O": 14 << 3, "A": 0, "U": 20 << 3}
_SEED = 18 << 3
#: Whatever it is that an account may have any amount of.
_ANY = -1
_LIMITS = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key of NATS: ``kind`` is O (an operator's), A (an account's) or U (a user's)."""

    kind: str
    private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def make(cls, kind: str) -> Key:
        """A new one."""
        return cls(kind=kind, private=Ed25519PrivateKey.generate())

    @property
    def id(self) -> str:
        """Its public half, as NATS writes it."""
        return _text(bytes([_KINDS[self.kind]]) + self.private.public_key().public_bytes_raw())

    @property
    def seed(self) -> str:
        """Its secret half, as NATS writes it."""
        kind = _KINDS[self.kind]
        head = bytes([_SEED | kind >> 5, (kind & 31) << 3])
        return _text(head + self.private.private_bytes_raw())

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A token that says ``claims``, and who signed it and when."""
        said = {**claims, "iss": self.id, "iat": int(time.time())}
        said["jti"] = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
        head = _url(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
        text = f"{head}.{_url(json.dumps(said).encode())}"
        return f"{text}.{_url(self.private.sign(text.encode()))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who may make users of an account: ``key`` is the account's own, or one of those that sign for
    the account ``id``."""

    key: Key
    id: str = ""

    def login(
        self, name: str, *, publish: Sequence[str], subscribe: Sequence[str]
    ) -> Mapping[str, Any]:
        """What nats-py needs to come in as a user of this name, who may publish to and subscribe
        these subjects and no others. Each has a key of its own."""
        user = Key.make("U")
        rights: dict[str, Any] = {
            "type": "user", "version": 2, "subs": _ANY, "data": _ANY, "payload": _ANY,
            "pub": {"allow": list(publish)}, "sub": {"allow": list(subscribe)},
        }  # fmt: skip
        if self.id and self.id != self.key.id:
            rights["issuer_account"] = self.id
        token = self.key.sign({"sub": user.id, "name": name, "nats": rights}).encode()

        def answer(nonce: str) -> bytes:
            return base64.b64encode(user.private.sign(nonce.encode()))

        return {"user_jwt_cb": lambda: token, "signature_cb": answer}


def read(path: str, account: str, noun: str) -> Account:
    """The key in a file (a seed that begins with SA), which signs for ``account`` (blank: it is the
    account's own). Raises BadRequest that names the noun's setting."""
    try:
        words = Path(path).read_text().split()
    except (OSError, ValueError) as error:
        raise BadRequest("settings", f"{noun}.account_key: {path}: {error}") from None
    seeds = [word for word in words if word.startswith("SA")]
    private = _private(seeds[0]) if len(seeds) == 1 else None
    if private is None:
        raise BadRequest(
            "settings", f"{noun}.account_key: {path}: not the seed of one account (SA...)"
        )
    if account and not (account.startswith("A") and _bytes(account)):
        raise BadRequest("settings", f"{noun}.account: {account[:80]!r} is no account (A...)")
    return Account(key=Key(kind="A", private=private), id=account)


def configuration(account: Key, name: str = "MICRO", *, signing: Sequence[str] = ()) -> str:
    """What servers that know this account, and nobody else, have in their configuration; keys with
    the ids ``signing`` may make users of it as well. Who vouches for it is made here and forgotten:
    nobody can add an account."""
    operator = Key.make("O")
    system = Key.make("A")
    told = {"type": "operator", "version": 2, "system_account": system.id}
    limits = dict.fromkeys(_LIMITS, _ANY)
    streams = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), _ANY)

    def known(key: Key, name: str, limits: Mapping[str, int], signing: Sequence[str]) -> str:
        rights = {
            "type": "account", "version": 2, "limits": {**limits, "wildcards": True},
            "signing_keys": list(signing),
        }  # fmt: skip
        return f"  {key.id}: {operator.sign({'sub': key.id, 'name': name, 'nats': rights})}\n"

    return (
        f"operator: {operator.sign({'sub': operator.id, 'name': name, 'nats': told})}\n"
        f"system_account: {system.id}\nresolver: MEMORY\nresolver_preload: {{\n"
        # JetStream is for all but the servers' own account.
        f"{known(system, 'SYS', limits, ())}"
        f"{known(account, name, {**limits, **streams}, signing)}}}\n"
    )


def _private(seed: str) -> Ed25519PrivateKey | None:
    raw = _bytes(seed)
    return Ed25519PrivateKey.from_private_bytes(raw[2:]) if len(raw) == 34 else None


def _text(raw: bytes) -> str:
    """With its checksum, in base32."""
    summed = raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(summed).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    """The reverse; nothing for what is no key."""
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except ValueError:
        return b""
    sound = binascii.crc_hqx(raw[:-2], 0).to_bytes(2, "little") == raw[-2:]
    return raw[:-2] if sound else b""


def _url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
