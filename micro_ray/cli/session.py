"""What commands are given: settings, the way out, and a blocking caller."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from micro_ray.settings import Settings

if TYPE_CHECKING:
    from micro_ray.router import Entry
    from micro_ray.sdk.blocking import Client

__all__ = ["Session"]


@dataclass
class Session:
    """``output`` is "table" or "json". The connection is made by the first call."""

    settings: Settings
    output: str = "table"
    _client: Client | None = field(default=None, repr=False)

    @property
    def client(self) -> Client:
        if self._client is None:
            from micro_ray.sdk.blocking import Client
            from micro_ray.settings import bootstrap

            self._client = Client(bootstrap(self.settings))
        return self._client

    def call(self, service: str, endpoint: str, value: Any = None, **options: Any) -> Any:
        return self.client.call(service, endpoint, value, **options)

    def stream(
        self, service: str, endpoint: str, value: Any = None, **options: Any
    ) -> Iterator[Any]:
        return self.client.stream(service, endpoint, value, **options)

    def entries(self) -> list[Entry]:
        return self.client.entries()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
