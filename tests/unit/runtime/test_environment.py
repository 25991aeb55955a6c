"""docs/wire.md lists the environment of a process that the runtime starts: what one gets."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from micro_ray.errors import BadRequest
from micro_ray.runtime import Replica, Workload
from micro_ray.runtime.admission import Admission, Admit
from micro_ray.runtime.checks import OWN, check
from micro_ray.runtime.machine import Machine
from tests.fixtures.wait import eventually
from tests.unit.runtime.conftest import Shop
from tests.unit.wire.test_spec import section, table

#: Each name in the page's table, with what its last column says; a star stands for several.
LISTED = {
    name.strip(" `"): row[2]
    for row in table(section("Being found: a service"), "variable")
    for name in row[0].split(",")
}
ALWAYS = {name for name, when in LISTED.items() if not when.startswith("if ")}


async def admit(replica: Replica) -> Admission:
    return Admission(ticket=f"for {replica.id}", roots="PEM", identity="token key")


async def environment(
    shop: Shop, workload: Workload, admit: Admit | None = None
) -> Mapping[str, str]:
    """What a process finds when it begins, before a shell adds to it."""

    driver = shop.driver(machine=Machine(cpu=1, memory=0, devices=[3]), admit=admit)
    running = await driver.start(shop.replica(workload), workload)
    try:
        found = await eventually(lambda: Path(f"/proc/{running.pid}/environ").read_bytes())
    finally:
        await driver.stop(running, 0)
    pairs = (pair.partition("=") for pair in found.decode().split("\0") if pair)
    return {name: value for name, _, value in pairs}


def sleeper(**said: object) -> Workload:
    return Workload(name="w", command=("/bin/sleep", "60"), driver="process", **said)  # type: ignore[arg-type]


def listed(variable: str) -> str:
    """The name in the table under which a variable is listed; "" for one that is not."""
    return next((name for name in LISTED if fnmatchcase(variable, name)), "")


async def test_all_of_it_is_on_the_page_and_nothing_else_is_there(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"):
        monkeypatch.setenv(name, os.environ.get(name, "C" if name == "LC_ALL" else "/tmp"))
    monkeypatch.setenv("MICRO_TEST_SECRET", "ours")
    found = await environment(shop, sleeper(gpu=1.0, env={"MOOD": "good"}), admit)
    assert found["MICRO_TICKET"] == f"for {found['MICRO_INSTANCE']}"
    assert found["MICRO_IDENTITY"] == "token key"
    unlisted = {name for name in found if not listed(name)}
    assert unlisted == {"MOOD"}
    assert {listed(name) for name in found} - {""} == set(LISTED)


async def test_what_is_there_in_any_case(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(LISTED) - ALWAYS:
        monkeypatch.delenv(name, raising=False)
    assert {listed(name) for name in await environment(shop, sleeper())} == ALWAYS


async def test_what_is_in_it(shop: Shop) -> None:
    """As the page says it."""
    found = await environment(shop, sleeper(version="v7", env={"PATH": "/mine", "MICRO_HOST": "x"}))
    boot = shop.here.bootstrap
    assert found["PATH"] == f"{Path(sys.executable).parent}:/mine"
    assert found["MICRO_HOST"] == "x"  # it is not fixed
    assert found["MICRO_REGISTRY"] == ",".join(boot.registry)
    assert found["MICRO_ROUTER"] == ",".join(boot.routers)
    assert float(found["MICRO_REGISTRY_TTL"]) == boot.ttl
    assert found["MICRO_RUN"] == str(boot.run)
    assert found["MICRO_SERVICE_NAME"] == "w"
    assert found["MICRO_SERVICE_VERSION"] == "v7"
    assert found["MICRO_NAMESPACE"] == "micro"
    assert found["MICRO_INSTANCE"].startswith("w-")


def test_what_is_fixed_is_what_a_workload_may_not_set() -> None:
    assert {name for name, when in LISTED.items() if when.endswith("fixed")} == set(OWN)
    for name in {name.replace("*", "X") for name in ALWAYS}:
        workload = sleeper(env={name: "mine"})
        if name in OWN:
            with pytest.raises(BadRequest, match=f"{name} is set by the runtime"):
                check(workload, ["process"], 1)
        else:
            check(workload, ["process"], 1)
