"""The groups of a SQLite file of events: what is given to whom, settled, and given up.

An event of a group is in one of four states: not yet given (its number is ``next`` or above),
pending (a row that says who holds it until when, or when it is to be given again), dead (a row with
a copy of it), or settled (no row). A dead letter that was requeued is pending and keeps its copy
until it is settled, since the topic may have removed the event meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from micro_ray.errors import NotFound, TooLarge
from micro_ray.events import (
    MAX_ANSWER,
    MAX_BACKOFF,
    MAX_DEAD,
    MAX_GROUPS,
    DeadLetter,
    Delivery,
    Group,
    Start,
)
from micro_ray.events.checks import Reading
from micro_ray.events.sqlite_rows import COLUMNS, Keep, TopicRow, event_of, first_at, make, stamp

__all__ = [
    "Ready",
    "acknowledge",
    "bury_expired",
    "dead",
    "discard",
    "forget",
    "give",
    "join",
    "letter",
    "listing",
    "number",
    "ready",
    "release",
    "remove",
    "requeue",
    "retry",
    "work_on",
]

#: Bytes that are given out at a time.
_BATCH = MAX_ANSWER // 2
#: A row given out later than so many seconds from now was so before the clock went back: it is due.
_SKEW = 5.0
_DUE = f"(due <= :now OR since > :now + {_SKEW})"


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    topic: int
    next: int
    ack_wait: float
    retry_limit: int
    backoff: float
    pending: int

    def spent(self, attempt: int) -> bool:
        return 0 <= self.retry_limit < attempt

    def pause(self, attempt: int) -> float:
        """Seconds before the attempt after this one."""
        return min(self.backoff * 2.0 ** min(attempt - 1, 30), max(MAX_BACKOFF, self.backoff))


_GROUP = "number, topic, next, ack_wait, retry_limit, backoff, pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Whether there is something to give, and when there may be (None: when the topic changes)."""

    now: bool
    at: float | None


def _find(connection: sqlite3.Connection, topic: int, name: str) -> _Row | None:
    found = connection.execute(
        f"SELECT {_GROUP} FROM groups WHERE topic = ? AND name = ?", (topic, name)
    ).fetchone()
    return None if found is None else _Row(*found)


def _of(connection: sqlite3.Connection, number: int) -> _Row:
    found = connection.execute(
        f"SELECT {_GROUP} FROM groups WHERE number = ?", (number,)
    ).fetchone()
    if found is None:
        raise NotFound("events", "the topic or the group has been deleted")
    return _Row(*found)


def join(
    connection: sqlite3.Connection, topic: str, name: str, how: Reading, now: float | None
) -> int:
    """The number of a group, made where ``how`` says if need be, with its rules from now on.
    ``now`` for a group that is forgotten when it is not seen."""
    row = make(connection, topic)
    rules = (how.ack_wait, how.retry_limit, how.backoff, how.pending)
    found = _find(connection, row.number, name)
    if found is not None:
        if rules != (found.ack_wait, found.retry_limit, found.backoff, found.pending):
            connection.execute(
                "UPDATE groups SET ack_wait = ?, retry_limit = ?, backoff = ?, pending = ?"
                " WHERE number = ?",
                (*rules, found.number),
            )
        return found.number
    have = connection.execute("SELECT count(*) FROM groups WHERE topic = ?", (row.number,))
    if have.fetchone()[0] >= MAX_GROUPS:
        raise TooLarge("events", f"{MAX_GROUPS} groups of {topic}; delete some")
    begin = row.first if how.start == Start.BEGINNING else row.last + 1
    if how.sequence:
        begin = max(row.first, how.sequence)
    if how.since is not None:
        begin = first_at(connection, row, how.since)
    made = connection.execute(
        "INSERT INTO groups (topic, name, next, ack_wait, retry_limit, backoff, pending, seen)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING number",
        (row.number, name, begin, *rules, now),
    ).fetchone()
    return int(made[0])


def _topic(connection: sqlite3.Connection, number: int) -> TopicRow:
    found = connection.execute(
        "SELECT number, name, last, last_time, first, size, own, ttl, max_size FROM topics"
        " WHERE number = ?",
        (number,),
    ).fetchone()
    return TopicRow(*found)


