"""flare._core.wire: the protobuf codec against Google's, on a message that has one of everything."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flare._core.wire import Field, Kind, Schema
from flare.errors import DecodeError, UsageError
from flare.wire.schema import FIXED64, INT32, INT64, UINT32, Message, message
from tests.wire.oracle import delimited, google, google_decode, plain, records, varint


class Colour(IntEnum):
    RED = 0
    GREEN = 7
    BLUE = -1


@message
class Leaf(Message):
    size: Annotated[int, 1, INT32]
    name: Annotated[str | None, 2] = None
    rings: Annotated[tuple[int, ...], 3] = ()


@message
class Probe(Message):
    u64: Annotated[int | None, 1] = None
    u32: Annotated[int | None, 2, UINT32] = None
    i64: Annotated[int | None, 3, INT64] = None
    i32: Annotated[int | None, 4, INT32] = None
    flag: Annotated[bool | None, 5] = None
    colour: Annotated[Colour | None, 6] = None
    text: Annotated[str | None, 7] = None
    data: Annotated[bytes | None, 8] = None
    leaf: Annotated[Leaf | None, 9] = None
    numbers: Annotated[tuple[int, ...], 10] = ()
    packed: Annotated[tuple[int, ...], 11, INT32] = ()
    colours: Annotated[tuple[Colour, ...], 12] = ()
    texts: Annotated[tuple[str, ...], 13] = ()
    blobs: Annotated[tuple[bytes, ...], 14] = ()
    leaves: Annotated[tuple[Leaf, ...], 15] = ()
    flags: Annotated[tuple[bool, ...], 16] = ()
    fixed: Annotated[int | None, 17, FIXED64] = None
    fixeds: Annotated[tuple[int, ...], 18, FIXED64] = ()
    far: Annotated[int | None, 2048] = None


u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
i32 = st.integers(-(2**31), 2**31 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
leaves = st.builds(Leaf, i32, st.none() | texts, st.lists(u64, max_size=4).map(tuple))


def many(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=4).map(tuple)


probes = st.builds(
    Probe,
    u64=st.none() | u64,
    u32=st.none() | u32,
    i64=st.none() | i64,
    i32=st.none() | i32,
    flag=st.none() | st.booleans(),
    colour=st.none() | st.sampled_from(Colour),
    text=st.none() | texts,
    data=st.none() | st.binary(max_size=300),
    leaf=st.none() | leaves,
    numbers=many(u64),
    packed=many(i32),
    colours=many(st.sampled_from(Colour)),
    texts=many(texts),
    blobs=many(st.binary(max_size=200)),
    leaves=many(leaves),
    flags=many(st.booleans()),
    fixed=st.none() | u64,
    fixeds=many(u64),
    far=st.none() | u64,
)

numbers = st.integers(1, 19) | st.sampled_from([2047, 2048, 2**29 - 1])
leaf_bytes = records(st.integers(1, 4), st.binary(max_size=6) | st.text(max_size=6).map(str.encode))
payloads = st.one_of(
    st.binary(max_size=20),
    st.text(max_size=20).map(str.encode),
    leaf_bytes,
    st.lists(u64, max_size=5).map(lambda values: b"".join(map(varint, values))),
)


def agree(data: bytes) -> None:
    """Both read `data` the same way, or both refuse it; Google drops the bits of a varint past the 64th."""
    theirs = google_decode("Probe", data)
    try:
        ours = Probe.decode(data)
    except DecodeError as error:
        past_64_bits = "varint too long" in str(error)  # refused here, as go-libp2p's protobuf does
        assert theirs is None or past_64_bits, f"we refuse what Google reads as {theirs}"
        return
    assert theirs is not None, f"Google refuses what we read as {ours}"
    assert plain(ours) == plain(theirs)


class TestAgainstGoogle:
    @given(probes)
    def test_google_reads_what_we_write(self, probe: Probe) -> None:
        theirs = google_decode("Probe", probe.encode())
        assert theirs is not None
        assert plain(theirs) == plain(probe)

    @given(probes)
    def test_we_read_what_google_writes(self, probe: Probe) -> None:
        theirs = google("Probe")()
        theirs.ParseFromString(probe.encode())
        assert Probe.decode(theirs.SerializeToString()) == probe

    @given(leaves)
    def test_our_bytes_are_google_s(self, leaf: Leaf) -> None:
        assert google_decode("Leaf", leaf.encode()).SerializeToString(deterministic=True) == leaf.encode()

    @settings(max_examples=400)
    @given(records(numbers, payloads))
    @example(varint(9 << 3 | 2) + delimited(b"\x08\x01") + varint(9 << 3 | 2) + delimited(b"\x12\x01a"))
    def test_known_unknown_and_repeated_fields(self, data: bytes) -> None:
        agree(data)

    @settings(max_examples=60)
    @given(probes)
    def test_every_truncation(self, probe: Probe) -> None:
        data = probe.encode()
        for end in range(0, len(data), 1 + len(data) // 200):
            agree(data[:end])

    @settings(max_examples=300)
    @given(probes, st.data())
    def test_a_changed_byte(self, probe: Probe, draw: st.DataObject) -> None:
        data = bytearray(probe.encode() or b"\x08\x00")
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
        if not on_purpose(bytes(data)):
            agree(bytes(data))


def on_purpose(data: bytes) -> bool:
    """Whether we refuse `data` where Google may not: it skips groups and drops the bits of a varint past
    64."""
    try:
        Probe.decode(data)
    except DecodeError as error:
        return "wire type" in str(error) or "too long" in str(error)
    return False


class TestPresence:
    """Protobuf language guide, "Field Presence"."""

    def test_absent_and_zero_differ(self) -> None:
        assert Probe.decode(b"").u64 is None
        assert Probe.decode(b"\x08\x00").u64 == 0
        assert Probe(u64=0).encode() == b"\x08\x00"

    def test_a_required_field_must_be_there(self) -> None:
        with pytest.raises(DecodeError, match="Leaf: size is missing"):
            Leaf.decode(b"\x12\x01a")
        with pytest.raises(UsageError, match="size is missing"):
            Leaf(None).encode()  # type: ignore[arg-type]

    def test_a_zero_of_proto3_is_left_out(self) -> None:
        @message
        class Three(Message):
            count: Annotated[int, 1] = 0
            name: Annotated[str, 2] = ""

        assert Three(0, "").encode() == b""
        assert Three(1, "a").encode() == b"\x08\x01\x12\x01a"
        assert Three.decode(b"") == Three(0, "")


class TestDecoding:
    """Protocol buffers, "Encoding"."""

    def test_the_last_value_wins(self) -> None:
        assert Probe.decode(b"\x08\x01\x08\x02").u64 == 2

    def test_embedded_messages_merge(self) -> None:
        one, two = Leaf(1, "a", (1,)).encode(), Leaf(2, None, (2,)).encode()
        merged = Probe.decode(b"\x4a" + delimited(one) + b"\x4a" + delimited(two))
        assert merged.leaf == Leaf(2, "a", (1, 2))

    def test_numbers_are_read_packed_and_not(self) -> None:
        assert Probe.decode(b"\x50\x01\x52\x02\x02\x03\x50\x04").numbers == (1, 2, 3, 4)

    def test_an_unknown_enum_value_counts_as_absent(self) -> None:
        assert Probe.decode(b"\x30\x05").colour is None
        assert Probe.decode(b"\x60\x07\x60\x05\x60\x00").colours == (Colour.GREEN, Colour.RED)

    def test_a_field_of_another_wire_type_is_skipped(self) -> None:
        assert Probe.decode(b"\x0a\x01a\x3d\x00\x00\x00\x00") == Probe()

    @pytest.mark.parametrize("wire_type", [3, 4, 6, 7])
    def test_groups_and_reserved_wire_types_are_refused(self, wire_type: int) -> None:
        for number in (1, 99):
            with pytest.raises(DecodeError, match="wire type"):
                Probe.decode(varint(number << 3 | wire_type) + b"\x00\x00")

    @pytest.mark.parametrize("number", [0, 2**29])
    def test_field_numbers_have_limits(self, number: int) -> None:
        with pytest.raises(DecodeError):
            Probe.decode(varint(number << 3) + b"\x00")

    def test_varints_hold_64_bits_in_10_bytes(self) -> None:
        assert Probe.decode(b"\x08" + b"\xff" * 9 + b"\x01").u64 == 2**64 - 1
        assert Probe.decode(b"\x18" + b"\xff" * 9 + b"\x01").i64 == -1
        for tail in (b"\x02", b"\x80\x00", b"\x81\x01"):
            with pytest.raises(DecodeError, match="too long"):
                Probe.decode(b"\x08" + b"\xff" * 9 + tail)

    def test_padded_varints_are_read(self) -> None:
        assert Probe.decode(b"\x08" + varint(5, pad=9)).u64 == 5

    def test_text_must_be_utf_8(self) -> None:
        with pytest.raises(DecodeError, match=r"Probe\.text: not UTF-8"):
            Probe.decode(b"\x3a\x01\xff")
        assert Probe.decode(b"\x3a\x01\xff\x3a\x01a").text == "a", "only the value that counts matters"

    def test_a_length_past_the_end_is_refused_whatever_its_size(self) -> None:
        for length in (2, 2**31, 2**63, 2**64 - 1):
            with pytest.raises(DecodeError, match="truncated"):
                Probe.decode(b"\x42" + varint(length) + b"a")
            with pytest.raises(DecodeError, match="truncated"):
                Probe.decode(varint(99 << 3 | 2) + varint(length) + b"a")

    @given(st.binary(max_size=64))
    def test_nothing_but_decode_errors(self, data: bytes) -> None:
        try:
            Probe.decode(data)
        except DecodeError:
            return


class TestEncoding:
    @pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 70000])
    def test_embedded_messages_of_every_length_of_length(self, size: int) -> None:
        probe = Probe(leaf=Leaf(1, "x" * size), far=9)
        assert plain(google_decode("Probe", probe.encode())) == plain(probe)

    @pytest.mark.parametrize(
        "probe",
        [
            Probe(u64=2**64),
            Probe(u64=-1),
            Probe(u32=2**32),
            Probe(i32=2**31),
            Probe(i64=-(2**63) - 1),
            Probe(u64="1"),  # type: ignore[arg-type]
            Probe(text=b"a"),  # type: ignore[arg-type]
            Probe(data=5),  # type: ignore[arg-type]
            Probe(data="a"),  # type: ignore[arg-type]
            Probe(leaf=Probe()),  # type: ignore[arg-type]
        ],
    )
    def test_values_that_do_not_fit_are_misuse(self, probe: Probe) -> None:
        with pytest.raises(UsageError, match=r"Probe|Leaf"):
            probe.encode()

    def test_the_extremes_of_every_kind(self) -> None:
        probe = Probe(u64=2**64 - 1, u32=2**32 - 1, i64=-(2**63), i32=-(2**31), numbers=(0xDEAD,))
        assert Probe.decode(probe.encode()) == probe


class TestKeys:
    def test_a_key_takes_at_most_five_bytes(self) -> None:
        assert Probe.decode(varint(8, pad=4) + b"\x05").u64 == 5
        with pytest.raises(DecodeError, match="key too long"):
            Probe.decode(varint(8, pad=5) + b"\x05")


class TestSchema:
    def test_refuses_nonsense(self) -> None:
        with pytest.raises(UsageError, match="no field number"):
            Field(0, "a", Kind.UINT64)
        with pytest.raises(UsageError, match="needs its schema"):
            Field(1, "a", Kind.MESSAGE)
        with pytest.raises(UsageError, match="two fields"):
            Schema(Probe, [Field(1, "a", Kind.UINT64), Field(1, "b", Kind.UINT64)])

    def test_has_at_most_32_fields(self) -> None:
        fields = [Field(number, f"f{number}", Kind.UINT64) for number in range(1, 34)]
        assert len(Schema(Probe, fields[:32]).fields) == 32
        with pytest.raises(UsageError, match="32"):
            Schema(Probe, fields)
