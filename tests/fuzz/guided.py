"""``python -m tests.fuzz.guided MACHINE SECONDS``: inputs guided by the coverage of the code of
frames (atheris, which is libFuzzer). It ends with the figures of the run, or with the input that
failed."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["micro_ray.wire"]):
    from tests.fuzz.run import Inputs


def main() -> None:
    name, seconds = sys.argv[1], int(sys.argv[2])
    options = [sys.argv[0], f"-max_total_time={seconds}", "-max_len=2048", "-print_final_stats=1"]
    with Inputs() as inputs:
        atheris.Setup(options, lambda data: inputs.run(name, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
