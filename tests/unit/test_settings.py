"""Settings: where they come from, in which order, and what is said of those that cannot be."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from micro_ray.broker import Limits as BrokerLimits
from micro_ray.errors import BadRequest
from micro_ray.settings import (
    CHOICES,
    RANGES,
    Bootstrap,
    Network,
    Settings,
    Wire,
    bootstrap,
    here,
    load,
    service_environ,
)
from micro_ray.wire.protocol import Limits, limits_of


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No ``micro.toml`` of the working tree, no home of the user's."""
    # Not tmp_path: the run folder must be short enough for the names of Unix sockets.
    with TemporaryDirectory(prefix="se-") as name:
        folder = Path(name).resolve()
        (folder / "home").mkdir()
        (folder / "work").mkdir()
        monkeypatch.setenv("HOME", str(folder / "home"))
        with monkeypatch.context() as patch:
            patch.chdir(folder / "work")
            yield folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(*parts: str, environ: Mapping[str, str] | None = None, **overrides: Any) -> str:
    """What is said of settings that cannot be; ``parts`` must be in it."""
    with pytest.raises(BadRequest) as caught:
        load(environ or {}, {k.replace("__", "."): v for k, v in overrides.items()})
    assert caught.value.id == "settings"
    for part in parts:
        assert part in caught.value.detail, caught.value.detail
    assert len(caught.value.detail) < 500
    return caught.value.detail


def every() -> list[tuple[str, Any]]:
    """Every setting by its dotted name, with its default."""
    found: list[tuple[str, Any]] = []
    for item in fields(Settings):
        value = getattr(Settings(), item.name)
        if is_dataclass(value):
            found += [(f"{item.name}.{f.name}", getattr(value, f.name)) for f in fields(value)]
        else:
            found.append((item.name, value))
    return found


