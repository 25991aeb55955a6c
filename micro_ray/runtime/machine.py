"""What a machine has, and which replica has asked for how much of it.

For local processes this is what Ray's resources are for actors: a replica is started only where
what it asks for is free. What it uses then is its own affair.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from micro_ray.errors import Unavailable

__all__ = ["Amount", "Machine", "here"]

#: Fractions add up to what they are said to be: a thousandth is the least that counts.
_NOISE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Cores, devices and bytes; ``devices`` are the numbers of the GPUs that were given."""

    cpu: float = 0.0
    gpu: float = 0.0
    memory: int = 0
    devices: tuple[int, ...] = ()


class Machine:
    """The books of one machine with ``cpu`` cores, ``memory`` bytes and GPUs of these numbers."""

    def __init__(self, *, cpu: float, memory: int, devices: Sequence[int] = ()) -> None:
        self._cpu = cpu
        self._memory = memory
        self._free = dict.fromkeys(devices, 1.0)
        self._taken: dict[str, Amount] = {}

    def take(self, who: str, amount: Amount) -> Amount:
        """Give what is asked for, with the devices: whole ones alone, a fraction of one that has it
        left. Raises Unavailable that says what is missing; nothing is taken then."""
        for name, asked, have, used in (
            ("cpu", amount.cpu, self._cpu, sum(a.cpu for a in self._taken.values())),
            ("memory", amount.memory, self._memory, sum(a.memory for a in self._taken.values())),
            ("gpu", amount.gpu, len(self._free), len(self._free) - sum(self._free.values())),
        ):
            if asked and asked > have - used + _NOISE:
                raise Unavailable(
                    "runtime",
                    f"{asked:g} {name} asked for; of {have:g} that this machine has "
                    f"{max(0.0, have - used):g} are free",
                )
        given = replace(amount, devices=self._devices(amount.gpu))
        self.has(who, given)
        return given

    def has(self, who: str, given: Amount) -> None:
        """Enter what a replica has, whatever is free: one of an earlier life kept what it had."""
        self.give_back(who)
        self._taken[who] = given
        for device in given.devices:
            self._free[device] = self._free.get(device, 1.0) - _share(given)

    def give_back(self, who: str) -> None:
        """What a replica had is free again; idempotent."""
        amount = self._taken.pop(who, None)
        if amount is not None:
            for device in amount.devices:
                self._free[device] += _share(amount)

    def _devices(self, gpu: float) -> tuple[int, ...]:
        if not gpu:
            return ()
        if gpu < 1:
            fitting = [d for d, left in self._free.items() if left + _NOISE >= gpu]
            # The fullest that still fits, so that whole ones stay whole.
            chosen = sorted(fitting, key=lambda d: (self._free[d], d))[:1]
        else:
            whole = [d for d, left in self._free.items() if left + _NOISE >= 1]
            chosen = whole[: int(gpu)] if len(whole) >= gpu == int(gpu) else []
        if not chosen:
            raise Unavailable(
                "runtime", f"{gpu:g} gpu asked for; no device of this machine has that much left"
            )
        return tuple(chosen)


def _share(amount: Amount) -> float:
    """Of each of its devices."""
    return min(1.0, amount.gpu)


def here() -> Machine:
    """This machine."""
    devices = [
        int(number)
        for path in Path("/dev").glob("nvidia*")
        if (number := path.name.removeprefix("nvidia")).isdigit()
    ]
    return Machine(
        cpu=float(len(os.sched_getaffinity(0))),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        devices=sorted(devices),
    )
