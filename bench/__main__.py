"""``python -m bench [--quick] [NAME ...]``: run the benchmarks and print their tables."""

from __future__ import annotations

import argparse
import importlib

import uvloop

from bench.measure import machine

NAMES = (
    "auth",
    "broker",
    "config",
    "events",
    "frames",
    "guarded",
    "guards",
    "http",
    "limits",
    "profile",
    "proxy",
    "routes",
    "startup",
    "store",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; have {', '.join(NAMES)}")
    print(f"{machine()}\n")
    for name in options.names or NAMES:
        module = importlib.import_module(f"bench.{name}")
        print(uvloop.run(module.run(quick=options.quick)), flush=True)
        print()


if __name__ == "__main__":
    main()
