"""SQLite files that several processes write: WAL, commits shared by those who wait, readers beside.

One :class:`Database` is one file: a thread that writes, one for what is read at a glance, and
threads for what takes longer. ``synchronous=FULL``:
a commit is on disk (fsync of the log) before the write that waits for it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from micro_ray.errors import InternalError, Unavailable
from micro_ray.files import fsync_folder

__all__ = ["Database", "failure", "make_folder"]

T = TypeVar("T")
Item = TypeVar("Item")

#: Writes that may share one commit.
GROUP = 256
#: Writes that may wait, and their bytes; more are refused.
WAITING = 10_000
WAITING_BYTES = 128 * 2**20
READERS = 2
#: Glances that may share a hop between threads.
GLANCES = 64
#: Seconds to wait for another process that writes.
BUSY = 5.0


@contextlib.contextmanager
def failure(path: Path, id: str) -> Iterator[None]:
    """What goes wrong below, as an error that names the file and what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        advice = {
            "full": "free some space",
            "locked": "try again",
            "readonly": "make it writable",
            "unable to open": "check that the folder exists and can be written",
            "disk I/O": "check the disk",
        }
        hint = next((do for word, do in advice.items() if word in text), "see the server's log")
        raise Unavailable(id, f"{path}: {text}; {hint}", 1.0) from error
    except sqlite3.DatabaseError as error:
        raise InternalError(
            id, f"{path}: {error}; restore it from a backup, or move it away to start empty"
        ) from error
    except OSError as error:
        raise Unavailable(id, f"{path}: {error.strerror or error}", 1.0) from error


