"""The verbs of the runtime, with real processes: what they give, refuse and leave."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from micro_ray.errors import BadRequest, Conflict, NotFound, TooLarge
from micro_ray.runtime import Progress, Runtime, State, Workload
from micro_ray.runtime.keeper import Patience
from micro_ray.runtime.reconcile import Reconciler
from tests.fixtures.processes import alive
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.runtime.conftest import Shop, command, service_source, sh, until

SLEEP = command("sleep", "1000")
#: Takes half a second to end well.
SLOW = sh("trap 'sleep 0.5; echo ended; exit 0' TERM; while true; do sleep 0.02; done")


async def steps(runtime: Runtime, name: str) -> list[Progress]:
    return [step async for step in runtime.progress(name)]


async def test_from_create_to_delete(runtime: Reconciler, shop: Shop) -> None:
    status = await runtime.create(replace(SLEEP, replicas=2, metadata={"owner": "me"}))
    assert status.state in (State.PENDING, State.STARTING)
    assert (status.ready, status.restarts, status.error, status.retry_in) == (0, 0, "", 0)
    told = await steps(runtime, "w")
    (status,) = await runtime.read("w")
    ids = {replica.id for replica in status.replicas}
    assert {step.text for step in told[:-1]} == {
        f"{verb} {id}" for verb in ("starting", "running") for id in ids
    }
    assert told[-1] == Progress(state=State.RUNNING, text="running")
    assert (status.state, status.ready) == (State.RUNNING, 2)
    workload = status.workload
    assert (workload.metadata, workload.generation) == ({"owner": "me"}, 1)
    assert abs(workload.created - time.time()) < 20
    assert workload.updated == workload.created
    for replica in status.replicas:
        assert alive(replica.pid)
        assert (replica.workload, replica.namespace, replica.state) == (
            "w", "micro", State.RUNNING,
        )  # fmt: skip
    assert await runtime.read() == [status]
    await runtime.delete("w")
    assert not any(alive(replica.pid) for replica in status.replicas)
    assert await runtime.read() == []
    assert shop.processes() == []
    assert shop.left() == set()
    assert not (shop.state / "work" / "micro" / "w").exists()
    assert await shop.here.store.keys(table="runtime") == []


async def test_a_source(runtime: Reconciler, shop: Shop) -> None:
    digest = await runtime.upload(shop.pack(service_source("w")))
    await runtime.create(Workload(name="w", digest=digest, driver="process", source="./w"))
    assert (await steps(runtime, "w"))[-1].state is State.RUNNING
    await shop.here.known("w")
    assert (await shop.here.client.call("w"))["said"] == "one"
    assert (await runtime.read("w"))[0].workload.source == "./w"


async def test_a_source_that_was_not_uploaded(runtime: Reconciler) -> None:
    workload = Workload(name="w", digest="0" * 64, driver="process")
    with pytest.raises(NotFound, match="source 000000000000 was not uploaded"):
        await runtime.create(workload)
    assert await runtime.read() == []
    await runtime.create(SLEEP)
    with pytest.raises(NotFound, match="was not uploaded"):
        await runtime.update("w", "micro", {"digest": "0" * 64})
    assert (await runtime.read("w"))[0].workload.digest == ""


async def test_uploads_that_are_refused(runtime: Reconciler, shop: Shop) -> None:
    with pytest.raises(BadRequest, match="not a gzipped tar"):
        await runtime.upload(b"nonsense")
    with pytest.raises(BadRequest, match=r"namespace '\.\./x'"):
        await runtime.upload(shop.pack("1"), "../x")
    assert await shop.here.store.blobs() == []


async def test_what_is_there_already(runtime: Reconciler) -> None:
    """Two at once, and one after: one of them is, and the others are told."""
    answers = await asyncio.gather(
        *(runtime.create(SLEEP) for _ in range(5)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, Conflict)]
    assert len(refused) == 4
    assert refused[0].detail == "w runs already; use `micro update` to change it"
    await until(runtime, "w", State.RUNNING)
    with pytest.raises(Conflict):
        await runtime.create(SLEEP)
    assert len((await runtime.read("w"))[0].replicas) == 1
    await runtime.create(replace(SLEEP, namespace="other"))


async def test_what_is_not_there(runtime: Reconciler) -> None:
    """Every verb says so, and what there is."""
    await runtime.create(replace(SLEEP, name="b"))
    await runtime.create(replace(SLEEP, name="a"))
    for attempt in (
        runtime.read("w"),
        runtime.update("w", "micro", {}),
        runtime.delete("w"),
        anext(runtime.logs("w")),
        anext(runtime.progress("w")),
    ):
        with pytest.raises(NotFound, match="no workload 'w'; there is a, b"):
            await attempt
    with pytest.raises(NotFound, match="there is none"):
        await runtime.read("a", "elsewhere")
    assert [status.workload.name for status in await runtime.read()] == ["a", "b"]
    assert await runtime.read(namespace="elsewhere") == []


@pytest.mark.parametrize("place", [("../w", "micro"), ("w", "../../etc"), ("w", ".."), ("", "m/")])
async def test_names_that_lead_out(runtime: Reconciler, shop: Shop, place: tuple[str, str]) -> None:
    """A name is a part of paths and keys."""
    (shop.state / "w").mkdir()
    (shop.state / "w" / "x.log").write_text("1.0 out a secret\n")
    name, namespace = place
    for attempt in (
        runtime.create(replace(SLEEP, name=name, namespace=namespace)),
        runtime.read(name, namespace),
        runtime.update(name, namespace, {}),
        runtime.delete(name, namespace),
        anext(runtime.logs(name, namespace)),
        anext(runtime.progress(name, namespace)),
    ):
        with pytest.raises(BadRequest, match="name"):
            await attempt


async def test_bad_workloads_leave_nothing(runtime: Reconciler, shop: Shop) -> None:
    for bad, said in (
        (replace(SLEEP, replicas=101), "replicas 101 is not within 0 and 100"),
        (replace(SLEEP, name="registry"), "a service of the platform"),
        (replace(SLEEP, driver="ray"), "driver 'ray'; there is process"),
        (replace(SLEEP, cpu=float("nan")), "cpu nan"),
        (replace(SLEEP, env={"A": "x" * 70_000}), "env of 1 entries"),
    ):
        with pytest.raises((BadRequest, TooLarge), match=said):
            await runtime.create(bad)
    assert await runtime.read() == []
    assert await shop.here.store.keys(table="runtime") == []


async def test_what_an_update_changes(runtime: Reconciler) -> None:
    """What is named, and nothing else; all but replicas make a new generation."""
    await runtime.create(replace(SLEEP, env={"A": "1"}, metadata={"k": "v"}))
    await until(runtime, "w", State.RUNNING)
    changes: dict[str, Any] = {"env": {"B": "2"}}
    status = await runtime.update("w", "micro", changes)
    assert status.state is State.UPDATING
    workload = status.workload
    assert (workload.env, workload.metadata, workload.generation) == ({"B": "2"}, {"k": "v"}, 2)
    assert workload.updated > workload.created
    await until(runtime, "w", State.RUNNING)
    for changes, generation in (
        ({"replicas": 2}, 2),
        ({"replicas": 1}, 2),
        ({"replicas": 2, "metadata": {}}, 3),
        ({}, 4),
        ({"replicas": 2}, 5),  # no change: a restart
    ):
        status = await runtime.update("w", "micro", changes)
        assert status.workload.generation == generation
    for bad in ({"name": "x"}, {"generation": 1}, {"replicas": -1}, {"replicas": "many"}, {"x": 1}):
        with pytest.raises(BadRequest):
            await runtime.update("w", "micro", bad)
    assert (await runtime.read("w"))[0].workload == status.workload


async def test_a_restart(runtime: Reconciler) -> None:
    """An update without changes: the same again, in new processes."""
    await runtime.create(replace(SLEEP, replicas=2))
    before = await until(runtime, "w", State.RUNNING)
    await runtime.update("w", "micro", {})
    after = await until(runtime, "w", State.RUNNING)
    assert not {r.pid for r in before.replicas} & {r.pid for r in after.replicas}
    assert after.ready == 2


async def test_what_goes_on_after_a_failed_update_is_scaled(runtime: Reconciler) -> None:
    """The update that failed is not tried again for it; an update of its own is."""
    await runtime.create(SLEEP)
    await until(runtime, "w", State.RUNNING)
    await runtime.update("w", "micro", {"command": ["no-such-command"]})
    failed = await until(runtime, "w", State.ERROR)
    await runtime.update("w", "micro", {"replicas": 3})

    async def three() -> bool:
        (status,) = await runtime.read("w")
        return [r.state for r in status.replicas] == [State.RUNNING] * 3

    await eventually(three)
    (status,) = await runtime.read("w")
    assert (status.state, status.error) == (State.ERROR, failed.error)
    await runtime.update("w", "micro", {"command": ["sleep", "2000"]})
    assert (await until(runtime, "w", State.RUNNING)).ready == 3


async def test_scaled_to_nothing_and_back(runtime: Reconciler) -> None:
    await runtime.create(replace(SLEEP, replicas=0))
    assert (await steps(runtime, "w"))[-1] == Progress(state=State.STOPPED, text="stopped")
    await runtime.update("w", "micro", {"replicas": 1})
    await until(runtime, "w", State.RUNNING)
    await runtime.update("w", "micro", {"replicas": 0})
    told = await steps(runtime, "w")
    assert told[-1].state is State.STOPPED
    assert any("not desired" in step.text for step in told)
    assert (await runtime.read("w"))[0].replicas == ()


# -- deleting --------------------------------------------------------------------------------------


async def test_deleting_takes_its_time_and_holds_up_nobody(runtime: Reconciler, shop: Shop) -> None:
    """What is served is finished; meanwhile everything else goes on."""
    await runtime.create(SLOW)
    await until(runtime, "w", State.RUNNING)
    deleting = asyncio.create_task(runtime.delete("w"))
    await eventually(lambda: _state(runtime, "w", State.STOPPING))
    await runtime.create(replace(SLEEP, name="other"))
    await runtime.update("other", "micro", {"metadata": {"a": "b"}})
    await runtime.delete("other")
    assert not deleting.done()
    with pytest.raises(Conflict, match="w is being stopped; run it anew when it is gone"):
        await runtime.update("w", "micro", {})
    await deleting
    assert "ended" in shop.log()


async def _state(runtime: Runtime, name: str, state: State) -> bool:
    return (await runtime.read(name))[0].state is state


async def test_deleted_twice_at_once(runtime: Reconciler) -> None:
    """Both return when it is gone; a third finds nothing."""
    await runtime.create(SLOW)
    await until(runtime, "w", State.RUNNING)
    await asyncio.gather(runtime.delete("w"), runtime.delete("w"))
    with pytest.raises(NotFound):
        await runtime.delete("w")


async def test_who_deletes_goes_away(runtime: Reconciler, shop: Shop) -> None:
    """It is deleted all the same, and can be created again."""
    await runtime.create(SLOW)
    await until(runtime, "w", State.RUNNING)
    deleting = asyncio.create_task(runtime.delete("w"))
    await eventually(lambda: _state(runtime, "w", State.STOPPING))
    deleting.cancel()
    await asyncio.gather(deleting, return_exceptions=True)

    async def gone() -> bool:
        return await runtime.read() == []

    await eventually(gone)
    assert shop.left() == set()
    await runtime.create(SLEEP)
    await until(runtime, "w", State.RUNNING)


async def test_created_anew_while_it_is_being_deleted(runtime: Reconciler, shop: Shop) -> None:
    """It waits until the old one is gone: `micro kill x; micro run x` works whoever is faster."""
    await runtime.create(SLOW)
    first = await until(runtime, "w", State.RUNNING)
    deleting = asyncio.create_task(runtime.delete("w"))
    await eventually(lambda: _state(runtime, "w", State.STOPPING))
    await runtime.create(SLEEP)
    assert deleting.done() or not alive(first.replicas[0].pid)
    await deleting
    second = await until(runtime, "w", State.RUNNING)
    assert second.workload.command == SLEEP.command
    assert "ended" in shop.log()
    assert await shop.here.store.keys(table="runtime") == ["workload/micro/w"]


async def test_created_right_after_it_was_deleted(runtime: Reconciler) -> None:
    for _ in range(3):
        await runtime.create(SLEEP)
        await runtime.delete("w")
    await runtime.create(SLEEP)
    await until(runtime, "w", State.RUNNING)


async def test_deleted_while_an_update_rolls(runtime: Reconciler, shop: Shop) -> None:
    await runtime.create(replace(SLEEP, replicas=2))
    await until(runtime, "w", State.RUNNING)
    await runtime.update("w", "micro", {"env": {"A": "b"}})
    await runtime.delete("w")
    assert shop.processes() == []
    assert shop.left() == set()


async def test_deleted_while_it_starts(runtime: Reconciler, shop: Shop) -> None:
    """At once, also where a start would hang for long."""
    main = "import time; print('hanging', flush=True); time.sleep(1000)"
    digest = await runtime.upload(shop.pack(main))
    await runtime.create(Workload(name="w", digest=digest, driver="process", replicas=2))
    await eventually(lambda: "hanging" in shop.log())
    begun = time.monotonic()
    await runtime.delete("w")
    assert time.monotonic() - begun < PROMPT
    assert shop.processes() == []


async def test_updated_while_it_starts(runtime: Reconciler, shop: Shop) -> None:
    digest = await runtime.upload(shop.pack("import time; time.sleep(1000)"))
    await runtime.create(Workload(name="w", digest=digest, driver="process"))
    await eventually(shop.processes)
    good = await runtime.upload(shop.pack(service_source("w")))
    await runtime.update("w", "micro", {"digest": good})
    status = await until(runtime, "w", State.RUNNING)
    assert status.workload.digest == good
    assert len(status.replicas) == 1


async def test_namespaces_are_apart(runtime: Reconciler, shop: Shop) -> None:
    for namespace in ("a", "b"):
        await runtime.create(sh(f"echo of {namespace}; exec sleep 1000", namespace=namespace))
        await until(runtime, "w", State.RUNNING, namespace)
    await runtime.delete("w", "a")
    assert [s.workload.namespace for s in await runtime.read(namespace="b")] == ["b"]
    (status,) = await runtime.read("w", "b")
    assert alive(status.replicas[0].pid)
    assert [line.text async for line in runtime.logs("w", "b")] == ["of b"]
    assert await runtime.read() == []


# -- logs and progress -----------------------------------------------------------------------------


async def test_logs_outlive_their_workload(runtime: Reconciler) -> None:
    """Of the replicas that have ended, too; and they go on with the next of that name."""
    for text in ("first", "second"):
        await runtime.create(sh(f"echo {text}; exec sleep 1000"))
        await until(runtime, "w", State.RUNNING)
        await runtime.delete("w")
    assert [line.text async for line in runtime.logs("w")] == ["first", "second"]
    assert [line.text async for line in runtime.logs("w", tail=1)] == ["second"]
    assert [line.text async for line in runtime.logs("w", tail=0)] == []
    for tail in (-1, 10_001):
        with pytest.raises(BadRequest, match=f"tail {tail} is not within 0 and 10000"):
            await anext(runtime.logs("w", tail=tail))


async def test_logs_are_followed_from_replica_to_replica(runtime: Reconciler, shop: Shop) -> None:
    await runtime.create(sh("echo begin $N; exec sleep 1000", env={"N": "1"}))
    await until(runtime, "w", State.RUNNING)
    async with aclosing(runtime.logs("w", follow=True)) as lines:
        assert (await anext(lines)).text == "begin 1"
        await runtime.update("w", "micro", {"env": {"N": "2"}})
        async with asyncio.timeout(10):
            line = await anext(lines)
        assert line.text == "begin 2"
        assert line.stream == "out"
        assert line.replica.startswith("w-")
    assert len({path.stem for path in (shop.state / "logs/micro/w").iterdir()}) == 2


async def test_logs_of_a_crash_loop_are_bounded(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt has a log; only the last ones are kept."""
    monkeypatch.setattr("micro_ray.runtime.logs.KEEP", 2)
    quick = Patience(backoff=(0.001, 0.001), resync=0.01)
    async with shop.runtime(patience=quick) as runtime:
        await runtime.create(sh("echo attempt; exit 1"))
        folder = shop.state / "logs" / "micro" / "w"
        seen: set[str] = set()

        def many() -> bool:
            seen.update(os.listdir(folder) if folder.is_dir() else [])
            return len(seen) >= 6

        await eventually(many, within=20)
        await eventually(lambda: len(os.listdir(folder)) <= 3)
        await runtime.delete("w")
    assert len(os.listdir(folder)) <= 2


