"""What events ask of JetStream: its API over a link, its errors in our words, its names.

Every request is tried for :data:`BUDGET` seconds: while a cluster elects a new leader nobody
answers, or with an error that passes. Reads come from the leader where that matters
(:meth:`Api.info`, :meth:`Api.message`); :meth:`Api.scan` may be answered by a replica that lags.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from micro_ray.errors import BadGateway, InternalError, MicroError, TooLarge, Unavailable
from micro_ray.nats_link import Answer, Link, NobodyThere, Unanswered
from micro_ray.nats_users import Account

__all__ = ["Api", "Message", "Names", "Refused"]

#: Seconds that a request is tried, and those that one answer may take, and one of many messages.
BUDGET, ANSWER, ANSWERS = 15.0, 2.0, 5.0
#: Bytes and messages of one answer of several.
SCAN_BYTES, SCAN = 4 * 2**20, 1000
#: Errors of JetStream: a stream, a message that is not there; a name in use; a condition that does
#: not hold; not enough room or members; JetStream that is not there.
NO_STREAM, NO_MESSAGE, NAME_IN_USE = 10059, 10037, 10058
WRONG_LAST = {10071, 10164}
#: Asked of a consumer of no use: what passes by itself.
PASSING = {10008, 10009, 10012, 10077}
NO_ROOM = {10023, 10026, 10027, 10028, 10047}
NOT_ENABLED = (10039, 10076)
NO_PEERS = {10005, 10074}
#: The first version of NATS that reads many messages at a time without a consumer.
OLDEST = (2, 11)
_LAST = re.compile(r"wrong last sequence: (\d+)")
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
#: The longest readable name of a stream: servers make a folder of it.
_LONGEST = 180


class Refused(Exception):
    """An error that JetStream answered; ``last`` is the sequence that is there instead."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text
        found = _LAST.search(text)
        self.last = int(found[1]) if found else None

    @property
    def wrong_last(self) -> bool:
        return self.code in WRONG_LAST


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a stream."""

    subject: str
    sequence: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Names:
    """Streams and subjects of a platform. The names of namespaces, topics and groups have letters,
    digits, ``.``, ``_`` and ``-``, so ``+`` parts names of streams and ``=`` stands for a dot: no
    two things have one name, and no subject of a namespace is matched by a pattern of another."""

    prefix: str

    def topic_stream(self, space: str, topic: str) -> str:
        name = f"{_word(self.prefix)}+{_word(space)}+{_word(topic)}"
        if len(name) <= _LONGEST:
            return name
        mark = hashlib.sha256(name.encode()).hexdigest()[:32]
        return f"{name[: _LONGEST - 33]}++{mark}"

    def groups_stream(self, space: str) -> str:
        return f"{_word(self.prefix)}+{_word(space)}"

    def topics(self, space: str) -> str:
        """What all events of a namespace are under."""
        return f"{self.prefix}.events.{_word(space)}.>"

    def events(self, space: str, topic: str) -> str:
        return f"{self.prefix}.events.{_word(space)}.{_word(topic)}"

    def event(self, space: str, topic: str, id: str) -> str:
        """The subject of one event: its id is the last word, so a stream has one of each id."""
        if not _PLAIN.fullmatch(id):
            id = "=" + base64.urlsafe_b64encode(id.encode()).decode().rstrip("=")
        return f"{self.events(space, topic)}.{id}"

    def groups(self, space: str) -> str:
        return f"{self.prefix}.groups.{_word(space)}"

    def dead(self, space: str) -> str:
        return f"{self.prefix}.dead.{_word(space)}"

    def login(self, account: Account) -> Mapping[str, Any]:
        """How the platform comes in, by a user who has what is under the prefix and JetStream."""
        ours = f"{self.prefix}.>"
        return account.login("events", publish=[ours, "$JS.API.>"], subscribe=[ours, "_INBOX.>"])

    def told(self, subject: str) -> str:
        """Where the server tells of what it has stored under a subject of ours."""
        return f"{self.prefix}.told.{subject.removeprefix(self.prefix + '.')}"


def _word(name: str) -> str:
    return name.replace(".", "=")


def id_of(subject: str) -> str:
    """The id of the event of a subject."""
    word = subject.rpartition(".")[2]
    if not word.startswith("="):
        return word
    return base64.urlsafe_b64decode(word[1:] + "=" * (-len(word[1:]) % 4)).decode()


class Api:
    """``replicas`` is how many servers keep each stream; 0: three in a cluster, else one."""

    def __init__(self, link: Link, *, replicas: int = 0) -> None:
        self.link = link
        self._replicas = replicas

    @property
    def replicas(self) -> int:
        return self._replicas or (3 if self.link.info.get("cluster") else 1)

    @property
    def _enabled(self) -> bool:
        """Whether JetStream may be there: a member of a cluster may lack it that others have."""
        info = self.link.info
        return bool(info.get("jetstream") or info.get("cluster") or not info)

    # -- streams ---------------------------------------------------------------------------------

    async def ask(self, verb: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One call of JetStream's API. Raises Refused for what it refuses."""
        return await self._try(
            f"$JS.API.{verb}", json.dumps(body or {}).encode(), None, "JetStream does not answer"
        )

    async def info(self, stream: str, **body: Any) -> dict[str, Any] | None:
        """What the leader of a stream knows of it; None when there is no such stream."""
        try:
            return await self.ask(f"STREAM.INFO.{stream}", body)
        except Refused as error:
            if error.code == NO_STREAM:
                return None
            raise self._error(error) from None

    async def create(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Make a stream, or find the one of its name."""
        name = config["name"]
        given = {
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "num_replicas": self.replicas,
            "allow_direct": True,
            **config,
        }
        try:
            return await self.ask(f"STREAM.CREATE.{name}", given)
        except Refused as error:
            if error.code != NAME_IN_USE:
                raise self._error(error) from None
        found = await self.info(name)
        if found is None:  # deleted meanwhile
            return await self.create(config)
        return found

    async def update(self, config: Mapping[str, Any]) -> None:
        try:
            await self.ask(f"STREAM.UPDATE.{config['name']}", config)
        except Refused as error:
            raise self._error(error) from None

    async def delete(self, stream: str) -> bool:
        try:
            await self.ask(f"STREAM.DELETE.{stream}")
        except Refused as error:
            if error.code == NO_STREAM:
                return False
            raise self._error(error) from None
        return True

    async def purge(self, stream: str, **which: Any) -> int:
        """Remove messages: those of a ``filter``, those before the sequence ``seq``."""
        try:
            return int((await self.ask(f"STREAM.PURGE.{stream}", which)).get("purged") or 0)
        except Refused as error:
            if error.code == NO_STREAM:
                return 0
            raise self._error(error) from None

    async def streams(self, subject: str) -> list[dict[str, Any]]:
        """The streams that take subjects of a pattern."""
        found: list[dict[str, Any]] = []
        while True:
            try:
                page = await self.ask("STREAM.LIST", {"subject": subject, "offset": len(found)})
            except Refused as error:
                raise self._error(error) from None
            rows = page.get("streams") or []
            found += rows
            if not rows or len(found) >= page["total"]:
                return found

    async def account(self) -> dict[str, Any]:
        """What JetStream keeps for us, and its limits."""
        try:
            return await self.ask("INFO")
        except Refused as error:
            raise self._error(error) from None

    async def count(self, subject: str) -> int:
        """How many streams take subjects of a pattern."""
        try:
            return int((await self.ask("STREAM.NAMES", {"subject": subject}))["total"])
        except Refused as error:
            raise self._error(error) from None

    # -- messages --------------------------------------------------------------------------------

    async def append(
        self, subject: str, body: bytes, headers: dict[str, str], *, tried: list[str] | None = None
    ) -> int:
        """Put a message into the stream of its subject; the sequence that it was given. Raises
        Refused. ``tried`` takes the reasons of attempts whose end is not known: after one of them
        what is refused may have been taken before."""
        answer = await self._try(subject, body, headers, "no stream takes it", tried)
        return int(answer["seq"])

    async def message(self, stream: str, **which: Any) -> Message | None:
        """One message, from the leader: of a sequence ``seq``, the last of a ``last_by_subj``."""
        try:
            found = (await self.ask(f"STREAM.MSG.GET.{stream}", which))["message"]
        except Refused as error:
            if error.code in (NO_MESSAGE, NO_STREAM):
                return None
            raise self._error(error) from None
        return Message(
            found["subject"],
            found["seq"],
            _headers(base64.b64decode(found.get("hdrs") or "")),
            base64.b64decode(found.get("data") or ""),
        )

    async def scan(
        self, stream: str, subject: str, sequence: int, most: int = SCAN
    ) -> list[Message]:
        """Messages of subjects of a pattern from a sequence on, by sequence: not always all that
        there are. None also where there is no such stream."""
        body = json.dumps(
            {
                "seq": max(sequence, 1),
                "next_by_subj": subject,
                "batch": min(most, SCAN),
                "max_bytes": SCAN_BYTES,
            }
        ).encode()
        loop = asyncio.get_running_loop()
        end = loop.time() + BUDGET
        while True:
            try:
                answers = await self.link.gather(
                    f"$JS.API.DIRECT.GET.{stream}", body, _is_status, within=ANSWERS
                )
                break
            except NobodyThere as error:
                if await self.info(stream) is None:
                    return []
                await self._pause(end, error)
            except Unanswered as error:
                await self._pause(end, error)
        status = answers.pop()
        if status.headers.get("Status") not in ("204", "404"):
            raise InternalError("events", f"JetStream: {status.headers.get('Description')}")
        return [_direct(answer) for answer in answers]

    async def tell(self, subject: str) -> None:
        """Tell whoever listens; a line that breaks is no failure, they look by themselves."""
        with contextlib.suppress(Unanswered):
            await self.link.publish(subject)

    async def _try(
        self,
        subject: str,
        body: bytes,
        headers: dict[str, str] | None,
        missing: str,
        tried: list[str] | None = None,
    ) -> dict[str, Any]:
        """The answer of JetStream to one request."""
        loop = asyncio.get_running_loop()
        end = loop.time() + BUDGET
        unsure: list[str] = [] if tried is None else tried
        while True:
            try:
                answer = await self.link.request(subject, body, headers=headers, within=ANSWER)
            except NobodyThere as error:
                if tried is not None:  # whether the stream is there is for the caller to look at
                    raise Refused(NO_STREAM, missing) from None
                await self._pause(end, error)
                continue
            except Unanswered as error:
                unsure.append(str(error))
                await self._pause(end, error, unsure if tried is not None else None)
                continue
            except MicroError:
                if unsure and tried is not None:
                    raise _unknown(unsure) from None
                raise
            found: dict[str, Any] = msgspec.json.decode(answer.body)
            wrong = found.get("error")
            if not wrong:
                return found
            refused = Refused(int(wrong.get("err_code") or 0), str(wrong.get("description")))
            if refused.code not in PASSING:
                raise refused
            await self._pause(end, refused)

    async def _pause(self, end: float, error: Exception, unsure: list[str] | None = None) -> None:
        """Wait before another attempt. Raises when there is none."""
        version = str(self.link.info.get("version", ""))
        if _older(version, OLDEST):
            raise self.link.away(f"it is version {version}; {'.'.join(map(str, OLDEST))} is needed")
        if asyncio.get_running_loop().time() >= end:
            if unsure:
                raise _unknown(unsure)
            if isinstance(error, Refused):
                raise self._error(error)
            raise self.link.away(f"JetStream does not answer: {error}")
        if isinstance(error, NobodyThere) and not self._enabled:
            raise error_of(self.link, Refused(NOT_ENABLED[0], "JetStream is not enabled"))
        await asyncio.sleep(0.05 + 0.1 * random.random())

    def _error(self, error: Refused) -> MicroError:
        return error_of(self.link, error)


def error_of(link: Link, error: Refused) -> MicroError:
    """An error of JetStream in words that a person can do something with."""
    if error.code in NOT_ENABLED:
        return link.away(
            f"{error.text} (put 'jetstream {{}}' into the servers' configuration, and enable it "
            "for the account)"
        )
    if error.code in NO_ROOM:
        return Unavailable(
            "events",
            f"JetStream has no room: {error.text} (raise max_file_store or the account's limits, "
            "or keep less)",
            5.0,
        )
    if error.code in NO_PEERS:
        return Unavailable(
            "events",
            f"JetStream: {error.text} (start as many servers as events.replicas asks for, or lower "
            "it)",
            1.0,
        )
    if error.code in PASSING:
        return link.away(error.text)
    if "maximum message size" in error.text or "exceeds maximum" in error.text:
        return TooLarge("events", f"JetStream: {error.text}")
    return InternalError("events", f"JetStream: {error.text} ({error.code})")


def _older(version: str, than: tuple[int, int]) -> bool:
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) < than


def _unknown(reasons: list[str]) -> BadGateway:
    return BadGateway(
        "events", f"the end is unknown, NATS did not answer: {reasons[-1]}; ask again with the id"
    )


def _is_status(answer: Answer) -> bool:
    return "Status" in answer.headers


def _direct(answer: Answer) -> Message:
    headers = answer.headers
    return Message(headers["Nats-Subject"], int(headers["Nats-Sequence"]), headers, answer.body)


def _headers(block: bytes) -> dict[str, str]:
    found = {}
    for line in block.decode(errors="replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            found[name] = value.strip()
    return found


#: What is called with the headers of a message that the server tells of.
Told = Callable[[Mapping[str, str]], None]
