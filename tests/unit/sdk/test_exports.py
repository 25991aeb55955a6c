"""What ``import micro_ray`` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import micro_ray


def test_what_there_is() -> None:
    from micro_ray.context import Context
    from micro_ray.sdk.blocking import Client
    from micro_ray.sdk.client import AsyncClient
    from micro_ray.sdk.service import Service

    assert micro_ray.Service is Service
    assert micro_ray.Client is Client
    assert micro_ray.AsyncClient is AsyncClient
    assert micro_ray.Context is Context
    assert micro_ray.errors.NotFound.code == 404
    assert sorted(micro_ray.__all__) == ["AsyncClient", "Client", "Context", "Service", "errors"]
    for name in micro_ray.__all__:
        assert getattr(micro_ray, name) is not None
        assert name in dir(micro_ray)


def test_what_there_is_not() -> None:
    with pytest.raises(AttributeError, match="module 'micro_ray' has no attribute 'Servcie'"):
        _ = micro_ray.Servcie
    with pytest.raises(ImportError):
        from micro_ray import Servcie  # noqa: F401


def test_nothing_is_loaded_before_it_is_used() -> None:
    """Those that only want the errors do not wait for the rest, and nobody waits for Ray."""
    program = """
import sys
import micro_ray
assert [n for n in sys.modules if n.startswith("micro_ray")] == ["micro_ray"]
micro_ray.errors
assert "asyncio" not in sys.modules
from micro_ray import *
assert "ray" not in sys.modules
print(sorted(n for n in globals() if not n.startswith("_")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.stderr == ""
    assert done.stdout == (
        "['AsyncClient', 'Client', 'Context', 'Service', 'errors', 'micro_ray', 'sys']\n"
    )
