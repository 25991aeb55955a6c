"""``python -m tests.fuzz.guided MACHINE OPTION...``: inputs guided by the coverage of the code of
frames (atheris, which is libFuzzer, whose options these are). A file instead of options is run
again: ``python -m tests.fuzz.guided pair crash-...``."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["micro_ray.wire"]):
    from tests.fuzz.run import Inputs


def main() -> None:
    name, *options = sys.argv[1:]
    with Inputs() as inputs:
        atheris.Setup([sys.argv[0], *options], lambda data: inputs.run(name, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
