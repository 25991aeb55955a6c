"""Every store against a model: a dictionary that does the same."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from micro_ray.errors import Conflict, NotFound
from micro_ray.store import Check, Delete, Operation, Put, Store
from tests.fixtures.stores import NAMES, OPENERS, Clock, Opener, opener

KEYS = st.sampled_from(["a", "a%", "a_", "ab", "b", "*", "ä", "\uffff", "😀"])
TABLES = st.sampled_from(["t", "u"])
PARTS = st.sampled_from(["", "a", "%", "_", "b", "\uffff", "😀", "x"])
VALUES = st.binary(max_size=8)
#: None: whatever is there; 0: nothing; -1: what is there now; else a version that may be old.
EXPECTED = st.sampled_from([None, None, 0, -1, 1, 3])
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "check"]), KEYS, TABLES, VALUES, EXPECTED),
    min_size=1,
    max_size=5,
)

#: Fewer where each step takes longer.
EXAMPLES = {"memory": 60, "postgres": 10, "postgres-frames": 10, "handle": 6, "terminal": 2}


class Model(RuleBasedStateMachine):
    """``records`` holds (table, key) -> (value, version, end)."""

    opener: Opener = staticmethod(OPENERS["memory"])
    #: Whether the clock is ours.
    timed = True

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.records: dict[tuple[str, str], tuple[bytes, int, float]] = {}
        self.newest = 0
        self.folder = tempfile.TemporaryDirectory(prefix="st-")
        self.runner = asyncio.Runner()
        self.opened = self.opener(Path(self.folder.name), self.clock)
        self.store: Store = self.runner.run(self.opened.__aenter__())

    def teardown(self) -> None:
        self.runner.run(self.opened.__aexit__(None, None, None))
        self.runner.close()
        self.folder.cleanup()

    def now(self, table: str, key: str) -> int:
        return self.records[table, key][1] if (table, key) in self.records else 0

    @precondition(lambda self: self.timed)
    @rule(seconds=st.sampled_from([0.5, 1, 10]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds
        self.records = {p: r for p, r in self.records.items() if r[2] > self.clock.now}

    @rule(
        key=KEYS, table=TABLES, value=VALUES, expected=EXPECTED,
        expiry=st.sampled_from([None, None, 1, 5]),
    )  # fmt: skip
    def write(
        self, key: str, table: str, value: bytes, expected: int | None, expiry: float | None
    ) -> None:
        expiry = expiry if self.timed else None
        there = self.now(table, key)
        wanted = there if expected == -1 else expected
        call = self.store.write(key, value, table=table, expected=wanted, expiry=expiry)
        if wanted is not None and wanted != there:
            with pytest.raises(Conflict):
                self.runner.run(call)
            return
        record = self.runner.run(call)
        assert record.version > self.newest
        self.newest = record.version
        end = float("inf") if expiry is None else self.clock.now + expiry
        self.records[table, key] = (value, record.version, end)

    @rule(key=KEYS, table=TABLES, expected=EXPECTED)
    def delete(self, key: str, table: str, expected: int | None) -> None:
        there = self.now(table, key)
        wanted = there if expected == -1 else expected
        call = self.store.delete(key, table=table, expected=wanted)
        if wanted is not None and wanted != there:
            with pytest.raises(Conflict):
                self.runner.run(call)
            return
        self.runner.run(call)
        self.records.pop((table, key), None)

    @rule(rows=OPERATIONS)
    def transact(self, rows: list[tuple[str, str, str, bytes, int | None]]) -> None:
        operations: list[Operation] = []
        fails = False
        staged: dict[tuple[str, str], bytes | None] = {}
        for kind, key, table, value, expected in rows:
            touched = (table, key) in staged
            there = self.now(table, key)
            # A version given inside the transaction cannot be known before: only its absence.
            if touched:
                wanted = 0 if expected in (0, -1) else None
                fails |= wanted == 0 and staged[table, key] is not None
            else:
                wanted = there if expected == -1 else expected
                fails |= wanted is not None and wanted != there
            if kind == "check":
                if wanted is None:
                    continue
                operations.append(Check(key=key, table=table, expected=wanted))
            elif kind == "put":
                operations.append(Put(key=key, table=table, value=value, expected=wanted))
                staged[table, key] = value
            else:
                operations.append(Delete(key=key, table=table, expected=wanted))
                staged[table, key] = None
        if not operations:
            return
        if fails:
            with pytest.raises(Conflict):
                self.runner.run(self.store.transact(operations))
            return
        versions = self.runner.run(self.store.transact(operations))
        for place in staged:
            self.records.pop(place, None)
        for operation, version in zip(operations, versions, strict=True):
            if isinstance(operation, Put):
                assert version > self.newest
                self.newest = version
                if staged[operation.table, operation.key] is not None:
                    place = (operation.table, operation.key)
                    self.records[place] = (operation.value, version, float("inf"))
            else:
                assert version == 0

    @rule(
        table=TABLES, prefix=PARTS, suffix=PARTS, limit=st.integers(0, 4),
        offset=st.integers(0, 3), order=st.sampled_from(["asc", "desc"]),
    )  # fmt: skip
    def query(
        self, table: str, prefix: str, suffix: str, limit: int, offset: int, order: str
    ) -> None:
        names = sorted(
            (
                key
                for at, key in self.records
                if at == table and key.startswith(prefix) and key.endswith(suffix)
            ),
            reverse=order == "desc",
        )
        names = names[offset:][: limit or None]
        options: dict[str, Any] = {
            "table": table, "prefix": prefix, "suffix": suffix, "limit": limit,
            "offset": offset, "order": order,
        }  # fmt: skip
        assert self.runner.run(self.store.keys(**options)) == names
        found = self.runner.run(self.store.query(**options))
        assert [(r.key, r.value, r.version) for r in found] == [
            (key, *self.records[table, key][:2]) for key in names
        ]

    @rule(key=KEYS, table=TABLES)
    def read(self, key: str, table: str) -> None:
        call = self.store.read(key, table=table)
        if (table, key) not in self.records:
            with pytest.raises(NotFound):
                self.runner.run(call)
            return
        record = self.runner.run(call)
        value, version, end = self.records[table, key]
        assert (record.value, record.version) == (value, version)
        if end == float("inf"):
            assert record.expiry is None
        else:
            assert record.expiry == pytest.approx(end - self.clock.now)

    @invariant()
    def versions_are_below_the_revision(self) -> None:
        assert self.runner.run(self.store.revision()) >= self.newest


@pytest.mark.parametrize("name", NAMES)
def test_like_a_dictionary(name: str, request: pytest.FixtureRequest) -> None:
    way = staticmethod(opener(name, request))
    machine = type("Machine", (Model,), {"opener": way, "timed": name != "handle"})
    case = machine.TestCase
    case.settings = settings(
        max_examples=EXAMPLES.get(name, 25),
        stateful_step_count=12 if name == "terminal" else 30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    case("runTest").runTest()
