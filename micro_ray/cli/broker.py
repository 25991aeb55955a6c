"""publish and subscribe."""

from __future__ import annotations

import os
import sys

import click

from micro_ray.broker import Message
from micro_ray.cli.arguments import Numbers, pairs
from micro_ray.cli.output import bytes_out, encoded, json_line, output, raw, visible
from micro_ray.cli.session import Session

__all__ = ["publish", "subscribe"]


@click.command(cls=Numbers)
@click.argument("topic")
@click.argument("message", nargs=-1, required=True)
@click.option("--header", multiple=True, metavar="K=V", help="A header of the message.")
@output()
@click.pass_obj
def publish(
    session: Session, topic: str, message: tuple[str, ...], header: tuple[str, ...]
) -> None:
    """Send MESSAGE (or standard input, for -) to whoever is subscribed to TOPIC now.

    Several words are joined by spaces. A MESSAGE that begins with a dash comes after `--`.
    """
    from micro_ray.wire.broker import RemoteBroker

    body = os.fsencode(" ".join(message))
    if message == ("-",):
        body = sys.stdin.buffer.read()
    headers = pairs(header, "--header")
    session.client.run(lambda caller: RemoteBroker(caller).publish(topic, body, headers=headers))


@click.command()
@click.argument("topic")
@click.option("-q", "--queue", default="", help="Share the messages with the others of this group.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after so many messages.")
@output("raw")
@click.pass_obj
def subscribe(session: Session, topic: str, queue: str, count: int | None) -> None:
    """Print the messages of TOPIC as they come, one a line.

    In TOPIC, * stands for one word and > for all the rest: 'orders.*.paid', 'orders.>'. With
    `-o raw` bodies are written as they are, byte for byte. Standard error says when the
    subscription is in force: what is published after that comes.
    """
    from micro_ray.wire.broker import RemoteBroker

    client = session.client
    messages = client.run(
        lambda caller: RemoteBroker(caller).subscribe(topic, queue=queue).__aenter__()
    )
    if session.output == "json":
        json_line({"subscribed": topic, "queue": queue}, err=True)
    else:
        click.echo(f"subscribed to {visible(topic)}", err=True)
    seen = 0
    with session.reader.watched():
        try:
            while count is None or seen < count:
                _print(client.run(lambda _: anext(messages)), session.output)
                seen += 1
        finally:
            client.run(lambda _: messages.close())


def _print(message: Message, form: str) -> None:
    if message.dropped:
        click.echo(f"{message.dropped} messages were lost: they are not read fast enough", err=True)
    if form == "json":
        body = encoded(message.body)
        json_line(
            {
                "topic": message.topic,
                "body": body["value"],
                "encoding": body["encoding"],
                "headers": dict(message.headers),
                "dropped": message.dropped,
            }
        )
    elif form == "raw":
        raw(message.body)
    else:
        bytes_out(message.body, b"\n")
