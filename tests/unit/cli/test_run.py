"""run, update, kill and status, with a real runtime and real processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from micro_ray.sdk.testing import Here
from tests.fixtures.terminal import Terminal
from tests.fixtures.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")

ROOT = Path(__file__).resolve().parents[3]

SERVICE = """
import os
from micro_ray import Service

service = Service("{name}")

@service.endpoint
async def call() -> dict[str, str]:
    return {{"said": "{said}", "mood": os.environ.get("MOOD", "")}}

print("{said} begins")
service.run()
"""


def write(folder: Path, name: str, said: str = "one") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "main.py").write_text(SERVICE.format(name=name, said=said))
    return folder


@pytest_asyncio.fixture(loop_scope="package")
async def clean(terminal: Terminal) -> AsyncIterator[None]:
    """What a test has run is ended with it."""
    yield
    for row in (await terminal.inside("status", "-o", "json")).json():
        await terminal.inside("kill", row["workload"]["name"])


async def said(town: Here, name: str) -> str:
    return str((await town.client.call(name, "call"))["said"])


async def test_the_main_journey(terminal: Terminal, here_folder: Path, clean: None) -> None:
    """Run, look, call, look into the logs, kill: with the example, as the README has it."""
    shutil.copytree(ROOT / "examples" / "helloworld", here_folder / "greets")
    done = await terminal.micro("run", "--name", "helloworld-two", "greets")
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(r" +\d+\.\d s  starting helloworld-two-[0-9a-f]{12}", done.lines[0])
    assert re.fullmatch(r" +\d+\.\d s  running", done.lines[-1])

    done = await terminal.micro("status")
    # What the users of Micro look for.
    assert re.search(r"NAME\s+VERSION\s+SOURCE\s+STATUS", done.lines[0])
    assert re.search(r"helloworld-two\s+latest\s+greets\s+running\s+1/1\s+[0-9a-f]{7}\s", done.out)

    (row,) = (await terminal.inside("status", "helloworld-two", "-o", "json")).json()
    assert row["state"] == "running"
    assert row["workload"]["source"] == "greets"
    routes = (await terminal.inside("network", "routes", "-o", "json")).json()
    assert row["replicas"][0]["id"] in {route["id"] for route in routes}

    done = await terminal.micro("kill", "helloworld-two")
    assert (done.code, done.raw, done.err) == (0, b"", "")
    done = await terminal.inside("status")
    assert (done.code, done.raw) == (0, b"")  # nothing runs: nothing is printed


async def test_this_folder_is_the_default(
    terminal: Terminal, here_folder: Path, town: Here, clean: None
) -> None:
    folder = write(here_folder / "Thisone", "thisone")
    here = terminal.within(folder)
    assert (await here.inside("run")).code == 0
    await town.known("thisone")
    (row,) = (await here.inside("status", ".", "-o", "json")).json()
    assert (row["workload"]["name"], row["workload"]["source"]) == ("thisone", ".")
    assert "one begins" in (await here.inside("logs", ".")).lines
    assert (await here.inside("kill", ".")).code == 0


async def test_running_what_runs_is_an_update(
    terminal: Terminal, here_folder: Path, town: Here, clean: None
) -> None:
    """Its source is replaced; what is not named stays as it was."""
    folder = write(here_folder / "again", "again")
    await terminal.inside("run", "again", "-e", "MOOD=good", "--metadata", "owner=me")
    await town.known("again")
    assert await town.client.call("again", "call") == {"said": "one", "mood": "good"}
    write(folder, "again", "two")
    done = await terminal.inside("run", "again")
    assert done.code == 0, done
    assert await town.client.call("again", "call") == {"said": "two", "mood": "good"}
    (row,) = (await terminal.inside("status", "again", "-o", "json")).json()
    assert row["workload"]["metadata"] == {"owner": "me"}
    assert row["workload"]["generation"] == 2


async def test_update(terminal: Terminal, here_folder: Path, town: Here, clean: None) -> None:
    folder = write(here_folder / "changing", "changing")
    await terminal.inside("run", "changing")
    await town.known("changing")

    async def workload() -> dict[str, object]:
        (row,) = (await terminal.inside("status", "changing", "-o", "json")).json()
        assert row["state"] == "running"
        return dict(row["workload"])

    # By name, nothing changed: a restart of the same.
    write(folder, "changing", "two")
    assert (await terminal.inside("update", "changing")).code == 0
    assert (await workload())["generation"] == 2
    assert await said(town, "changing") == "one"
    # By name, one thing changed.
    assert (await terminal.inside("update", "changing", "-e", "MOOD=new")).code == 0
    assert (await town.client.call("changing", "call"))["mood"] == "new"
    # By folder: its new source.
    assert (await terminal.inside("update", "./changing")).code == 0
    assert await said(town, "changing") == "two"
    assert (await town.client.call("changing", "call"))["mood"] == "new"
    # A mere change of replicas rolls nothing.
    generation = (await workload())["generation"]
    assert (await terminal.inside("update", "changing", "-r", "2")).code == 0
    assert (await workload())["generation"] == generation
    (row,) = (await terminal.inside("status", "changing", "-o", "json")).json()
    assert row["ready"] == 2


async def test_a_command(terminal: Terminal, here_folder: Path, clean: None) -> None:
    """Any program, with words quoted as in a shell; it need not register."""
    (here_folder / "tool").mkdir()
    (here_folder / "tool" / "data").write_text("from the folder\n")
    args = ["--command", "sh -c 'cat data; echo \"$MOOD\"; exec sleep 60'", "-e", "MOOD=a b=c"]
    done = await terminal.inside("run", "tool", *args)
    assert done.code == 0, done
    assert (await terminal.inside("logs", "tool")).lines == ["from the folder", "a b=c"]
    (row,) = (await terminal.inside("status", "tool", "-o", "json")).json()
    assert row["workload"]["driver"] == "process"
    bare = await terminal.inside("run", "--name", "bare", "--command", "sleep 60", "--no-wait")
    assert (bare.code, bare.raw) == (0, b"")
    assert (await terminal.inside("status")).rows()[0][:3] == ["bare", "latest", "sleep"]


async def test_versions(terminal: Terminal, here_folder: Path, clean: None) -> None:
    write(here_folder / "versioned", "versioned")
    assert (await terminal.inside("run", "versioned@v3", "--no-wait")).code == 0
    assert (await terminal.inside("status")).rows()[0][:2] == ["versioned", "v3"]
    for args, said in (
        (["run", "versioned@v4"], "Versioned runs with version v3, not v4"),
        (["run", "versioned", "--version=v4"], "Versioned runs with version v3, not v4"),
        (["update", "versioned@v4"], "Versioned runs as version v3, not v4"),
        (["kill", "versioned@v4"], "Versioned runs as version v3, not v4"),
    ):
        done = await terminal.inside(*args)
        assert done.code == 1
        assert said in done.err
    assert len((await terminal.inside("status")).rows()) == 1
    assert (await terminal.inside("kill", "versioned@v3")).code == 0


async def test_a_folder_with_an_at_in_its_name(
    terminal: Terminal, here_folder: Path, clean: None
) -> None:
    write(here_folder / "at@home", "athome")
    assert (await terminal.inside("run", "at@home", "--name=athome", "--no-wait")).code == 0
    (row,) = (await terminal.inside("status", "-o", "json")).json()
    assert (row["workload"]["source"], row["workload"]["version"]) == ("at@home", "latest")


async def test_as_json(terminal: Terminal, here_folder: Path, clean: None) -> None:
    """Progress is for people; programs get what runs, once."""
    write(here_folder / "forjson", "forjson")
    for line in (["run", "forjson", "-o", "json"], ["-o", "json", "update", "forjson"]):
        row = (await terminal.inside(*line)).json()
        assert (row["state"], row["workload"]["name"]) == ("running", "forjson")


# -- what does not work ----------------------------------------------------------------------------


async def test_a_source_that_raises(terminal: Terminal, here_folder: Path, clean: None) -> None:
    """Exit 1 with the user's own traceback, which stays in status and in the logs."""
    folder = here_folder / "broken"
    folder.mkdir()
    (folder / "main.py").write_text("def begin():\n    import nowhere_to_be_found\n\nbegin()\n")
    done = await terminal.micro("run", "broken")
    assert done.code == 1
    assert "Traceback (most recent call last):" in done.err
    assert 'main.py", line 2, in begin' in done.err
    assert "ModuleNotFoundError: No module named 'nowhere_to_be_found'" in done.err
    assert "Traceback" not in done.out
    status = await terminal.inside("status", "broken")
    assert status.code == 0
    assert "error" in status.lines[1]
    assert "ModuleNotFoundError: No module named 'nowhere_to_be_found'" in status.out
    logs = await terminal.inside("logs", "broken")
    assert "ModuleNotFoundError: No module named 'nowhere_to_be_found'" in logs.lines

    async def waits() -> bool:
        shown = await terminal.inside("status", "broken")
        return re.search(r"\nnext attempt in \d+\.\d s\n", shown.out) is not None

    await eventually(waits)
    failed = await terminal.inside("update", "broken", "-o", "json")
    assert failed.code == 1
    assert "nowhere_to_be_found" in json.loads(failed.err)["detail"]


