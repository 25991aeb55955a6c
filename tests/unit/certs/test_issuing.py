"""The service certs: what it keeps through a kill, and when a change of keys may go on."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from micro_ray.certs import Identity, Roots
from micro_ray.certs import book as book_module
from micro_ray.certs.book import Book, Entry
from micro_ray.certs.issuing import SOON, LocalCerts
from micro_ray.certs.keys import new_key, signing_request
from micro_ray.certs.local import LIFE, LocalAuthority
from micro_ray.errors import BadRequest, Forbidden, TooManyRequests, Unavailable
from tests.fixtures.wait import eventually


class Clock:
    """A wall clock that is put forward."""

    def __init__(self) -> None:
        self.by = 0.0

    def __call__(self) -> float:
        return time.time() + self.by


@pytest.fixture
def clock() -> Clock:
    return Clock()


def who(node: str = "orders-0") -> Identity:
    return Identity(namespace="micro", service="orders", node=node)


@asynccontextmanager
async def certs(folder: Path, clock: Clock, **options: Any) -> AsyncIterator[LocalCerts]:
    given: dict[str, Any] = {"settle": 0.0, "look": 0.01, "now": clock, **options}
    async with LocalCerts(folder, **given) as opened:
        yield opened


def states(roots: Roots) -> list[str]:
    return [root.state for root in roots.roots]


async def test_what_it_keeps_is_for_its_owner_alone(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "certs"
    async with certs(folder, clock) as opened:
        ticket = await opened.ticket(who())
        await opened.sign(signing_request(new_key()), ticket=ticket.secret)
        await opened.renew()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("authority.pem", "tickets.key", "issued.log"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    assert ticket.secret not in repr(ticket)


async def test_a_killed_one_leaves_all_that_it_answered(tmp_path: Path, clock: Clock) -> None:
    """Tickets that are out stay good, used ones used, and the list is what it was."""
    request = signing_request(new_key())
    async with certs(tmp_path, clock) as first:
        out, used = await first.ticket(who("a")), await first.ticket(who("b"))
        await first.sign(request, ticket=used.secret)
        listed = await first.list()
    with (tmp_path / "issued.log").open("a") as file:
        file.write('{"identity": "spif')  # it was being written
    async with certs(tmp_path, clock) as second:
        assert await second.list() == listed
        await second.sign(request, ticket=used.secret)
        with pytest.raises(Forbidden, match="used already"):
            await second.sign(signing_request(new_key()), ticket=used.secret)
        await second.sign(signing_request(new_key()), ticket=out.secret)
    async with certs(tmp_path, clock) as second:
        assert [c.node for c in await second.list()] == ["a", "b"]


async def test_what_has_ended_is_not_listed(tmp_path: Path, clock: Clock) -> None:
    async with certs(tmp_path, clock) as opened:
        await opened.issue(signing_request(new_key()), who("short"), ttl=60)
        await opened.issue(signing_request(new_key()), who("long"))
        clock.by = 100
        assert [c.node for c in await opened.list()] == ["long"]
        issued = await opened.issue(signing_request(new_key()), who(), ttl=86_400)
        assert issued.ends - issued.begins <= 3661
        with pytest.raises(BadRequest, match="ttl"):
            await opened.issue(signing_request(new_key()), who(), ttl=1)


async def test_a_new_key_waits_for_those_who_do_not_trust_it(tmp_path: Path, clock: Clock) -> None:
    async with certs(tmp_path, clock) as opened:
        for node in ("a", "b"):
            await opened.issue(signing_request(new_key()), who(node))
        assert states(await opened.renew()) == ["next", "signs"]
        await opened.issue(signing_request(new_key()), who("a"))
        await _looked(opened)
        assert states(await opened.roots()) == ["next", "signs"]
        assert states(await opened.renew()) == ["next", "signs"]  # one change at a time
        await opened.issue(signing_request(new_key()), who("b"))
        await eventually(lambda: _are(opened, ["signs", "former"]))
        await opened.issue(signing_request(new_key()), who("a"))
        await _looked(opened)
        assert states(await opened.roots()) == ["signs", "former"]
        await opened.issue(signing_request(new_key()), who("b"))
        await eventually(lambda: _are(opened, ["signs"]))


async def test_of_a_process_that_died_it_waits_for_the_end(tmp_path: Path, clock: Clock) -> None:
    async with certs(tmp_path, clock) as opened:
        await opened.issue(signing_request(new_key()), who("dead"), ttl=600)
        await opened.renew()
        await _looked(opened)
        assert states(await opened.roots()) == ["next", "signs"]
        clock.by = 601
        await eventually(lambda: _are(opened, ["signs"]))


async def test_a_change_goes_on_after_a_kill(tmp_path: Path, clock: Clock) -> None:
    async with certs(tmp_path, clock) as opened:
        await opened.issue(signing_request(new_key()), who("a"))
        before = await opened.renew()
    async with certs(tmp_path, clock) as opened:
        assert await opened.roots() == before
        await opened.issue(signing_request(new_key()), who("a"))
        await eventually(lambda: _are(opened, ["signs", "former"]))


async def test_a_next_key_that_signs_already(tmp_path: Path) -> None:
    """The machine stopped between its taking over and the removal of its file."""
    authority = LocalAuthority(tmp_path)
    await authority.prepare()
    await authority.prepare()
    kept = (tmp_path / "next.pem").read_bytes()
    await authority.rotate()
    (tmp_path / "next.pem").write_bytes(kept)
    assert states(await authority.roots()) == ["signs", "former"]
    await authority.prepare()
    assert states(await authority.roots()) == ["next", "signs", "former"]


async def test_an_examination_says_when_the_key_ends(tmp_path: Path, clock: Clock) -> None:
    async with certs(tmp_path, clock) as opened:
        (finding,) = await opened.examine()
        assert finding.good
        clock.by = LIFE - SOON + 86_400
        (finding,) = await opened.examine()
        assert not finding.good
        assert "micro certs renew" in finding.text
        (tmp_path / "authority.pem").write_text("no key")
        (finding,) = await opened.examine()
        assert not finding.good


def entry(node: str, ends: float, ticket: str = "") -> Entry:
    uri = who(node).uri
    return Entry(
        identity=uri, begins=0.0, ends=ends, root="r", knows=("r",), key="k", ticket=ticket,
        until=ends,
    )  # fmt: skip


def test_the_book_is_written_anew_when_it_is_mostly_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "SPARE", 10)
    now = 100.0
    book = Book(tmp_path / "b", now=lambda: now)
    book.enter(entry("old", ends=200, ticket="t"))
    for _ in range(50):
        book.enter(entry("one", ends=1000))
    assert (tmp_path / "b").read_text().count("\n") <= 16
    again = Book(tmp_path / "b", now=lambda: now)
    again.load()
    assert [e.identity for e in again.live] == [who("old").uri, who("one").uri]
    assert again.used("t") is not None
    now = 300.0
    for _ in range(20):
        again.enter(entry("one", ends=1000))
    assert all(
        json.loads(line)["ticket"] == "" for line in (tmp_path / "b").read_text().splitlines()
    )


def test_the_book_is_bounded(tmp_path: Path) -> None:
    now = 100.0
    book = Book(tmp_path / "b", most=2, now=lambda: now)
    book.enter(entry("a", ends=200))
    book.check_room()
    book.enter(entry("b", ends=300))
    with pytest.raises(TooManyRequests, match="2 certificates are alive"):
        book.check_room()
    now = 250.0
    book.check_room()


def test_a_book_that_cannot_be_written(tmp_path: Path) -> None:
    book = Book(tmp_path / "none" / "b")
    with pytest.raises(Unavailable, match="cannot be written"):
        book.enter(entry("a", ends=1))


async def _are(opened: LocalCerts, wanted: list[str]) -> bool:
    return states(await opened.roots()) == wanted


async def _looked(opened: LocalCerts) -> None:
    """It has looked a few times whether the change can go on."""
    after = opened.looks + 3
    await eventually(lambda: opened.looks > after)
