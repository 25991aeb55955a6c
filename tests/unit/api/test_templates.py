"""Path templates: what they match, capture and refuse, and that no path makes them slow."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_ray.api.templates import MAX_TEMPLATE, parse


@pytest.mark.parametrize(
    ("template", "path", "fields"),
    [
        ("/users/{id}", "/users/5", {"id": "5"}),
        ("/users/{id}", "/users/5/", {"id": "5"}),
        ("/users/{id}", "/users/a%20b", {"id": "a%20b"}),
        ("/users/{id}", "/users/", None),
        ("/users/{id}", "/users/5/6", None),
        ("/users/{id}", "/Users/5", None),
        ("/users/{user.id}", "/users/5", {"user.id": "5"}),
        ("/u/{my__id}", "/u/5", {"my__id": "5"}),
        ("/files/{name=**}", "/files/a/b.txt", {"name": "a/b.txt"}),
        ("/files/{name=**}", "/files/", {"name": ""}),
        ("/files/{name=**}", "/files", None),
        ("/files/{name=**}", "/files/a\nb", {"name": "a\nb"}),
        ("/files/{name=docs/*}", "/files/docs/x", {"name": "docs/x"}),
        ("/files/{name=docs/*}", "/files/x/x", None),
        ("/files/{name}.json", "/files/a.json", {"name": "a"}),
        ("/files/{name}.json", "/files/aXjson", None),
        ("/a/*/c", "/a/b/c", {}),
        ("/a/*/c", "/a/b/d/c", None),
        ("/a/**", "/a/b/c/d", {}),
        ("/a/**/z", "/a/b/c/z", {}),
        ("/a+b", "/a+b", {}),
        ("/a+b", "/aab", None),
        ("/{a}/{b}", "/1/2", {"a": "1", "b": "2"}),
    ],
)
def test_matches(template: str, path: str, fields: dict[str, str] | None) -> None:
    assert parse(template).match(path) == fields


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("users", "begins with '/'"),
        ("", "begins with '/'"),
        ("/users/{id", "no part"),
        ("/users/}", "no part"),
        ("/users/{}", "no part"),
        ("/users/{1}", "no part"),
        ("/users/{a.}", "no part"),
        ("/users/{a=b{c}}", "no part"),
        ("/users/{id}/{id}", "twice"),
        ("/{a=**}/{b=**}", "once at most"),
        ("/**/x/**", "once at most"),
        ("/{a=**/b/**}", "once at most"),
        ("/{a}{b}", "one variable"),
        ("/{a}-{b}", "one variable"),
        ("/*{a}", "one variable"),
        ("/***", "one variable"),
        ("/{a=x*}", "whole segments"),
        ("/a?b", "a path"),
        ("/a#b", "a path"),
        ("/a\nb", "a path"),
        ("/" + "a" * MAX_TEMPLATE, "at most"),
    ],
)
def test_says_what_is_wrong(template: str, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("*", r"\*")):
        parse(template)


def test_longest() -> None:
    assert parse("/" + "a" * (MAX_TEMPLATE - 1)).literals == 1


@pytest.mark.parametrize(
    ("template", "literals", "rests"),
    [("/users/me", 2, 0), ("/users/{id}", 1, 0), ("/{a}/**", 0, 1), ("/f/{n=a/**}", 1, 1)],
)
def test_how_specific(template: str, literals: int, rests: int) -> None:
    found = parse(template)
    assert (found.literals, found.rests) == (literals, rests)


@pytest.mark.parametrize(
    ("template", "shown", "parameters"),
    [
        ("/users/{id}", "/users/{id}", ("id",)),
        ("/files/{name=**}", "/files/{name}", ("name",)),
        ("/a/*/b/*", "/a/{segment}/b/{segment2}", ("segment", "segment2")),
        ("/a/**", "/a/{rest}", ("rest",)),
        ("/f/{name}.json", "/f/{name}.json", ("name",)),
    ],
)
def test_as_openapi_writes_it(template: str, shown: str, parameters: tuple[str, ...]) -> None:
    found = parse(template)
    assert (found.shown, found.parameters) == (shown, parameters)


@pytest.mark.parametrize(
    "template",
    ["/" + "*/" * 200 + "**/x", "/{a=**}/b/{c}/d", "/**/" + "a/" * 200, "/*x" * 100 + "/y"],
)
@pytest.mark.parametrize("piece", ["a/", "/", "x/", "ax/", "a"])
def test_no_path_is_slow(template: str, piece: str) -> None:
    """Time grows with the path, not with a power of it. The time is the processor's, of the best of
    three, so that a busy machine does not count."""
    found = parse(template[:MAX_TEMPLATE])
    path = "/" + piece * (4000 // len(piece))
    took = []
    for _ in range(3):
        begun = time.thread_time()
        found.match(path)
        took.append(time.thread_time() - begun)
    assert min(took) < 0.1


SEGMENT = st.text(st.characters(exclude_characters="/{}*?#", min_codepoint=33), min_size=1)


@given(st.lists(SEGMENT, min_size=1, max_size=5))
def test_literal_text_is_literal(segments: list[str]) -> None:
    text = "/" + "/".join(segments)
    if len(text) <= MAX_TEMPLATE:
        assert parse(text).match(text) == {}
        assert parse(text).match(text + "x") is None


@given(st.text("/{}*=ab.", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except ValueError:
        return
    match = found.match(text.replace("{", "").replace("}", ""))
    assert match is None or set(match) == set(found.fields)
