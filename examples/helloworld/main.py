"""The first service: greets."""

from dataclasses import dataclass

from micro_ray import Service

service = Service("helloworld", description="Greets")


@dataclass
class Greeting:
    message: str


@service.endpoint
async def call(name: str = "World") -> Greeting:
    """Greet somebody."""
    return Greeting(f"Hello {name}")


if __name__ == "__main__":
    service.run()
