"""Sizes, ports and times, read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scloud.cli import human
from scloud.cli.output import fitted

UNITS = {"": 1, "M": 1, "MiB": 1, "m": 1, "G": 1024, "GB": 1024, "gib": 1024, "T": 1024**2, "P": 1024**3}


@given(st.integers(1, 10**6), st.sampled_from(sorted(UNITS)))
def test_whole_sizes_are_exact(number: int, unit: str) -> None:
    assert human.parse_size(f"{number}{unit}") == number * UNITS[unit]


@given(st.integers(0, 10**4), st.sampled_from(["5", "25", "125", "75", "50"]))
def test_fractions_of_a_gibibyte_are_exact(whole: int, fraction: str) -> None:
    assert human.parse_size(f"{whole}.{fraction}G") == (whole * 10 ** len(fraction) + int(fraction)) * 1024 // (
        10 ** len(fraction)
    )


@given(st.text())
def test_any_text_is_a_size_above_0_or_refused(text: str) -> None:
    try:
        assert human.parse_size(text) > 0
    except ValueError as error:
        assert "size" in str(error) or "MiB" in str(error)


@pytest.mark.parametrize(
    "text", ["", "0", "0G", "-1G", "1.1M", "0.3G", "1K", "1 G B", "G", "1e3", "١G", "1.G", "1" * 20]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|MiB"):
        human.parse_size(text)


@given(st.integers(1, 2**40))
def test_a_printed_size_reads_back_within_its_rounding(mib: int) -> None:
    number, unit = human.size(mib).split()
    assert abs(float(number) * UNITS[unit[0]] - mib) <= 0.0501 * UNITS[unit[0]]
    assert float(number) < 1024 or unit == "PiB"


@pytest.mark.parametrize(
    ("mib", "text"),
    [(None, "-"), (0, "0 MiB"), (512, "512 MiB"), (1536, "1.5 GiB"), (1024**2, "1 TiB"), (1023.99, "1 GiB")],
)
def test_sizes_for_people(mib: float | None, text: str) -> None:
    assert human.size(mib) == text


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_ports_read_back_as_written(low: int, high: int) -> None:
    low, high = sorted((low, high))
    assert human.parse_ports(human.ports(low, high)) == (low, high)


@given(st.text(alphabet="0123456789-: a", max_size=14))
def test_any_text_is_a_range_of_ports_or_refused(text: str) -> None:
    try:
        low, high = human.parse_ports(text)
        assert 0 <= low <= high <= 65535
    except ValueError as error:
        assert "port" in str(error)


@pytest.mark.parametrize("text", ["", "65536", "22-21", "22-", "-22", "a", "1-2-3", "22,23", "٢٢"])
def test_what_is_no_range_of_ports(text: str) -> None:
    with pytest.raises(ValueError, match="port"):
        human.parse_ports(text)


@given(st.integers(0, 65535), st.integers(1, 65535))
def test_forwards(local: int, remote: int) -> None:
    assert human.parse_forward(f"{local}:{remote}") == (local, remote)
    assert human.parse_forward(str(remote)) == (0, remote)


@pytest.mark.parametrize("text", ["", "0", "80:0", "65536:80", "80:65536", "a:b", "80:", ":80", "1:2:3"])
def test_what_is_no_forward(text: str) -> None:
    with pytest.raises(ValueError, match="port"):
        human.parse_forward(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("12h", 43200), ("30d", 2592000), ("1w", 604800)]
)
def test_durations(text: str, seconds: int) -> None:
    assert human.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "d", "1.5h", "-1d", "1y"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        human.parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0.4, "0s"),
        (59, "59s"),
        (60, "1m"),
        (3600, "1h"),
        (86400, "1d"),
        (729 * 86400, "729d"),
        (800 * 86400, "2y"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert human.age(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(1, "just now"), (180, "3m ago"), (-180, "in 3m")])
def test_ago(seconds: float, text: str) -> None:
    assert human.ago(seconds) == text


@given(st.text())
def test_cleaned_text_steers_no_terminal(text: str) -> None:
    assert not set(human.clean(text)) & ({chr(code) for code in (*range(32), *range(127, 160))} - {"\n", "\t"})


@given(st.lists(st.integers(0, 300), min_size=1, max_size=10), st.integers(20, 200))
def test_columns_fit_if_they_can_and_narrow_ones_are_left_alone(widths: list[int], available: int) -> None:
    result = fitted(widths, available)
    assert sum(result) <= max(available, sum(min(width, 4) for width in widths))
    assert all(new <= old for new, old in zip(result, widths, strict=True))
    if sum(widths) <= available:
        assert result == widths
    cut = [new for new, old in zip(result, widths, strict=True) if new < old]
    kept = [new for new, old in zip(result, widths, strict=True) if new == old]
    assert not cut or not kept or max(kept) <= min(cut) + 1
