"""What the author of a service is shown of an error."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from micro_ray.errors import BadRequest
from micro_ray.sdk import service
from micro_ray.tracebacks import own_traceback

Load = Callable[[str], Any]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The function ``act`` of an author's ``main.py``."""

    def run(code: str) -> Any:
        path = tmp_path / "main.py"
        path.write_text(textwrap.dedent(code))
        names: dict[str, Any] = {}
        exec(compile(path.read_text(), path, "exec"), names)
        return names["act"]

    return run


def raised(act: Callable[[], Any]) -> BaseException:
    try:
        act()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def test_it_begins_at_the_authors_first_frame(load: Load, tmp_path: Path) -> None:
    act = load("import json\ndef act():\n    json.loads('{')\n")
    lines = own_traceback(raised(lambda: act()), tmp_path).splitlines()
    assert lines[:3] == [
        "Traceback (most recent call last):",
        '  File "main.py", line 3, in act',
        "    json.loads('{')",
    ]
    assert lines[-1].startswith("json.decoder.JSONDecodeError: ")
    assert not any(__file__ in line or str(tmp_path) in line for line in lines)
    assert any("raw_decode" in line for line in lines)


def test_without_a_folder_all_but_the_platform_are_shown(load: Load) -> None:
    act = load("async def act():\n    raise RuntimeError('no')\n")

    async def hook() -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(contextlib.nullcontext())
            await asyncio.wait_for(act(), 5)

    text = own_traceback(raised(lambda: asyncio.run(hook())))
    assert "in act" in text
    assert "in hook" in text
    for others in ("/asyncio/", "contextlib.py"):
        assert others not in text


@pytest.mark.parametrize("given", [True, False])
def test_the_platforms_own_error_is_one_line(given: bool, tmp_path: Path) -> None:
    error = raised(lambda: service.Service("no name"))
    assert isinstance(error, BadRequest)
    frames, error.__traceback__ = error.__traceback__, None
    assert frames is not None
    assert frames.tb_next is not None
    text = own_traceback(error.with_traceback(frames.tb_next.tb_next), tmp_path if given else None)
    assert len(text.splitlines()) == 1
    assert text.startswith("micro_ray.errors.BadRequest: ")


def test_what_an_error_came_from_is_told(load: Load, tmp_path: Path) -> None:
    act = load(
        """
        def act():
            try:
                {}["key"]
            except KeyError as error:
                raise ValueError("no key") from error
        """
    )
    text = own_traceback(raised(act), tmp_path)
    first, _, last = text.partition("direct cause")
    assert "KeyError: 'key'" in first
    assert text.endswith("ValueError: no key\n")
    assert str(tmp_path) not in text
    assert (first.count("Traceback"), last.count("Traceback")) == (1, 1)
    hidden = load(
        "def act():\n    try:\n        {}[0]\n    except KeyError:\n        raise OSError from None"
    )
    assert "KeyError" not in own_traceback(raised(hidden), tmp_path)


def test_the_members_of_a_group_are_told(load: Load, tmp_path: Path) -> None:
    act = load(
        """
        import asyncio

        async def fall():
            raise LookupError("fallen")

        async def all():
            async with asyncio.TaskGroup() as group:
                group.create_task(fall())

        def act():
            asyncio.run(all())
        """
    )
    text = own_traceback(raised(act), tmp_path)
    assert "LookupError: fallen" in text
    assert 'File "main.py"' in text
    assert "taskgroups.py" not in text


def test_a_source_that_is_no_python(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("def act(:\n")
    path = tmp_path / "main.py"
    error = raised(lambda: compile(path.read_text(), path, "exec"))
    text = own_traceback(error, tmp_path)
    assert text.startswith('  File "main.py", line 1')
    assert text.endswith("SyntaxError: invalid syntax\n")
