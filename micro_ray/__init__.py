"""micro-ray: run a service, find it, call it.

What a service author imports, and nothing else; loaded when first used, so that importing the
package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micro_ray import errors
    from micro_ray.context import Context
    from micro_ray.sdk.blocking import Client
    from micro_ray.sdk.client import AsyncClient
    from micro_ray.sdk.service import Service

__all__ = ["AsyncClient", "Client", "Context", "Service", "errors"]

_WHERE = {
    "AsyncClient": "micro_ray.sdk.client",
    "Client": "micro_ray.sdk.blocking",
    "Context": "micro_ray.context",
    "Service": "micro_ray.sdk.service",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "errors":
        return importlib.import_module("micro_ray.errors")
    if name not in _WHERE:
        raise AttributeError(f"module 'micro_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