async def test_progress_of_what_is_deleted(runtime: Reconciler) -> None:
    """Who waits is told that it is gone."""
    await runtime.create(replace(SLOW, replicas=1))
    await until(runtime, "w", State.RUNNING)
    deleting = asyncio.create_task(runtime.delete("w"))
    await eventually(lambda: _state(runtime, "w", State.STOPPING))
    async with asyncio.timeout(10):
        told = await steps(runtime, "w")
    assert told[-1].state is State.STOPPING
    await deleting


async def test_progress_of_what_fails(runtime: Reconciler, shop: Shop) -> None:
    """The last step is the error: the user's own traceback, and how it ended."""
    digest = await runtime.upload(shop.pack("def f():\n    import nowhere\n\nf()\n"))
    await runtime.create(Workload(name="w", digest=digest, driver="process"))
    async with asyncio.timeout(20):
        told = await steps(runtime, "w")
    assert told[-1].state is State.ERROR
    for line in (
        "Traceback (most recent call last):",
        f'  File "{Path(shop.state)}/sources/micro/{digest}/main.py", line 2, in f',
        "ModuleNotFoundError: No module named 'nowhere'",
        "exited with status 1",
    ):
        assert line in told[-1].text.split("\n")
    (status,) = await runtime.read("w")
    assert status.error == told[-1].text
    assert "ModuleNotFoundError: No module named 'nowhere'" in [
        line.text async for line in runtime.logs("w", tail=100)
    ]
