"""What a door passes on of a request's head to the service, the same at each door."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

__all__ = ["MAX_CREDENTIALS", "metadata_of"]

#: Bytes of a credential: a door refuses a longer one.
MAX_CREDENTIALS = 8192

#: Headers that go on to the service as metadata. Nothing that begins with ``micro-`` does: those
#: are the platform's own.
FORWARDED = ((b"tracestate", "tracestate"), (b"baggage", "baggage"),
             (b"accept-language", "accept-language"))  # fmt: skip
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
#: W3C Trace Context: version ff, and ids of zeros only, are invalid.
_TRACE = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def metadata_of(headers: Mapping[bytes, bytes]) -> tuple[bytes, dict[str, str]]:
    """The request's id, made where none came that fits, and what goes on to the service."""
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
    }
    for name, key in FORWARDED:
        value = headers.get(name)
        if value is not None:
            metadata[key] = value.decode("latin-1")[:1024]
    return request_id, metadata
