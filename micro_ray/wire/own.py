"""What the platform keeps for itself among what users keep, and who may touch it: in the store of
its own namespace the accounts and rules of auth, config, and the workloads and sources of the
runtime, which only those may touch who act in every namespace; in the events of every namespace
what was done there, which who administers it may read and nobody but the platform may write; and
the limits of a namespace as a whole, which its administrators may read."""

from __future__ import annotations

from collections.abc import Iterable

from micro_ray.auth import AUDIT
from micro_ray.context import DEFAULT_NAMESPACE, current
from micro_ray.errors import Forbidden
from micro_ray.limits import WHOLE
from micro_ray.limits.quota_store import OWN as DATABASES
from micro_ray.runtime.archives import PREFIX as SOURCES
from micro_ray.runtime.desired import TABLE as WORKLOADS
from micro_ray.store import DEFAULT, Blob

__all__ = ["Own", "of_audit", "of_whole"]


class Own:
    """The platform's own part of the store. ``namespace`` is the one that it is kept in."""

    def __init__(self, namespace: str = DEFAULT_NAMESPACE) -> None:
        self._namespace = namespace

    @property
    def _closed(self) -> bool:
        """Whether the call being served is not to touch it."""
        context = current()
        return context.namespace == self._namespace and context.whose is not None

    def table(self, database: str, table: str) -> None:
        """Raises Forbidden for what the caller may not touch."""
        self.database(database)
        if (database, table) == (DEFAULT, WORKLOADS) and self._closed:
            raise Forbidden("store", f"table {table} is the platform's own")

    def database(self, database: str) -> None:
        """As :meth:`table`, for a whole database."""
        if database in DATABASES and self._closed:
            raise Forbidden("store", f"database {database} is the platform's own")

    def blob(self, key: str) -> None:
        """As :meth:`table`, for a blob."""
        if key.startswith(SOURCES) and self._closed:
            raise Forbidden("store", f"blobs {SOURCES}... are the platform's own")

    def databases(self, names: Iterable[str]) -> list[str]:
        """Those that the caller may touch."""
        closed = self._closed
        return [name for name in names if not (closed and name in DATABASES)]

    def tables(self, database: str, names: Iterable[str]) -> list[str]:
        """Those of a database, which he may, that the caller may touch."""
        hidden = self._closed and database == DEFAULT
        return [name for name in names if not (hidden and name == WORKLOADS)]

    def blobs(self, found: Iterable[Blob]) -> list[Blob]:
        """Those that the caller may touch."""
        closed = self._closed
        return [blob for blob in found if not (closed and blob.key.startswith(SOURCES))]


def of_audit(topic: str, *, written: bool = False) -> None:
    """Raises Forbidden where the caller may not read the topic of what was done, or not write it
    (``written``: also to delete it, or to say how long it is kept)."""
    if topic != AUDIT:
        return
    context = current()
    if context.whose is None:
        return
    if written:
        raise Forbidden("events", f"topic {topic} is the platform's to write")
    who = context.identity
    if who is None or not who.admin or who.namespace != context.namespace:
        raise Forbidden("events", f"topic {topic} is for who administers {context.namespace}")


def of_whole(kind: str) -> None:
    """Raises Forbidden for a limit of a namespace as a whole where the caller does not act in every
    namespace: it would bind nobody who can lift it."""
    if kind in WHOLE and current().whose is not None:
        raise Forbidden("limits", f"limits of a whole {kind} are set by who keeps the platform")
