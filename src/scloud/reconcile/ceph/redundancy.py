"""What a pool needs of its cluster: fault domains, PGs, min_size; why a wish cannot be fulfilled, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scloud.model.storage import FaultDomain, PoolSpec, copies_of
from scloud.reconcile.ceph.layout import Spot

PGS_PER_OSD = 100
"""What Ceph recommends for all pools together."""
POOLS_EXPECTED = 4
"""How many pools share an OSD's PGs, so that a cluster's first pool does not take them all."""
MAX_PG_PER_OSD = 200
"""Above 250 monitors refuse new pools."""
_PLURAL = {FaultDomain.HOST: "hosts", FaultDomain.RACK: "racks", FaultDomain.DATACENTER: "datacenters"}


def domains(spots: Iterable[Spot], level: FaultDomain, media: str | None) -> set[str]:
    """The fault domains that have devices of this kind."""
    return {
        spot.place[level.value]
        for spot in spots
        if level.value in spot.place and (media is None or spot.media == media)
    }


def width(redundancy: str) -> int:
    """How many different fault domains an object is kept on."""
    data, more = copies_of(redundancy)
    return data + more


def objections(spec: PoolSpec, cluster: str, spots: Sequence[Spot]) -> str:
    """Why this cluster cannot keep such a pool, and what would do; empty if it can."""
    media = spec.media.value if spec.media else None
    if not spots:
        return f"cluster '{cluster}' has no devices yet: add some with `scloud storage-cluster device add`"
    kinds = sorted({spot.media for spot in spots})
    if media is not None and media not in kinds:
        only = " and ".join(kinds)
        return f"cluster '{cluster}' has no {media} devices, only {only}: ask for those, or add {media} ones"
    have = domains(spots, spec.fault_domain, media)
    need = width(spec.redundancy)
    if len(have) >= need:
        return ""
    word = _PLURAL[spec.fault_domain]
    what = "copies" if copies_of(spec.redundancy)[0] == 1 else "chunks"
    of = f" with {media} devices" if media else ""
    named = f" ({', '.join(sorted(have))})" if have else ""
    ways = _ways(spec, spots, media, len(have), need)
    return (
        f"{spec.redundancy} keeps {need} {what} on different {word}, "
        f"and cluster '{cluster}' has {len(have)}{of}{named}; what would do: {', '.join(ways)}"
    )


def _ways(spec: PoolSpec, spots: Sequence[Spot], media: str | None, have: int, need: int) -> list[str]:
    """Wishes that this cluster can fulfil, nearest first, and what would make the present one possible."""
    ways = []
    for level in (FaultDomain.RACK, FaultDomain.HOST):
        if level != spec.fault_domain and len(domains(spots, level, media)) >= need:
            ways.append(f"fault domain {level.value}")
    data, _ = copies_of(spec.redundancy)
    if data > 1 and have >= 3:
        more = 2 if have >= 6 else 1
        waits = " (which waits while one of its devices is dead)" if more == 1 else ""
        ways.append(f"ec:{min(data, have - more)}+{more} over {_PLURAL[spec.fault_domain]}{waits}")
    if have >= 2 and (data > 1 or have < need):
        ways.append(f"replica:{min(have, 3)}")
    if spec.fault_domain is FaultDomain.HOST:
        ways.append(f"devices on {need - have} more host{'s' if need - have > 1 else ''}")
    else:
        label = spec.fault_domain.value
        ways.append(f"nodes in {need} {_PLURAL[spec.fault_domain]} (`scloud node label NODE {label}=NAME`)")
    return ways


def min_size(redundancy: str) -> int:
    """How many copies or chunks must be there for writes to be accepted.

    One more than what the bytes need, wherever there is one more: a write that only one device has is lost with it.
    With two copies that would stop all writes at the first failure, so there one has to do, and a condition says so.
    """
    data, more = copies_of(redundancy)
    if data > 1:
        return data + 1
    size = 1 + more
    return size - size // 2 if size > 2 else 1


def metadata_copies(redundancy: str) -> int:
    """How many copies an erasure-coded pool's metadata has: it survives as much as the data, and no write is taken on
    one copy alone. There are fault domains enough: the least such pool has three chunks."""
    return max(copies_of(redundancy)[1] + 1, 3)


def pg_num(osds: int, redundancy: str, *, small: bool = False) -> int:
    """A power of two for a pool over so many OSDs; `small` for pools that hold only metadata."""
    wanted = osds * PGS_PER_OSD / width(redundancy) / POOLS_EXPECTED
    if small:
        wanted /= 4
    result = 8
    while result * 2 <= wanted and result < 4096:
        result *= 2
    return result


def warning(redundancy: str) -> str:
    """What is dangerous about a redundancy, or nothing."""
    data, more = copies_of(redundancy)
    if more == 0:
        return (
            "there is one copy of everything: the first device that fails takes data with it for good; "
            "make a pool with replica:3 and move the disks there"
        )
    if data == 1 and more == 1:
        return (
            "while one of the two copies is away, what is written is on one device only and is lost if that one "
            "fails too; replica:3 has no such moment"
        )
    if more == 1:
        return (
            f"it takes reads and writes only while all {data + 1} chunks are there: with one device dead, what has a "
            "chunk on it waits until that is back or rebuilt elsewhere, though nothing is lost; "
            f"ec:{data}+2 and replica:3 go on meanwhile"
        )
    return ""
