"""The tables of a SQLite file of events: topics, what is published, what is kept and read."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from micro_ray.errors import TooLarge
from micro_ray.events import MAX_TOPICS, Event, Published, Topic, Usage, checks

__all__ = [
    "COLUMNS",
    "SCHEMA",
    "Keep",
    "TopicRow",
    "count_topics",
    "event_of",
    "existing",
    "first_at",
    "listing",
    "make",
    "publish",
    "remove_topic",
    "select",
    "stamp",
    "trim",
    "usage",
]

# The numbers of topics and groups are never used again, so a token of a deleted one fits no other.
# The events of a topic are numbered without a gap and removed from the front only.
SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (
    number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
    last INTEGER NOT NULL, last_time REAL NOT NULL, first INTEGER NOT NULL, size INTEGER NOT NULL,
    own INTEGER NOT NULL, ttl REAL, max_size INTEGER, stamp INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS topics_stamp ON topics (stamp);
CREATE TABLE IF NOT EXISTS events (
    topic INTEGER NOT NULL, sequence INTEGER NOT NULL, id TEXT NOT NULL, time REAL NOT NULL,
    payload BLOB NOT NULL, metadata TEXT NOT NULL, size INTEGER NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS events_sequence ON events (topic, sequence);
CREATE UNIQUE INDEX IF NOT EXISTS events_id ON events (topic, id);
CREATE TABLE IF NOT EXISTS groups (
    number INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, name TEXT NOT NULL,
    next INTEGER NOT NULL, ack_wait REAL NOT NULL, retry_limit INTEGER NOT NULL,
    backoff REAL NOT NULL, pending INTEGER NOT NULL, seen REAL, UNIQUE (topic, name));
CREATE TABLE IF NOT EXISTS pending (
    grp INTEGER NOT NULL, sequence INTEGER NOT NULL, attempt INTEGER NOT NULL, lease INTEGER,
    holder TEXT, since REAL NOT NULL, due REAL NOT NULL,
    PRIMARY KEY (grp, sequence)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead (
    grp INTEGER NOT NULL, sequence INTEGER NOT NULL, requeued INTEGER NOT NULL,
    attempts INTEGER NOT NULL, given_up REAL NOT NULL, id TEXT NOT NULL, time REAL NOT NULL,
    payload BLOB NOT NULL, metadata TEXT NOT NULL, PRIMARY KEY (grp, sequence));
CREATE TABLE IF NOT EXISTS counter (one INTEGER PRIMARY KEY CHECK (one = 1), stamp INTEGER);
INSERT OR IGNORE INTO counter VALUES (1, 0);
"""

