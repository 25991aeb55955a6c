"""The local authority: its keys are in a file of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from micro_ray.certs import Authority, Identity, Issued, Root, Roots
from micro_ray.certs.keys import signed_text
from micro_ray.errors import BadRequest, Forbidden, MicroError, Unavailable
from micro_ray.files import locked, replace_file

__all__ = ["LocalAuthority", "public_key"]

#: Seconds that a certificate may live, and that one is valid before it was made, for clocks that
#: are behind.
TTL = (60.0, 30 * 86_400.0)
BEFORE = 60.0
#: Seconds that a key of the authority lives; certificates end before it does.
LIFE = 10 * 365 * 86_400.0
#: Seconds after its end that a certificate can be renewed: its process was asleep, or the authority
#: was away.
LATE = 86_400.0
MAX_REQUEST = 8 * 2**10
_BOTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])


class LocalAuthority(Authority):
    """``folder`` gets ``authority.pem`` (mode 0600): the private key, its certificate, then those
    of former keys that are still trusted. The next key is in ``next.pem`` while it is prepared.
    Several processes of one machine may have them open: each verb reads the files, and they are
    changed under a lock.

    Raises Unavailable when the file cannot be read or written.
    """

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._path = folder / "authority.pem"
        self._next = folder / "next.pem"
        self._now = now

    async def issue(self, request: bytes, identity: Identity, *, ttl: float) -> Issued:
        if not TTL[0] <= ttl <= TTL[1]:
            raise BadRequest("certs", f"ttl {ttl:g}: {TTL[0]:g} to {TTL[1]:g} seconds")
        public = public_key(request)
        return await asyncio.to_thread(self._issue, public, identity, ttl)

    async def trusted(self) -> bytes:
        return (await self.roots()).trusted

    async def roots(self) -> Roots:
        return await asyncio.to_thread(self._roots)

    async def holder(self, request: bytes, certificate: bytes, proof: bytes) -> Identity:
        """Whose certificate this is, if the request was signed by its key (:func:`keys.prove`).
        Raises Forbidden."""
        if len(certificate) > MAX_REQUEST or len(proof) > MAX_REQUEST:
            raise BadRequest("certs", f"a certificate or a proof of over {MAX_REQUEST} bytes")
        return await asyncio.to_thread(self._holder, request, certificate, proof)

    async def prepare(self) -> None:
        await asyncio.to_thread(self._prepare)

    async def rotate(self) -> None:
        await asyncio.to_thread(self._rotate)

    async def retire(self) -> None:
        await asyncio.to_thread(self._retire)

    def _issue(self, public: ec.EllipticCurvePublicKey, identity: Identity, ttl: float) -> Issued:
        key, every = self._load()
        begins = int(self._now() - BEFORE)
        ends = min(int(self._now() + ttl), int(every[0].not_valid_after_utc.timestamp()))
        built = (
            _builder(x509.Name([]), every[0].subject, public, begins, ends)
            # Critical, because the subject is empty.
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)]),
                critical=True,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(_BOTH, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        return Issued(
            certificate=built.public_bytes(Encoding.PEM),
            trusted=_pem([*self._prepared(every), *every]),
            begins=float(begins),
            ends=float(ends),
            identity=identity.uri,
        )

    def _roots(self) -> Roots:
        _, every = self._load()
        prepared = self._prepared(every)
        states = ["next"] * len(prepared) + ["signs"] + ["former"] * (len(every) - 1)
        return Roots(
            trusted=_pem([*prepared, *every]),
            roots=tuple(map(_root, [*prepared, *every], states)),
        )

    def _holder(self, request: bytes, certificate: bytes, proof: bytes) -> Identity:
        _, every = self._load()
        try:
            shown = x509.load_pem_x509_certificate(certificate)
            names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
            key = shown.public_key()
            assert isinstance(key, ec.EllipticCurvePublicKey)
            key.verify(proof, signed_text(request), ec.ECDSA(hashes.SHA256()))
            _signer(shown, every)
            identity = Identity.parse(uri)
        except (
            ValueError, TypeError, AssertionError, InvalidSignature, UnsupportedAlgorithm,
            x509.ExtensionNotFound, MicroError,
        ):  # fmt: skip
            raise Forbidden("certs", "the certificate is not ours, or not the caller's") from None
        ended = self._now() - shown.not_valid_after_utc.timestamp()
        if ended > LATE:
            raise Forbidden("certs", f"the certificate ended {ended:.0f} s ago")
        return identity

    def _prepared(self, every: list[x509.Certificate]) -> list[x509.Certificate]:
        """The certificate of the next key, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            _, (made, *_) = self._read(self._next)
            # It may have come to sign, and the machine stopped before its file was removed.
            return [] if made == every[0] else [made]
        return []

    def _prepare(self) -> None:
        _, every = self._load()
        with self._locked():
            if not self._prepared(every):
                self._make([], self._next)

    def _load(self) -> tuple[ec.EllipticCurvePrivateKey, list[x509.Certificate]]:
        """The key and the trusted; made when there are none yet. Blocks."""
        with contextlib.suppress(FileNotFoundError):
            return self._read()
        with self._locked():
            if not self._path.exists():  # another process may have been first
                self._make([])
        try:
            return self._read()
        except FileNotFoundError:
            raise Unavailable("certs", f"{self._path} has gone meanwhile") from None

    def _rotate(self) -> None:
        self._load()
        with self._locked():
            _, every = self._read()
            if self._prepared(every):
                key, (made, *_) = self._read(self._next)
                self._write(key, [made, *every])
            else:
                self._make(every)
            self._next.unlink(missing_ok=True)

    def _retire(self) -> None:
        self._load()
        with self._locked():
            key, every = self._read()
            self._write(key, every[:1])

    def _make(self, former: list[x509.Certificate], path: Path | None = None) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        # A name of its own, so that who has several to trust finds the one that signed.
        name = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, f"micro authority {os.urandom(6).hex()}")]
        )
        begins = int(self._now() - BEFORE)
        public = key.public_key()
        made = (
            _builder(name, name, public, begins, int(begins + LIFE))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )
        self._write(key, [made, *former], path)

    def _read(
        self, path: Path | None = None
    ) -> tuple[ec.EllipticCurvePrivateKey, list[x509.Certificate]]:
        path = path or self._path
        try:
            whole = path.read_bytes()
            key = load_pem_private_key(whole, None)
            every = x509.load_pem_x509_certificates(whole)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise Unavailable("certs", f"{path} cannot be read: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or (
            key.public_key() != every[0].public_key()
        ):
            raise Unavailable("certs", f"{path}: the key is not that of the certificate")
        return key, every

    def _write(
        self,
        key: ec.EllipticCurvePrivateKey,
        every: list[x509.Certificate],
        path: Path | None = None,
    ) -> None:
        """Whole or not at all, also when the machine stops."""
        path = path or self._path
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            replace_file(path, private + _pem(every))
        except OSError as error:
            raise Unavailable("certs", f"{path} cannot be written: {error}") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self._folder / "authority.lock"))
            except OSError as error:
                raise Unavailable("certs", f"{self._folder} cannot be written: {error}") from None
            yield


