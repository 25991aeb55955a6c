"""events: publish, consume, fetch and settle, read, replay; topics, usage and groups; dead
letters."""

from __future__ import annotations

import base64
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from micro_ray.cli.arguments import Numbers, duration, pairs, seconds
from micro_ray.cli.exits import Usage
from micro_ray.cli.group import Subcommands
from micro_ray.cli.output import ago, as_json, bytes_out, columns, json_line, output, raw, size
from micro_ray.cli.session import Session
from micro_ray.wire.store_records import to_text

__all__ = ["events"]


def _place(text: str) -> dict[str, Any]:
    """Where to begin: "now", "beginning", a number, a time, or how long ago. Raises Usage."""
    if text in ("now", "beginning"):
        return {"start": text}
    if re.fullmatch(r"\d{1,19}", text, re.ASCII):
        return {"sequence": int(text)}
    return {"since": _time(text)}


def _time(text: str) -> float:
    from datetime import datetime

    if re.fullmatch(r"[\d.]+[a-z][\da-z.]*", text, re.ASCII):
        return time.time() - duration(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise Usage(
            "cli",
            f"{text!r} is no place: now, beginning, a number, a time (2030-01-31T12:00) or how "
            "long ago (5m)",
        ) from None


def _payload(event: dict[str, Any]) -> bytes:
    text: str = event["payload"]
    return base64.b64decode(text) if event["encoding"] == "base64" else text.encode()


def _show(session: Session, event: dict[str, Any], verbose: bool = False) -> None:
    if session.output == "json":
        json_line(event)
        return
    data = _payload(event)
    if session.output == "raw":
        raw(data)
        return
    if verbose:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(event["time"]))
        bytes_out(f"{event['sequence']}  {at}  {event['id']}  ".encode())
    bytes_out(data, b"\n")


