"""One reader of numbers: what is typed is read as what it looks like, or refused; never something a thousand times off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError
from experiments.numbers import format_count, parse_count, parse_duration, parse_memory, parse_percent


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("20M", 20_000_000), ("2.5M", 2_500_000), ("2,5M", 2_500_000), ("500k", 500_000), ("1e6", 1_000_000),
        ("2.5e6", 2_500_000), ("200000", 200_000), ("200_000", 200_000), ("200,000", 200_000), ("1,000,000", 1_000_000),
        ("1.000.000", 1_000_000), ("1,000.0", 1_000), ("1.000,0", 1_000), (" 3 k ", 3_000), ("１２k", 12_000),
        ("\ufeff7", 7), ("1000G", 10**12), ("999999999999", 999_999_999_999),
    ],
)  # fmt: skip
def test_a_count_is_read_as_what_it_looks_like(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text",
    ["", ".", ",", "1.2.3", "1,2,3", "1.2,3.4", "1,00.5", "1001G", "0", "-5", "0.5", "1e30", "1e9999", "1,500M", "12 34",
     "ten", "5.", "1__e", "0x10", "nan", "inf", "9" * 400, "1e-3", "٣؟"],
)  # fmt: skip
def test_a_count_that_could_mean_something_else_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(InputError, match="allowed"):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "percent"), [("10", 10.0), ("12.5", 12.5), ("12,5", 12.5), ("1,000", 1000.0), (".5", 0.5), ("1.000", 1.0)]
)
def test_a_percentage_of_a_goal_is_read_by_the_same_rules(text: str, percent: float) -> None:
    assert parse_percent(text) == percent


@pytest.mark.parametrize("text", ["1.2.3", ".", "0", "1001", "1.000,5", "", "-1"])
def test_a_percentage_that_is_no_number_or_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="at most 1000 %"):
        parse_percent(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("1h30m", 5400), ("1,5h", 5400), ("1.5h", 5400), ("90s", 90), ("45", 45), ("1h 5min 3s", 3903), ("2d", 172800)],
)  # fmt: skip
def test_a_duration_is_read_in_its_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "m30", "31d", "0s", "1h2h", "-3m", "1,500h", "1..5h", "3x"])
def test_a_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="allowed"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "mib"), [("4G", 4096), ("1,5G", 1536), ("4GiB", 4096), ("800", 800), ("1t", 2**20)])
def test_memory_is_read_in_mebibytes(text: str, mib: int) -> None:
    assert parse_memory(text) == mib


@given(st.integers(1, 10**12))
def test_every_count_is_read_back_from_each_of_its_spellings(count: int) -> None:
    assert parse_count(str(count)) == parse_count(f"{count:_}") == count
    if count < 1000 or count >= 1_000_000:  # `1,500` alone is 1500 as well
        assert parse_count(f"{count:,}") == count


@given(st.integers(1, 999_999))
def test_a_printed_count_is_read_as_that_count(count: int) -> None:
    assert parse_count(format_count(count)) == pytest.approx(count, rel=5e-3)


@given(st.text(max_size=12))
def test_any_other_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_count, parse_duration, parse_memory, parse_percent):
        try:
            assert parse(text) > 0
        except InputError:
            continue
