"""Nothing of a process is left behind, whatever it had started and however it ends."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psutil
import pytest

from micro_ray.runtime import Replica
from micro_ray.runtime.process import ProcessDriver
from tests.fixtures.processes import alive, marked
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.runtime.conftest import Shop, command, sh

#: Forks twice and leaves its session, as daemons do; {then} is what the daemon goes on as.
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        {before}
        os.write(1, b"daemon %d\\n" % os.getpid())  # in one piece: others write there too
        while True:
            time.sleep(1)
    os._exit(0)
os.wait()
{after}
"""

POLITE = "import signal; signal.signal(15, lambda *_: (print('good bye', flush=True), os._exit(0)))"


@asynccontextmanager
async def running(
    driver: ProcessDriver, shop: Shop, script: str, *, python: bool = False
) -> AsyncIterator[Replica]:
    words = (sys.executable, "-c", script) if python else ("sh", "-c", script)
    workload = command(*words)
    yield await driver.start(shop.replica(workload), workload)


@pytest.fixture
def anchor() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for the server."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def family(shop: Shop, replica: Replica) -> list[int]:
    """The process and all that it has started, without the shim."""
    return marked("MICRO_INSTANCE", replica.id)


async def test_children_go_with_it(shop: Shop) -> None:
    """Also when it is killed itself, and though they ignore TERM."""
    driver = shop.driver(grace=0.3)
    script = "sleep 1000 & (trap '' TERM; sleep 1000) & sleep 1000"
    async with running(driver, shop, script) as replica:
        assert len(family(shop, replica)) >= 4
        os.kill(replica.pid, signal.SIGKILL)
        begun = time.monotonic()
        assert await driver.ended(replica) == "killed by SIGKILL"
        assert time.monotonic() - begun < PROMPT
        assert family(shop, replica) == []


@pytest.mark.parametrize("grace", [0, 1])
async def test_daemons_go_with_it(driver: ProcessDriver, shop: Shop, grace: float) -> None:
    """They have left the group and the session, and init is not their parent."""
    script = DAEMON.format(before="", after="time.sleep(1000)")
    async with running(driver, shop, script, python=True) as replica:
        await eventually(lambda: len(family(shop, replica)) == 2)
        daemon = int((await eventually(shop.log))[0].split()[1])
        assert os.getsid(daemon) != os.getsid(replica.pid)
        await driver.stop(replica, grace)
        assert family(shop, replica) == []


async def test_a_daemon_outlives_what_started_it_by_little(
    driver: ProcessDriver, shop: Shop
) -> None:
    """A command that goes into the background has ended; what it left gets TERM and ends well."""
    script = DAEMON.format(before=POLITE, after="time.sleep(0.5); sys.exit(3)")
    async with running(driver, shop, script, python=True) as replica:
        said = await driver.ended(replica)
        assert said.endswith("good bye\nexited with status 3")
        assert family(shop, replica) == []


async def test_a_daemon_of_a_service_that_is_stopped_gets_its_term(shop: Shop) -> None:
    """Once the service has ended, and not before: it may be of use to it until then."""
    driver = shop.driver(grace=30)
    after = (
        "import signal\n"
        "signal.signal(15, lambda *_: (time.sleep(0.3), print('first', flush=True), os._exit(0)))\n"
        "os.write(1, b'ready\\n')\n"
        "time.sleep(1000)"
    )
    async with running(driver, shop, DAEMON.format(before=POLITE, after=after), python=True) as r:
        await eventually(lambda: {"daemon", "ready"} <= {row.split()[0] for row in shop.log()})
        await driver.stop(r, 40)
        assert shop.log()[-2:] == ["first", "good bye"]


