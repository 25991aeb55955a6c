"""What nobody asks for and is done all the same: too much is removed, what nobody settled is given
up, groups of consumers that vanished and of topics that are deleted are forgotten.

Every process does it; none is needed. Each reads what was appended to the logs of groups since its
last sweep, and looks no further than at the header that says when a group needs a look.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from micro_ray.errors import MicroError
from micro_ray.events import FORGET
from micro_ray.events.jetstream_api import Api, Names
from micro_ray.events.jetstream_groups import ALARM, Groups
from micro_ray.events.jetstream_members import Members
from micro_ray.events.jetstream_topics import Topic, Topics

__all__ = ["Sweep"]

log = logging.getLogger(__name__)


class Sweep:
    def __init__(
        self,
        api: Api,
        names: Names,
        topics: Topics,
        groups: Groups,
        members: Members,
        clock: Callable[[], float],
    ) -> None:
        self._api = api
        self._names = names
        self._topics = topics
        self._groups = groups
        self._members = members
        self._clock = clock
        #: Of each namespace how far its log is read, and when its groups need a look.
        self._read: dict[str, int] = {}
        self._alarms: dict[str, dict[tuple[str, int], float]] = {}
        #: Lives that had groups and no topic at the last sweep.
        self._strays: set[tuple[str, str]] = set()

    async def run(self) -> int:
        """One sweep; how many topics there are."""
        spaces = {
            row["config"]["metadata"]["namespace"]
            for row in await self._api.streams(f"{self._names.prefix}.groups.>")
        }
        lives = {space: await self._groups.lives(space) for space in spaces}
        rows = await self._api.streams(f"{self._names.prefix}.events.>")
        for row in rows:
            with contextlib.suppress(MicroError):
                await self._topic(row)
        here = {row["config"]["metadata"]["life"] for row in rows}
        for space in spaces:
            with contextlib.suppress(MicroError):
                await self._space(space)
        await self._forget_strays(lives, here)
        return len(rows)

    async def _topic(self, row: dict[str, Any]) -> None:
        about = row["config"]["metadata"]
        space, name = about["namespace"], about["topic"]
        topic = Topic(space, name, row["config"]["name"])
        self._topics.read_info(topic, row)
        await self._topics.keep_up(topic, row["config"])

    async def _space(self, space: str) -> None:
        """Read on in a namespace's log, and look at the groups whose time has come."""
        alarms = self._alarms.setdefault(space, {})
        stream, pattern = self._names.groups_stream(space), f"{self._names.groups(space)}.*.*"
        while rows := await self._api.scan(stream, pattern, self._read.get(space, 0) + 1):
            for row in rows:
                _, life, number = row.subject.rsplit(".", 2)
                when = row.headers.get(ALARM)
                if when is None:
                    alarms.pop((life, int(number)), None)
                else:
                    alarms[life, int(number)] = float(when)
            self._read[space] = rows[-1].sequence
        now = self._clock()
        for (life, index), alarm in list(alarms.items()):
            if alarm > now:
                continue
            group = self._groups.of(space, life, index)
            with contextlib.suppress(MicroError):
                state = await group.current(sure=True)
                if state.seen is not None and state.seen < now - FORGET:
                    await group.delete()
                elif state.overdue(now):
                    await self._members.bury(None, group)
                else:
                    continue
            if group.state is None:
                alarms.pop((life, index), None)

    async def _forget_strays(self, lives: dict[str, dict[str, list[int]]], here: set[str]) -> None:
        """Remove groups of topics that are no more: whoever deleted one died before it was done.
        Lives were listed before topics, so none of them is of a topic that is just made."""
        strays = {
            (space, life) for space, found in lives.items() for life in found if life not in here
        }
        for space, life in strays & self._strays:
            with contextlib.suppress(MicroError):
                await purge_life(self._api, self._names, space, life)
        self._strays = strays


async def purge_life(api: Api, names: Names, space: str, life: str) -> None:
    """Remove the groups and dead letters of a topic's life."""
    for pattern in (f"{names.groups(space)}.{life}.>", f"{names.dead(space)}.{life}.>"):
        await api.purge(names.groups_stream(space), filter=pattern)
