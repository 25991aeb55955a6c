"""Where the runtime's things are under the state folder. Names come checked (``checks.py``): each
is one part of a path."""

from __future__ import annotations

from pathlib import Path

__all__ = ["log_folder", "source_folder", "work_folder"]


def log_folder(state: Path, namespace: str, name: str) -> Path:
    """The logs of all replicas of a workload, those that have ended included."""
    return state / "logs" / namespace / name


def source_folder(state: Path, namespace: str, digest: str) -> Path:
    """An unpacked source: the working folder of what runs from it."""
    return state / "sources" / namespace / digest


def work_folder(state: Path, namespace: str, name: str) -> Path:
    """The working folder of a command that has no source; it goes with the workload."""
    return state / "work" / namespace / name
