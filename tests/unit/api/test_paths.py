"""From a path to an endpoint, row by row."""

from __future__ import annotations

import pytest

from micro_ray.api.paths import CACHE, CACHED_PATH, MAX_PATH, MAX_TEMPLATES, Paths
from micro_ray.errors import BadRequest, MethodNotAllowed, NotFound
from micro_ray.registry import Endpoint
from micro_ray.router import Delta, Entry
from micro_ray.router.table import Table


def entry(service: str, *endpoints: str, **bound: str) -> Entry:
    """``endpoints`` by name; ``bound`` are ``Name="METHODS /template,/template"``."""
    rows = [Endpoint(name=name) for name in endpoints]
    for name, text in bound.items():
        method, _, path = text.partition(" ")
        metadata = {"path": path} | ({"method": method} if method != "*" else {})
        rows.append(Endpoint(name=name.replace("_", "."), metadata=metadata))
    return Entry(namespace="micro", service=service, version="latest", endpoints=tuple(rows))


def table_of(*entries: Entry) -> Table:
    table = Table()
    table.apply(Delta(epoch="test", revision=1, full=True, entries=entries))
    return table


def paths_of(*entries: Entry) -> Paths:
    return Paths(table_of(*entries), "micro")


def found(paths: Paths, method: str, path: str, raw: bytes = b"") -> tuple[str, str]:
    target = paths.resolve(method, path, raw)
    return target.service, target.endpoint


RULE = (
    entry("foo", "Foo.Call", "Foo.Bar", "Bar.Baz", "FooBar.BazCat", "Bar.BazXyz"),
    entry("foo.bar", "Baz.Cat", "Bar.Call", "FooBar.Other"),
    entry("v1.foo", "Foo.Bar", "Bar.Baz", "V1Foo.Other"),
    entry("v1.foo.bar", "Baz.Cat"),
    entry("foo-bar", "FooBar.Call", "FooBar.SayHello"),
    entry("deep", "A.B.C"),
)


@pytest.mark.parametrize(
    ("path", "service", "endpoint"),
    [
        ("/foo", "foo", "Foo.Call"),
        ("/foo/", "foo", "Foo.Call"),
        ("//foo//bar/", "foo", "Foo.Bar"),
        ("/foo/bar", "foo", "Foo.Bar"),
        ("/foo/foo/bar", "foo", "Foo.Bar"),
        ("/foo/bar/baz", "foo", "Bar.Baz"),
        ("/foo/bar/baz-xyz", "foo", "Bar.BazXyz"),
        ("/foo/bar/baz_xyz", "foo", "Bar.BazXyz"),
        ("/foo/fooBar/bazCat", "foo", "FooBar.BazCat"),
        ("/FOO/BAR", "foo", "Foo.Bar"),
        ("/foo/bar/baz/cat", "foo.bar", "Baz.Cat"),
        ("/foo.bar", "foo.bar", "Bar.Call"),
        ("/foo.bar/other", "foo.bar", "FooBar.Other"),
        ("/v1/foo/bar", "v1.foo", "Foo.Bar"),
        ("/v1/foo/other", "v1.foo", "V1Foo.Other"),
        ("/V1/Foo/Bar", "v1.foo", "Foo.Bar"),
        ("/v1/foo/bar/baz", "v1.foo", "Bar.Baz"),
        ("/v1/foo/bar/baz/cat", "v1.foo.bar", "Baz.Cat"),
        ("/foo-bar", "foo-bar", "FooBar.Call"),
        ("/foobar/sayhello", "foo-bar", "FooBar.SayHello"),
        ("/foo_bar/say-hello", "foo-bar", "FooBar.SayHello"),
        ("/deep/a.b/c", "deep", "A.B.C"),
    ],
)
def test_the_rule(path: str, service: str, endpoint: str) -> None:
    paths = paths_of(*RULE)
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        assert found(paths, method, path) == (service, endpoint)
        assert found(paths, method, path) == (service, endpoint)  # and once remembered