async def test_an_update_that_fails_leaves_what_ran(
    terminal: Terminal, here_folder: Path, town: Here, clean: None
) -> None:
    folder = write(here_folder / "steady", "steady")
    await terminal.inside("run", "steady")
    await town.known("steady")
    (folder / "main.py").write_text("1/0\n")
    done = await terminal.inside("run", "steady")
    assert done.code == 1
    assert "ZeroDivisionError" in done.err
    assert await said(town, "steady") == "one"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run"], "No main.py in /"),
        (["run", "empty"], "anything else is run with --command"),
        (["run", "nowhere"], "Nowhere does not exist"),
        (["run", "file.py"], "File.py is a file; name its folder"),
        (["run", "github.com/micro/services/helloworld"], "sources from git are not supported yet"),
        (["run", "https://github.com/micro/services"], "sources from git are not supported yet"),
        (["run", "git@github.com:micro/services.git"], "sources from git are not supported yet"),
        (["run", "--command", "sleep 5"], "give it one with --name"),
        (["run", "good", "--command", "sh -c 'x"], "Invalid value for --command: No closing quot"),
        (["run", "good", "--command", "  "], "Invalid value for --command: it is blank"),
        (["run", "good", "-e", "MOOD"], "Invalid value for --env: 'MOOD' is not like K=V"),
        (["run", "good", "-e", "=x"], "Invalid value for --env: '=x' is not like K=V"),
        (["run", "good", "-e", "A B=x"], "'A B' is no variable's name"),
        (["run", "good", "--metadata", "x"], "Invalid value for --metadata"),
        (["run", "good", "-r", "-1"], "Invalid value for '-r' / '--replicas'"),
        (["run", "good", "-r", "101"], "Replicas 101 is not within 0 and 100"),
        (["run", "good", "--cpu", "-1"], "Invalid value for '--cpu': -1.0 is not an amount"),
        (["run", "good", "--gpu", "nan"], "Invalid value for '--gpu': nan is not an amount"),
        (["run", "good", "--memory", "-1"], "Invalid value for '--memory'"),
        (["run", "good", "--driver", "docker"], "Invalid value for '--driver'"),
        (["run", "good", "--driver", "ray"], "there is process"),
        (["run", "good", "--name", "Not_Good"], "lower-case letters, digits, '-' and '.'"),
        (["update", "nowhere"], "'nowhere' neither runs nor is a folder; there is nothing"),
        (["update", "good"], "No workload 'good'"),
        (["kill", "nowhere"], "No workload 'nowhere'"),
        (["kill", "nowhere@v1"], "No workload 'nowhere'"),
        (["status", "nowhere"], "No workload 'nowhere'"),
        (["status", "."], "No workload 'folder'"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
async def test_bad_input_is_told_and_nothing_runs(
    terminal: Terminal, here_folder: Path, args: list[str], said: str
) -> None:
    write(here_folder / "good", "good")
    (here_folder / "empty").mkdir()
    (here_folder / "file.py").touch()
    done = await terminal.inside(*args)
    assert done.code in (1, 2), done
    assert said in done.err
    assert (await terminal.inside("status", "-o", "json")).json() == []


async def test_a_source_that_is_too_large(terminal: Terminal, here_folder: Path) -> None:
    write(here_folder / "heavy", "heavy")
    (here_folder / "heavy" / "data").write_bytes(b"".join(bytes([i % 251]) for i in range(5000)))
    small = terminal.within(MICRO_RUNTIME_MAX_SOURCE="200")
    done = await small.inside("run", "heavy")
    assert done.code == 1
    assert "200 allowed" in done.err


async def test_scaled_to_nothing(terminal: Terminal, here_folder: Path, clean: None) -> None:
    write(here_folder / "asleep", "asleep")
    done = await terminal.inside("run", "asleep", "-r", "0")
    assert done.code == 0, done
    assert done.lines[-1].endswith("stopped")
    assert (await terminal.inside("status")).rows()[0][3:5] == ["stopped", "0/0"]


async def test_ctrl_c_leaves_what_was_begun(
    terminal: Terminal, here_folder: Path, clean: None
) -> None:
    """Somebody stops waiting; the service goes on coming up."""
    folder = write(here_folder / "late", "late")
    main = folder / "main.py"
    main.write_text("import time\ntime.sleep(0.5)\n" + main.read_text())
    async with terminal.started("run", "late") as process:
        assert process.stdout
        assert b"starting late-" in await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130

    async def runs() -> bool:
        (row,) = (await terminal.inside("status", "late", "-o", "json")).json()
        return bool(row["state"] == "running")

    await eventually(runs)


async def test_what_is_killed_while_it_starts_is_told(
    terminal: Terminal, here_folder: Path, clean: None
) -> None:
    """Somebody else ends it: the one who waits is not told that it runs."""
    folder = here_folder / "doomed"
    folder.mkdir()
    (folder / "main.py").write_text("import time\ntime.sleep(60)\n")
    async with terminal.started("run", "doomed") as process:
        assert process.stdout
        assert b"starting doomed-" in await process.stdout.readline()
        assert (await terminal.inside("kill", "doomed")).code == 0
        _, said = await process.communicate()
        assert (process.returncode, said) == (1, b"Doomed was ended before it ran\n")


async def test_a_replica_that_dies_under_a_stream(
    terminal: Terminal, here_folder: Path, town: Here, clean: None
) -> None:
    """The stream ends with the reason and a code, not as if it had come to its end."""
    folder = here_folder / "mortal"
    folder.mkdir()
    (folder / "main.py").write_text(
        "from collections.abc import AsyncIterator\n"
        "import asyncio\n"
        "from micro_ray import Service\n"
        'service = Service("mortal")\n'
        "@service.endpoint\n"
        "async def beat() -> AsyncIterator[int]:\n"
        "    yield 1\n"
        "    await asyncio.sleep(60)\n"
        "service.run()\n"
    )
    assert (await terminal.inside("run", "mortal")).code == 0
    await town.known("mortal")
    (row,) = (await terminal.inside("status", "mortal", "-o", "json")).json()
    async with terminal.started("mortal", "beat") as process:
        assert process.stdout
        assert await process.stdout.readline() == b"1\n"
        os.kill(row["replicas"][0]["pid"], signal.SIGKILL)
        _, said = await process.communicate()
    assert process.returncode == 127
    assert b"while the call was under way" in said


async def test_a_table_cannot_be_broken(terminal: Terminal, here_folder: Path, clean: None) -> None:
    write(here_folder / "table", "table")
    args = ["--metadata", "note=one\ntwo\x1b[2J", "--no-wait", "-r", "0"]
    assert (await terminal.inside("run", "table", *args)).code == 0
    done = await terminal.inside("status")
    assert len(done.lines) == 2
    assert "note=one\\ntwo\\x1b[2J" in done.lines[1]