def get(settings: Settings, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


# -- sources and their order -----------------------------------------------------------------------


def test_the_defaults(elsewhere: Path) -> None:
    settings = load({})
    assert settings.state == elsewhere / "home" / ".micro" / "server"
    assert settings.run == settings.state / "run"
    assert settings.host == socket.gethostname()
    assert (settings.namespace, settings.api.host, settings.api.port) == (
        "micro",
        "127.0.0.1",
        8080,
    )
    with pytest.raises(FrozenInstanceError):
        settings.namespace = "x"  # type: ignore[misc]


def test_later_sources_win(elsewhere: Path) -> None:
    toml = "namespace='file'\n[api]\nport=1001\nhost='::1'\nreplicas=5\n[network]\ntimeout=7\n"
    write(Path("micro.toml"), toml)
    environ = {"MICRO_API_PORT": "1002", "MICRO_API_REPLICAS": "6", "MICRO_NAMESPACE": ""}
    settings = load(environ, {"api.replicas": 7})
    assert settings.namespace == "file"  # a blank variable is none
    assert (settings.api.host, settings.api.port, settings.api.replicas) == ("::1", 1002, 7)
    assert settings.network.timeout == 7.0
    assert isinstance(settings.network.timeout, float)


def test_the_file_here_then_that_of_the_state_then_the_one_named(elsewhere: Path) -> None:
    state = elsewhere / "state"
    write(state / "micro.toml", "namespace='of-the-state'")
    assert load({"MICRO_STATE": str(state)}).namespace == "of-the-state"
    assert load({}, {"state": str(state)}).namespace == "of-the-state"
    write(Path("micro.toml"), "[api]\nport=1")
    settings = load({"MICRO_STATE": str(state)})
    assert (settings.namespace, settings.api.port) == ("micro", 1)  # one file, not both
    named = write(elsewhere / "named.toml", "namespace='named'")
    settings = load({"MICRO_STATE": str(state), "MICRO_CONFIG": str(named)})
    assert (settings.namespace, settings.api.port) == ("named", 8080)
    write(elsewhere / "home" / "mine.toml", "namespace='mine'")
    assert load({"MICRO_CONFIG": "~/mine.toml"}).namespace == "mine"


def test_a_file_may_name_the_state(elsewhere: Path) -> None:
    write(Path("micro.toml"), f"state='{elsewhere}/s'")
    assert load({}).state == elsewhere / "s"
    assert load({"MICRO_STATE": f"{elsewhere}/t"}).state == elsewhere / "t"


def test_the_real_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICRO_API_PORT", "1234")
    assert load().api.port == 1234


@pytest.mark.parametrize(("name", "default"), every(), ids=lambda value: str(value)[:30])
def test_every_setting_comes_from_file_environment_and_command_line(
    name: str, default: Any, elsewhere: Path
) -> None:
    if isinstance(default, bool):
        pytest.fail("there is no yes-or-no setting yet: teach _convert")
    if isinstance(default, int | float):
        low, high = RANGES.get(name, (0, 10))
        value: Any = type(default)(min(low + 2, high) if default != low + 2 else low + 3)
        if name in ("wire.max_message", "pools.registry", "pools.broker"):
            value = default
        text, written = str(value), str(value)
    elif isinstance(default, tuple):
        value, text, written = ("a", "b"), "a, b,", "['a', ' b ']"
    elif isinstance(default, Path):
        value, text, written = elsewhere / "p", f"{elsewhere}/p", f"'{elsewhere}/p'"
    else:
        value = CHOICES[name][-1] if name in CHOICES else "memory"
        value = "10.0.0.1" if name == "address" else value
        text, written = value, f"'{value}'"
    variable = "MICRO_" + name.replace(".", "_").upper()
    assert get(load({variable: text}), name) == value
    assert get(load({}, {name: value}), name) == value
    section, _, inner = name.rpartition(".")
    write(Path("micro.toml"), f"[{section}]\n{inner}={written}" if section else f"{name}={written}")
    found = get(load({}), name)
    assert found == value
    assert type(found) is type(value) or isinstance(default, Path)


# -- what cannot be --------------------------------------------------------------------------------

NUMBERS = {
    "api.port": [
        "-1",
        "0",
        "65536",
        "80.5",
        "x",
        "0x50",
        "nan",
        "inf",
        "true",
        "9" * 5000,
        "1e3",
        " ",
    ],
    "api.timeout": ["-1", "0", "nan", "inf", "-inf", "1e400", "x", "1,5", "infinity"],
    "api.replicas": ["0", "1001"],
    "registry.ttl": ["0", "0.9", "3601", "nan"],
    "network.retry_budget": ["-0.1", "11", "nan"],
    "network.dial_timeout": ["0"],
    "wire.max_frame": ["1023", "2000000000"],
    "wire.window": ["0", "2147483648"],
    "wire.max_header": ["65537"],
    "wire.keepalive": ["0", "inf"],
    "pools.store": ["0", "65"],
    "pools.authcache": ["0", "65"],
    "broker.max_message": ["0", "8388609"],
    "broker.max_subscriptions": ["0", "100001"],
    "broker.patience": ["-1", "61"],
    "runtime.max_replicas": ["0"],
    "anchor": ["-1"],
    "ray.num_cpus": ["-1", "nan"],
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in NUMBERS.items() for text in texts]
)
def test_numbers_out_of_bounds_name_the_variable(name: str, text: str) -> None:
    variable = "MICRO_" + name.replace(".", "_").upper()
    said = refused(variable, " from ", environ={variable: text})
    assert "number" in said


@pytest.mark.parametrize(
    "value", [True, False, 1.5, None, "8080x", [], {}, b"80", float("nan"), float("inf"), 2**70]
)
def test_overrides_of_the_wrong_kind(value: Any) -> None:
    refused("api.port", "a whole number from 1 to 65535", api__port=value)


def test_a_door_on_any_port_would_be_found_by_nobody(elsewhere: Path) -> None:
    refused("MICRO_API_PORT: '0'", "from 1 to 65535", environ={"MICRO_API_PORT": "0"})
    write(Path("micro.toml"), "[api]\nport = 0")
    refused("micro.toml: api.port", "from 1 to 65535", environ={})
    write(Path("micro.toml"), "[api]\nserve_port = 0")
    assert load({}).api.serve_port == 0  # none


@pytest.mark.parametrize("value", [True, "x", None, [], float("nan"), 10**400])
def test_floats_of_the_wrong_kind(value: Any) -> None:
    refused("network.timeout", "a number from", network__timeout=value)