def test_a_name_is_found_as_it_is_written_first() -> None:
    paths = paths_of(entry("foo-bar", "FooBar.Call"), entry("foobar", "Foobar.Call"))
    assert found(paths, "GET", "/foobar") == ("foobar", "Foobar.Call")
    assert found(paths, "GET", "/foo-bar") == ("foo-bar", "FooBar.Call")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/fo", ["no service 'fo'", "/foo"]),
        ("/nothing-like-it", ["no service 'nothing-like-it'"]),
        ("/foo/bra", ["no endpoint foo.bra in foo", "Foo.Bar"]),
        ("/foo/zzz/qqq", ["no endpoint zzz.qqq in foo", "there is Foo.Call"]),
        ("/" + "x" * 4000, ["no service"]),
        ("//", ["no service is named"]),
    ],
)
def test_unknown_says_what_is_near(path: str, said: list[str]) -> None:
    with pytest.raises(NotFound) as raised:
        paths_of(*RULE).resolve("GET", path)
    for part in said:
        assert part in raised.value.detail


def test_a_service_without_endpoints() -> None:
    with pytest.raises(NotFound, match="there is none"):
        paths_of(entry("empty")).resolve("GET", "/empty")


def test_methods_of_the_rule() -> None:
    with pytest.raises(MethodNotAllowed, match="TRACE is not for /foo; use DELETE, GET, PATCH"):
        paths_of(*RULE).resolve("TRACE", "/foo")


def test_templates_win_over_the_rule() -> None:
    paths = paths_of(
        entry("users", "Users.List", Users_Read="GET /users/{id}", Users_Me="GET /users/me"),
        entry("other", Other_Any="* /users/{x}/y"),
    )
    assert found(paths, "GET", "/users/5") == ("users", "Users.Read")
    assert dict(paths.resolve("GET", "/users/5").fields) == {"id": "5"}
    assert found(paths, "GET", "/users/list") == ("users", "Users.Read")
    assert found(paths, "GET", "/users/me") == ("users", "Users.Me")
    for method in ("GET", "POST", "PATCH"):
        assert found(paths, method, "/users/5/y") == ("other", "Other.Any")


def test_a_template_of_another_method_leaves_the_path_to_the_rule() -> None:
    paths = paths_of(entry("users", "Users.List", Users_Read="GET /users/{id}"))
    assert found(paths, "POST", "/users/list") == ("users", "Users.List")
    with pytest.raises(MethodNotAllowed, match="POST is not for /users/5; use GET"):
        paths.resolve("POST", "/users/5")


def test_the_more_specific_template_wins() -> None:
    paths = paths_of(
        entry("a", A_Deep="GET /x/{rest=**}", A_One="GET /x/{id}", A_Two="GET /x/{id}/y"),
        entry("b", B_Literal="GET /x/here"),
    )
    assert found(paths, "GET", "/x/here") == ("b", "B.Literal")
    assert found(paths, "GET", "/x/1/y") == ("a", "A.Two")
    assert found(paths, "GET", "/x/1") == ("a", "A.One")
    assert found(paths, "GET", "/x/1/2/3") == ("a", "A.Deep")


def test_two_services_that_bind_the_same_template() -> None:
    """The first by name gets it, whatever the order of the table."""
    one, two = entry("one", One_Get="GET /same/{id}"), entry("two", Two_Get="GET /same/{id}")
    for rows in ((one, two), (two, one)):
        assert found(paths_of(*rows), "GET", "/same/1") == ("one", "One.Get")


def test_a_template_without_a_literal_takes_no_path_of_others() -> None:
    paths = paths_of(
        entry("store", "Store.Read"),
        entry("greedy", Greedy_All="* /{rest=**}", Greedy_Short="GET /{code}"),
    )
    assert found(paths, "GET", "/store/read") == ("store", "Store.Read")
    assert found(paths, "GET", "/abc") == ("greedy", "Greedy.Short")
    assert found(paths, "POST", "/store/nothing") == ("greedy", "Greedy.All")
    assert found(paths, "PROPFIND", "/store/read") == ("greedy", "Greedy.All")


