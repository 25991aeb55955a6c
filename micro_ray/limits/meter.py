"""What is done in a backend: so many operations a second of a namespace, counted by its members.

All members borrow from the limiter as doors do, so together they let in what one would. A namespace
without a rate costs a look into a dictionary. Until a member has read the rules of a namespace,
which it does when the first operation comes, it lets in everything: config, from which they come,
is kept in the store itself. For the same reason what the platform does for itself is not counted.
"""

from __future__ import annotations

from micro_ray.auth import Identity
from micro_ray.context import current
from micro_ray.limits import Kind
from micro_ray.limits.gate import Gate

__all__ = ["Meter", "nobody_asks", "platform_itself"]


class Meter:
    """``gate`` keeps limits of the ``kind``, one of :data:`micro_ray.limits.BACKENDS`."""

    def __init__(self, gate: Gate, kind: Kind) -> None:
        self._gate = gate
        self._kind = kind

    async def enter(self, namespace: str) -> None:
        """Count an operation. Raises TooManyRequests with ``retry_after``."""
        if not self._gate.rules(namespace).rules or platform_itself():
            return
        place = (namespace, "", self._kind, "")
        admission = self._gate.admit(*place) or await self._gate.obtain(*place)
        admission.release()


def platform_itself() -> bool:
    """Whether a process of the platform makes the call being served here, for itself."""
    identity: Identity | None = current().identity
    return identity is not None and identity.platform


def nobody_asks() -> bool:
    """Whether it is not known who makes it: over a Ray handle, which is for who administers the
    platform, or as nobody is asked here."""
    return current().reach is None