@pytest.mark.parametrize(
    "name", [name for name, value in every() if isinstance(value, int | float)]
)
def test_no_number_is_unbounded(name: str) -> None:
    for value in (-1, 2**60, float("nan"), float("inf")):
        with pytest.raises(BadRequest):
            load({}, {name: value})


def test_the_defaults_are_within_their_own_bounds() -> None:
    numbers = {name: value for name, value in every() if isinstance(value, int | float)}
    assert set(RANGES) <= set(numbers), "bounds of settings that there are not"
    for name, value in numbers.items():
        assert get(load({}, {name: value}), name) == value
    for name, words in CHOICES.items():
        assert dict(every())[name] in words


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[api]\nport='8080x'", "api.port"),
        ("[api]\nport=true", "api.port"),
        ("[api]\nport=80.0", "api.port"),
        ("[api]\nport=1979-05-27", "api.port"),
        ("[api]\nhost=5", "api.host"),
        ("[api]\nhost=['a']", "api.host"),
        ("[api]\ncors_origins=5", "api.cors_origins"),
        ("[api]\ncors_origins=['a', 5]", "api.cors_origins"),
        ("[api.port]\nx=1", "api.port"),
        ("[api]\nprot=1", "api.prot"),
        ("[apis]\nport=1", "apis"),
        ("prot=1", "prot"),
        ("api=1", "api is a section, [api]"),
        ("namespace=true", "namespace"),
        ("state=7", "state"),
        ("[network]\ntimeout=nan", "network.timeout"),
        ("[network]\ntimeout=inf", "network.timeout"),
        ("[runtime]\ndriver='docker'", "ray or process"),
        ("[ray]\nauth='none'", "token or disabled"),
    ],
)
def test_a_file_is_named_with_its_key(text: str, key: str) -> None:
    path = write(Path("micro.toml"), text)
    refused(str(path), key)


def test_what_there_is_is_said() -> None:
    write(Path("micro.toml"), "[api]\nprot=1")
    assert "port" in refused("there is no setting 'api.prot' (have:")
    Path("micro.toml").unlink()
    refused("there is no setting 'nothing.at.all'", nothing__at__all=1)
    refused("there is no setting 'api.'", api__=1)


@pytest.mark.parametrize(
    "content",
    [b"[api\nport=1", b"port==", b"\xff\xfe", b"[api]\nport=1\nport=2", b"x='" + b"[" * 10],
)
def test_a_file_that_does_not_parse(content: bytes) -> None:
    Path("micro.toml").write_bytes(content)
    refused("micro.toml:")


def test_where_in_the_file() -> None:
    write(Path("micro.toml"), "namespace='a'\n\n[api\n")
    refused("micro.toml:", "line 3")


def test_files_that_are_none(elsewhere: Path) -> None:
    refused("MICRO_CONFIG names", "not a file", environ={"MICRO_CONFIG": "/none/at/all"})
    refused("MICRO_CONFIG names", environ={"MICRO_CONFIG": str(elsewhere)})
    Path("micro.toml").mkdir()
    assert load({}).namespace == "micro"  # a folder of that name is nobody's settings


def test_a_file_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("micro.toml"), "")

    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", forbidden)  # who may read everything runs this too
    refused("micro.toml cannot be read: Permission denied")


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("MICRO_API_PROT", "did you mean MICRO_API_PORT?"),
        ("MICRO_NETWORK_TIMEOUTS", "did you mean MICRO_NETWORK_TIMEOUT?"),
        ("MICRO_POOLS_STORES", "did you mean MICRO_POOLS_STORE?"),
        ("MICRO_RAY_", "there is no such setting"),
        ("MICRO_WIRE_XYZZY", "there is no such setting"),
    ],
)
def test_a_misspelt_variable_of_a_section(variable: str, hint: str) -> None:
    refused(variable, hint, environ={variable: ""})
    refused(variable, hint, environ={variable: "1"})


@pytest.mark.parametrize(
    "variable",
    ["MICRO_REGISTRY", "MICRO_ROUTER", "MICRO_AUTHS", "MICRO_INSTANCE", "MICRO_SERVICE_NAME",
     "MICRO_LIFE", "MICRO_SERVICE_VERSION", "MICRO_GREETING", "_MICRO_COMPLETE", "micro_api_prot",
     "XMICRO_API_"],
)  # fmt: skip
def test_variables_of_others_are_left_alone(variable: str) -> None:
    assert load({variable: "x"}) == load({})


