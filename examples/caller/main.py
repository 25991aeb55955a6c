"""A service that calls another one."""

import asyncio
from dataclasses import dataclass

from micro_ray import Service

service = Service("caller", description="Greets several people by calling helloworld")


@dataclass
class Greeting:
    message: str


async def greet(name: str) -> str:
    """The answer comes as a type of ours, within five seconds or what is left of our own time."""
    greeting: Greeting = await service.client.call(
        "helloworld", "call", {"name": name}, into=Greeting, timeout=5.0
    )
    return greeting.message


@service.endpoint
async def call(names: list[str]) -> dict[str, list[str]]:
    """Greet everybody, side by side."""
    return {"messages": await asyncio.gather(*(greet(name) for name in names))}


if __name__ == "__main__":
    service.run()
