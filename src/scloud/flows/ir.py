"""Flows as values. Text for a switch is made from them at the edge; tests push packets through them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Match(NamedTuple):
    """One field of a match, in Open vSwitch's names (`eth_dst`, `ip_src`, `ct_state`, `reg0`, ...)."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Flow:
    """`match` and `actions` are in a fixed order, so that equal flows compare equal.

    `cookie` is the owner: 32 bits made from the owner's id (`cookie_of`). `note` says in words what it is for.
    """

    table: int
    priority: int
    match: tuple[Match, ...]
    actions: tuple[str, ...]
    cookie: int
    note: str = field(default="", compare=False)