@pytest.mark.parametrize("name", ["", "a b", "*", "-a", "a/b", "ä", "a" * 254])
def test_a_namespace_that_cannot_be(name: str) -> None:
    refused("namespace", namespace=name)


def test_settings_that_do_not_go_together() -> None:
    refused("wire.max_message is less than", wire__max_message=2048, wire__max_frame=4096)
    refused("set pools.registry to 1", pools__registry=2)
    environ = {"MICRO_REGISTRY_URL": "etcd://x", "MICRO_POOLS_REGISTRY": "3"}
    assert load(environ).pools.registry == 3
    refused("set pools.broker to 1", pools__broker=2)
    environ = {"MICRO_BROKER_URL": "nats://x", "MICRO_POOLS_BROKER": "3"}
    assert load(environ).pools.broker == 3


def test_the_limits_of_the_broker_are_those_of_the_interface() -> None:
    """What a broker without settings allows is what the settings' defaults do."""
    broker, limits = Settings().broker, BrokerLimits()
    for item in fields(limits):
        assert getattr(limits, item.name) == getattr(broker, f"max_{item.name}")


def test_the_limits_of_frames_are_those_of_the_wire() -> None:
    """The settings' defaults are what a client without settings uses."""
    wire, limits = Settings().wire, Limits()
    for item in fields(wire):
        assert getattr(wire, item.name) == getattr(limits, item.name)
    assert limits_of(wire) == limits


def test_the_largest_message_can_be_held() -> None:
    """What is still being put together counts as unread."""
    for size in (2**20, 100 * 2**20, 2**31):
        limits = limits_of(Wire(max_message=size))
        assert limits.max_message == size
        assert limits.max_buffered >= max(size, Limits().max_buffered)


# -- folders ---------------------------------------------------------------------------------------


def test_folders_are_made_whole(elsewhere: Path) -> None:
    settings = load({"MICRO_STATE": "~/s", "MICRO_RUN": "~/r"})
    assert settings.state == elsewhere / "home" / "s"
    assert settings.run == elsewhere / "home" / "r"
    settings = load({"MICRO_STATE": "s", "MICRO_RUN": "../r"})
    assert settings.state == elsewhere / "work" / "s"
    assert settings.run == elsewhere / "work" / "../r"
    assert settings.run.is_absolute()


def test_an_unknown_home() -> None:
    refused("~nobody-of-that-name", "set MICRO_STATE", state="~nobody-of-that-name/x")
    refused("set MICRO_RUN", run="~nobody-of-that-name/x")