@pytest.mark.parametrize("bad", ["no-slash", "/{", "/{a}/{a}", "/**/**", "/" + "x" * 600, "", " "])
def test_a_bad_template_is_passed_over(bad: str) -> None:
    paths = paths_of(entry("a", A_Bad=f"GET {bad}"), entry("b", B_Good=f"GET {bad},/good"))
    assert found(paths, "GET", "/good") == ("b", "B.Good")
    assert found(paths, "GET", "/a/bad") == ("a", "A.Bad")


def test_an_endpoint_binds_so_many_templates() -> None:
    text = ",".join(f"/t{i}" for i in range(MAX_TEMPLATES + 1))
    paths = paths_of(entry("a", A_Many=f"GET {text}"))
    assert found(paths, "GET", f"/t{MAX_TEMPLATES - 1}") == ("a", "A.Many")
    with pytest.raises(NotFound):
        paths.resolve("GET", f"/t{MAX_TEMPLATES}")


@pytest.mark.parametrize(
    ("path", "raw", "why"),
    [
        ("/a%zz", b"/a%zz", "hexadecimal"),
        ("/a%", b"/a%", "hexadecimal"),
        ("/a%4", b"/a%4", "hexadecimal"),
        ("/a\0", b"/a%00", "control"),
        ("/a\r\nb", b"/a%0d%0ab", "control"),
        ("/a\x7f", b"/a%7f", "control"),
        ("/a/../b", b"/a/../b", "'..'"),
        ("/a/./b", b"/a/./b", "'.'"),
        ("/..", b"/%2e%2e", "'..'"),
        ("/a/.", b"/a/.", "'.'"),
        ("/\ufffd\ufffd", b"/%c0%af", "UTF-8"),
        ("/\ufffd\ufffd\ufffd", b"/%ed%a0%80", "UTF-8"),
        ("/\ufffd", b"", "UTF-8"),
        ("/" + "a" * MAX_PATH, b"", "4096"),
    ],
)
def test_bad_paths(path: str, raw: bytes, why: str) -> None:
    paths = paths_of(entry("a", A_Any="GET /{x=**}"))
    for _ in range(2):
        with pytest.raises(BadRequest, match=why):
            paths.resolve("GET", path, raw)


def test_good_paths_that_look_bad() -> None:
    paths = paths_of(entry("a", A_Any="GET /{x=**}"))
    for path, raw in (
        ("/a...b", b""),
        ("/...", b""),
        ("/%zz", b"/%25zz"),
        ("/\ufffd", b"/%ef%bf%bd"),
        ("/ä\U0001f600", b""),
        ("/" + "a" * (MAX_PATH - 1), b""),
    ):
        assert dict(paths.resolve("GET", path, raw).fields) == {"x": path[1:]}


def test_one_spelling_of_a_path_does_not_admit_another() -> None:
    paths = paths_of(entry("a", A_Any="GET /{x=**}"))
    assert paths.resolve("GET", "/%zz", b"/%25zz").fields == {"x": "%zz"}
    with pytest.raises(BadRequest):
        paths.resolve("GET", "/%zz", b"/%zz")


def test_a_change_of_the_table_counts_at_once() -> None:
    table = table_of(entry("foo", "Foo.Call"))
    paths = Paths(table, "micro")
    assert found(paths, "GET", "/foo") == ("foo", "Foo.Call")
    gone = (("micro", "foo", "latest"),)
    new = entry("bar", Bar_Get="GET /foo")
    table.apply(Delta(epoch="test", revision=2, entries=(new,), gone_entries=gone))
    assert found(paths, "GET", "/foo") == ("bar", "Bar.Get")


def test_other_namespaces_are_not_there() -> None:
    with pytest.raises(NotFound):
        Paths(table_of(*RULE), "other").resolve("GET", "/foo")


