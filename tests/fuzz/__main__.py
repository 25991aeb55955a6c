"""``python -m tests.fuzz [SECONDS] [MACHINE...]``: a guided run of each machine, its figures."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence

from tests.fuzz.run import MACHINES

#: Bytes of the longest input, and seconds after which one input counts as hanging.
LONGEST, HANGING = 2048, 10


def guided(machine: str, seconds: int) -> str:
    """The figures of a run. Raises RuntimeError with what failed and the input that repeats it."""
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz.guided", machine, f"-max_total_time={seconds}",
            f"-max_len={LONGEST}", f"-timeout={HANGING}", "-print_final_stats=1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )  # fmt: skip
    executions = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stdout)
    covered = re.findall(r"\bcov: (\d+)", done.stdout)
    if done.returncode or executions is None or not covered:
        raise RuntimeError(f"{machine}: status {done.returncode}\n{done.stdout[-8000:]}")
    return f"{machine}: {executions[1]} inputs in {seconds} s, {covered[-1]} edges covered"


def main(arguments: Sequence[str]) -> int:
    seconds, *machines = [int(arguments[0]), *arguments[1:]] if arguments else [60]
    for machine in machines or MACHINES:
        try:
            print(guided(str(machine), int(seconds)), flush=True)
        except RuntimeError as error:
            print(error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