def _counts(connection: sqlite3.Connection, group: int, holder: str, now: float) -> tuple[int, int]:
    """How many are pending, and how many of them this consumer holds and may go on holding."""
    counted = connection.execute(
        f"SELECT count(*), count(*) FILTER (WHERE holder = :holder AND NOT {_DUE})"
        " FROM pending WHERE grp = :grp",
        {"holder": holder, "grp": group, "now": now},
    ).fetchone()
    return int(counted[0]), int(counted[1])


def ready(
    connection: sqlite3.Connection, number: int, holder: str, prefetch: int, now: float, keep: Keep
) -> Ready:
    """What :func:`give` would find."""
    group = _of(connection, number)
    pending, held = _counts(connection, number, holder, now)
    soonest = connection.execute(
        "SELECT min(due), max(since) FROM pending WHERE grp = ?", (number,)
    ).fetchone()
    if held >= prefetch:
        return Ready(now=False, at=soonest[0])
    back = soonest[1] is not None and soonest[1] > now + _SKEW
    if back or (soonest[0] is not None and soonest[0] <= now):
        return Ready(now=True, at=None)
    topic = _topic(connection, group.topic)
    new = topic.last >= max(group.next, topic.first)
    if new and pending < group.pending and topic.last_time > topic.kept_after(now, keep):
        return Ready(now=True, at=None)
    return Ready(now=False, at=soonest[0])


def give(
    connection: sqlite3.Connection, number: int, holder: str, prefetch: int, now: float, keep: Keep
) -> list[Delivery]:
    """Give events to a consumer: first those that are due again, then new ones."""
    group = _of(connection, number)
    topic = _topic(connection, group.topic)
    _expire(connection, group, now)
    pending, held = _counts(connection, number, holder, now)
    room = prefetch - held
    lease = _lease(connection)
    given: list[Delivery] = []
    size = 0
    again = connection.execute(
        f"SELECT sequence, attempt FROM pending WHERE grp = :grp AND {_DUE}"
        " ORDER BY sequence LIMIT :room",
        {"grp": number, "now": now, "room": max(room, 0)},
    ).fetchall()
    for sequence, attempt in again:
        if given and size > _BATCH:
            return given
        event = _event(connection, topic, number, sequence)
        if event is None:  # the topic's retention has taken it
            _settle(connection, number, sequence)
            pending -= 1
            continue
        connection.execute(
            "UPDATE pending SET attempt = ?, lease = ?, holder = ?, since = ?, due = ?"
            " WHERE grp = ? AND sequence = ?",
            (attempt + 1, lease, holder, now, now + group.ack_wait, number, sequence),
        )
        size += len(event[3])
        given.append(_delivery(topic.name, number, lease, event, attempt + 1))
    room = min(room - len(given), group.pending - pending)
    after = topic.kept_after(now, keep)
    first = max(group.next, topic.first)
    if room <= 0 or first > topic.last:
        return given
    if after > float("-inf"):
        first = max(first, first_at(connection, topic, after))
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM events WHERE topic = ? AND sequence >= ? AND time > ?"
        " ORDER BY sequence LIMIT ?",
        (topic.number, first, after, room),
    )
    for event in rows:
        if given and size > _BATCH:
            break
        connection.execute(
            "INSERT INTO pending VALUES (?, ?, 1, ?, ?, ?, ?)",
            (number, event[0], lease, holder, now, now + group.ack_wait),
        )
        size += len(event[3])
        first = event[0] + 1
        given.append(_delivery(topic.name, number, lease, event, 1))
    rows.close()
    connection.execute("UPDATE groups SET next = ? WHERE number = ?", (first, number))
    return given


def _lease(connection: sqlite3.Connection) -> int:
    """A number that no other giving has; it wakes nobody."""
    row = connection.execute("UPDATE counter SET stamp = stamp + 1 RETURNING stamp").fetchone()
    return int(row[0])


def _event(
    connection: sqlite3.Connection, topic: TopicRow, group: int, sequence: int
) -> tuple[int, str, float, bytes, str] | None:
    found: tuple[int, str, float, bytes, str] | None = connection.execute(
        f"SELECT {COLUMNS} FROM events WHERE topic = ? AND sequence = ?", (topic.number, sequence)
    ).fetchone()
    if found is None:
        found = connection.execute(
            f"SELECT {COLUMNS} FROM dead WHERE grp = ? AND sequence = ?", (group, sequence)
        ).fetchone()
    return found


