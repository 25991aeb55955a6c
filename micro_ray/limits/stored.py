"""The rules, kept in config, beside the ledger that says how they are used."""

from __future__ import annotations

import builtins
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from micro_ray.config import Config
from micro_ray.errors import BadRequest, MicroError, NotFound, TooLarge
from micro_ray.limits import BACKENDS, DEFAULT, WHOLE, Kind, Limit, Limits, Rule, Standing, Use
from micro_ray.limits.ledger import Ledger
from micro_ray.limits.rules import (
    FIELDS,
    ROOT,
    check_limit,
    check_place,
    event_quota_of,
    parse,
    path_of,
    quota_of,
)

__all__ = ["StoredLimits", "standing"]

log = logging.getLogger(__name__)

#: Versions that are gone back through for rules that can be.
TRIED = 50


async def standing(config: Config, namespace: str) -> Standing:
    """What is in force in a namespace. Raises what config raises."""
    try:
        found = await config.read(ROOT, namespace=namespace)
    except NotFound as error:
        if error.id != "config":
            raise  # there is no config to ask
        return Standing(version=await config.version(namespace=namespace))
    try:
        return _standing(found.data, found.version)
    except MicroError as error:
        good = await _last_good(config, found.version, namespace)
        return replace(_with_whole(good, found.data), version=found.version, problem=error.detail)


def _standing(document: Any, version: int) -> Standing:
    """Raises what is wrong with it."""
    return Standing(
        rules=parse(document),
        store=quota_of(document),
        events=event_quota_of(document),
        version=version,
    )


def _with_whole(good: Standing, document: Any) -> Standing:
    """With the limits of the namespace as a whole as they are now, if those can be: what its own
    administrators have set wrong elsewhere must not keep these out."""
    if not isinstance(document, Mapping):
        return good
    try:
        now = _standing({word: v for word, v in document.items() if word in WHOLE}, 0)
    except MicroError:
        return good
    others = (rule for rule in good.rules if rule.kind not in WHOLE)
    return replace(now, rules=(*now.rules, *others))


async def _last_good(config: Config, version: int, namespace: str) -> Standing:
    """What stood last before a version, of what can be."""
    for old in await config.history(ROOT, limit=TRIED, before=version, namespace=namespace):
        try:
            found = await config.read(ROOT, at=old.version, namespace=namespace)
            return _standing(found.data, old.version)
        except NotFound as error:
            if error.id != "config":
                raise
            break
        except (BadRequest, TooLarge) as error:
            log.debug("limits in version %d: %s", old.version, error)
    return Standing()


class StoredLimits(Limits):
    """Over a config, which is its owner's to close, and the limiter's ledger."""

    def __init__(
        self, config: Config, ledger: Ledger, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._clock = clock

    async def list(self, *, namespace: str = DEFAULT) -> Standing:
        return await standing(self._config, namespace)

    async def set(
        self,
        kind: str,
        name: str = "",
        *,
        rate: float | None = None,
        burst: int | None = None,
        concurrency: int | None = None,
        by: str = "",
        namespace: str = DEFAULT,
    ) -> Rule:
        place = check_place(kind, name)
        given = {
            field: value
            for field, value in zip(FIELDS, (rate, burst, concurrency), strict=True)
            if value is not None
        }
        if not given:
            raise BadRequest("limits", "give a rate, a burst or a concurrency")
        if place in BACKENDS and concurrency is not None:
            raise BadRequest("limits", f"concurrency: what is done in {place} has a rate alone")
        before = await self._limit(place, name, namespace)
        values = {field: getattr(before, field) for field in FIELDS} | given
        if rate == 0 and burst is None:
            values["burst"] = given["burst"] = 0
        limit = check_limit(**values)
        patch = {field: value or None for field, value in given.items()}
        # What is below (endpoints of a service's name) stays.
        await self._config.merge(path_of(place, name), patch, by=by, namespace=namespace)
        return Rule(kind=place, name=name, limit=limit)

    async def _limit(self, kind: Kind, name: str, namespace: str) -> Limit:
        """The limit that is there; none where what is there cannot be read."""
        at = await self._config.get(path_of(kind, name), None, namespace=namespace)
        try:
            members = at if isinstance(at, dict) else {}
            given = {k: v for k, v in members.items() if k in FIELDS and v is not None}
            return check_limit(**{k: v for k, v in given.items() if not isinstance(v, dict)})
        except MicroError:
            return Limit()

    async def unset(
        self, kind: str, name: str = "", *, by: str = "", namespace: str = DEFAULT
    ) -> None:
        place = check_place(kind, name)
        path = path_of(place, name)
        at = await self._config.get(path, None, namespace=namespace)
        members = at if isinstance(at, dict) else {}
        mine = [field for field in FIELDS if not isinstance(members.get(field, {}), dict)]
        if not mine:
            what = f"{kind} {name}" if name else f"the {kind}"
            raise NotFound("limits", f"{what} has no limit in namespace {namespace}")
        if len(mine) == len(members):
            await self._config.delete(path, by=by, namespace=namespace)
        else:
            patch = dict.fromkeys(mine)
            await self._config.merge(path, patch, by=by, namespace=namespace)

    async def usage(self, *, namespace: str = DEFAULT) -> builtins.list[Use]:
        return self._ledger.usage(namespace, self._clock())
