"""The HTTP door's application: one request in, one call out."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

import msgspec

from micro_ray.api.body import JSON, MSGPACK, OCTETS, ClientGone, build, field_metadata, read_body
from micro_ray.api.metadata import MAX_CREDENTIALS, metadata_of
from micro_ray.api.metrics import Figures, Metrics, exposition
from micro_ray.api.openapi import document
from micro_ray.api.origins import Origins
from micro_ray.api.paths import AllPaths, Paths, Target
from micro_ray.api.streams import serve_stream
from micro_ray.api.visitors import Visitor, Visitors, counted
from micro_ray.api.websocket import serve_websocket
from micro_ray.auth import DEFAULT, Resource
from micro_ray.errors import InternalError, MethodNotAllowed, MicroError, Unavailable, make
from micro_ray.limits.gate import ADMITTED, FREE, Admission, Gate
from micro_ray.limits.pressure import Pressure
from micro_ray.network.network import Network
from micro_ray.router.table import Table
from micro_ray.settings import Api as ApiSettings

__all__ = ["RESERVED", "Api", "lifespan"]

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

#: Paths of the door itself; services of these names are reached by ``/{service}/{endpoint}``.
RESERVED = frozenset(("/", "/health", "/ready", "/metrics", "/openapi.json", "/favicon.ico"))
#: Seconds after which a waiting request looks whether its client is still there.
GONE_AFTER = 0.1
MAX_HEADERS = 100
#: Documents that are remembered.
DOCUMENTS = 100
#: What rules call the door's figures.
METRICS = Resource(name="api", endpoint="Api.Metrics")
#: Largest ``Retry-After``, in seconds.
MAX_RETRY = 86_400

_encode = msgspec.json.Encoder().encode


async def lifespan(receive: Receive, send: Send) -> None:
    """Answer a server that speaks the lifespan protocol, until it shuts down: there is nothing to
    start or to end."""
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


class Api:
    """The ASGI application. ``ready()`` says whether a route table has come, ``others()`` gives the
    figures of the gRPC door. One per replica."""

    def __init__(
        self,
        network: Network,
        table: Table,
        settings: ApiSettings,
        *,
        ready: Callable[[], bool],
        gate: Gate | None = None,
        pressure: Pressure | None = None,
        visitors: Visitors | None = None,
        others: Callable[[], Awaitable[Sequence[Figures]]] | None = None,
        version: str = "0.1.0",
    ) -> None:
        self.network = network
        self.settings = settings
        self.visitors = visitors or Visitors()
        self._paths = AllPaths(table)
        self.metrics = Metrics()
        self.origins = Origins(settings.cors_origins)
        self._gate = gate
        self._pressure = pressure or Pressure(1.0)
        self._table = table
        self._ready = ready
        self._others = others
        self._version = version
        self._openapi: dict[Any, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "websocket":
            await serve_websocket(self, scope, receive, send)
        elif kind == "lifespan":
            await lifespan(receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        path, method = scope["path"], scope["method"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id, metadata = self.metadata(headers)
        service, code, stream, admission = "api", 200, False, FREE
        namespace = self.visitors.nobody.namespace
        try:
            if path in RESERVED and method in ("GET", "HEAD", "OPTIONS"):
                code = await self._own(path, method, headers, request_id, send)
                return
            if method == "OPTIONS":
                allowed = self._nobodys.allowed(path)
                await self._options(allowed, headers, request_id, send)
                return
            visitor, target = self.admit(scope, "GET" if method == "HEAD" else method, headers)
            namespace, service = counted(visitor, target.service), target.service
            stream = bool(target.stream)
            metadata.update(self.along(visitor, target, scope, headers))
            admission = self.limited(visitor, target) or await self.obtain(visitor, target)
            self.metrics.in_flight += 1
            try:
                if stream:
                    with self.visitors.stay(visitor, target.resource) as stay:
                        code = await serve_stream(
                            self, scope, receive, send, target, headers, metadata, request_id, stay
                        )
                else:
                    await self._unary(scope, receive, send, target, headers, metadata, request_id)
            finally:
                self.metrics.in_flight -= 1
        except ClientGone:
            code = 499
        except MicroError as error:
            code = error.code
            await self.send_error(error, scope, request_id, send, headers)
        except asyncio.CancelledError:
            code = 499
            raise
        except Exception:
            code = 500
            log.exception("request %s failed in the door", request_id.decode())
            shown = f"the door failed; its log has {request_id.decode()}"
            failure = InternalError("api", shown)
            await self.send_error(failure, scope, request_id, send, headers)
        finally:
            admission.release()
            seconds = None if stream else time.perf_counter() - begun
            self.metrics.count(namespace, service, code, seconds)

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
        settings, method, query = self.settings, scope["method"], scope["query_string"]
        body = await read_body(receive, method, headers, settings.max_body, settings.timeout)
        body, kind = build(method, target, query, headers, body)
        if target.raw_in and (query or target.fields):
            metadata |= field_metadata(target, query)
        gone = _Gone(receive)
        try:
            answer = await self.network.call(
                target.service,
                target.endpoint,
                body,
                namespace=metadata["micro-namespace"],
                timeout=self.timeout(headers),
                content=kind,
                metadata=metadata,
                idempotent=target.repeatable(method),
            )
        except asyncio.CancelledError:
            if gone.found:
                raise ClientGone("api", "the client went away") from None
            raise
        finally:
            gone.stop()
        media = OCTETS if target.raw_out else MSGPACK if kind == MSGPACK else JSON
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", media.encode()),
                    (b"content-length", b"%d" % len(answer)),
                    (b"x-request-id", request_id),
                    *self.origins.headers(headers),
                ],
            }
        )
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else answer})

    # -- what streams and websockets need too ----------------------------------------------------

    def admit(
        self, scope: Scope, method: str, headers: Mapping[bytes, bytes]
    ) -> tuple[Visitor, Target]:
        """Who asks, and the target of a request that may be served. Raises what says why not."""
        if self.metrics.in_flight >= self.settings.max_in_flight:
            raise Unavailable("api", "too many requests are under way here", 1.0)
        if self._pressure.short:
            raise Unavailable(
                "api", f"{self._pressure.fraction:.0%} of the memory is in use here", 1.0
            )
        if len(scope["headers"]) > MAX_HEADERS:
            raise make(431, "api", f"over {MAX_HEADERS} headers")
        if len(headers.get(b"authorization", b"")) > MAX_CREDENTIALS:
            raise make(431, "api", f"header authorization over {MAX_CREDENTIALS} bytes")
        if self.visitors.guard is None:
            self.origins.check_host(headers)
        visitor = self.visitors.of(headers)
        paths = self._paths.of(visitor.namespace, stranger=self.visitors.stranger(visitor))
        target = paths.resolve(method, scope["path"], scope.get("raw_path") or b"")
        # A cookie comes along by itself, whoever has made the browser ask.
        cookie = visitor.identity is not None and not headers.get(b"authorization")
        if cookie or b"origin" in headers or b"sec-fetch-site" in headers:
            reads = target.read and method == "GET" and scope["type"] == "http"
            if not reads:
                self.origins.check(headers, cookie=cookie)
        self.visitors.check(visitor, target.resource, stream=bool(target.stream))
        return visitor, target

    def along(
        self, visitor: Visitor, target: Target, scope: Scope, headers: Mapping[bytes, bytes]
    ) -> dict[str, str]:
        """What of who asks goes on to the service."""
        client = scope.get("client")
        return self.visitors.along(
            visitor,
            target.service,
            credential=headers.get(b"authorization", b""),
            source=str(client[0]) if client else "",
        )

    def limited(self, visitor: Visitor, target: Target) -> Admission | None:
        """What lets a call in, to be released when it is over; None: :meth:`obtain` it. Raises
        TooManyRequests."""
        if self._gate is None:
            return FREE
        space = self.visitors.limited_in(visitor)
        return self._gate.admit(space, visitor.account, target.service, target.endpoint)

    async def obtain(self, visitor: Visitor, target: Target) -> Admission:
        """As :meth:`limited`, after asking the limiter."""
        if self._gate is None:
            return FREE
        space = self.visitors.limited_in(visitor)
        return await self._gate.obtain(space, visitor.account, target.service, target.endpoint)

    @property
    def _nobodys(self) -> Paths:
        """The paths as nobody is told them."""
        nobody = self.visitors.nobody
        return self._paths.of(nobody.namespace, stranger=self.visitors.stranger(nobody))

    def metadata(self, headers: Mapping[bytes, bytes]) -> tuple[bytes, dict[str, str]]:
        """The request's id and what of its head goes on to the service."""
        request_id, metadata = metadata_of(headers)
        if self._gate is not None:
            metadata[ADMITTED] = "1"
        return request_id, metadata

    def given_timeout(self, headers: Mapping[bytes, bytes]) -> float | None:
        """The seconds of the client's ``timeout`` header, None without one."""
        given = headers.get(b"timeout")
        if given is None:
            return None
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise make(400, "api", "header timeout: a number of seconds over 0")
        return seconds

    def timeout(self, headers: Mapping[bytes, bytes]) -> float:
        """Seconds for a unary call: the client's ``timeout`` within the settings' bound."""
        given = self.given_timeout(headers)
        return self.settings.timeout if given is None else min(given, self.settings.timeout)

    async def send_error(
        self,
        error: MicroError,
        scope: Scope,
        request_id: bytes,
        send: Send,
        headers: Mapping[bytes, bytes],
        prefix: str = "http.response.",
    ) -> None:
        """The error as the whole answer; ``prefix`` is that of the ASGI messages."""
        form = error.to_dict()
        if not form["id"]:
            form["id"] = "api"
        body = _encode(form)
        lines = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id),
            *self.origins.headers(headers),
        ]
        retry = error.retry_after
        if retry is not None:
            lines.append((b"retry-after", b"%d" % math.ceil(min(max(1, retry), MAX_RETRY))))
        if isinstance(error, MethodNotAllowed):
            lines.append((b"allow", _allow(self._nobodys.allowed(scope["path"]))))
        await send({"type": f"{prefix}start", "status": error.code, "headers": lines})
        body = b"" if scope.get("method") == "HEAD" else body
        await send({"type": f"{prefix}body", "body": body})

    # -- the door's own paths --------------------------------------------------------------------

    async def _own(
        self, path: str, method: str, headers: Mapping[bytes, bytes], request_id: bytes, send: Send
    ) -> int:
        if method == "OPTIONS":
            await self._options(["GET"], headers, request_id, send)
            return 200
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
            visitor = self.visitors.of(headers)
            self.visitors.check(visitor, METRICS)
            whole = self.visitors.guard is None or visitor.namespace == DEFAULT
            body = await self._figures(None if whole else visitor.namespace)
            media = b"text/plain; version=0.0.4; charset=utf-8"
        elif path == "/openapi.json":
            visitor = self.visitors.of(headers)
            # A stranger may name any namespace: that costs a document where it has rules only.
            body = self._document(visitor._replace(namespace=self.visitors.limited_in(visitor)))
        elif path == "/favicon.ico":
            status, body = 204, b""
        else:
            body = _encode({"name": "micro-ray", "version": self._version})
        lines = [(b"x-request-id", request_id), *self.origins.headers(headers)]
        if status != 204:
            lines += [(b"content-type", media), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": lines})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
        return status

    async def _figures(self, namespace: str | None) -> bytes:
        """Its own, and those of the other door."""
        text = self.metrics.text(namespace)
        if self._others is None:
            return text
        return text + exposition("proxy", await self._others(), namespace)

    def _document(self, visitor: Visitor) -> bytes:
        """What the visitor may call; the same for all who may the same."""
        visitors, namespace = self.visitors, visitor.namespace
        grants = None if visitor.identity is None else visitor.identity.grants
        revision = 0 if visitors.guard is None else visitors.guard.revision
        key = (self._table.version, revision, namespace, grants)
        body = self._openapi.get(key)
        if body is None:
            if len(self._openapi) >= DOCUMENTS or any(k[:2] != key[:2] for k in self._openapi):
                self._openapi.clear()

            def shown(service: str, endpoint: str) -> bool:
                return visitors.allows(visitor, Resource(name=service, endpoint=endpoint))

            body = self._openapi[key] = document(self._table, namespace, shown)
        return body

    async def _options(
        self, methods: list[str], headers: Mapping[bytes, bytes], request_id: bytes, send: Send
    ) -> None:
        allow = _allow(methods)
        lines = [
            (b"allow", allow),
            (b"content-length", b"0"),
            (b"x-request-id", request_id),
            *self.origins.preflight(headers, allow),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": lines})
        await send({"type": "http.response.body", "body": b""})


def _allow(methods: list[str]) -> bytes:
    head = ["HEAD"] if "GET" in methods else []
    return ", ".join([*methods, *head, "OPTIONS"]).encode()


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