def public_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a signing request. Raises BadRequest for one that is not as it must be."""
    if len(request) > MAX_REQUEST:
        raise BadRequest("certs", f"a signing request of over {MAX_REQUEST} bytes")
    try:
        read = x509.load_pem_x509_csr(request)
        public = read.public_key()
        honest = read.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise BadRequest("certs", f"not a signing request: {error}") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
        raise BadRequest("certs", "the key of a signing request must be P-256")
    if not honest:
        raise BadRequest("certs", "the signing request is not signed by its own key")
    return public


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begins: int, ends: int
) -> x509.CertificateBuilder:
    def moment(seconds: int) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment(begins))
        .not_valid_after(moment(ends))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _root(made: x509.Certificate, state: str) -> Root:
    return Root(
        id=made.fingerprint(hashes.SHA256()).hex(),
        state=state,
        begins=made.not_valid_before_utc.timestamp(),
        ends=made.not_valid_after_utc.timestamp(),
    )


def _signer(shown: x509.Certificate, every: list[x509.Certificate]) -> x509.Certificate:
    """Who of the trusted has signed it. Raises InvalidSignature when nobody has."""
    for root in every:
        with contextlib.suppress(ValueError, TypeError, InvalidSignature):
            shown.verify_directly_issued_by(root)
            return root
    raise InvalidSignature


def _pem(every: list[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in every)
