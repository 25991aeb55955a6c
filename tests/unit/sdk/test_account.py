"""What an account says to services, as its token changes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from micro_ray.sdk.account import FRESH, Account
from micro_ray.sdk.logins import Login, Logins
from micro_ray.settings import Bootstrap
from tests.fixtures.wait import eventually


async def test_a_pass_ends_with_the_token_that_it_is_of(tmp_path: Path) -> None:
    """Else a service would refuse it: the token behind it has ended."""
    asked: list[tuple[str, Mapping[str, str] | None]] = []

    async def ask(
        endpoint: str, request: Any, metadata: Mapping[str, str] | None
    ) -> dict[str, Any]:
        asked.append((endpoint, metadata))
        now = time.time()
        if endpoint == "Auth.Refresh":
            return {"access": "second", "expires": now + 900, "refresh": "r2"}
        of = (metadata or {})["authorization"].removeprefix("Bearer ")
        return {"metadata": {"authorization": f"Pass of {of}"}, "renew": now + 150}

    path = tmp_path / "credentials.json"
    known = Login(id="jane", namespace="micro", access="first", expires=time.time() + 900,
                  refresh="r1")  # fmt: skip
    logins = Logins(path)
    logins.write("here", known)
    boot = Bootstrap(registry=(), routers=(), namespace="micro", host="", run=tmp_path,
                     credentials=path, place="here")  # fmt: skip
    account = Account(boot, ask)
    for _ in range(2):
        assert await account.to("micro", "shop") == {"authorization": "Pass of first"}
    assert [endpoint for endpoint, _ in asked] == ["AuthCache.Pass"]
    logins.write("here", replace(known, expires=time.time() + FRESH / 2))
    account._known = replace(known, expires=time.time() + FRESH / 2)
    assert await account.to("micro", "shop") == {"authorization": "Pass of second"}
    assert [endpoint for endpoint, _ in asked[1:]] == ["Auth.Refresh", "AuthCache.Pass"]


async def test_who_only_follows_has_a_token_that_is_good(tmp_path: Path) -> None:
    """A follower's stream ends with its token, and it makes no calls before which it is renewed."""
    asked: list[str] = []

    async def ask(
        endpoint: str, request: Any, metadata: Mapping[str, str] | None
    ) -> dict[str, Any]:
        asked.append(endpoint)
        return {"access": "second", "expires": time.time() + 900, "refresh": "r2"}

    path = tmp_path / "credentials.json"
    old = Login(id="jane", namespace="micro", access="first", expires=time.time(), refresh="r1")
    Logins(path).write("here", old)
    boot = Bootstrap(registry=(), routers=(), namespace="micro", host="", run=tmp_path,
                     credentials=path, place="here")  # fmt: skip
    account = Account(boot, ask)
    account._known = old
    for _ in range(3):
        assert account.itself("micro", "router") == {"authorization": "Bearer first"}
    await eventually(
        lambda: account.itself("micro", "router") == {"authorization": "Bearer second"}
    )
    assert asked == ["Auth.Refresh"]
    await account.close()