async def test_the_group_has_its_grace(driver: ProcessDriver, shop: Shop) -> None:
    """A shell ends at once with TERM; what it was waiting for is finishing its work."""
    program = """import signal, time
told = []
signal.signal(15, lambda *_: told.append(1))
print("ready", flush=True)
while not told:
    time.sleep(0.01)
for _ in range(20):
    time.sleep(0.02)
print("work done, told", len(told), flush=True)
"""
    script = f"{sys.executable} -c {shlex.quote(program)}; echo never"
    async with running(driver, shop, script) as replica:
        await eventually(lambda: "ready" in shop.log())
        await driver.stop(replica, 5)
        assert shop.log() == ["ready", "work done, told 1"]


async def test_one_that_ignores_term(shop: Shop) -> None:
    """KILL after the grace, and it is said so."""
    driver = shop.driver(grace=0.3)
    async with running(driver, shop, "trap '' TERM; while true; do sleep 0.05; done") as replica:
        ended = asyncio.ensure_future(driver.ended(replica))
        begun = time.monotonic()
        await driver.stop(replica, 50)
        assert 0.3 <= time.monotonic() - begun < PROMPT
        assert await ended == "killed: it did not end in time"
        assert family(shop, replica) == []


async def test_a_stop_with_less_grace_than_was_thought(shop: Shop) -> None:
    """The shim would give a minute; who stops it gives none."""
    driver = shop.driver(grace=60)
    async with running(driver, shop, "trap '' TERM; while true; do sleep 0.05; done") as replica:
        begun = time.monotonic()
        await driver.stop(replica, 0)
        assert time.monotonic() - begun < PROMPT
        assert family(shop, replica) == []


async def test_one_that_is_stopped_by_a_signal(driver: ProcessDriver, shop: Shop) -> None:
    """A process that SIGSTOP holds does not act on TERM."""
    async with running(driver, shop, "exec sleep 1000") as replica:
        os.kill(replica.pid, signal.SIGSTOP)
        await driver.stop(replica, 0.2)
        assert not alive(replica.pid)


async def test_orphans_are_reaped_meanwhile(driver: ProcessDriver, shop: Shop) -> None:
    """A service that starts daemons for years leaves no zombies."""
    script = "for i in 1 2 3 4 5 6 7 8 9 10; do (setsid sleep 0.01 &); done; exec sleep 1000"
    async with running(driver, shop, script) as replica:
        shim = psutil.Process(replica.pid).parent()
        assert shim is not None
        await eventually(lambda: [p.pid for p in shim.children()] == [replica.pid])
        await driver.stop(replica, 0)


async def test_an_idle_shim_does_nothing(driver: ProcessDriver, shop: Shop) -> None:
    """A hundred replicas must not cost a hundred times something: it waits, it does not look."""
    async with running(driver, shop, "exec sleep 1000") as replica:
        shim = psutil.Process(replica.pid).parent()
        assert shim is not None
        before = shim.num_ctx_switches().voluntary
        await asyncio.sleep(0.5)  # not a wait: the span in which nothing may happen
        assert shim.num_ctx_switches().voluntary - before <= 3
        await driver.stop(replica, 0)


async def test_the_shim_is_killed(driver: ProcessDriver, shop: Shop) -> None:
    """Its process dies with it; what that had started is found by its environment."""
    script = "setsid sleep 1000 & sleep 1000 & wait"
    async with running(driver, shop, script) as replica:
        ended = asyncio.ensure_future(driver.ended(replica))
        shim = psutil.Process(replica.pid).parent()
        assert shim is not None
        shim.kill()
        assert await ended == "the shim was killed"
        assert family(shop, replica) == []
        assert shop.left() == set()


async def test_the_platform_ends(shop: Shop, anchor: subprocess.Popen[bytes]) -> None:
    """However it does: the anchor is its pid. What runs gets TERM, and its logs and status stay."""
    driver = shop.driver(anchor=anchor.pid)
    # The shell would say on stderr that TERM, which the whole group gets, ended its sleep.
    script = "exec 2>/dev/null; trap 'echo told; exit 0' TERM; while true; do sleep 0.02; done"
    async with running(driver, shop, script) as replica:
        anchor.kill()
        anchor.wait()
        await eventually(lambda: not family(shop, replica))
        await eventually(lambda: not shop.processes())
        assert shop.log() == ["told"]
        assert await driver.ended(replica) == "told\nexited with status 0"