def test_without_any_home(monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    """A user without an entry and without HOME, as containers have them."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    refused("set MICRO_STATE")
    assert load({"MICRO_STATE": str(elsewhere)}).state == elsewhere


def test_a_run_folder_that_is_too_long_for_sockets(elsewhere: Path) -> None:
    longest = 107 - len("/replica-0123456789abcdef.sock")
    assert load({"MICRO_RUN": "/" + "r" * (longest - 1)}).run == Path("/" + "r" * (longest - 1))
    refused("too long", "set MICRO_RUN", environ={"MICRO_RUN": "/" + "r" * longest})
    refused("too long", environ={"MICRO_RUN": "/" + "ä" * (longest // 2 + 1)})
    refused("too long", environ={"MICRO_STATE": "/" + "s" * 80})
    refused("MICRO_RUN", environ={"MICRO_RUN": "/a\0b"})


# -- what started processes are told ---------------------------------------------------------------


def test_where_the_platform_is() -> None:
    settings = load({"MICRO_RUN": "/r", "MICRO_POOLS_ROUTER": "3", "MICRO_REGISTRY_TTL": "9",
                     "MICRO_NETWORK_TIMEOUT": "4"})  # fmt: skip
    boot = bootstrap(settings, {})
    assert boot.registry == ("unix:/r/registry-0.sock",)
    assert boot.routers == tuple(f"unix:/r/router-{i}.sock" for i in range(3))
    assert boot.auths == ("unix:/r/authcache-0.sock", "unix:/r/auth-0.sock")
    assert (boot.namespace, boot.host, boot.run) == ("micro", settings.host, Path("/r"))
    assert (boot.instance, boot.version) == ("", "")
    assert (boot.ttl, boot.network.timeout) == (9.0, 4.0)


def test_addresses_from_the_environment_win() -> None:
    boot = bootstrap(
        load({}),
        {
            "MICRO_REGISTRY": " unix:/a.sock , tcp:10.0.0.1:5 ,",
            "MICRO_ROUTER": "tcp:h:1",
            "MICRO_AUTHS": "unix:/c.sock,tcp:h:2",
            "MICRO_INSTANCE": "i-1",
            "MICRO_SERVICE_VERSION": "2",
        },
    )
    assert boot.registry == ("unix:/a.sock", "tcp:10.0.0.1:5")
    assert boot.routers == ("tcp:h:1",)
    assert boot.auths == ("unix:/c.sock", "tcp:h:2")
    assert (boot.instance, boot.version) == ("i-1", "2")


@pytest.mark.parametrize("variable", ["MICRO_REGISTRY", "MICRO_ROUTER", "MICRO_AUTHS"])
@pytest.mark.parametrize("address", ["localhost:8000", "http://x", "unix:relative", "/a.sock"])
def test_addresses_that_are_none(variable: str, address: str) -> None:
    with pytest.raises(BadRequest) as caught:
        bootstrap(load({}), {variable: f"unix:/good,{address}"})
    assert variable in caught.value.detail
    assert address in caught.value.detail


@pytest.mark.parametrize("address", ["box", "0.0.0.0", "::", "224.0.0.1", "10.0.0.1:80", "10.0.0"])
def test_an_address_nobody_can_call(address: str, elsewhere: Path) -> None:
    with pytest.raises(BadRequest) as caught:
        load({"MICRO_ADDRESS": address})
    assert repr(address) in caught.value.detail
    with pytest.raises(BadRequest):
        here(load({}), "10.0.0.1", {"MICRO_ADDRESS": address})


def test_on_another_machine(elsewhere: Path) -> None:
    settings = load({"MICRO_HOST": "first", "MICRO_ADDRESS": "10.0.0.1"})
    there = here(settings, "10.0.0.2", {})
    assert (there.host, there.address) == (socket.gethostname(), "10.0.0.2")
    assert replace(there, host="first", address="10.0.0.1") == settings
    named = here(
        bootstrap(settings, {}), "10.0.0.2", {"MICRO_HOST": "b", "MICRO_ADDRESS": "fd00::2"}
    )
    assert (named.host, named.address) == ("b", "fd00::2")


def test_a_started_process_finds_the_platform_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_ID", "PYTHONPATH", "AWS_SECRET", "PWD"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("LANG", "C.UTF-8")
    settings = load({"MICRO_STATE": str(elsewhere / "s"), "MICRO_RUN": "/r", "MICRO_HOST": "box",
                     "MICRO_NAMESPACE": "tenant", "MICRO_REGISTRY_TTL": "7.5",
                     "MICRO_ADDRESS": "10.0.0.1", "MICRO_NETWORK_TIMEOUT": "12.5",
                     "MICRO_WIRE_MAX_MESSAGE": "33554432",
                     "MICRO_WIRE_KEEPALIVE": "2.5"})  # fmt: skip
    boot = bootstrap(settings, {})
    environ = service_environ(boot, settings)
    assert not [name for name in environ if name.startswith("RAY")]
    assert "secret" not in environ.values()
    assert environ["LANG"] == "C.UTF-8"
    assert environ["PATH"]
    # It makes of it what was meant.
    again = bootstrap(load(environ), environ)
    assert again == Bootstrap(
        registry=boot.registry, routers=boot.routers, auths=boot.auths, namespace="tenant",
        host="box", run=Path("/r"), ttl=7.5, address="10.0.0.1", network=Network(timeout=12.5),
        wire=Wire(max_message=32 * 2**20, keepalive=2.5), credentials=boot.credentials,
        place=boot.place, auth=load(environ).auth, certs=boot.certs,
    )  # fmt: skip
    assert load(environ).state == settings.state
