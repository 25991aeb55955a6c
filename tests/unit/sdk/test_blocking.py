"""The client of plain scripts: from threads, with generators, closed, forked, and at the end of the
interpreter. The platform is in a thread of its own here, as another process would be."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from micro_ray import Client
from micro_ray.errors import (
    BadRequest,
    Cancelled,
    MicroError,
    NotFound,
    PreconditionFailed,
    Timeout,
    Unavailable,
)
from micro_ray.sdk import client as client_module
from micro_ray.sdk.town import Town
from micro_ray.settings import Bootstrap
from tests.fixtures.wait import PROMPT
from tests.unit.sdk.services import Everything, Item


@pytest.fixture
def town() -> Iterator[Town]:
    with Town() as town:
        yield town


@pytest.fixture
def every(town: Town) -> Everything:
    every = Everything()
    town.serve(every.service, "node-1")
    return every


@pytest.fixture
def client(town: Town, every: Everything) -> Iterator[Client]:
    with Client(town.bootstrap) as client:
        yield client


def waits(check: Any) -> None:
    """As ``eventually``, where nothing is awaited."""
    end = time.monotonic() + 5
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_calls(client: Client) -> None:
    """As those of the other client, without ``await``."""
    assert client.call("every-thing") == {"message": "Hello World"}
    assert client.call("every-thing", "item", {"name": "a"}, into=Item) == Item("aa", 2)
    assert client.call("every-thing", "raw", b"ab") == b"ba"
    assert client.call("every-thing", "where", node="node-1", version="v1") == {"node": "node-1"}
    assert "every-thing" in client.services()
    assert "every-thing" in {entry.service for entry in client.entries()}
    assert client.run(lambda c: c.call("every-thing", "call")) == {"message": "Hello World"}


def test_errors_keep_their_type(client: Client) -> None:
    with pytest.raises(NotFound, match="did you mean every-thing"):
        client.call("every-thin")
    with pytest.raises(PreconditionFailed):
        client.call("every-thing", "raises", {"code": 412})
    with pytest.raises(Timeout):
        client.call("every-thing", "slow", {"seconds": 30}, timeout=0.1)
    with pytest.raises(BadRequest, match="cannot be sent"):
        client.call("every-thing", "call", object())


def test_streams(client: Client, every: Everything) -> None:
    assert list(client.stream("every-thing", "count", {"to": 3}, into=Item)) == [
        Item("n", n) for n in (1, 2, 3)
    ]
    assert client.call("every-thing", "total", (Item("i", n) for n in range(5))) == 10
    assert list(client.stream("every-thing", "total", iter([Item("i", 2)]))) == [2]
    got: list[int] = []
    with pytest.raises(PreconditionFailed):
        got.extend(client.stream("every-thing", "breaks", {"after": 2}))
    assert got == [0, 1]


def test_a_list_is_one_request(client: Client) -> None:
    """Only an iterator is a stream of them."""
    with pytest.raises(BadRequest, match="array"):
        client.call("every-thing", "item", [1, 2])


def test_a_conversation(client: Client) -> None:
    """The generator of requests runs in a thread and may wait for what was answered."""
    answered: list[int] = []
    more = threading.Semaphore(0)

    def asks() -> Iterator[Item]:
        yield Item("x", 1)
        for _ in range(3):
            assert more.acquire(timeout=5)
            yield Item("x", answered[-1])

    for answer in client.stream("every-thing", "double", asks(), into=Item):
        answered.append(answer.count)
        more.release()
    assert answered == [2, 4, 8, 16]


def test_requests_that_raise(client: Client) -> None:
    def raises() -> Iterator[Item]:
        yield Item("i", 1)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(client.stream("every-thing", "double", raises()))
    with pytest.raises(LookupError, match="no more"):
        client.call("every-thing", "total", raises())


def test_a_stream_that_is_left(client: Client, every: Everything) -> None:
    """The service is told; the client goes on."""
    for count in (1, 2):
        for _ in client.stream("every-thing", "count", {"to": 9, "pause": 9}):
            break
        waits(lambda count=count: every.cancelled == count)
    assert client.call("every-thing") == {"message": "Hello World"}


def test_many_threads(client: Client) -> None:
    """One client for all of them, with calls and streams side by side."""

    def work(number: int) -> list[Any]:
        name = client.call("every-thing", "call", {"name": str(number)})["message"]
        return [name, len(list(client.stream("every-thing", "count", {"to": number % 5})))]

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(work, range(200)))
    assert answers == [[f"Hello {n}", n % 5] for n in range(200)]


def test_the_first_calls_at_once(town: Town, every: Everything) -> None:
    """They share one loop, and so one connection."""
    before = _clients()  # the town has one of its own
    with Client(town.bootstrap) as client, concurrent.futures.ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda _: client.call("every-thing"), range(10)))
        assert _clients() == before + 1
    assert _clients() == before


def _clients() -> int:
    return [thread.name for thread in threading.enumerate()].count("client")


def test_closed(town: Town, every: Everything) -> None:
    """Its thread is gone, and it says so; closing is idempotent, also before any call."""
    client = Client(town.bootstrap)
    client.call("every-thing")
    assert client._open is not None
    thread = client._open[0]._thread
    stream = client.stream("every-thing", "count", {"to": 9, "pause": 9})
    next(stream)
    client.close()
    client.close()
    assert not thread.is_alive()
    for attempt in (
        lambda: client.call("every-thing"),
        lambda: client.services(),
        lambda: client.entries(),
        lambda: next(client.stream("every-thing", "count", {"to": 1})),
        lambda: client.run(lambda c: c.services()),
        lambda: next(stream),
    ):
        with pytest.raises(BadRequest, match="it has been closed"):
            attempt()
    waits(lambda: every.cancelled == 1)
    Client(town.bootstrap).close()


def test_closed_under_calls(town: Town, every: Everything) -> None:
    """Whoever waits in whatever thread gets an error, and at once; nobody waits for ever."""
    client = Client(town.bootstrap)
    outcomes: list[BaseException] = []

    def wait() -> None:
        try:
            client.call("every-thing", "slow", {"seconds": 30})
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    waits(lambda: every.service.in_flight == 8)
    begun = time.monotonic()
    client.close()
    for thread in threads:
        thread.join(PROMPT)
    assert time.monotonic() - begun < PROMPT
    assert len(outcomes) == 8
    assert all(isinstance(error, MicroError) for error in outcomes), outcomes
    waits(lambda: every.cancelled == 8)


def test_closed_while_calls_begin(town: Town, every: Everything) -> None:
    """Every call ends, one way or the other, wherever the close falls between its steps."""
    for _ in range(15):
        client = Client(town.bootstrap)
        client.call("every-thing")
        begin = threading.Barrier(5)

        def work(client: Client = client, begin: threading.Barrier = begin) -> str:
            begin.wait()
            for _ in range(50):
                try:
                    client.call("every-thing")
                except (BadRequest, Cancelled, Unavailable) as error:
                    return type(error).__name__
            return "done"

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            running = [pool.submit(work) for _ in range(4)]
            begin.wait()
            client.close()
            for future in running:
                future.result(10)


def test_a_call_from_its_own_loop(client: Client) -> None:
    """It would wait for itself; it says so instead."""

    async def within(_: Any) -> None:
        client.call("every-thing")

    with pytest.raises(BadRequest, match="a blocking call from the loop that would serve it"):
        client.run(within)


async def test_from_async_code(client: Client) -> None:
    """It blocks that code's loop, and works: notebooks have a loop running always."""
    assert client.call("every-thing") == {"message": "Hello World"}