def test_what_is_remembered_is_bounded() -> None:
    paths = paths_of(entry("a", A_Any="GET /x/{id}"))
    for number in range(CACHE + 10):
        paths.resolve("GET", f"/x/{number}")
    paths.resolve("GET", "/x/" + "y" * CACHED_PATH)
    assert 0 < len(paths._cache) <= CACHE
    assert max(len(path) for _, path in paths._cache) <= CACHED_PATH


def test_templates_are_read_once() -> None:
    """A table that changes often, as under a rolling update, does not cost its templates anew."""
    table = table_of(entry("a", A_Get="GET /x/{id}"))
    paths = Paths(table, "micro")
    paths.resolve("GET", "/x/1")
    before = paths._first[0].template
    table.apply(Delta(epoch="test", revision=2))
    paths.resolve("GET", "/x/1")
    assert paths._first[0].template is before
    table.apply(Delta(epoch="test", revision=3, gone_entries=(("micro", "a", "latest"),)))
    with pytest.raises(NotFound):
        paths.resolve("GET", "/x/1")
    assert not paths._read


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/users/5", ["GET", "PATCH", "PUT"]),
        ("/any/5", ["DELETE", "GET", "PATCH", "POST", "PUT"]),
        ("/users/list", ["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ("/foo", ["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ("/nothing", ["GET", "POST", "PUT", "PATCH", "DELETE"]),
    ],
)
def test_allowed_methods(path: str, methods: list[str]) -> None:
    paths = paths_of(
        entry("foo", "Foo.Call"),
        entry(
            "users",
            "Users.List",
            Users_Read="GET /users/{id}",
            Users_Write="PUT,PATCH /users/{id}",
            Users_Any="* /any/{id}",
        ),
    )
    assert paths.allowed(path) == methods


def test_what_reads_and_what_is_bytes() -> None:
    raw = {"type": "string", "contentEncoding": "binary"}
    metadata = {"path": "/f/{n}", "method": "GET"}
    up = Endpoint(name="Files.Put", request=raw)
    down = Endpoint(name="Files.Get", response=raw, metadata=metadata)
    paths = Paths(
        table_of(Entry(namespace="micro", service="files", version="1", endpoints=(up, down))),
        "micro",
    )
    put, get = paths.resolve("POST", "/files/put"), paths.resolve("GET", "/f/1")
    assert (put.raw_in, put.raw_out, put.read) == (True, False, False)
    assert (get.raw_in, get.raw_out, get.read) == (False, True, True)
    assert not paths.resolve("GET", "/files/get").read  # by the rule, any endpoint has a GET


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("* /auth/auth/token", "/auth/auth/token"),
        ("POST /auth/{a}/{b}", "/auth/Auth/Token"),
        ("* /auth/**", "//auth//auth/to-ken/"),
        ("* /AUTH/auth/token", "/AUTH/auth/token"),
        ("* /auth/token", "/auth/token"),
        ("* /Auth/{rest=**}", "/Auth/accounts/change_secret"),
    ],
)
def test_no_service_takes_what_is_said_to_the_platform(template: str, path: str) -> None:
    """It would be told secrets: of who logs in, of who changes his."""
    auth = entry("auth", "Auth.Token", "Accounts.ChangeSecret")
    other = entry("other", Other_Take=template)
    paths = paths_of(auth, other)
    for _ in range(2):  # what is remembered, too
        assert found(paths, "POST", path)[0] == "auth"


def test_paths_that_the_platform_does_not_have_may_be_bound() -> None:
    events = entry("events", "Events.Read")
    shop = entry("shop", Shop_One="GET /events/{id}", Shop_All="GET /api/things")
    paths = paths_of(events, shop)
    assert found(paths, "GET", "/events/42") == ("shop", "Shop.One")
    assert found(paths, "GET", "/api/things") == ("shop", "Shop.All")
    assert found(paths, "GET", "/events/read") == ("events", "Events.Read")
