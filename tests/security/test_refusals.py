"""Every verb of every service, over every way in, with every credential that is none."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from tests.security.credentials import BAD, FRAMES
from tests.security.guarded import WAYS, Guarded, Verb, guarded

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: What nobody may do, so that he can become somebody, and know whose word he has.
PUBLIC = {
    "auth:Auth.Token", "auth:Auth.Refresh", "auth:Auth.Keys", "router:Router.Watch",
    "certs:Certs.Sign", "certs:Certs.Roots", "certs:Certs.Watch",
}  # fmt: skip
#: Seconds after which a call that was let in is given up.
LET_IN = 0.5
#: Calls at a time.
AT_ONCE = 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at() -> AsyncIterator[Guarded]:
    async with guarded() as found:
        yield found


async def refused(at: Guarded, way: str, name: str) -> list[str]:
    """What a credential was let in for, or refused with another code."""
    make = {**BAD, **FRAMES}[name]
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(verb: Verb) -> str:
        head, wanted = await make(at, verb)
        async with turn:
            code, said = await at.code(way, verb, head)
        return "" if code == wanted else f"{verb}: {code} instead of {wanted}: {said[:200]}"

    await make(at, Verb(service="x", endpoint="X.Y"))  # accounts and rules are made once
    # A credential that is none is refused everywhere; nobody is let in to what is public.
    public = PUBLIC if name in ("nobody", "another_namespace", "no_scope", FOREIGN) else set()
    verbs = [verb for verb in at.verbs() if str(verb) not in public]
    return [wrong for wrong in await asyncio.gather(*map(one, verbs)) if wrong]


FOREIGN = "a_replica_that_speaks_for_another"


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("way", WAYS)
async def test_no_verb_is_open_to(at: Guarded, way: str, name: str) -> None:
    assert await refused(at, way, name) == []


@pytest.mark.parametrize("way", ["http", "grpc"])
async def test_no_certificate_is_had_through_a_door(at: Guarded, way: str) -> None:
    """A door comes by the socket that only the platform's own user may open: whoever stands before
    it does not."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, None)
    request = base64.b64encode(made.public_bytes(Encoding.DER)).decode()
    tokens = await at.authority.login(f"signer-{way}", scopes=("admin",))
    verb = Verb(service="certs", endpoint="Certs.Sign")
    for head in ({}, {"authorization": f"Bearer {tokens.access}"}):
        for more in ({}, {"identity": "micro://micro/helloworld/helloworld-1"}):
            body = json.dumps({"request": request, **more}).encode()
            code, said = await at.code(way, verb, head, body)
            assert code == 403, said
            assert "who are you" in said


@pytest.mark.parametrize("name", FRAMES)
async def test_no_service_takes(at: Guarded, name: str) -> None:
    assert await refused(at, "frames", name) == []


@pytest.mark.parametrize("way", WAYS)
async def test_the_same_calls_are_let_in(at: Guarded, way: str) -> None:
    """So that what the others show is not that nothing works."""
    tokens = await at.authority.login(f"good-{way}", scopes=("admin",))
    head = {"authorization": f"Bearer {tokens.access}"}
    found = {str(verb): await at.code(way, verb, head, within=LET_IN) for verb in at.verbs()}
    assert len(found) > 70
    # What takes more than an account that administers says so by itself.
    own = {"authcache:AuthCache.Renew"}
    shut = {verb: code for verb, code in found.items() if code[0] in (401, 403)}
    assert set(shut) <= own, shut
