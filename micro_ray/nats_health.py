"""The examination of NATS: which servers answer, and what they are."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

from micro_ray.finding import Finding
from micro_ray.nats_url import Place
from micro_ray.nats_walls import walled

__all__ = ["examine"]

#: Seconds that a server has to take a connection.
PATIENCE = 2.0


async def examine(
    place: Place,
    info: Mapping[str, Any],
    why: str,
    noun: str = "broker",
    *,
    tls: ssl.SSLContext | None = None,
) -> list[Finding]:
    """For a noun: ``info`` is what the server that we are connected to says of itself; without one
    ``why`` says what is in the way."""
    asked = await asyncio.gather(*(_answers(server) for server in place.servers))
    down = {s: text for s, text in zip(place.servers, asked, strict=True) if text}
    away = "; ".join(f"{server}: {text}" for server, text in down.items())
    if not info:
        hint = f" ({away})" if away else ""
        return [
            _bad(noun, f"not connected to NATS at {place}: {why}{hint}; nothing is taken or given")
        ]
    told = f"NATS {info.get('version', '?')}, connected to {info.get('server_name', '?')}"
    others = len(info.get("connect_urls") or ())
    if others:
        told += f", {others} server{'s' if others > 1 else ''} in its cluster"
    if down:
        mend = f"Start what is down, or correct {noun}.url"
        return [_bad(noun, f"{told}; not in reach: {away}. {mend}")]
    # Not wrong by itself: servers that nobody else uses need no walls.
    walls = await walled(place, tls)
    return [Finding(check=noun, good=True, text=f"{told}; {walls}" if walls else told)]


async def _answers(server: str) -> str:
    """Why a server does not; blank when it does."""
    host, _, port = server.rpartition(":")
    try:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except TimeoutError:
        return f"no answer within {PATIENCE:g} s"
    except OSError as error:
        return error.strerror or str(error)
    writer.transport.abort()
    return ""


def _bad(noun: str, text: str) -> Finding:
    return Finding(check=noun, good=False, text=text)
