"""Keys and signing requests of the process that wants an identity."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

__all__ = ["new_key", "prove", "signed_text", "signing_request"]


def new_key() -> bytes:
    """A new private key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def signing_request(key: bytes) -> bytes:
    """A signing request (PKCS#10, PEM) for a key, which says nothing but the public key: who it is
    for is the authority's to say."""
    private = load_pem_private_key(key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(private, hashes.SHA256()).public_bytes(Encoding.PEM)


def signed_text(request: bytes) -> bytes:
    """What is signed to prove that a request comes from who has a certificate: never a text that
    anything else signs."""
    return b"micro renewal\0" + request


def prove(key: bytes, request: bytes) -> bytes:
    """The signature of a signing request (for a new key) by the key of the present certificate."""
    private = load_pem_private_key(key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return private.sign(signed_text(request), ec.ECDSA(hashes.SHA256()))