def _delivery(
    topic: str, group: int, lease: int, event: tuple[int, str, float, bytes, str], attempt: int
) -> Delivery:
    return Delivery(
        event=event_of(topic, event), token=f"{group}.{event[0]}.{lease}", attempt=attempt
    )


def _settle(connection: sqlite3.Connection, group: int, sequence: int) -> None:
    connection.execute("DELETE FROM pending WHERE grp = ? AND sequence = ?", (group, sequence))
    connection.execute("DELETE FROM dead WHERE grp = ? AND sequence = ?", (group, sequence))


def _expire(connection: sqlite3.Connection, group: _Row, now: float) -> None:
    """Give up what nobody has settled in time and has had all its attempts."""
    if group.retry_limit < 0:
        return
    for sequence, attempt in connection.execute(
        f"SELECT sequence, attempt FROM pending WHERE grp = :grp AND {_DUE}"
        " AND holder IS NOT NULL AND attempt > :limit",
        {"grp": group.number, "now": now, "limit": group.retry_limit},
    ).fetchall():
        _bury(connection, group, sequence, attempt, now)


def bury_expired(connection: sqlite3.Connection, now: float) -> None:
    """The same for all groups, also those that have no consumer."""
    for (number,) in connection.execute(
        "SELECT DISTINCT p.grp FROM pending p JOIN groups g ON g.number = p.grp"
        " WHERE p.holder IS NOT NULL AND p.due <= ? AND g.retry_limit >= 0"
        " AND p.attempt > g.retry_limit",
        (now,),
    ).fetchall():
        _expire(connection, _of(connection, number), now)


def _bury(
    connection: sqlite3.Connection, group: _Row, sequence: int, attempt: int, now: float
) -> None:
    """Make a dead letter, or try on when there are too many of them."""
    topic = _topic(connection, group.topic)
    event = _event(connection, topic, group.number, sequence)
    if event is not None:
        (count,) = connection.execute(
            "SELECT count(*) FROM dead WHERE grp = ? AND sequence <> ?", (group.number, sequence)
        ).fetchone()
        if count >= MAX_DEAD:
            _give_back(connection, group.number, sequence, now, now + MAX_BACKOFF)
            return
        connection.execute(
            "INSERT OR REPLACE INTO dead VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?)",
            (group.number, sequence, attempt, now, *event[1:]),
        )
    connection.execute(
        "DELETE FROM pending WHERE grp = ? AND sequence = ?", (group.number, sequence)
    )


def _give_back(
    connection: sqlite3.Connection, group: int, sequence: int, now: float, due: float
) -> None:
    connection.execute(
        "UPDATE pending SET holder = NULL, lease = NULL, since = ?, due = ?"
        " WHERE grp = ? AND sequence = ?",
        (now, due, group, sequence),
    )


def _held(
    connection: sqlite3.Connection, tokens: Sequence[tuple[int, int, int]]
) -> list[tuple[_Row, int, int]]:
    """Group, number and attempt of those that are still held under these tokens."""
    found = []
    groups: dict[int, _Row] = {}
    for number, sequence, lease in tokens:
        row = connection.execute(
            "SELECT attempt FROM pending WHERE grp = ? AND sequence = ? AND lease = ?",
            (number, sequence, lease),
        ).fetchone()
        if row is not None:
            if number not in groups:
                groups[number] = _of(connection, number)
            found.append((groups[number], sequence, int(row[0])))
    for group in groups.values():
        stamp(connection, group.topic)
    return found


def acknowledge(connection: sqlite3.Connection, tokens: Sequence[tuple[int, int, int]]) -> int:
    held = _held(connection, tokens)
    for group, sequence, _ in held:
        _settle(connection, group.number, sequence)
    return len(held)


def retry(
    connection: sqlite3.Connection,
    tokens: Sequence[tuple[int, int, int]],
    delay: float | None,
    now: float,
) -> int:
    """Give events back to their groups, or give them up."""
    held = _held(connection, tokens)
    for group, sequence, attempt in held:
        if group.spent(attempt):
            _bury(connection, group, sequence, attempt, now)
        else:
            pause = group.pause(attempt) if delay is None else delay
            _give_back(connection, group.number, sequence, now, now + pause)
    return len(held)


def work_on(
    connection: sqlite3.Connection, tokens: Sequence[tuple[int, int, int]], now: float
) -> int:
    held = _held(connection, tokens)
    for group, sequence, _ in held:
        connection.execute(
            "UPDATE pending SET since = ?, due = ? WHERE grp = ? AND sequence = ?",
            (now, now + group.ack_wait, group.number, sequence),
        )
    return len(held)