class Database:
    """Opened by :meth:`open`; all other verbs are safe from many tasks. ``name`` is the noun that
    errors are of, ``schema`` what makes the tables where they are not there."""

    def __init__(self, path: Path, *, name: str, schema: str) -> None:
        self.closed = False
        self._path = path
        self._name = name
        self._schema = schema
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[
            tuple[Callable[..., Any], asyncio.Future[Any], str] | None
        ] = queue.SimpleQueue()
        self._waiting = 0
        self._waiting_bytes = 0
        self._glances: queue.SimpleQueue[tuple[Callable[..., Any], asyncio.Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._threads: list[threading.Thread] = []
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix=f"{name}-read")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    async def open(self) -> None:
        """Raises Unavailable when the file cannot be opened, InternalError when it is damaged."""
        try:
            with failure(self._path, self._name):
                connection = await asyncio.to_thread(self._connect, True)
        except BaseException:
            await self.close()
            raise
        for name, target, args in (
            ("write", self._write_all, (connection,)),
            ("glance", self._glance_all, ()),
        ):
            thread = threading.Thread(
                target=target, args=args, name=f"{self._name}-{name}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    async def close(self) -> None:
        """Writes that were accepted are done first."""
        self.closed = True
        self._work.put(None)
        self._glances.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._connections:
            connection.close()

    def committed(self, tags: Sequence[str]) -> None:
        """Called on the loop after a commit, with the tags of the writes that were in it."""

    def _check_open(self) -> None:
        if self.closed:
            raise Unavailable(self._name, f"{self._path} is closed")

    def _connect(self, create: bool = False) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=BUSY, isolation_level=None, check_same_thread=False
        )
        self._connections.append(connection)
        if create:
            _to_wal(connection)
            connection.executescript(self._schema)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=1000")
        return connection

    # -- writing ---------------------------------------------------------------------------------

    async def write(
        self, job: Callable[[sqlite3.Connection], T], size: int = 0, tag: str = ""
    ) -> T:
        """Run ``job`` in a transaction; when this returns it is committed. A write cannot be taken
        back: when the caller is cancelled it is done all the same. ``size`` in bytes counts for
        what may wait. Raises Unavailable when too much waits, and what ``job`` raises."""
        self._check_open()
        if self._waiting >= WAITING or self._waiting_bytes + size > WAITING_BYTES:
            raise Unavailable(
                self._name,
                f"{self._waiting} writes of {self._waiting_bytes} bytes are waiting",
                0.5,
            )
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting += 1
        self._waiting_bytes += size
        future.add_done_callback(lambda _: self._settled(size))
        self._work.put((job, future, tag))
        return await asyncio.shield(future)

    def _settled(self, size: int) -> None:
        self._waiting -= 1
        self._waiting_bytes -= size

    def _write_all(self, connection: sqlite3.Connection) -> None:
        ended = False
        while not ended:
            group, ended = _next(self._work, GROUP)
            if group:
                outcomes = self._commit(connection, [job for job, _, _ in group])
                with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                    self._loop.call_soon_threadsafe(
                        self._tell,
                        [future for _, future, _ in group],
                        outcomes,
                        [tag for _, _, tag in group],
                    )

    def _commit(
        self, connection: sqlite3.Connection, jobs: Sequence[Callable[..., Any]]
    ) -> list[tuple[Any, BaseException | None]]:
        """All jobs in one transaction, each in a savepoint of its own. One that is alone needs
        none: what it raises undoes all there is."""
        outcomes: list[tuple[Any, BaseException | None]] = []
        try:
            with failure(self._path, self._name):
                connection.execute("BEGIN IMMEDIATE")
                if len(jobs) == 1:
                    outcomes.append((jobs[0](connection), None))
                else:
                    outcomes += [self._one(connection, job) for job in jobs]
                connection.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            # Nothing of the group is on disk: nobody is told that it is.
            return [(None, error) for _ in jobs]
        return outcomes

    def _one(
        self, connection: sqlite3.Connection, job: Callable[..., Any]
    ) -> tuple[Any, BaseException | None]:
        connection.execute("SAVEPOINT one")
        try:
            answer = job(connection)
        except sqlite3.Error:
            raise  # the file's trouble, and so that of all
        except Exception as error:
            connection.execute("ROLLBACK TO one")
            connection.execute("RELEASE one")
            return None, error
        connection.execute("RELEASE one")
        return answer, None

    def _tell(
        self,
        futures: Sequence[asyncio.Future[Any]],
        outcomes: Sequence[tuple[Any, BaseException | None]],
        tags: Sequence[str],
    ) -> None:
        _settle(futures, outcomes)
        self.committed(tags)

    # -- reading ---------------------------------------------------------------------------------

    async def glance(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """What a short ``job`` gives. Those that wait together share the way to their thread and
        back, which costs more than a row does."""
        self._check_open()
        future: asyncio.Future[T] = self._loop.create_future()
        self._glances.put((job, future))
        return await future

    def _glance_all(self) -> None:
        connection: sqlite3.Connection | None = None
        ended = False
        while not ended:
            group, ended = _next(self._glances, GLANCES)
            outcomes: list[tuple[Any, BaseException | None]] = []
            for job, _ in group:
                try:
                    with failure(self._path, self._name):
                        connection = connection or self._connect()
                        outcomes.append((job(connection), None))
                except Exception as error:
                    outcomes.append((None, error))
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(_settle, [f for _, f in group], outcomes)

    async def read_with(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """What ``job`` gives, run on a connection of a reading thread."""
        self._check_open()

        def run() -> T:
            with failure(self._path, self._name):
                connection = getattr(self._local, "connection", None)
                if connection is None:
                    connection = self._local.connection = self._connect()
                return job(connection)

        return await self._loop.run_in_executor(self._readers, run)


def _next(work: queue.SimpleQueue[Item | None], most: int) -> tuple[list[Item], bool]:
    """What waits, at least one unless the end (None) has come."""
    group: list[Item] = []
    item = work.get()
    while item is not None:
        group.append(item)
        if len(group) >= most or work.empty():
            break
        item = work.get()
    return group, item is None


def _settle(
    futures: Sequence[asyncio.Future[Any]],
    outcomes: Sequence[tuple[Any, BaseException | None]],
) -> None:
    for future, (answer, error) in zip(futures, outcomes, strict=True):
        if future.done():
            continue
        if error is None:
            future.set_result(answer)
        else:
            future.set_exception(error)
            future.exception()  # the caller may have gone


def _to_wal(connection: sqlite3.Connection) -> None:
    """The switch of a new file fails at once, without waiting, while another process does it."""
    end = time.monotonic() + BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def make_folder(folder: Path) -> None:
    """A folder and those above it, on disk when this returns."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in missing:
        fsync_folder(path.parent)
