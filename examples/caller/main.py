"""A service that calls another one."""

import asyncio

from micro_ray import Service

service = Service("caller", description="Greets several people by calling helloworld")


@service.endpoint
async def call(names: list[str]) -> dict[str, list[str]]:
    """Greet everybody; the calls run side by side, within this call's deadline."""
    answers = await asyncio.gather(
        *(service.client.call("helloworld", "Helloworld.Call", {"name": n}) for n in names)
    )
    return {"messages": [answer["message"] for answer in answers]}


if __name__ == "__main__":
    service.run()
