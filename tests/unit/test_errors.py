"""The tree of errors, and those that only a caller's side has."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from micro_ray import errors
from micro_ray.errors import BadGateway, MicroError, Timeout, Unavailable, from_dict, make
from micro_ray.network import Broken, Refused, Silent
from micro_ray.network.pool import Late, Unreachable
from micro_ray.wire.protocol import HEAD_SIZE, decode_error, encode_error


def test_each_code_has_one_class_and_a_grpc_status() -> None:
    statuses = {
        "INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "UNIMPLEMENTED",
        "DEADLINE_EXCEEDED", "ABORTED", "FAILED_PRECONDITION", "OUT_OF_RANGE",
        "RESOURCE_EXHAUSTED", "CANCELLED", "INTERNAL", "UNAVAILABLE",
    }  # fmt: skip
    for code, cls in errors.CODES.items():
        assert cls.code == code
        assert cls.grpc in statuses
        assert cls.__name__ in errors.__all__
        assert type(make(code, "x", "y")) is cls
    # Not those that Ray derives from a class to hand an error over.
    own = [cls for cls in MicroError.__subclasses__() if cls.__module__ == errors.__name__]
    assert len(errors.CODES) == len(own)


@pytest.mark.parametrize(
    ("code", "becomes"), [(418, 400), (402, 400), (507, 500), (302, 500), (0, 500), (-1, 500)]
)
def test_codes_without_a_class_become_the_nearest(code: int, becomes: int) -> None:
    assert make(code, "x", "y").code == becomes


def test_the_sentence_and_the_form() -> None:
    error = errors.NotFound("greeter", "no such name")
    assert str(error) == "greeter: no such name"
    assert str(errors.NotFound("", "no such name")) == "no such name"
    form = {"id": "greeter", "code": 404, "detail": "no such name", "status": "Not Found"}
    assert error.to_dict() == form
    assert errors.Cancelled("", "").status == "Client Closed Request"
    assert Unavailable("", "", 0.0).to_dict()["retry_after"] == 0.0


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [None, True, -1, 0, 1.5, "x", [], {}, 10**400, -(10**400), float("nan"), float("inf"), b"x",
     "x" * 10**6, nested(900)],
    ids=lambda value: str(type(value).__name__),
)  # fmt: skip
@pytest.mark.parametrize("field", ["id", "code", "detail", "status", "retry_after", "other"])
def test_whatever_a_peer_says_is_an_error(field: str, value: Any) -> None:
    error = from_dict({"code": 503, "id": "a", "detail": "b", field: value})
    assert isinstance(error, MicroError)
    assert len(error.id) <= errors.MAX_ID
    assert len(error.detail) <= errors.MAX_DETAIL
    if error.retry_after is not None:
        assert 0 <= error.retry_after <= errors.MAX_RETRY_AFTER
    json.dumps(error.to_dict(), allow_nan=False)
    assert str(error)


def test_a_long_detail_is_cut() -> None:
    error = errors.BadRequest("x", "y" * 20_000)
    assert len(error.detail) == errors.MAX_DETAIL
    assert error.detail.endswith("y…")


# -- what went wrong on the way --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "kind"),
    [(Refused, Unavailable), (Broken, BadGateway), (Silent, Timeout), (Late, Timeout),
     (Unreachable, Unavailable)],
)  # fmt: skip
def test_they_are_what_everybody_knows_and_survive_pickling(
    cls: type[MicroError], kind: type[MicroError]
) -> None:
    error = cls("wire", "what", 0.5)
    assert isinstance(error, kind)
    assert error.code == kind.code
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert (copy.id, copy.detail, copy.retry_after) == ("wire", "what", 0.5)
    # In the form that crosses to others they are the plain ones.
    assert type(from_dict(error.to_dict())) is kind


def over(error: MicroError) -> MicroError:
    return decode_error(encode_error(1, error)[HEAD_SIZE:])


def test_a_refusal_crosses_as_one_and_nothing_else_does() -> None:
    copy = over(Refused("wire", "going away", 0.5))
    assert type(copy) is Refused
    assert (copy.id, copy.detail, copy.retry_after) == ("wire", "going away", 0.5)
    assert type(over(Unavailable("x", "y"))) is Unavailable
    assert type(over(Broken("x", "y"))) is BadGateway
    assert type(over(Silent("x", "y"))) is Timeout


@pytest.mark.parametrize("said", ["true", 1, None, [True], False])
def test_what_is_no_refusal(said: Any) -> None:
    form = {"id": "x", "code": 503, "detail": "y", "refused": said}
    assert type(decode_error(json.dumps(form).encode())) is Unavailable


def test_only_what_is_unavailable_can_be_refused() -> None:
    form = {"id": "x", "code": 404, "detail": "y", "refused": True}
    assert type(decode_error(json.dumps(form).encode())) is errors.NotFound
