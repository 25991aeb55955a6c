"""Every example, as its reader would try it: in a platform in-process, and as a process of its own
that is told to end. What they show, they show here."""

from __future__ import annotations

import ast
import asyncio
import importlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from micro_ray import Service
from micro_ray.errors import BadRequest, Conflict, NotFound, Timeout
from micro_ray.sdk.testing import Here

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/main.py"))


def example(name: str) -> Service:
    service = importlib.import_module(f"examples.{name}.main").service
    assert isinstance(service, Service)
    return service


@pytest.fixture
async def greeter(here: Here) -> None:
    await here.serve(example("helloworld"))


def test_these_are_all() -> None:
    assert NAMES == ["caller", "helloworld", "notes", "streaming"]


async def test_helloworld(here: Here, greeter: None) -> None:
    call = here.client.call
    assert await call("helloworld", "Helloworld.Call", {"name": "Alice"}) == {
        "message": "Hello Alice"
    }
    assert await call("helloworld") == {"message": "Hello World"}
    with pytest.raises(BadRequest, match="name"):
        await call("helloworld", "call", {"name": 3})


async def numbers(*values: int) -> AsyncIterator[dict[str, int]]:
    for value in values:
        yield {"value": value}


async def test_streaming(here: Here) -> None:
    await here.serve(example("streaming"))
    stream = here.client.stream
    assert [n async for n in stream("streaming", "count", {"to": 3})] == [
        {"value": n} for n in (1, 2, 3)
    ]
    assert await here.client.call("streaming", "sum", numbers(1, 2, 3)) == {"value": 6}
    doubled = stream("streaming", "double", numbers(1, 2, 3))
    assert [n["value"] async for n in doubled] == [2, 4, 6]
    (entry,) = [e for e in await here.client.entries() if e.service == "streaming"]
    assert {e.name: e.stream for e in entry.endpoints} == {
        "Streaming.Count": "server",
        "Streaming.Sum": "client",
        "Streaming.Double": "bidi",
    }


async def test_caller(here: Here, greeter: None) -> None:
    """It calls side by side, and hands its own caller's time on."""
    await here.serve(example("caller"))
    names = [f"name {n}" for n in range(50)]
    answer = await here.client.call("caller", "call", {"names": names})
    assert answer == {"messages": [f"Hello {name}" for name in names]}
    assert await here.client.call("caller", "call", {"names": []}) == {"messages": []}
    with pytest.raises(BadRequest, match="names"):
        await here.client.call("caller", "call", {"names": "Alice"})


async def test_caller_alone(here: Here) -> None:
    """The error says who is missing."""
    await here.serve(example("caller"))
    with pytest.raises(NotFound, match="no service 'helloworld'"):
        await here.client.call("caller", "call", {"names": ["Alice"]})


async def test_caller_of_one_that_hangs(here: Here) -> None:
    """The deadline of who asked first holds for all."""
    slow, cancelled = Service("helloworld"), asyncio.Event()

    @slow.endpoint
    async def call(name: str) -> dict[str, str]:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return {}

    await here.serve(slow)
    await here.serve(example("caller"))
    with pytest.raises(Timeout):
        await here.client.call("caller", "call", {"names": ["Alice"]}, timeout=0.2)
    async with asyncio.timeout(3):
        await cancelled.wait()


async def test_notes(here: Here) -> None:
    await here.serve(example("notes"))

    async def call(endpoint: str, **value: Any) -> Any:
        return await here.client.call("notes", endpoint, value)

    with pytest.raises(NotFound):
        await call("read", id="milk")
    first = await call("write", id="milk", text="buy milk")
    assert await call("read", id="milk") == first == {
        "id": "milk", "text": "buy milk", "version": first["version"],
    }  # fmt: skip
    await call("write", id="meat", text="buy none")
    assert await call("ids") == {"ids": ["meat", "milk"]}
    assert await call("ids", prefix="mi") == {"ids": ["milk"]}
    assert (await here.store.read("milk", table="notes")).value == b"buy milk"


async def test_notes_of_two_writers(here: Here) -> None:
    """Compare-and-set: both have read the same, one writes, the other is told."""
    await here.serve(example("notes"))

    async def write(text: str, version: int | None) -> Any:
        value = {"id": "n", "text": text, "version": version}
        return await here.client.call("notes", "write", value)

    first = await write("first", 0)
    with pytest.raises(Conflict):
        await write("another first", 0)
    outcomes = await asyncio.gather(
        *(write(f"second by {n}", first["version"]) for n in range(5)), return_exceptions=True
    )
    (winner,) = [o for o in outcomes if not isinstance(o, BaseException)]
    assert sum(isinstance(o, Conflict) for o in outcomes) == 4
    assert await here.client.call("notes", "read", {"id": "n"}) == winner
    assert (await write("whatever is there", None))["version"] > winner["version"]


async def test_paths_of_notes(here: Here) -> None:
    """They are published for the HTTP door."""
    await here.serve(example("notes"))
    (entry,) = [e for e in await here.client.entries() if e.service == "notes"]
    bound = {e.name: (e.metadata.get("method"), e.metadata.get("path")) for e in entry.endpoints}
    assert bound == {
        "Notes.Write": ("PUT", "/notes/{id}"),
        "Notes.Read": ("GET", "/notes/{id}"),
        "Notes.Ids": ("GET", "/notes"),
    }


@pytest.mark.parametrize("name", NAMES)
async def test_as_a_process(here: Here, tmp_path: Path, name: str) -> None:
    """``python main.py``: found, healthy, and ended by TERM without a complaint."""
    boot = here.bootstrap
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MICRO_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "main.py",
        cwd=EXAMPLES / name,
        env=clean
        | {
            "MICRO_REGISTRY": ",".join(boot.registry),
            "MICRO_ROUTER": ",".join(boot.routers),
            "MICRO_RUN": str(boot.run),
            "MICRO_STATE": str(tmp_path),
        },
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await here.known(name)
        assert (await here.client.call(name, "Debug.Health"))["status"] == "ok"
        process.terminate()
        async with asyncio.timeout(10):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    assert said.decode().count("\n") == 1
    assert said.decode().startswith(f"INFO {name}: serving as {name}-")


@pytest.mark.parametrize("name", NAMES)
def test_for_newcomers(name: str) -> None:
    """Short, documented, typed: every endpoint says what it does, what it takes and gives."""
    text = (EXAMPLES / name / "main.py").read_text()
    assert len(text.splitlines()) <= 45
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    endpoints = [
        node
        for node in tree.body
        if isinstance(node, ast.AsyncFunctionDef)
        and any("endpoint" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    assert endpoints
    for function in endpoints:
        assert ast.get_docstring(function), function.name
        assert function.returns is not None, function.name
        assert all(arg.annotation is not None for arg in function.args.args), function.name
    assert text.rstrip().endswith('if __name__ == "__main__":\n    service.run()')
