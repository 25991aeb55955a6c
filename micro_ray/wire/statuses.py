"""The tree of errors as gRPC statuses, and back.

A status has the code of the table in ``errors.py`` and, in its details (``google.rpc.Status`` in
``grpc-status-details-bin``), a ``google.rpc.ErrorInfo`` of the domain ``micro`` with every field;
where there is a use in trying again, a ``google.rpc.RetryInfo`` says when, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from micro_ray.errors import MicroError, from_dict

__all__ = ["DETAILS", "code_of", "details_of", "error_of", "message_of"]

DETAILS = "grpc-status-details-bin"
DOMAIN = "micro"
#: Bytes of the parts of an error: clients take no more than 8 KiB of trailing metadata by default,
#: and what is not ASCII takes three times its place in the message.
MAX_MESSAGE, MAX_DETAIL, MAX_ID = 1024, 2048, 128
#: Longest time after which one may try again, in seconds.
MAX_RETRY = 86_400


def code_of(error: MicroError) -> grpc.StatusCode:
    """The status code of an error."""
    return grpc.StatusCode[error.grpc]


def message_of(error: MicroError) -> str:
    """The sentence of a status, cut to what fits into trailing metadata."""
    return _cut(str(error), MAX_MESSAGE)


def details_of(error: MicroError) -> bytes:
    """The error's fields as a serialized ``google.rpc.Status``."""
    form = {key: str(value) for key, value in error.to_dict().items()}
    form["id"] = _cut(form["id"], MAX_ID)
    form["detail"] = _cut(form["detail"], MAX_DETAIL)
    info = error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=DOMAIN, metadata=form)
    number, _ = code_of(error).value
    status = status_pb2.Status(code=number, message=message_of(error))
    status.details.add().Pack(info)
    after = error.retry_after
    if after is not None and after == after:  # a service may say anything, also no number
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMicroseconds(round(min(max(0.0, after), MAX_RETRY) * 1e6))
        status.details.add().Pack(retry)
    made: bytes = status.SerializeToString()
    return made


def error_of(trailing: Iterable[tuple[str, str | bytes]]) -> MicroError | None:
    """The error whose fields a status carries; None when it carries none that can be read."""
    for key, value in trailing:
        if key != DETAILS or not isinstance(value, bytes):
            continue
        status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
        with contextlib.suppress(DecodeError, ValueError):
            status.ParseFromString(value)
            for detail in status.details:
                if detail.Unpack(info) and info.domain == DOMAIN:
                    form: dict[str, Any] = dict(info.metadata)
                    form["code"] = int(form.get("code", ""))
                    if "retry_after" in form:
                        form["retry_after"] = float(form["retry_after"])
                    return from_dict(form)
    return None


def _cut(text: str, most: int) -> str:
    raw = text.encode("utf-8", "replace")
    return text if len(raw) <= most else raw[: most - 3].decode("utf-8", "ignore") + "…"
