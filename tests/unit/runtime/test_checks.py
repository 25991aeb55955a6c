"""What a workload may be: every field, at its limits and over them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from micro_ray.errors import BadRequest, MicroError, TooLarge
from micro_ray.runtime import Workload
from micro_ray.runtime.checks import CHANGEABLE, RESERVED, changed, check, check_place

GOOD = Workload(name="good", command=("sleep", "1"), driver="process")
DIGEST = "0123456789abcdef" * 4


def checked(**values: Any) -> Workload:
    return check(replace(GOOD, **values), ("ray", "process"), 100)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "a"},
        {"name": "a" * 63},
        {"name": "1.2-3"},
        {"namespace": "Tenant_1.x"},
        {"version": "v1.2_rc-3"},
        {"version": "x" * 253},
        {"replicas": 0},
        {"replicas": 100},
        {"cpu": 0.25},
        {"cpu": 1},
        {"memory": 2**40},
        {"command": ["true"]},
        {"command": ("x",) * 256},
        {"command": (), "digest": DIGEST},
        {"command": (), "digest": DIGEST, "driver": "ray", "gpu": 0.5},
        {"env": {f"V{n}": "" for n in range(200)}},
        {"env": {"V": "x" * (64 * 2**10 - 1)}},
        {"env": {"_a": "multi\nline ünïcode"}},
        {"metadata": {"any key": "any value"}},
        {"source": "x" * 4096},
    ],
    ids=str,
)
def test_taken(values: dict[str, Any]) -> None:
    workload = checked(**values)
    for name, value in values.items():
        kept = getattr(workload, name)
        assert kept == (tuple(value) if isinstance(value, list) else value)


BAD: list[tuple[dict[str, Any], type[MicroError], str]] = [
    ({"name": ""}, BadRequest, "name ''"),
    ({"name": "a" * 64}, BadRequest, "at most 63"),
    ({"name": "Upper"}, BadRequest, "name 'Upper'"),
    ({"name": "-x"}, BadRequest, "letter or digit at both ends"),
    ({"name": "x."}, BadRequest, "name 'x.'"),
    ({"name": "a/b"}, BadRequest, "name 'a/b'"),
    ({"name": ".."}, BadRequest, r"name '\.\.'"),
    ({"name": "ü"}, BadRequest, "name"),
    ({"name": "x\n"}, BadRequest, "name"),
    ({"name": 3}, BadRequest, "name: Expected `str`"),
    ({"name": "store"}, BadRequest, "a service of the platform"),
    ({"name": "api"}, BadRequest, "a service of the platform"),
    ({"namespace": ""}, BadRequest, "namespace ''"),
    ({"namespace": "../x"}, BadRequest, "namespace '../x'"),
    ({"namespace": "x" * 64}, BadRequest, "at most 63"),
    ({"version": ""}, BadRequest, "version ''"),
    ({"version": "a b"}, BadRequest, "version 'a b'"),
    ({"version": "x" * 254}, BadRequest, "at most 253"),
    ({"driver": "kubernetes"}, BadRequest, "driver 'kubernetes'; there is process, ray"),
    ({"driver": "ray"}, BadRequest, "a command runs as a process"),
    ({"digest": "../../etc"}, BadRequest, "digest '../../etc' is no SHA-256"),
    ({"digest": DIGEST.upper()}, BadRequest, "is no SHA-256"),
    ({"command": ()}, BadRequest, "neither source nor command"),
    ({"command": ("",)}, BadRequest, "its first word is blank"),
    ({"command": (" ", "x")}, BadRequest, "its first word is blank"),
    ({"command": "sleep 1"}, BadRequest, "command: Expected `array`"),
    ({"command": ("a\0b",)}, BadRequest, "has a zero byte"),
    ({"command": ("\ud800",)}, BadRequest, "not valid Unicode"),
    ({"command": ("x",) * 257}, TooLarge, "257 words.*256"),
    ({"command": ("x" * 70_000,)}, TooLarge, "70000 bytes"),
    ({"replicas": -1}, BadRequest, "replicas -1 is not within 0 and 100"),
    ({"replicas": 101}, BadRequest, "replicas 101 is not within 0 and 100"),
    ({"replicas": 10**30}, BadRequest, "replicas"),
    ({"replicas": "3"}, BadRequest, "replicas: Expected `int`, got `str`"),
    ({"replicas": 1.5}, BadRequest, "replicas: Expected `int`"),
    ({"replicas": None}, BadRequest, "replicas: Expected `int`"),
    ({"cpu": float("nan")}, BadRequest, "cpu nan is not an amount"),
    ({"cpu": float("inf")}, BadRequest, "cpu inf is not an amount"),
    ({"cpu": -0.1}, BadRequest, "cpu -0.1 is not an amount"),
    ({"gpu": float("-inf")}, BadRequest, "gpu -inf is not an amount"),
    ({"gpu": 1e30}, BadRequest, "gpu"),
    ({"memory": -1}, BadRequest, "memory -1 is not an amount"),
    ({"memory": 2**60}, BadRequest, "memory"),
    ({"memory": 0.5}, BadRequest, "memory: Expected `int`"),
    ({"env": {"A-B": "x"}}, BadRequest, "env: 'A-B' is no variable's name"),
    ({"env": {"": "x"}}, BadRequest, "env: '' is no variable's name"),
    ({"env": {"A=B": "x"}}, BadRequest, "is no variable's name"),
    ({"env": {"A": "x\0y"}}, BadRequest, "env: .* has a zero byte"),
    ({"env": {"A": 1}}, BadRequest, "env: Expected `str`"),
    ({"env": ["A"]}, BadRequest, "env: Expected `object`"),
    ({"env": {"MICRO_INSTANCE": "mine"}}, BadRequest, "MICRO_INSTANCE is set by the runtime"),
    ({"env": {"MICRO_NAMESPACE": "other"}}, BadRequest, "MICRO_NAMESPACE is set by the runtime"),
    ({"env": {f"V{n}": "" for n in range(201)}}, TooLarge, "env of 201 entries"),
    ({"env": {"A": "ü" * 40_000}}, TooLarge, "80001 bytes"),
    ({"metadata": {f"k{n}": "" for n in range(65)}}, TooLarge, "metadata of 65 entries"),
    ({"metadata": {"k": "x" * 20_000}}, TooLarge, "metadata of 1 entries and 20001 bytes"),
    ({"source": "x" * 4097}, TooLarge, "source of 4097 characters"),
]


@pytest.mark.parametrize(
    ("values", "kind", "said"), BAD, ids=lambda v: str(v)[:40] if isinstance(v, dict) else ""
)
def test_refused(values: dict[str, Any], kind: type[MicroError], said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        checked(**values)
    assert caught.type is kind
    assert len(caught.value.detail) < 500, "an error must not repeat all it was given"


def test_reserved_names_are_those_of_the_platform() -> None:
    assert {
        "registry", "router", "network", "store", "broker", "events", "config", "auth",
        "authcache", "limits", "runtime", "certs", "api", "proxy", "client",
    } == RESERVED  # fmt: skip


def test_places() -> None:
    check_place("a.b", "micro")
    for name, namespace in (("../x", "micro"), ("x", "../y"), ("x", "a/b"), ("x", ".."), (3, "m")):
        with pytest.raises(BadRequest):
            check_place(name, namespace)  # type: ignore[arg-type]


def test_changes() -> None:
    """Everything that may be changed can be; nothing else; each to its type."""
    values: dict[str, Any] = {
        "source": "./x",
        "digest": DIGEST,
        "command": ["a", "b"],
        "env": {"A": "b"},
        "replicas": 3,
        "cpu": 1,
        "gpu": 0.5,
        "memory": 7,
        "metadata": {"a": "b"},
    }
    assert set(values) == set(CHANGEABLE)
    new = changed(GOOD, values)
    assert {f.name for f in fields(new) if getattr(new, f.name) != getattr(GOOD, f.name)} == set(
        CHANGEABLE
    )
    assert new.command == ("a", "b")
    for name in ("name", "namespace", "driver", "version", "generation", "created", "nonsense"):
        with pytest.raises(BadRequest, match=f"{name} cannot be updated; what can: source, "):
            changed(GOOD, {name: "x"})
    with pytest.raises(BadRequest, match="replicas: Expected `int`, got `str`"):
        changed(GOOD, {"replicas": "3"})
    with pytest.raises(BadRequest, match="cpu: Expected `float`"):
        changed(GOOD, {"cpu": None})
