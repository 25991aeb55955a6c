"""The local authority: what it issues, refuses and keeps."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from micro_ray.certs import Identity
from micro_ray.certs.keys import new_key, signing_request
from micro_ray.certs.local import LocalAuthority
from micro_ray.errors import BadRequest, Unavailable

STORE = Identity(namespace="micro", service="store", node="store-0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "certs"


async def test_what_it_issues_says_who_and_nothing_else(folder: Path) -> None:
    issued = await LocalAuthority(folder).issue(signing_request(new_key()), STORE, ttl=600)
    made = x509.load_pem_x509_certificate(issued.certificate)
    (trusted,) = x509.load_pem_x509_certificates(issued.trusted)
    made.verify_directly_issued_by(trusted)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["spiffe://micro/micro/store/store-0"]
    assert not list(made.subject)
    constraints = made.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca
    assert made.not_valid_after_utc.timestamp() == issued.ends
    assert issued.ends - issued.begins == 660


async def test_its_file_is_for_its_owner_alone(folder: Path) -> None:
    await LocalAuthority(folder).trusted()
    mode = (folder / "authority.pem").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


async def test_several_that_start_together_are_one(folder: Path) -> None:
    found = await asyncio.gather(*(LocalAuthority(folder).trusted() for _ in range(8)))
    assert len(set(found)) == 1


async def test_it_is_the_same_after_a_restart(folder: Path) -> None:
    before = await LocalAuthority(folder).trusted()
    assert await LocalAuthority(folder).trusted() == before


async def test_rotation(folder: Path) -> None:
    authority = LocalAuthority(folder)
    first = await authority.trusted()
    await authority.rotate()
    both = await authority.trusted()
    assert both.endswith(first)
    assert len(x509.load_pem_x509_certificates(both)) == 2
    issued = await authority.issue(signing_request(new_key()), STORE, ttl=600)
    newest = x509.load_pem_x509_certificates(both)[0]
    x509.load_pem_x509_certificate(issued.certificate).verify_directly_issued_by(newest)
    await authority.retire()
    assert x509.load_pem_x509_certificates(await authority.trusted()) == [newest]


def _other_key() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.PEM)


def _other_curve() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    key = ec.generate_private_key(ec.SECP384R1())
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _not_its_own() -> bytes:
    """A request for a key that the asker does not have: its signature has one bit changed."""
    read = x509.load_pem_x509_csr(signing_request(new_key()))
    der = bytearray(read.public_bytes(Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (lambda: b"", "not a signing request"),
        (lambda: b"x" * 9000, "8192 bytes"),
        (_other_key, "P-256"),
        (_other_curve, "P-256"),
        (_not_its_own, "own key"),
    ],
)
async def test_requests_that_are_refused(folder: Path, request_, word: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadRequest, match=word):
        await LocalAuthority(folder).issue(request_(), STORE, ttl=600)


@pytest.mark.parametrize("ttl", [0, 59, 31 * 86_400, float("nan"), float("inf")])
async def test_lifetimes_that_are_refused(folder: Path, ttl: float) -> None:
    with pytest.raises(BadRequest, match="ttl"):
        await LocalAuthority(folder).issue(signing_request(new_key()), STORE, ttl=ttl)


async def test_a_file_that_is_damaged_is_not_replaced(folder: Path) -> None:
    await LocalAuthority(folder).trusted()
    path = folder / "authority.pem"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Unavailable, match="cannot be read"):
        await LocalAuthority(folder).trusted()
    assert len(path.read_bytes()) == 100


@pytest.mark.parametrize("word", ["", "a/b", "a b", "-a", "é", "a" * 300, "a\n"])
def test_words_that_no_identity_has(word: str) -> None:
    with pytest.raises(BadRequest, match="letters"):
        Identity(namespace="micro", service=word, node="n")


@pytest.mark.parametrize(
    "uri", ["", "spiffe://other/a/b/c", "spiffe://micro/a/b", "spiffe://micro/a/b/c/d"]
)
def test_uris_that_are_no_identity(uri: str) -> None:
    with pytest.raises(BadRequest, match="not an identity"):
        Identity.parse(uri)


def test_a_uri_says_who() -> None:
    assert Identity.parse(STORE.uri) == STORE
