from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Any, TypeVar

T = TypeVar("T")

def encode_uvarint(n: int) -> bytes: ...
def decode_uvarint(data: bytes | bytearray | memoryview, offset: int = 0) -> tuple[int, int]: ...
def frame(payload: bytes | bytearray | memoryview) -> bytes: ...
def base58(data: bytes | bytearray | memoryview) -> str: ...
def split_components(
    data: bytes | bytearray | memoryview,
    protocols: Mapping[int, tuple[T, int, bool, Callable[[bytes], object]]],
) -> tuple[tuple[T, bytes], ...]: ...

class Kind(IntEnum):
    UINT64 = 0
    UINT32 = 1
    INT64 = 2
    INT32 = 3
    BOOL = 4
    ENUM = 5
    FIXED = 6
    STRING = 7
    BYTES = 8
    MESSAGE = 9

class Field:
    number: int
    name: str
    kind: Kind
    repeated: bool
    required: bool
    lenient: bool
    most: int
    default: Any
    convert: Callable[[bytes], Any] | None
    schema: Schema | None
    def __init__(
        self,
        number: int,
        name: str,
        kind: Kind,
        *,
        repeated: bool = False,
        required: bool = False,
        default: Any = None,
        convert: Callable[[bytes], Any] | None = None,
        lenient: bool = False,
        schema: Schema | None = None,
        enum: type[IntEnum] | None = None,
        most: int = 0,
    ) -> None: ...

class Schema:
    name: str
    cls: type
    fields: tuple[Field, ...]
    def __init__(self, cls: type, fields: Iterable[Field]) -> None: ...
    def decode(self, data: bytes | bytearray | memoryview) -> Any: ...
    def encode(self, message: Any) -> bytes: ...