COLUMNS = "sequence, id, time, payload, metadata"
#: Events that one publish removes to make room, beyond its own.
_TRIM = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What a topic keeps that has no retention of its own."""

    ttl: float | None
    max_size: int | None


@dataclass(frozen=True, slots=True)
class TopicRow:
    number: int
    name: str
    last: int
    last_time: float
    first: int
    size: int
    own: bool
    own_ttl: float | None
    own_size: int | None

    def kept_after(self, now: float, keep: Keep) -> float:
        """Events taken at this time or before are no longer kept."""
        ttl = self.own_ttl if self.own else keep.ttl
        return float("-inf") if ttl is None else now - ttl


_TOPIC = "number, name, last, last_time, first, size, own, ttl, max_size"


def existing(connection: sqlite3.Connection, name: str) -> TopicRow | None:
    found = connection.execute(f"SELECT {_TOPIC} FROM topics WHERE name = ?", (name,)).fetchone()
    return None if found is None else TopicRow(*found)


def make(connection: sqlite3.Connection, name: str) -> TopicRow:
    """The topic, made if need be. Raises TooLarge when there are too many."""
    topic = existing(connection, name)
    if topic is not None:
        return topic
    if count_topics(connection) >= MAX_TOPICS:
        raise TooLarge("events", f"{MAX_TOPICS} topics; delete some")
    connection.execute(
        "INSERT INTO topics (name, last, last_time, first, size, own, stamp)"
        " VALUES (?, 0, 0, 1, 0, 0, 0)",
        (name,),
    )
    topic = existing(connection, name)
    assert topic is not None
    return topic


def count_topics(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM topics").fetchone()[0])


def stamp(connection: sqlite3.Connection, topic: int) -> int:
    """Mark a topic as changed, for those who wait for it in any process; the mark, used once."""
    number = int(
        connection.execute("UPDATE counter SET stamp = stamp + 1 RETURNING stamp").fetchone()[0]
    )
    connection.execute("UPDATE topics SET stamp = ? WHERE number = ?", (number, topic))
    return number


def publish(
    connection: sqlite3.Connection,
    name: str,
    payload: bytes,
    metadata: Mapping[str, str],
    id: str,
    expected: int | None,
    size: int,
    now: float,
    keep: Keep,
) -> Published:
    topic = make(connection, name)
    twin = connection.execute(
        "SELECT sequence, time FROM events WHERE topic = ? AND id = ?", (topic.number, id)
    ).fetchone()
    if twin is not None and twin[1] > topic.kept_after(now, keep):
        return Published(topic=name, sequence=twin[0], id=id, time=twin[1], duplicate=True)
    if twin is not None:  # no longer kept, and not yet removed
        trim(connection, topic, keep, now, _TRIM, through=twin[0])
    if expected is not None and expected != topic.last:
        raise checks.conflict(name, expected, topic.last)
    sequence, time = topic.last + 1, max(now, topic.last_time)
    connection.execute(
        "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)",
        (topic.number, sequence, id, time, payload, json.dumps(dict(metadata)), size),
    )
    connection.execute(
        "UPDATE topics SET last = ?, last_time = ?, size = size + ? WHERE number = ?",
        (sequence, time, size, topic.number),
    )
    stamp(connection, topic.number)
    most = topic.own_size if topic.own else keep.max_size
    if most is not None and topic.size + size > most:
        grown = existing(connection, name)
        assert grown is not None
        trim(connection, grown, keep, now, _TRIM)
    return Published(topic=name, sequence=sequence, id=id, time=time)


def trim(
    connection: sqlite3.Connection,
    topic: TopicRow,
    keep: Keep,
    now: float,
    most: int,
    through: int = 0,
) -> bool:
    """Remove what is too old and what is too much, up to ``most`` events (those up to the number
    ``through`` in any case); whether there may be more."""
    after = topic.kept_after(now, keep)
    limit = topic.own_size if topic.own else keep.max_size
    size, first, looked = topic.size, topic.first, 0
    rows = connection.execute(
        "SELECT sequence, time, size FROM events WHERE topic = ? ORDER BY sequence", (topic.number,)
    )
    for sequence, time, own in rows:
        # The last one stays whatever its size: an event that was acknowledged can be read.
        over = limit is not None and size > limit and sequence < topic.last
        if not (over or time <= after) or (looked >= most and sequence > through):
            break
        size, first, looked = size - own, sequence + 1, looked + 1
    rows.close()
    if first > topic.first:
        connection.execute(
            "DELETE FROM events WHERE topic = ? AND sequence < ?", (topic.number, first)
        )
        connection.execute(
            "UPDATE topics SET first = ?, size = ? WHERE number = ?", (first, size, topic.number)
        )
    return looked >= most


def first_at(connection: sqlite3.Connection, topic: TopicRow, since: float) -> int:
    """The number of the first event taken at or after a time, one past the last when there is none:
    times never fall within a topic, so the halves can be told apart."""
    low, high = topic.first, topic.last + 1
    while low < high:
        middle = (low + high) // 2
        (time,) = connection.execute(
            "SELECT time FROM events WHERE topic = ? AND sequence = ?", (topic.number, middle)
        ).fetchone()
        if time < since:
            low = middle + 1
        else:
            high = middle
    return low


def select(
    connection: sqlite3.Connection,
    topic: TopicRow,
    *,
    limit: int,
    offset: int,
    sequence: int,
    since: float | None,
    until: float | None,
    after: float,
) -> Generator[Event, None, None]:
    """Events by number; ``after`` is the time up to which they are no longer kept."""
    first = max(sequence, topic.first)
    if since is not None:
        first = max(first, first_at(connection, topic, since))
    if after > float("-inf"):
        first = max(first, first_at(connection, topic, after))
    end = topic.last + 1 if until is None else first_at(connection, topic, until)
    first += min(offset, end)
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM events WHERE topic = ? AND sequence >= ? AND sequence < ?"
        " AND time > ? ORDER BY sequence LIMIT ?",
        (topic.number, min(first, 2**63 - 1), end, after, limit),
    )
    try:
        for row in rows:
            yield event_of(topic.name, row)
    finally:
        rows.close()


def event_of(topic: str, row: Sequence[Any]) -> Event:
    return Event(
        topic=topic,
        sequence=row[0],
        id=row[1],
        time=row[2],
        payload=bytes(row[3]),
        metadata=json.loads(row[4]),
    )


def listing(connection: sqlite3.Connection, keep: Keep, name: str = "") -> list[Topic]:
    """The topics by name, or the one of this name."""
    rows = connection.execute(
        f"SELECT {_TOPIC}, (SELECT count(*) FROM groups g WHERE g.topic = t.number) FROM topics t"
        " WHERE ? IN ('', name) ORDER BY name",
        (name,),
    ).fetchall()
    found = []
    for *columns, groups in rows:
        topic = TopicRow(*columns)
        found.append(
            Topic(
                name=topic.name,
                first=topic.first,
                last=topic.last,
                events=topic.last - topic.first + 1,
                size=topic.size,
                groups=groups,
                ttl=topic.own_ttl if topic.own else keep.ttl,
                max_size=topic.own_size if topic.own else keep.max_size,
            )
        )
    return found


def usage(connection: sqlite3.Connection) -> Usage:
    topics = connection.execute(
        "SELECT count(*), coalesce(sum(last - first + 1), 0), coalesce(sum(size), 0) FROM topics"
    ).fetchone()
    (letters,) = connection.execute(
        "SELECT coalesce(sum(length(payload) + length(CAST(metadata AS BLOB))), 0) FROM dead"
    ).fetchone()
    return Usage(topics=topics[0], events=topics[1], bytes=topics[2], group_bytes=letters)


def remove_topic(connection: sqlite3.Connection, name: str) -> bool:
    topic = existing(connection, name)
    if topic is None:
        return False
    for table in ("pending", "dead"):
        connection.execute(
            f"DELETE FROM {table} WHERE grp IN (SELECT number FROM groups WHERE topic = ?)",
            (topic.number,),
        )
    stamp(connection, topic.number)
    for table, column in (("groups", "topic"), ("events", "topic"), ("topics", "number")):
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (topic.number,))
    return True
