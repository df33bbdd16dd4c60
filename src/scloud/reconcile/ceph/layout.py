"""How a storage cluster is laid out over its nodes: monitors, managers, addresses, places in the CRUSH tree. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from scloud.model.storage import Device, FaultDomain

PORTS = 256
"""Ports that a cluster has to itself on each of its nodes."""
FIRST_PORT = 7000
LAST_PORT = 32000
LEVELS = (FaultDomain.DATACENTER, FaultDomain.RACK, FaultDomain.HOST)
"""From the top of the tree."""


@dataclass(frozen=True, slots=True)
class Site:
    """A node as a place for daemons. `address` is where its daemons listen; `labels` say its rack and datacenter."""

    id: str
    name: str
    address: str
    labels: Mapping[str, str]

    @property
    def place(self) -> dict[str, str]:
        """Where its OSDs are in the CRUSH tree, without the root."""
        above = {
            level.value: self.labels[level.value]
            for level in (FaultDomain.DATACENTER, FaultDomain.RACK)
            if level.value in self.labels
        }
        return {**above, "host": self.name}

    @property
    def crush(self) -> dict[str, str]:
        """The same from the root on, from above."""
        return {"root": "default", **self.place}


def spread(sites: Sequence[Site], count: int, avoid: Collection[str] = ()) -> list[Site]:
    """So many of the nodes, from as many datacenters and racks as can be; those to `avoid` last."""
    chosen: list[Site] = []
    left = list(sites)
    used: dict[str, Counter[str]] = defaultdict(Counter)
    while left and len(chosen) < count:

        def cost(site: Site) -> tuple[int, ...]:
            place = site.place
            crowded = [used[level.value][place.get(level.value, "")] for level in LEVELS[:2]]
            return (int(site.id in avoid), *crowded)

        best = min(left, key=cost)  # the first of equals: the order that was asked for
        left.remove(best)
        chosen.append(best)
        for level in LEVELS[:2]:
            used[level.value][best.place.get(level.value, "")] += 1
    return chosen


def choose_monitors(sites: Sequence[Site], avoid: Collection[str] = ()) -> list[Site]:
    """Three where there are three nodes, else one: two would both be needed, which is worse than one."""
    usable = [site for site in sites if site.id not in avoid]
    return spread(usable, 3 if len(usable) >= 3 else 1)


def choose_managers(sites: Sequence[Site], avoid: Collection[str] = ()) -> list[Site]:
    """Two, so that one can take over, where there are two nodes."""
    return spread([site for site in sites if site.id not in avoid], 2)


def mon_host(addresses: Iterable[str], port: int) -> str:
    """Monitors' addresses as ceph.conf wants them, messenger v2 alone."""
    return ",".join(f"[v2:{address}:{port}]" for address in addresses)


def addresses_in(text: str) -> list[str]:
    """IP:PORT of each monitor in what `mon_host` made, in its order."""
    return [part.strip("[]").removeprefix("v2:") for part in text.split(",") if part]


def free_port(taken: Collection[str]) -> int | None:
    """The first of a range of ports that no cluster has."""
    for port in range(FIRST_PORT, LAST_PORT, PORTS):
        if str(port) not in taken:
            return port
    return None


def misplaced(sites: Iterable[Site]) -> str:
    """Why nodes' labels make no CRUSH tree, or nothing: every name in it may stand for one thing only."""
    kinds: dict[str, str] = {}
    above: dict[str, str | None] = {}
    for site in sites:
        place = site.place
        for level, name in place.items():
            other = kinds.setdefault(name, level)
            if other != level:
                return f"'{name}' is the name of a {other} and of a {level}; give one of them another name"
        rack = place.get("rack")
        if rack is not None:
            datacenter = place.get("datacenter")
            if above.setdefault(rack, datacenter) != datacenter:
                named = " and ".join(
                    repr(item) if item else "none" for item in sorted({above[rack] or "", datacenter or ""})
                )
                return (
                    f"rack '{rack}' is in two datacenters ({named}); label racks of different datacenters differently"
                )
    return ""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where an OSD is or will be. `place` as in Site.place."""

    place: Mapping[str, str]
    media: str
    total_mib: int = 0


def spots(devices: Iterable[Device], sites: Mapping[str, Site]) -> list[Spot]:
    """The places of the devices that are to have data."""
    return [
        Spot(sites[device.node].place, device.media.value, device.size_mib or 0)
        for device in devices
        if not device.out and device.node in sites
    ]