def test_no_server(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_TABLE", 60.0)
    monkeypatch.setattr(client_module, "GONE", 0.1)
    nowhere = replace(town.bootstrap, routers=("unix:/nowhere/router-0.sock",))
    client = Client(nowhere)
    begun = time.monotonic()
    for _ in range(3):
        with pytest.raises(Unavailable, match="no micro server at unix:/nowhere/router-0"):
            client.call("every-thing")
    assert time.monotonic() - begun < PROMPT
    client.close()


def test_settings_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call says so, each time, and leaves no thread."""
    monkeypatch.setenv("MICRO_NAMESPACE", "../x")
    client = Client()
    for _ in range(2):
        with pytest.raises(BadRequest, match="namespace"):
            client.call("x")
    assert "client" not in [thread.name for thread in threading.enumerate()]
    client.close()


# -- in processes of their own ---------------------------------------------------------------------


def script(boot: Bootstrap, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A script that finds the platform by its environment; warnings are errors in it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MICRO_")}
    environ = {
        "MICRO_REGISTRY": ",".join(boot.registry),
        "MICRO_ROUTER": ",".join(boot.routers),
        "MICRO_RUN": str(boot.run),
    }
    return subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", text],
        env=clean | environ,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def quiet(done: subprocess.CompletedProcess[str], out: str) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, out, "")


BEGIN = "import micro_ray\nclient = micro_ray.Client()\n"


@pytest.mark.parametrize(
    "end",
    [
        "",
        "client.close()",
        "stream = client.stream('every-thing', 'count', {'to': 9, 'pause': 9}); next(stream)",
        "import sys; sys.exit(0)",
        "import threading; threading.Thread(target=client.call, args=('every-thing', 'slow', "
        "{'seconds': 60}), daemon=True).start()",
        "client.loop = client",  # a cycle that only the collector can free
    ],
    ids=["not closed", "closed", "in a stream", "exit", "under a call", "in a cycle"],
)
def test_the_end_of_the_interpreter(town: Town, every: Everything, end: str) -> None:
    """A script that just ends, ends: at once, well and without a word."""
    begun = time.monotonic()
    done = script(town.bootstrap, f"{BEGIN}print(client.call('every-thing')['message'])\n{end}\n")
    quiet(done, "Hello World\n")
    assert time.monotonic() - begun < PROMPT


def test_after_a_fork(town: Town, every: Everything) -> None:
    """The child makes its own connection; the parent's goes on."""
    text = f"""{BEGIN}
import os, sys
assert client.call("every-thing") == {{"message": "Hello World"}}
stream = client.stream("every-thing", "count", {{"to": 3}})
next(stream)
for number in range(3):
    child = os.fork()
    if child == 0:
        print(client.call("every-thing", "call", {{"name": f"child {{number}}"}})["message"])
        client.close()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert client.call("every-thing") == {{"message": "Hello World"}}
print(len(list(stream)))
"""
    done = script(town.bootstrap, text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"Hello child {n}" for n in range(3)] + ["2"]


def test_forked_workers(town: Town, every: Everything) -> None:
    """As pools of processes do it, with a client made before."""
    text = f"""{BEGIN}
import multiprocessing
client.call("every-thing")
def work(number):
    return client.call("every-thing", "call", {{"name": str(number)}})["message"]
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(3) as pool:
        print(pool.map(work, range(6)))
"""
    quiet(script(town.bootstrap, text), f"{[f'Hello {n}' for n in range(6)]}\n")


def test_it_never_loads_ray(town: Town, every: Everything) -> None:
    """A script that calls is up in a fraction of what Ray takes."""
    text = f"""{BEGIN}
import sys
client.call("every-thing")
print(sorted(name for name in sys.modules if name.split(".")[0] in ("ray", "starlette", "uvicorn")))
"""
    quiet(script(town.bootstrap, text), "[]\n")
