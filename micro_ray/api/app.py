"""The HTTP door's application: one request in, one call out."""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

from micro_ray.api.body import build, read_body
from micro_ray.api.metrics import Metrics
from micro_ray.api.openapi import document
from micro_ray.api.paths import Paths, Target
from micro_ray.api.streams import serve_stream
from micro_ray.api.websocket import serve_websocket
from micro_ray.errors import Cancelled, InternalError, MicroError, Unavailable, make
from micro_ray.network.network import Network
from micro_ray.router.table import Table
from micro_ray.settings import Api as ApiSettings

__all__ = ["RESERVED", "Api"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

#: Paths of the door itself; services of these names are reached by ``/{service}/{endpoint}``.
RESERVED = ("/", "/health", "/ready", "/metrics", "/openapi.json", "/favicon.ico")
#: Headers that go on to the service as metadata. Nothing that begins with ``micro-`` does: those
#: are the platform's own.
FORWARDED = ((b"tracestate", "tracestate"), (b"baggage", "baggage"),
             (b"accept-language", "accept-language"))  # fmt: skip
#: Seconds after which a waiting request looks whether its client is still there.
GONE_AFTER = 0.1
MAX_HEADERS = 100

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_TRACE = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_encode = msgspec.json.Encoder().encode


class Api:
    """The ASGI application. ``ready()`` says whether a route table has come. One per replica."""

    def __init__(
        self,
        network: Network,
        table: Table,
        settings: ApiSettings,
        *,
        ready: Callable[[], bool],
        namespace: str = "micro",
        version: str = "0.1.0",
    ) -> None:
        self.network = network
        self.settings = settings
        self.namespace = namespace
        self.paths = Paths(table, namespace)
        self.metrics = Metrics()
        self._table = table
        self._ready = ready
        self._version = version
        self._openapi: tuple[int, bytes] = (-1, b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "websocket":
            await serve_websocket(self, scope, receive, send)
        elif kind == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        path, method = scope["path"], scope["method"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id, metadata = self.metadata(headers)
        service, code = "api", 200
        metrics = self.metrics
        try:
            if path in RESERVED and method in ("GET", "HEAD"):
                code = await self._own(path, method, request_id, send)
                return
            if method == "OPTIONS":
                await self._options(scope["path"], headers, request_id, send)
                return
            if metrics.in_flight >= self.settings.max_in_flight:
                raise Unavailable("api", "too many requests are under way here", 1.0)
            if len(scope["headers"]) > MAX_HEADERS:
                raise make(431, "api", f"over {MAX_HEADERS} headers")
            metrics.in_flight += 1
            try:
                lookup = "GET" if method == "HEAD" else method
                target = self.paths.resolve(lookup, path, scope.get("raw_path") or b"")
                service = target.service
                if target.stream:
                    await serve_stream(
                        self, scope, receive, send, target, headers, metadata, request_id
                    )
                else:
                    await self._unary(scope, receive, send, target, headers, metadata, request_id)
            finally:
                metrics.in_flight -= 1
        except MicroError as error:
            code = error.code
            await self.send_error(error, request_id, send, headers)
        except asyncio.CancelledError:
            code = 499
            raise
        finally:
            metrics.count(service, code, time.perf_counter() - begun)

    async def _unary(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        target: Target,
        headers: Mapping[bytes, bytes],
        metadata: dict[str, str],
        request_id: bytes,
    ) -> None:
        settings = self.settings
        method, body = scope["method"], b""
        length = headers.get(b"content-length")
        if length is not None or b"transfer-encoding" in headers or method == "POST":
            if length is not None and length.isdigit() and int(length) > settings.max_body:
                raise make(413, "api", f"body of {int(length)} bytes; {settings.max_body} allowed")
            body = await read_body(receive, settings.max_body, settings.timeout)
        content = headers.get(b"content-type", b"").decode("latin-1")
        body, media = build(method, target, scope["query_string"], content, body)
        gone = _Gone(receive)
        try:
            answer = await self.network.call(
                target.service,
                target.endpoint,
                body,
                namespace=self.namespace,
                timeout=self.timeout(headers),
                content=media,
                metadata=metadata,
                idempotent=method in ("GET", "HEAD"),
            )
        except asyncio.CancelledError:
            if gone.found:
                raise Cancelled("api", "the client went away") from None
            raise
        finally:
            gone.stop()
        if target.response.get("contentEncoding") == "binary":
            media = "application/octet-stream"
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", media.encode()),
                    (b"content-length", b"%d" % len(answer)),
                    (b"x-request-id", request_id),
                    *self.cors(headers),
                ],
            }
        )
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else answer})

    # -- what streams and websockets need too ----------------------------------------------------

    def metadata(self, headers: Mapping[bytes, bytes]) -> tuple[bytes, dict[str, str]]:
        """The request's id and what goes on to the service."""
        request_id = headers.get(b"x-request-id", b"")
        trace = headers.get(b"traceparent", b"")
        fresh = os.urandom(40).hex()
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = fresh[:32].encode()
        metadata = {
            "x-request-id": request_id.decode(),
            "traceparent": trace.decode()
            if _TRACE.fullmatch(trace)
            else f"00-{fresh[32:64]}-{fresh[64:80]}-01",
            "micro-namespace": self.namespace,
        }
        for name, key in FORWARDED:
            value = headers.get(name)
            if value is not None:
                metadata[key] = value.decode("latin-1")[:1024]
        return request_id, metadata

    def timeout(self, headers: Mapping[bytes, bytes]) -> float:
        """Seconds for the call: the client's ``timeout`` header within the settings' bound."""
        given = headers.get(b"timeout")
        if given is None:
            return self.settings.timeout
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise make(400, "api", "header timeout: a number of seconds over 0")
        return min(seconds, self.settings.timeout)

    def cors(self, headers: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        allowed = self.settings.cors_origins
        if not allowed:
            return []
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin or ("*" not in allowed and origin not in allowed):
            return []
        return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin")]

    async def send_error(
        self, error: MicroError, request_id: bytes, send: Send, headers: Mapping[bytes, bytes]
    ) -> None:
        """The error as the whole answer."""
        form = error.to_dict()
        if not form["id"]:
            form["id"] = "api"
        body = _encode(form)
        lines = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id),
            *self.cors(headers),
        ]
        if error.retry_after is not None:
            lines.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
        await send({"type": "http.response.start", "status": error.code, "headers": lines})
        await send({"type": "http.response.body", "body": body})

    # -- the door's own paths --------------------------------------------------------------------

    async def _own(self, path: str, method: str, request_id: bytes, send: Send) -> int:
        status, media = 200, b"application/json"
        if path == "/health":
            body = b'{"status":"ok"}'
        elif path == "/ready":
            ready = self._ready()
            status = 200 if ready else 503
            body = _encode(
                {
                    "status": "ready" if ready else "no route table yet",
                    "stale": self._table.stale,
                    "revision": self._table.revision,
                }
            )
        elif path == "/metrics":
            body, media = self.metrics.text(), b"text/plain; version=0.0.4"
        elif path == "/openapi.json":
            if self._openapi[0] != self._table.version:
                self._openapi = (self._table.version, document(self._table, self.namespace))
            body = self._openapi[1]
        elif path == "/favicon.ico":
            status, body = 204, b""
        else:
            body = _encode({"name": "micro-ray", "version": self._version})
        headers = [
            (b"content-type", media),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
        return status

    async def _options(
        self, path: str, headers: Mapping[bytes, bytes], request_id: bytes, send: Send
    ) -> None:
        methods = ", ".join([*self.paths.allowed(path), "HEAD", "OPTIONS"]).encode()
        lines = [(b"allow", methods), (b"content-length", b"0"), (b"x-request-id", request_id)]
        cors = self.cors(headers)
        if cors:
            lines += [
                *cors,
                (b"access-control-allow-methods", methods),
                (b"access-control-allow-headers", b"authorization, content-type, timeout, "
                 b"traceparent, x-request-id"),
                (b"access-control-max-age", b"600"),
            ]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": lines})
        await send({"type": "http.response.body", "body": b""})


class _Gone:
    """Cancels the task that made it when the client goes away; looks only after a while, because
    most calls are over by then."""

    __slots__ = ("_handle", "_receive", "_task", "_watch", "found")

    def __init__(self, receive: Receive) -> None:
        task = asyncio.current_task()
        if task is None:
            raise InternalError("api", "a request outside a task")
        self._task: asyncio.Task[Any] = task
        self._receive = receive
        self._watch: asyncio.Task[None] | None = None
        self.found = False
        self._handle = asyncio.get_running_loop().call_later(GONE_AFTER, self._look)

    def _look(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.found = True
        self._task.cancel()

    def stop(self) -> None:
        self._handle.cancel()
        if self._watch is not None:
            self._watch.cancel()
