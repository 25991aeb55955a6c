"""One input for one machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from tests.fuzz.auth import RulesMachine, TokensMachine
from tests.fuzz.client import ClientMachine
from tests.fuzz.pair import PairMachine
from tests.fuzz.server import ServerMachine

__all__ = ["MACHINES", "Inputs"]

MACHINES: Mapping[str, Any] = {
    "server": ServerMachine,
    "client": ClientMachine,
    "pair": PairMachine,
    "tokens": TokensMachine,
    "rules": RulesMachine,
}


class Inputs:
    """A ``with`` that runs inputs on one loop. What handlers raise on purpose is not logged."""

    def __enter__(self) -> Inputs:
        self._level = logging.getLogger("micro_ray").level
        logging.getLogger("micro_ray").setLevel(logging.CRITICAL + 1)
        self._failures: list[Any] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self._failures.append(context))
        return self

    def __exit__(self, *exc: object) -> None:
        logging.getLogger("micro_ray").setLevel(self._level)
        self._loop.close()

    def run(self, name: str, data: bytes) -> None:
        """Raises what went wrong; what a loop would only log, and a task that is left, are too."""

        async def go() -> None:
            await MACHINES[name](data).run()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

        self._loop.run_until_complete(go())
        failures, self._failures = self._failures, []
        assert not failures, failures
