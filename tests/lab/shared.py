"""What the tests of the lab share: guests by name."""

from __future__ import annotations

from dataclasses import dataclass

from lab.cloud import Guest

HIGHEST_VNI = 16777215


@dataclass(frozen=True)
class Wide:
    """A VPC with the highest VNI. `a1` and `a3` are on n1, `a2` is on n2; n3 has none of it.

    `a1` and `a2` are in the group `left`, `a3` is in `right`; both groups are as they are made: all out, members in.
    """

    a1: Guest
    a2: Guest
    a3: Guest


@dataclass(frozen=True)
class Twins:
    """Two VPCs with the same addresses: `l1`, `r1` on n1 are 10.60.0.10; `l2`, `r2` on n2 are 10.60.0.11."""

    l1: Guest
    l2: Guest
    r1: Guest
    r2: Guest
