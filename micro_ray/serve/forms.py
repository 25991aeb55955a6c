"""Which form the messages of a gRPC call have: as the endpoint takes them, or protobuf.

gRPC's content type says so, and grpcio shows it to no server. So the metadata ``x-content-type``
says it, or else the first message: what begins with ``{`` or ``[`` is JSON. No message of a method
that is described begins so: in protobuf these are the beginnings of groups, and there are none.
Whatever else comes for a method with a type is protobuf, the empty message too; bytes for a method
of bytes are what they are, unless ``x-content-type`` says that they are a ``BytesValue``. Until the
client has said either, answers are protobuf.
"""

from __future__ import annotations

from micro_ray.api.paths import Target
from micro_ray.errors import UnsupportedMedia
from micro_ray.serve.catalogue import Catalogue
from micro_ray.serve.descriptors import Method
from micro_ray.serve.messages import request_of, response_of

__all__ = ["SAID", "Form"]

#: The metadata with which a client says what the content type cannot.
SAID = "x-content-type"
#: What it may say, without ``application/`` and ``grpc+``: whether that is protobuf.
KNOWN = {"json": False, "octet-stream": False, "bytes": False, "proto": True, "protobuf": True}
_OPENING = (b"{", b"[")


class Form:
    """The form of one call's messages. Raises UnsupportedMedia for a content type that is not
    known."""

    def __init__(self, catalogue: Catalogue, target: Target, said: str) -> None:
        self._catalogue = catalogue
        self._target = target
        self._proto = _proto(said)
        if self._proto is None and target.raw_in:
            self._proto = False
        self._known: Method | None = None

    def request(self, message: bytes) -> bytes:
        """What goes on to the service. Raises what :func:`request_of` does."""
        if self._proto is None:
            self._proto = not message.startswith(_OPENING)
        return request_of(self._method(), message) if self._proto else message

    def answer(self, message: bytes) -> bytes:
        """What goes back to the client. Raises what :func:`response_of` does."""
        if self._proto is False:
            return message
        return response_of(self._method(), message, raw=self._target.raw_out)

    def _method(self) -> Method:
        """Kept for the call, though the service may publish other types meanwhile."""
        if self._known is None:
            target = self._target
            self._known = self._catalogue.method(target.service, target.endpoint)
            if self._known is None:
                raise UnsupportedMedia(
                    "proxy",
                    f"{target.service} {target.endpoint} has no protobuf form: send JSON, and the "
                    f"metadata {SAID}: application/json where it does not begin with {{ or [",
                )
        return self._known


def _proto(said: str) -> bool | None:
    kind = said.partition(";")[0].strip().lower().removeprefix("application/")
    kind = kind.removeprefix("grpc+")
    if kind in ("", "grpc"):
        return None
    if kind not in KNOWN:
        raise UnsupportedMedia(
            "proxy", f"{SAID} {said[:80]!r}; use application/ with one of {', '.join(KNOWN)}"
        )
    return KNOWN[kind]