async def test_the_platform_has_ended_already(shop: Shop, anchor: subprocess.Popen[bytes]) -> None:
    """Between the start of a shim and its first look."""
    anchor.kill()
    anchor.wait()
    driver = shop.driver(anchor=anchor.pid)
    workload = command("sleep", "1000")
    replica = shop.replica(workload)
    await asyncio.gather(driver.start(replica, workload), return_exceptions=True)
    await eventually(lambda: not shop.processes())
    await driver.stop(replica, 0)


async def test_signals_of_a_terminal_do_not_reach_it(driver: ProcessDriver, shop: Shop) -> None:
    """Ctrl-C at ``micro server`` is for the server, which stops its replicas in good order. What
    runs has its own signals as any process has them."""
    script = "import signal; print(signal.getsignal(2), signal.getsignal(1), flush=True)"
    workload = sh(f'{sys.executable} -c "{script}"; exec sleep 1000')
    replica = await driver.start(shop.replica(workload), workload)
    assert await eventually(shop.log) == [f"{signal.default_int_handler!r} {signal.SIG_DFL}"]
    shim = psutil.Process(replica.pid).parent()
    assert shim is not None
    assert os.getsid(shim.pid) != os.getsid(0)
    for number in (signal.SIGINT, signal.SIGHUP):
        shim.send_signal(number)
    shim.send_signal(signal.SIGTERM)  # comes after them
    assert (await driver.ended(replica)).endswith("killed by SIGTERM")


# -- what it says ----------------------------------------------------------------------------------


async def test_a_flood(shop: Shop) -> None:
    """The log stays bounded, its end is there, and the shim's memory stays small."""
    limit = 200_000
    driver = shop.driver(log_limit=limit)
    script = "yes 'a line of the flood' | head -c 30000000; echo the end; exec sleep 1000"
    async with running(driver, shop, script) as replica:
        shim = psutil.Process(replica.pid).parent()
        assert shim is not None

        def ended() -> bool:
            sizes = [p.stat().st_size for p in (shop.state / "logs/micro/w").iterdir()]
            assert max(sizes) <= limit
            assert len(sizes) <= 2
            return shop.log()[-1:] == ["the end"]

        await eventually(ended, within=20)
        assert shim.memory_info().rss < 60 * 2**20
        await driver.stop(replica, 0)


async def test_a_flood_without_lines(driver: ProcessDriver, shop: Shop) -> None:
    """Twenty megabytes of zeros are one line, of which the beginning is kept."""
    script = "head -c 20000000 /dev/zero; echo; echo the end; exec sleep 1000"
    async with running(driver, shop, script) as replica:
        await eventually(lambda: shop.log()[-1:] == ["the end"], within=20)
        first, last = shop.log()
        assert first == "\0" * 65_536 + " ... (cut)"
        assert last == "the end"
        await driver.stop(replica, 0)


async def test_output_is_closed_early(driver: ProcessDriver, shop: Shop) -> None:
    """A process that closes its output goes on."""
    async with running(driver, shop, "echo hello; exec >&- 2>&-; exec sleep 1000") as replica:
        assert shop.log() == ["hello"]
        assert alive(replica.pid)
        await driver.stop(replica, 0)


async def test_there_is_no_input(driver: ProcessDriver, shop: Shop) -> None:
    """Who reads finds the end, and does not wait for a terminal."""
    async with running(driver, shop, "cat; echo read; exec sleep 1000"):
        assert await eventually(shop.log) == ["read"]
        for replica in await driver.adopt():
            await driver.stop(replica, 0)