def _range(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--until", default="", metavar="TIME", help="Before this time."),
        click.option(
            "--from", "begin", default="beginning", metavar="PLACE",
            help="A number, a time or how long ago, like 5m (beginning).",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _span(begin: str, until: str) -> dict[str, Any]:
    place = _place(begin)
    if place.pop("start", "") == "now":
        place["since"] = time.time()
    return place | ({"until": _time(until)} if until else {})


_verbose = click.option("-v", "--verbose", is_flag=True, help="With number, time and id.")


@click.group(cls=Subcommands)
def events() -> None:
    """Publish and consume events."""


@events.command(cls=Numbers)
@click.argument("topic")
@click.argument("payload", nargs=-1, required=True)
@click.option("--id", default="", help="Taken once: a second event of this id is none.")
@click.option("--expected", type=int, help="Only after this event (0: only as the first).")
@click.option("--metadata", multiple=True, metavar="K=V", help="Metadata of the event.")
@output()
@click.pass_obj
def publish(
    session: Session,
    topic: str,
    payload: tuple[str, ...],
    id: str,
    expected: int | None,
    metadata: tuple[str, ...],
) -> None:
    """Publish PAYLOAD (or standard input, for -) to TOPIC, which is made at first use.

    Prints the number of the event. Several words are joined by spaces.
    """
    data = os.fsencode(" ".join(payload))
    if payload == ("-",):
        data = sys.stdin.buffer.read()
    text, encoding = to_text(data)
    request = {
        "topic": topic,
        "payload": text,
        "encoding": encoding,
        "metadata": pairs(metadata, "--metadata"),
        "id": id or os.urandom(16).hex(),
        "expected": expected,
    }
    taken = session.call("events", "Events.Publish", request, idempotent=True)
    if session.output == "json":
        as_json(taken)
    else:
        click.echo(taken["sequence"])


@events.command()
@click.argument("topic")
@click.option("-g", "--group", default="", help="Its members share the events (default: alone).")
@click.option(
    "--from", "begin", default="now", show_default=True, metavar="PLACE",
    help="Where a new group begins: now, beginning, a number, a time or how long ago.",
)  # fmt: skip
@click.option("-n", "--count", type=click.IntRange(1), help="End after so many.")
@click.option(
    "--ack-wait", default="30s", callback=seconds, metavar="DURATION",
    help="An event that is not settled within it is given again.",
)  # fmt: skip
@click.option("--retry-limit", default=10, help="Given again so often (-1: for ever).")
@click.option("--no-ack", is_flag=True, help="Look, and leave them to the group.")
@_verbose
@output("raw")
@click.pass_obj
def consume(
    session: Session,
    /,
    topic: str,
    begin: str,
    count: int | None,
    no_ack: bool,
    verbose: bool,
    **rules: Any,
) -> None:
    """Print the events of TOPIC as they come, one a line; each is acknowledged once printed."""
    request = {"topic": topic, **_place(begin), **rules, "auto_ack": False}
    request["prefetch"] = min(count or 32, 32)
    left = count

    def onward(event: Any) -> dict[str, Any]:
        # A group goes on where it was; without one nobody knows where that is.
        if event is None or rules.get("group"):
            return {}
        return {"start": "now", "since": None, "sequence": event["sequence"] + 1}

    for event in session.follow("events", "Events.Consume", request, onward):
        _show(session, event, verbose)
        if not no_ack:
            session.call("events", "Events.Ack", {"tokens": [event["token"]]}, idempotent=True)
        if left is not None:
            left -= 1
            if not left:
                return


@events.command(cls=Numbers)
@click.argument("topic")
@click.argument("group")
@click.option("-l", "--limit", default=1, show_default=True, help="At most so many.")
@click.option("--wait", default=0.0, metavar="SECONDS", help="Wait for the first of them.")
@click.option(
    "--from", "begin", default="now", show_default=True, metavar="PLACE",
    help="Where a new group begins: now, beginning, a number, a time or how long ago.",
)  # fmt: skip
@click.option(
    "--ack-wait", default=30.0, metavar="SECONDS",
    help="An event that is not settled within it is given again (30).",
)  # fmt: skip
@click.option("--retry-limit", default=10, help="Given again so often (-1: for ever).")
@click.option("--backoff", default=1.0, metavar="SECONDS", help="Before it is given again (1).")
@click.option("--pending", default=1000, help="Most events given and not settled (1000).")
@output()
@click.pass_obj
def fetch(session: Session, /, topic: str, group: str, begin: str, **rules: Any) -> None:
    """Take events of a GROUP of TOPIC, to be settled by `micro events ack TOKEN`."""
    request = {"topic": topic, "group": group, **_place(begin), **rules}
    found = session.call("events", "Events.Fetch", request)["events"]
    if session.output == "json":
        as_json(found)
        return
    columns(
        ("NUMBER", "ID", "ATTEMPT", "TOKEN", "PAYLOAD"),
        [(e["sequence"], e["id"], e["attempt"], e["token"], e["payload"][:80]) for e in found],
    )


_tokens = click.argument("tokens", nargs=-1)


@events.command(cls=Numbers)
@_tokens
@output()
@click.pass_obj
def ack(session: Session, tokens: tuple[str, ...]) -> None:
    """Settle events by their TOKENS; prints how many were still held."""
    _settled(session, "Events.Ack", {"tokens": list(tokens)})


@events.command(cls=Numbers)
@_tokens
@click.option("--delay", type=float, metavar="SECONDS", help="Not before (default: the back-off).")
@output()
@click.pass_obj
def nack(session: Session, tokens: tuple[str, ...], delay: float | None) -> None:
    """Give events back by their TOKENS; prints how many were still held."""
    _settled(session, "Events.Nack", {"tokens": list(tokens), "delay": delay})


@events.command(cls=Numbers)
@_tokens
@output()
@click.pass_obj
def progress(session: Session, tokens: tuple[str, ...]) -> None:
    """Say that events are being worked on; prints how many were still held."""
    _settled(session, "Events.Progress", {"tokens": list(tokens)})


def _settled(session: Session, endpoint: str, request: dict[str, Any]) -> None:
    found = session.call("events", endpoint, request)
    if session.output == "json":
        as_json(found)
    else:
        click.echo(found["count"])


@events.command()
@click.argument("topic")
@click.option("-l", "--limit", default=250, show_default=True, help="At most so many.")
@click.option("--offset", default=0, help="Leave so many out.")
@_range
@_verbose
@output("raw")
@click.pass_obj
def read(
    session: Session, /, topic: str, begin: str, until: str, verbose: bool, **request: Any
) -> None:
    """Print events of TOPIC that are kept, one a line."""
    request = {"topic": topic, **request, **_span(begin, until)}
    found = session.call("events", "Events.Read", request, idempotent=True)["events"]
    if session.output == "json":
        as_json(found)
        return
    for event in found:
        _show(session, event, verbose)


@events.command()
@click.argument("topic")
@click.option(
    "--speed", default=0.0, help="1: as it was, 10: ten times as fast, 0: without pauses (0)."
)
@_range
@_verbose
@output("raw")
@click.pass_obj
def replay(
    session: Session, topic: str, speed: float, begin: str, until: str, verbose: bool
) -> None:
    """Print the events of TOPIC one by one with the pauses there were."""
    request = {"topic": topic, "speed": speed, **_span(begin, until)}
    for event in session.stream("events", "Events.Replay", request):
        _show(session, event, verbose)


@events.command()
@output()
@click.pass_obj
def topics(session: Session) -> None:
    """Print the topics."""
    found = session.call("events", "Events.Topics", idempotent=True)["topics"]
    if session.output == "json":
        as_json(found)
        return
    columns(
        ("TOPIC", "EVENTS", "FIRST", "LAST", "SIZE", "GROUPS", "TTL", "MAX SIZE"),
        [
            (
                row["name"], row["events"], row["first"], row["last"], size(row["size"]),
                row["groups"], "" if row["ttl"] is None else f"{row['ttl']:g}s",
                size(row["max_size"]),
            )
            for row in found
        ],
    )  # fmt: skip


@events.command()
@output()
@click.pass_obj
def usage(session: Session) -> None:
    """Print what the namespace keeps, counted now."""
    found = session.call("events", "Events.Usage", idempotent=True)
    if session.output == "json":
        as_json(found)
    else:
        columns(
            ("TOPICS", "EVENTS", "BYTES", "BYTES OF GROUPS"),
            [(found["topics"], found["events"], found["bytes"], found["group_bytes"])],
        )


@events.command()
@click.argument("topic")
@click.option("--ttl", default="", metavar="DURATION", help="How long, like 7d (for ever).")
@click.option("--max-size", type=click.IntRange(1), help="How many bytes (any amount).")
@output()
@click.pass_obj
def retain(session: Session, topic: str, ttl: str, max_size: int | None) -> None:
    """Set how long and how much TOPIC keeps."""
    request = {"topic": topic, "ttl": duration(ttl) if ttl else None, "max_size": max_size}
    found = session.call("events", "Events.Retain", request)
    if session.output == "json":
        as_json(found)


@events.command()
@click.argument("topic")
@click.option("-g", "--group", default="", help="This group only, with its dead letters.")
@output()
@click.pass_obj
def delete(session: Session, topic: str, group: str) -> None:
    """Remove TOPIC with its events, groups and dead letters."""
    if group:
        done = session.call("events", "Events.DeleteGroup", {"topic": topic, "group": group})
    else:
        done = session.call("events", "Events.Delete", {"topic": topic})
    if session.output == "json":
        as_json(done)


@events.command()
@click.argument("topic")
@output()
@click.pass_obj
def groups(session: Session, topic: str) -> None:
    """Print the groups of TOPIC."""
    found = session.call("events", "Events.Groups", {"topic": topic}, idempotent=True)["groups"]
    if session.output == "json":
        as_json(found)
        return
    columns(
        ("GROUP", "NEXT", "WAITING", "PENDING", "DEAD"),
        [(g["name"], g["next"], g["waiting"], g["pending"], g["dead"]) for g in found],
    )


@events.command()
@click.argument("topic")
@click.argument("group")
@click.option("-l", "--limit", default=100, show_default=True, help="At most so many.")
@click.option("--offset", default=0, help="Leave so many out.")
@output()
@click.pass_obj
def dead(session: Session, /, **request: Any) -> None:
    """Print the dead letters of a GROUP of TOPIC."""
    found = session.call("events", "Events.Dead", request, idempotent=True)["events"]
    if session.output == "json":
        as_json(found)
        return
    columns(
        ("NUMBER", "ID", "ATTEMPTS", "GIVEN UP", "PAYLOAD"),
        [
            (e["sequence"], e["id"], e["attempts"], ago(e["given_up"]), e["payload"][:80])
            for e in found
        ],
    )


def _letters(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.argument("numbers", type=int, nargs=-1)(command)
    command = click.argument("group")(command)
    return click.argument("topic")(command)


@events.command()
@_letters
@output()
@click.pass_obj
def requeue(session: Session, topic: str, group: str, numbers: tuple[int, ...]) -> None:
    """Give dead letters (NUMBERS; none: all) to their GROUP again; prints how many."""
    _counted(session, "Events.Requeue", topic, group, numbers)


@events.command()
@_letters
@output()
@click.pass_obj
def discard(session: Session, topic: str, group: str, numbers: tuple[int, ...]) -> None:
    """Remove dead letters (NUMBERS; none: all); prints how many."""
    _counted(session, "Events.Discard", topic, group, numbers)


def _counted(
    session: Session, endpoint: str, topic: str, group: str, numbers: tuple[int, ...]
) -> None:
    _settled(session, endpoint, {"topic": topic, "group": group, "sequences": list(numbers)})
