"""The rows of the faces say something of what is there."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from micro_ray.broker import Broker
from micro_ray.config import Config
from micro_ray.events import Events
from micro_ray.registry import Registry
from micro_ray.store import Store
from tests.faces.table import FACES

NOUNS = {
    "broker": Broker,
    "config": Config,
    "events": Events,
    "registry": Registry,
    "store": Store,
}
SUITES = Path(__file__).parents[1] / "conformance"


@pytest.mark.parametrize(("noun", "face"), FACES, ids="-".join)
def test_rows_name_tests_and_verbs_that_are_there(noun: str, face: str) -> None:
    rows = FACES[noun, face]
    text = "".join(path.read_text() for path in SUITES.glob(f"test_{noun}*.py"))
    there = set(re.findall(r"def (test_\w+)\(", text))
    if face in ("handle", "terminal"):  # those of frames are the same for all nouns
        assert {row.partition("[")[0] for row in (*rows.fail, *rows.dear)} <= there
    assert not set(rows.fail) & set(rows.dear)
    assert all(hasattr(NOUNS[noun], verb) for verb in rows.verbs)


@pytest.mark.parametrize(
    ("noun", "face"), [key for key in FACES if key[1] in ("handle", "terminal")], ids="-".join
)
async def test_a_verb_is_lacking_or_is_there(noun: str, face: str) -> None:
    """Nothing is left out without a row: an adapter writes out every verb of the interface."""
    module = importlib.import_module(f"tests.faces.{noun}_{face}")
    adapter = getattr(module, f"{face.title()}{noun.title()}")
    asked = {
        name
        for name, verb in vars(NOUNS[noun]).items()
        if inspect.isfunction(verb) and not name.startswith("_")
    }
    made = {"get"} if face == "terminal" else set()  # in terms of ``read``, as by the interface
    assert asked - set(vars(adapter)) <= made
    for verb in FACES[noun, face].verbs:
        with pytest.raises(pytest.skip.Exception, match=verb):
            await getattr(adapter, verb)(None)
