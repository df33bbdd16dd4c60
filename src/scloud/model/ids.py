"""Resource ids: a kind's prefix and 16 characters that sort by time of making.

9 characters are milliseconds since 1970 in Crockford's base 32 (good until the year 3084), 7 are random (35 bits).
"""

from __future__ import annotations

import re

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
RANDOM_BITS = 35
ID_PATTERN = r"^[a-z]{2,4}-[0-9a-hjkmnp-tv-z]{16}$"
_ID = re.compile(ID_PATTERN)


def _base32(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        digits.append(ALPHABET[number & 31])
        number >>= 5
    return "".join(reversed(digits))


def make_id(prefix: str, now_ms: int, random_bits: int) -> str:
    """The id for this moment. Pure: the caller brings the clock and the randomness."""
    return f"{prefix}-{_base32(now_ms, 9)}{_base32(random_bits, 7)}"


def is_id(text: str) -> bool:
    """Whether a reference is an id rather than a name (names may not look like ids)."""
    return _ID.match(text) is not None
