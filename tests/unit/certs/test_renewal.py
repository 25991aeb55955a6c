"""A credential that stays fresh."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from micro_ray.certs import Credential, Identity, Issued
from micro_ray.certs.local import LocalAuthority
from micro_ray.certs.renewal import Renewal
from micro_ray.errors import Unavailable
from tests.fixtures.wait import eventually

STORE = Identity(namespace="micro", service="store", node="store-0")


class Far:
    """An authority that may be out of reach, and a wall clock that may be put forward or back."""

    def __init__(self, folder: Path) -> None:
        self.by = 0.0
        self.away = False
        self.asked = 0
        self.authority = LocalAuthority(folder, now=self.now)

    def now(self) -> float:
        return time.time() + self.by

    async def issue(self, request: bytes) -> Issued:
        self.asked += 1
        if self.away:
            raise Unavailable("certs", "the authority is away")
        return await self.authority.issue(request, STORE, ttl=3600)


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path)


async def test_a_third_before_its_end_it_is_new(far: Far) -> None:
    used: list[Credential] = []
    async with Renewal(far.issue, use=used.append, now=far.now, look=0.01) as renewal:
        first = renewal.credential
        far.by = 0.5 * 3600
        assert renewal.renewed == 0
        far.by = 0.8 * 3600
        await eventually(lambda: renewal.renewed == 1)
        assert renewal.credential.key != first.key
        assert renewal.credential.issued.ends > first.issued.ends
        assert used == [first, renewal.credential]


@pytest.mark.parametrize("jump", [-7 * 86_400.0, 7 * 86_400.0])
async def test_a_clock_that_jumps(far: Far, jump: float) -> None:
    """What is of another time is renewed at once, and then no more."""
    async with Renewal(far.issue, now=far.now, look=0.01) as renewal:
        far.by = jump
        await eventually(lambda: renewal.renewed == 1)
        issued = renewal.credential.issued
        assert issued.begins <= far.now() < issued.ends


async def test_an_authority_that_is_away(far: Far) -> None:
    async with Renewal(far.issue, now=far.now, look=0.01) as renewal:
        first = renewal.credential
        await renewal.examine()
        far.away, far.by = True, 0.8 * 3600
        await eventually(lambda: far.asked >= 3, within=20)
        assert renewal.credential is first
        with pytest.raises(Unavailable, match=r"not renewed .*away"):
            await renewal.examine()
        far.away = False
        await eventually(lambda: renewal.renewed == 1, within=20)
        await renewal.examine()


async def test_without_a_first_one_there_is_none(far: Far) -> None:
    far.away = True
    with pytest.raises(Unavailable, match="away"):
        async with Renewal(far.issue):
            pass
