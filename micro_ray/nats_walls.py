"""Whether NATS holds a platform's user to what it needs: asked of the server, by trying."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl

import nats.errors

from micro_ray.nats_client import GuardedClient
from micro_ray.nats_url import Place

__all__ = ["reached", "walled"]

#: Seconds that a connection may take, and each answer on it.
CONNECT, ANSWER = 2, 2


async def walled(place: Place, tls: ssl.SSLContext | None) -> str:
    """What the platform's user may do outside of its subjects, for people; blank when that could
    not be found out."""
    # One that nobody has.
    verbs = await reached(place, tls, f"outside-{os.urandom(8).hex()}.doctor")
    if verbs is None:
        return ""
    if not verbs:
        return "its user is held to the platform's subjects"
    return (
        f"its user may {' and '.join(verbs)} any subject: where others use these servers, give it "
        "an account of its own and permissions"
    )


async def reached(place: Place, tls: ssl.SSLContext | None, subject: str) -> list[str] | None:
    """What a user may do with a subject ("publish to", "subscribe"), by trying both on a connection
    of its own: a refusal is told to the connection, not to who asked. None when that could not be
    found out."""
    refused: list[str] = []

    async def failed(error: Exception) -> None:
        refused.append(str(error).lower())

    client = GuardedClient()
    client.tls_only = place.tls
    options = place.options
    if tls is not None:
        options["tls"] = tls
    try:
        # As a whole: nats-py would try for the first connection again and again.
        async with asyncio.timeout(CONNECT + ANSWER):
            await client.connect(
                place.urls,
                name="micro-doctor",
                error_cb=failed,
                allow_reconnect=False,
                connect_timeout=CONNECT,
                **options,
            )
            await client.publish(subject)
            await client.subscribe(subject)
            # Refusals come before the answer to what is sent later. nats-py sends the question of
            # a flush before what waits to be sent: only the second is behind it.
            await client.flush(ANSWER)
            await client.flush(ANSWER)
    except (nats.errors.Error, OSError, TimeoutError):
        return None
    finally:
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(ANSWER):
                await client.close()
        client.abort()
    return [
        verb
        for verb, word in (("publish to", "publish"), ("subscribe", "subscription"))
        if not any("permissions violation" in text and word in text for text in refused)
    ]
