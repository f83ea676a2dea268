"""Google's protobuf on the schemas beside this file, compiled when the tests run, as the judge of ours."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError as GoogleDecodeError
from grpc_tools import protoc
from hypothesis import strategies as st

from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from flare.wire.schema import Message


class NotText(Exception):
    """A string field of Google's that is not UTF-8."""


PROTOS = Path(__file__).parent / "proto"


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    with tempfile.TemporaryDirectory() as out:
        target = Path(out) / "all.pb"
        sources = sorted(str(path) for path in PROTOS.glob("*.proto"))
        assert protoc.main(["protoc", f"-I{PROTOS}", f"--descriptor_set_out={target}", *sources]) == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


@functools.cache
def google(name: str) -> type[Any]:
    """Google's class for the message `name`."""
    made: type[Any] = message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"flare.oracle.{name}"))
    return made


def google_decode(name: str, data: bytes) -> Any | None:
    """What Google makes of `data`; None when it refuses, also for a required field that is missing.

    Text of proto2 that is not UTF-8 it hands out as bytes: that counts as refused too.
    """
    theirs = google(name)()
    try:
        theirs.ParseFromString(data)
        plain(theirs)
    except (GoogleDecodeError, NotText):
        return None
    return theirs if theirs.IsInitialized() else None


def plain(value: Any) -> Any:
    """A message of ours or of Google's as nested dicts, which compare; absent fields are left out."""
    if isinstance(value, Message):
        fields = {field.name: getattr(value, field.name) for field in value.schema.fields}
        defaults = {field.name: None if field.required else field.default for field in value.schema.fields}
        present = {name: item for name, item in fields.items() if item is not None and item != defaults[name]}
        return {name: plain(item) for name, item in present.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, PeerId | Multiaddr):
        return bytes(value)
    if isinstance(value, str | bytes | int):
        return value
    fields = {}
    for field, item in value.ListFields():
        items = list(item) if field.is_repeated else [item]
        if field.type == field.TYPE_STRING and any(isinstance(element, bytes) for element in items):
            raise NotText
        fields[field.name] = plain(items) if field.is_repeated else plain(item)
    return fields


def varint(value: int, pad: int = 0) -> bytes:
    """A protobuf varint of `value` modulo 2**64, `pad` bytes longer than need be (10 at most in all)."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(min(pad, 10 - len(out))):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


varints = st.builds(
    varint, st.integers(0, 2**64 - 1) | st.integers(0, 400), st.sampled_from([0, 0, 0, 1, 3, 9])
)


def delimited(payload: bytes) -> bytes:
    return varint(len(payload)) + payload


def records(numbers: st.SearchStrategy[int], payloads: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Field after field on the wire, of any wire type but groups, known and unknown, again and again."""
    values = st.one_of(
        st.tuples(st.just(0), varints),
        st.tuples(st.just(1), st.binary(min_size=8, max_size=8)),
        st.tuples(st.just(2), payloads.map(delimited)),
        st.tuples(st.just(5), st.binary(min_size=4, max_size=4)),
    )
    record = st.builds(lambda number, value: varint(number << 3 | value[0]) + value[1], numbers, values)
    return st.lists(record, max_size=12).map(b"".join)
