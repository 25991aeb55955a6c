"""The suite of certs: the service itself, and over frames."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from micro_ray.certs import Certs, Identity, Issued
from micro_ray.certs.keys import new_key, prove, signing_request
from micro_ray.errors import BadRequest, Forbidden
from micro_ray.wire.certs import RemoteCerts
from tests.fixtures.offices import Office
from tests.fixtures.wait import eventually

STORE = Identity(namespace="micro", service="orders", node="orders-0")


@dataclass(frozen=True)
class Subject:
    """The way, and the service behind it, which makes tickets."""

    certs: Certs
    office: Office

    async def ticket(self, identity: Identity = STORE) -> str:
        return (await self.office.certs.ticket(identity)).secret


@pytest.fixture(params=["itself", "socket", "tcp"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    with tempfile.TemporaryDirectory(prefix="ct-") as folder:
        async with Office(Path(folder)).running() as office:
            if request.param == "itself":
                yield Subject(office.certs, office)
                return
            far = request.param == "tcp"
            trusted = (await office.certs.roots()).trusted
            remote = RemoteCerts(office.addresses[far:], trusted=trusted)
            try:
                yield Subject(remote, office)
            finally:
                await remote.close()


def named(issued: Issued) -> str:
    made = x509.load_pem_x509_certificate(issued.certificate)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    return str(uri)


async def test_a_ticket_gives_the_certificate_that_it_is_for(subject: Subject) -> None:
    issued = await subject.certs.sign(signing_request(new_key()), ticket=await subject.ticket())
    assert named(issued) == issued.identity == STORE.uri
    assert issued.trusted == (await subject.certs.roots()).trusted


async def test_a_ticket_is_good_for_one_key(subject: Subject) -> None:
    ticket, request = await subject.ticket(), signing_request(new_key())
    await subject.certs.sign(request, ticket=ticket)
    await subject.certs.sign(request, ticket=ticket)  # the answer was lost
    with pytest.raises(Forbidden, match="used already"):
        await subject.certs.sign(signing_request(new_key()), ticket=ticket)


async def test_of_two_who_come_with_a_ticket_one_gets_it(subject: Subject) -> None:
    ticket = await subject.ticket()
    done = await asyncio.gather(
        *(subject.certs.sign(signing_request(new_key()), ticket=ticket) for _ in range(6)),
        return_exceptions=True,
    )
    assert sorted(type(one).__name__ for one in done) == ["Forbidden"] * 5 + ["Issued"]


@pytest.mark.parametrize("ticket", ["x", "a.b", "é.b", "." * 5000, "e30=." + "0" * 64])
async def test_what_is_no_ticket(subject: Subject, ticket: str) -> None:
    with pytest.raises(Forbidden, match="no ticket of ours"):
        await subject.certs.sign(signing_request(new_key()), ticket=ticket)


async def test_a_ticket_that_was_changed_is_none(subject: Subject) -> None:
    body, _, mark = (await subject.ticket()).partition(".")
    other, _, _ = (
        await subject.ticket(Identity(namespace="micro", service="auth", node="a"))
    ).partition(".")
    with pytest.raises(Forbidden, match="no ticket of ours"):
        await subject.certs.sign(signing_request(new_key()), ticket=f"{other}.{mark}")
    assert body != other


async def test_a_ticket_has_its_time(subject: Subject) -> None:
    ticket = await subject.ticket()
    subject.office.by = 301.0
    with pytest.raises(Forbidden, match="over 300 s old"):
        await subject.certs.sign(signing_request(new_key()), ticket=ticket)


async def test_who_has_a_certificate_gets_another(subject: Subject) -> None:
    key = new_key()
    first = await subject.certs.sign(signing_request(key), ticket=await subject.ticket())
    request = signing_request(new_key())
    again = await subject.certs.sign(
        request, certificate=first.certificate, proof=prove(key, request)
    )
    assert named(again) == STORE.uri
    assert again.certificate != first.certificate


async def test_who_has_anothers_certificate_does_not(subject: Subject) -> None:
    key = new_key()
    first = await subject.certs.sign(signing_request(key), ticket=await subject.ticket())
    request = signing_request(new_key())
    for proof in (prove(new_key(), request), prove(key, signing_request(new_key())), b"", b"x"):
        with pytest.raises(Forbidden, match="not ours, or not the caller's"):
            await subject.certs.sign(request, certificate=first.certificate, proof=proof)


async def test_a_certificate_of_another_authority(subject: Subject, tmp_path: Path) -> None:
    key, request = new_key(), signing_request(new_key())
    async with Office(tmp_path).running() as other:
        theirs = await other.certs.issue(signing_request(key), STORE)
    with pytest.raises(Forbidden, match="not ours"):
        await subject.certs.sign(request, certificate=theirs.certificate, proof=prove(key, request))


@pytest.mark.parametrize(("late", "good"), [(3600.0 + 80_000, True), (3600.0 + 90_000, False)])
async def test_a_process_that_was_asleep(subject: Subject, late: float, good: bool) -> None:
    key, request = new_key(), signing_request(new_key())
    first = await subject.office.certs.issue(signing_request(key), STORE)
    subject.office.by = late
    proof = prove(key, request)
    if good:
        await subject.certs.sign(request, certificate=first.certificate, proof=proof)
        return
    with pytest.raises(Forbidden, match="ended"):
        await subject.certs.sign(request, certificate=first.certificate, proof=proof)


@pytest.mark.parametrize("request_", [b"", b"x" * 9000, b"-----BEGIN CERTIFICATE REQUEST-----"])
async def test_what_is_no_request(subject: Subject, request_: bytes) -> None:
    with pytest.raises(BadRequest, match="signing request"):
        await subject.certs.sign(request_, ticket=await subject.ticket())


async def test_whom_to_trust(subject: Subject) -> None:
    roots = await subject.certs.roots()
    assert [root.state for root in roots.roots] == ["signs"]
    assert len(x509.load_pem_x509_certificates(roots.trusted)) == 1


async def test_a_change_of_keys_is_told_step_by_step(subject: Subject) -> None:
    """It is the next, it signs beside the former, it is alone: each when it harms nobody."""
    seen: list[list[str]] = []
    ids: list[set[str]] = []

    async def watch() -> None:
        async for roots in subject.certs.watch():
            seen.append([root.state for root in roots.roots])
            ids.append({root.id for root in roots.roots})

    watching = asyncio.create_task(watch())
    try:
        await eventually(lambda: seen)
        await subject.office.certs.renew()
        await eventually(lambda: seen[-1] == ["signs"] and len(seen) > 1, within=20)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert seen == [["signs"], ["next", "signs"], ["signs", "former"], ["signs"]]
    assert ids[0] | ids[-1] == ids[1] == ids[2]
    assert not ids[0] & ids[-1]
