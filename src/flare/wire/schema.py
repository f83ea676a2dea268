"""Protobuf messages declared as dataclasses: the annotation of a field says its number and what travels.

    @message
    class Limit(Message):
        duration: Annotated[int | None, 1, UINT32] = None
        data: Annotated[int | None, 2] = None

Presence follows the default. None: absent and present differ (proto2 optional). Another default: it is left
out when encoding (proto3). No default: required. `tuple[X, ...]` is repeated. Ints are uint64 unless a kind
says otherwise, an IntEnum is closed, a Message is embedded, any other class is made of bytes by its
constructor, whose ValueError fails the message, or with LENIENT drops the value. AtMost(n) reads the first n
of a repeated field: a peer pays with bytes for what costs us parsing.
"""

from __future__ import annotations

import dataclasses
import types
from enum import IntEnum
from typing import (
    Annotated,
    Any,
    ClassVar,
    Self,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from flare._core.wire import Field, Kind, Schema
from flare._core.wire import frame as _frame

UINT32, INT64, INT32, FIXED64 = Kind.UINT32, Kind.INT64, Kind.INT32, Kind.FIXED
LENIENT = "lenient"


@dataclasses.dataclass(frozen=True, slots=True)
class AtMost:
    """How many values of a repeated field are read; the rest is skipped."""

    count: int


_PLAIN = {int: Kind.UINT64, bool: Kind.BOOL, str: Kind.STRING, bytes: Kind.BYTES}


class Message:
    """What `@message` classes inherit: encode and decode by their schema."""

    __slots__ = ()
    schema: ClassVar[Schema]

    def encode(self) -> bytes:
        """In protobuf, fields by number. Raises UsageError for values that a field cannot hold."""
        return self.schema.encode(self)

    def frame(self) -> bytes:
        """The encoded message behind its length, as it travels on a stream."""
        return _frame(self.schema.encode(self))

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Self:
        """The message that is all of `data`. Raises DecodeError and nothing else."""
        decoded: Self = cls.schema.decode(data)
        return decoded


M = TypeVar("M", bound=Message)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def message(cls: type[M]) -> type[M]:
    """Makes a frozen, slotted dataclass of `cls` and gives it its schema."""
    made = dataclasses.dataclass(frozen=True, slots=True)(cls)
    hints = get_type_hints(made, include_extras=True)
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(made)  # type: ignore[arg-type]
    made.schema = Schema(made, [_field(field, hints[field.name]) for field in fields])
    return made


def _field(field: dataclasses.Field[Any], hint: Any) -> Field:
    assert get_origin(hint) is Annotated, f"{field.name} needs a field number"
    value, number, *extras = get_args(hint)
    repeated = get_origin(value) is tuple
    if repeated:
        value = get_args(value)[0]
    elif isinstance(value, types.UnionType):
        (value,) = (arg for arg in get_args(value) if arg is not types.NoneType)
    required = not repeated and field.default is dataclasses.MISSING
    common: dict[str, Any] = {
        "repeated": repeated,
        "required": required,
        "default": None if required or repeated else field.default,
        "lenient": LENIENT in extras,
        "most": next((extra.count for extra in extras if isinstance(extra, AtMost)), 0),
    }
    kinds = [extra for extra in extras if isinstance(extra, Kind)]
    if kinds:
        return Field(number, field.name, kinds[0], **common)
    if value in _PLAIN:
        return Field(number, field.name, _PLAIN[value], **common)
    if issubclass(value, IntEnum):
        return Field(number, field.name, Kind.ENUM, enum=value, **common)
    if issubclass(value, Message):
        return Field(number, field.name, Kind.MESSAGE, schema=value.schema, **common)
    return Field(number, field.name, Kind.BYTES, convert=value, **common)
