"""The examination of etcd: its members, quorum, alarms, and how full it is."""

from __future__ import annotations

import asyncio
import contextlib

from micro_ray.errors import MicroError
from micro_ray.finding import Finding
from micro_ray.registry.etcd_client import Client, Method
from micro_ray.registry.etcdapi import rpc_pb2 as pb

__all__ = ["examine"]

STATUS = Method("/etcdserverpb.Maintenance/Status", pb.StatusRequest, pb.StatusResponse)
ALARM = Method("/etcdserverpb.Maintenance/Alarm", pb.AlarmRequest, pb.AlarmResponse)
MEMBERS = Method("/etcdserverpb.Cluster/MemberList", pb.MemberListRequest, pb.MemberListResponse)

#: Bytes that etcd takes unless it is told otherwise, and the share of them that is still good.
QUOTA, FULL = 2 * 2**30, 0.8
#: The oldest that will do, and those that can lose consistency when they are killed.
OLDEST, BROKEN = (3, 4), ("3.5.0", "3.5.1", "3.5.2")

_RELIEF = (
    "compact it (etcdctl compact), defragment it (etcdctl defrag) or raise --quota-backend-bytes, "
    "then `etcdctl alarm disarm`"
)


async def examine(client: Client) -> list[Finding]:
    """What each endpoint says of itself, and what follows for all."""
    endpoints = client.place.endpoints
    asked = await asyncio.gather(
        *(client.ask(number, STATUS, pb.StatusRequest()) for number in range(len(endpoints))),
        return_exceptions=True,
    )
    up: dict[str, pb.StatusResponse] = {}
    down: dict[str, str] = {}
    for endpoint, answer in zip(endpoints, asked, strict=True):
        if isinstance(answer, pb.StatusResponse):
            up[endpoint] = answer
        else:
            down[endpoint] = answer.detail if isinstance(answer, MicroError) else str(answer)
    if not up:
        why = "; ".join(f"{endpoint}: {text}" for endpoint, text in down.items())
        return [_bad(f"no etcd answers ({why}); start it, or correct registry.url")]
    first = endpoints.index(next(iter(up)))
    members = 0
    with contextlib.suppress(MicroError):  # without a leader they do not agree on it
        members = len((await client.ask(first, MEMBERS, pb.MemberListRequest())).members)
    alarms = {line for answer in up.values() for line in answer.errors}
    with contextlib.suppress(MicroError):
        request = pb.AlarmRequest(action=pb.AlarmRequest.GET)
        told = await client.ask(first, ALARM, request)
        alarms |= {pb.AlarmType.Name(alarm.alarm) for alarm in told.alarms}
    return [_quorum(up, down, members), *_versions(up), *_alarms(alarms), _space(up)]


def _quorum(up: dict[str, pb.StatusResponse], down: dict[str, str], members: int) -> Finding:
    newest = sorted(answer.version for answer in up.values())
    total = max(members, len(up))
    told = f"etcd {newest[0]} at {', '.join(up)}, {total} member{'s' if total > 1 else ''}"
    alone = [endpoint for endpoint, answer in up.items() if not answer.leader]
    away = "; ".join(f"{endpoint}: {why}" for endpoint, why in down.items())
    if len(alone) == len(up):
        return _bad(
            f"{told}: they have no leader, so nothing can be registered or read"
            f"{f' ({away})' if away else ''}; start the other members"
        )
    if alone:
        return _bad(
            f"{told}; {', '.join(alone)} is cut off from the others: check the lines between "
            "members (their peer port, 2380)"
        )
    if down:
        return _bad(f"{told}; not in reach: {away}. Start what is down: the loss of more is felt")
    return Finding(check="registry", good=True, text=told)


def _versions(up: dict[str, pb.StatusResponse]) -> list[Finding]:
    found = []
    for endpoint, answer in up.items():
        parts = tuple(int(part) for part in answer.version.split(".")[:2] if part.isdigit())
        if parts < OLDEST:
            found.append(_bad(f"{endpoint} is etcd {answer.version}; 3.4 or newer is needed"))
        elif answer.version in BROKEN:
            found.append(
                _bad(f"{endpoint} is etcd {answer.version}, which can lose consistency when it is "
                     "killed; use 3.5.3 or newer")
            )  # fmt: skip
    return found


def _alarms(alarms: set[str]) -> list[Finding]:
    found = []
    if any("NOSPACE" in alarm for alarm in alarms):
        found.append(_bad(f"alarm NOSPACE: it is full and takes no registration; {_RELIEF}"))
    if any("CORRUPT" in alarm for alarm in alarms):
        found.append(
            _bad("alarm CORRUPT: members differ; replace the one whose data is wrong (see "
                 "etcd's page on data corruption)")
        )  # fmt: skip
    return found


def _space(up: dict[str, pb.StatusResponse]) -> Finding:
    fullest, answer = max(up.items(), key=lambda item: item[1].dbSize)
    size, quota = answer.dbSize, answer.dbSizeQuota or QUOTA
    text = f"{size / 2**20:.1f} of {quota / 2**20:.0f} MiB at {fullest}"
    if not answer.dbSizeQuota:
        text += " (if --quota-backend-bytes is as it was)"
    if size < FULL * quota:
        return Finding(check="registry", good=True, text=text)
    return _bad(f"{text}; {_RELIEF}")


def _bad(text: str) -> Finding:
    return Finding(check="registry", good=False, text=text)
