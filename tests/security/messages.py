"""Messages of a described type, as hypothesis makes them."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from hypothesis import strategies as st

from tests.security.survey import WORDS

__all__ = ["filled", "spoken"]

#: Deepest message that is filled.
DEEP = 4
_TEXT = st.text(max_size=20)
_WHOLE = {
    Field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    Field.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    Field.CPPTYPE_UINT32: (0, 2**32 - 1),
    Field.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def filled(kind: Any) -> st.SearchStrategy[Any]:
    """Messages with any of their fields set to anything."""

    @st.composite
    def make(draw: Any) -> Any:
        message = kind()
        _fill(message, draw, DEEP)
        return message

    return make()


def _fill(message: Any, draw: Any, deep: int) -> None:
    for field in message.DESCRIPTOR.fields:
        if not draw(st.booleans()) or (field.message_type is not None and deep == 0):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _map(getattr(message, field.name), field.message_type, draw, deep)
        elif field.is_repeated:
            for _ in range(draw(st.integers(0, 2))):
                if field.message_type is not None:
                    _fill(getattr(message, field.name).add(), draw, deep - 1)
                else:
                    getattr(message, field.name).append(draw(_scalar(field)))
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            _fill(inner, draw, deep - 1)
        else:
            setattr(message, field.name, draw(_scalar(field)))


def _map(into: Any, entry: Any, draw: Any, deep: int) -> None:
    keys, values = entry.fields_by_name["key"], entry.fields_by_name["value"]
    for _ in range(draw(st.integers(0, 2))):
        key = draw(_scalar(keys))
        if values.message_type is None:
            into[key] = draw(_scalar(values))
        else:
            _fill(into[key], draw, deep - 1)


def _scalar(field: Any) -> st.SearchStrategy[Any]:
    if field.cpp_type in _WHOLE:
        return st.integers(*_WHOLE[field.cpp_type])
    if field.type == Field.TYPE_BYTES:
        return st.binary(max_size=20)
    if field.cpp_type == Field.CPPTYPE_STRING:
        return _TEXT
    if field.cpp_type == Field.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == Field.CPPTYPE_ENUM:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return st.floats(width=32 if field.cpp_type == Field.CPPTYPE_FLOAT else 64)


def spoken(message: Any, random: Any) -> Any:
    """The message with names that are not refused for themselves."""
    for field in message.DESCRIPTOR.fields:
        plain = field.cpp_type == Field.CPPTYPE_STRING and field.type != Field.TYPE_BYTES
        if plain and not field.is_repeated and field.json_name in WORDS:
            setattr(message, field.name, random.choice(WORDS[field.json_name]))
    return message