def release(
    connection: sqlite3.Connection, number: int, holder: str, unseen: Sequence[int], now: float
) -> None:
    """Give all back that a consumer holds. Those that it never saw have not had this attempt."""
    try:
        group = _of(connection, number)
    except NotFound:
        return
    for sequence in unseen:
        connection.execute(
            "UPDATE pending SET attempt = attempt - 1 WHERE grp = ? AND sequence = ?"
            " AND holder = ?",
            (number, sequence, holder),
        )
    for sequence, attempt in connection.execute(
        "SELECT sequence, attempt FROM pending WHERE grp = ? AND holder = ?", (number, holder)
    ).fetchall():
        if group.spent(attempt):
            _bury(connection, group, sequence, attempt, now)
        else:
            _give_back(connection, number, sequence, now, now)
    stamp(connection, group.topic)


def listing(connection: sqlite3.Connection, topic: TopicRow) -> list[Group]:
    rows = connection.execute(
        "SELECT name, next, (SELECT count(*) FROM pending p WHERE p.grp = g.number),"
        " (SELECT count(*) FROM dead d WHERE d.grp = g.number AND NOT d.requeued)"
        " FROM groups g WHERE topic = ? ORDER BY name",
        (topic.number,),
    )
    return [
        Group(
            topic=topic.name,
            name=name,
            next=next_,
            waiting=max(0, topic.last + 1 - max(next_, topic.first)),
            pending=pending,
            dead=dead,
        )
        for name, next_, pending, dead in rows
    ]


def remove(connection: sqlite3.Connection, number: int) -> None:
    row = connection.execute("SELECT topic FROM groups WHERE number = ?", (number,)).fetchone()
    for table, column in (("pending", "grp"), ("dead", "grp"), ("groups", "number")):
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (number,))
    if row is not None:
        stamp(connection, row[0])


def forget(connection: sqlite3.Connection, before: float) -> None:
    """Remove groups without a name of their own that were last seen before a time."""
    for (number,) in connection.execute(
        "SELECT number FROM groups WHERE seen < ?", (before,)
    ).fetchall():
        remove(connection, number)


def number(connection: sqlite3.Connection, topic: str, name: str) -> int:
    """The number of a group, 0 when it is not there."""
    found = connection.execute(
        "SELECT g.number FROM groups g JOIN topics t ON t.number = g.topic"
        " WHERE t.name = ? AND g.name = ?",
        (topic, name),
    ).fetchone()
    return 0 if found is None else int(found[0])


def dead(connection: sqlite3.Connection, group: int, limit: int, offset: int) -> sqlite3.Cursor:
    return connection.execute(
        f"SELECT {COLUMNS}, attempts, given_up FROM dead WHERE grp = ? AND NOT requeued"
        " ORDER BY sequence LIMIT ? OFFSET ?",
        (group, limit, offset),
    )


def letter(topic: str, row: Sequence[object]) -> DeadLetter:
    return DeadLetter(event=event_of(topic, row), attempts=row[5], time=row[6])  # type: ignore[arg-type]  # columns of the table


def _chosen(connection: sqlite3.Connection, group: int, sequences: Sequence[int]) -> list[int]:
    rows = connection.execute(
        "SELECT sequence FROM dead WHERE grp = ? AND NOT requeued ORDER BY sequence", (group,)
    ).fetchall()
    wanted = set(sequences)
    return [row[0] for row in rows if not wanted or row[0] in wanted]


def requeue(
    connection: sqlite3.Connection, group: int, sequences: Sequence[int], now: float
) -> int:
    chosen = _chosen(connection, group, sequences)
    for sequence in chosen:
        connection.execute(
            "UPDATE dead SET requeued = 1 WHERE grp = ? AND sequence = ?", (group, sequence)
        )
        connection.execute(
            "INSERT INTO pending VALUES (?, ?, 0, NULL, NULL, ?, ?)", (group, sequence, now, now)
        )
    stamp(connection, _of(connection, group).topic)
    return len(chosen)


def discard(connection: sqlite3.Connection, group: int, sequences: Sequence[int]) -> int:
    chosen = _chosen(connection, group, sequences)
    for sequence in chosen:
        connection.execute("DELETE FROM dead WHERE grp = ? AND sequence = ?", (group, sequence))
    return len(chosen)
