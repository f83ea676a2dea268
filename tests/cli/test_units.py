"""Sizes, times and rates as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.cli import units
from flare.config import Rate
from flare.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (131072, 131072),
        ("131072", 131072),
        ("128 KiB", 131072),
        ("128KiB", 131072),
        (" 1.5 GB ", 1_500_000_000),
        ("0", 0),
        ("none", 0),
        ("1 TiB", 1 << 40),
    ],
)
def test_sizes(text: object, expected: int) -> None:
    assert units.size(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [(120, 120), (0.5, 0.5), ("2m", 120), ("90 s", 90), ("1.5h", 5400), ("250ms", 0.25), ("7d", 604800)],
)
def test_times(text: object, expected: float) -> None:
    assert units.duration(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10 Mbit/s", Rate(1.25e6)),
        ("1 MiB/s", Rate(1 << 20)),
        ("8 bit/s", Rate(1)),
        ("1.25 MB/s ", Rate(1.25e6)),
        ("none", Rate()),
        ("unlimited", Rate()),
        ({"rate": "1 Gbit/s"}, Rate(1.25e8)),
        ({"rate": "1 Gbit/s", "burst": "4 MiB"}, Rate(1.25e8, 4 << 20)),
        ({"rate": "1 kbit/s", "burst": 1000}, Rate(125, 1000)),
    ],
)
def test_byte_rates(text: object, expected: Rate) -> None:
    assert units.byte_rate(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2/s", Rate(2)),
        ("12/min", Rate(0.2)),
        ("12 / m", Rate(0.2)),
        ("36/h", Rate(0.01)),
        ("none", Rate()),
        ({"rate": "12/min", "burst": 10}, Rate(0.2, 10)),
    ],
)
def test_count_rates(text: object, expected: Rate) -> None:
    assert units.count_rate(text) == expected


@pytest.mark.parametrize(
    ("convert", "value", "sentence"),
    [
        (units.size, "12 XB", "'12 XB' is not a size, such as \"128 KiB\": the unit is none of B, kB"),
        (units.size, "12 Mb", "the unit is none of"),
        (units.size, "-1", "'-1' is not a size"),
        (units.size, -1, "negative or too much"),
        (units.size, "1025 GiB", "negative or too much"),
        (units.size, True, "True is not a size"),
        (units.size, [], r"\[\] is not a size"),
        (units.size, "", "'' is not a size"),
        (units.size, float("nan"), "negative or too much"),
        (units.duration, "2 weeks", "the unit is none of ms, s, m, min, h, d"),
        (units.duration, "soon", "'soon' is not a time"),
        (units.byte_rate, "10 Mbit", r"'10 Mbit' is not a rate, such as \"10 Mbit/s\""),
        (units.byte_rate, 1000, "1000 is not a rate"),
        (units.byte_rate, "0 B/s", "lets nothing through"),
        (units.byte_rate, {"rate": "1 MB/s", "burts": 1}, "keys rate and burst"),
        (units.byte_rate, {"burst": 1}, "keys rate and burst"),
        (units.byte_rate, {"rate": "1 MB/s", "burst": "many"}, "'many' is not a size"),
        (units.count_rate, "12", "'12' is not a rate, such as"),
        (units.count_rate, 12, "12 is not a rate"),
        (units.count_rate, "12/year", "is not a rate"),
        (units.count_rate, "0/s", "lets nothing through"),
        (units.count_rate, {"rate": "1/s", "burst": 0}, "a burst of 0"),
        (units.count_rate, {"rate": "1/s", "burst": 1.5}, "a burst of 1.5"),
        (units.count_rate, {"rate": "1/s", "burst": True}, "a burst of True"),
    ],
)
def test_what_is_none(convert: object, value: object, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        convert(value)  # type: ignore[operator]


@given(st.one_of(st.text(max_size=20), st.integers(), st.floats(), st.none(), st.lists(st.integers())))
def test_anything_is_read_or_refused(value: object) -> None:
    for convert in (units.size, units.duration, units.byte_rate, units.count_rate):
        with contextlib.suppress(UsageError):
            convert(value)  # type: ignore[operator]
