"""Sizes, times and ports as people write and read them. Pure."""

from __future__ import annotations

import re
from fractions import Fraction

_SIZE = re.compile(r"(\d{1,12})(?:\.(\d{1,6}))?\s*([MGTP]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_UNIT_MIB = {"": 1, "M": 1, "G": 1024, "T": 1024**2, "P": 1024**3}
_DURATION = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

Ports = tuple[int, int]


def parse_size(text: str) -> int:
    """MiB in a size such as 512M, 1G, 1.5G, 2TiB; a number alone is MiB. ValueError says what is allowed."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a size: write 512M, 1G or 1.5T")
    whole, fraction, unit = match[1], match[2] or "", match[3].upper()
    mib = Fraction(int(whole + fraction), 10 ** len(fraction)) * _UNIT_MIB[unit]
    if mib.denominator != 1 or mib <= 0:
        raise ValueError(f"'{text}' is not a whole number of MiB above 0")
    return int(mib)


def size(mib: int | float | None) -> str:
    """A size in MiB for people: 512 MiB, 1.5 GiB."""
    if mib is None:
        return "-"
    value, units = float(mib), ["MiB", "GiB", "TiB", "PiB"]
    for unit in units:
        # 1023.95 would be printed as 1024.0
        if value < 1023.95 or unit == units[-1]:
            return f"{value:.1f}".removesuffix(".0") + f" {unit}"
        value /= 1024
    raise AssertionError("unreachable: the last unit always returns")


def parse_ports(text: str) -> Ports:
    """The range in `22` or `8000-8100`. ValueError says what is allowed."""
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"'{text}' is not a port or a range of ports: write 22 or 8000-8100")
    low, high = int(match[1]), int(match[2] or match[1])
    if low > high or high > 65535:
        raise ValueError(f"'{text}' is not a range of ports: they go from 0 to 65535, the lower one first")
    return low, high


def ports(low: int | None, high: int | None) -> str:
    """A range as it is written; `any` where there is none."""
    if low is None or high is None:
        return "any"
    return str(low) if low == high else f"{low}-{high}"


def parse_forward(text: str) -> Ports:
    """(local, remote) in `8080:80`; in `80`, where local is 0: any free one. ValueError says what is allowed."""
    match = re.fullmatch(r"(?:(\d{1,5}):)?(\d{1,5})", text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"'{text}' does not say which ports: write LOCAL:REMOTE, such as 8080:80, or REMOTE")
    local, remote = int(match[1] or 0), int(match[2])
    if local > 65535 or not 1 <= remote <= 65535:
        raise ValueError(f"'{text}': ports go from 1 to 65535")
    return local, remote


def parse_duration(text: str) -> int:
    """Seconds in a duration such as 90s, 15m, 12h, 30d or 4w. ValueError says what is allowed."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a duration: write 90s, 15m, 12h, 30d or 4w")
    return int(match[1]) * _UNIT_S[match[2]]


def age(seconds: float) -> str:
    """A duration for people, in its largest unit: 12s, 3m, 5h, 2d, 3y."""
    rest = max(0, int(seconds))
    for limit, divisor, unit in ((60, 1, "s"), (3600, 60, "m"), (86400, 3600, "h"), (730 * 86400, 86400, "d")):
        if rest < limit:
            return f"{rest // divisor}{unit}"
    return f"{rest // (365 * 86400)}y"


def ago(seconds: float) -> str:
    """`3m ago`; `just now` below two seconds; `in 3m` for what is to come."""
    if seconds <= -1:
        return f"in {age(-seconds)}"
    return "just now" if seconds < 2 else f"{age(seconds)} ago"


def clean(text: str) -> str:
    """Without control characters: what a guest or a user wrote must not steer the reader's terminal."""
    return _CONTROL.sub("\ufffd", text)


def short_id(value: str) -> str:
    """An id shortened for a table: its prefix and the characters that differ between neighbours."""
    prefix, _, rest = value.partition("-")
    return f"{prefix}-…{rest[-6:]}" if len(rest) == 16 else value
