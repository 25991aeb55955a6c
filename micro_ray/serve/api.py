"""The HTTP door as a Ray Serve deployment.

Serve places, scales, health-checks, updates and drains the door's replicas. Each replica listens
by itself on the door's port (``SO_REUSEPORT``, so that replicas share it on a node) and answers
from a watched route table, one hop from the service: Serve's own proxy and its replica wrapper
would cost ten times the hop. The same app is on Serve's HTTP route too (``__call__``), for those
who come that way.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ray import serve

from micro_ray.api.app import Api, lifespan
from micro_ray.serve.door import Door, Ground, hosting
from micro_ray.serve.figures import asked
from micro_ray.serve.listener import Listener
from micro_ray.settings import Settings

__all__ = ["NAME", "application"]

#: The Serve application, deployment and platform service are all named so.
NAME = "api"


class ApiDoor(Door):
    """One replica of the door."""

    name = NAME

    def listener(self, settings: Settings, on: Ground) -> Listener:
        self.api = Api(
            on.network,
            on.table,
            settings.api,
            ready=on.ready,
            gate=on.gate,
            pressure=on.pressure,
            visitors=on.visitors,
            others=partial(asked, on.dialer, settings.run) if settings.proxy.port else None,
        )
        return Listener(self.api, settings.api.host, settings.api.port, settings.api)


class Mount:
    """What Serve's own route serves. Serve asks for an app when the deployment is declared; ours
    exists only inside a replica, which puts it here."""

    def __init__(self) -> None:
        self.target: Api | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        assert self.target is not None
        await self.target(scope, receive, send)


def application(settings: Settings, *, address: str = "") -> serve.Application:
    """The Serve application of the door, ready for ``serve.run``. On a Ray of several machines
    ``address`` is that of the one on whose loopback interface it listens."""
    ingress: Any = serve.ingress(Mount())(ApiDoor)

    class Mounted(ingress):  # type: ignore[misc]  # made by Serve at run time
        async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # awaited by Ray
            await super().__init__(settings)
            self.app.target = self.api

    options = hosting(settings, NAME, settings.api.replicas, address)
    return serve.deployment(**options)(Mounted).bind(settings)
