"""Policies: sets of security groups. Nics with the same groups share one policy, and its flows.

A nic's policy is known by a number made from its group ids. The same number serves for the other end of a packet: a
rule whose peer is group G allows the peers whose policy contains G. So a member joining or leaving a group changes the
flows of its own address and no rule's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=65536)
def policy_id(groups: tuple[str, ...]) -> int:
    """64 bits, wide enough that two sets of groups do not meet; 0 for no groups. Order and repetition do not matter."""
    if not groups:
        return 0
    names = "\0".join(sorted(set(groups)))
    return int.from_bytes(hashlib.blake2b(names.encode(), digest_size=8).digest(), "big") or 1


def port_masks(low: int, high: int) -> list[tuple[int, int]]:
    """The fewest (value, mask) pairs that cover the ports low..high (0..65535, both included): at most 30."""
    masks = []
    while low <= high:
        size = low & -low or 65536
        while low + size - 1 > high:
            size >>= 1
        masks.append((low, 65536 - size))
        low += size
    return masks


def peers_with(group: str, policies: Iterable[tuple[str, ...]]) -> tuple[int, ...]:
    """The policies that contain the group, by number, in order and each once."""
    return tuple(sorted({policy_id(groups) for groups in policies if group in groups}))
