"""What is to become of a lost node's VMs, and when a node is certainly cut off. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LostVm:
    """A VM of a node that was lost. `clusters` are the storage clusters of its disks, `local` names its disks that
    are files of the node."""

    id: str
    name: str
    on: bool
    ha: bool
    priority: int
    leaving: bool
    local: tuple[str, ...]
    pinned: bool
    clusters: frozenset[str]


@dataclass(frozen=True, slots=True)
class Fences:
    """What is certain: the node's sessions of these storage clusters are cut off, its keys taken away; its power is
    off."""

    cut: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    power_off: bool = False

    def certain(self, clusters: frozenset[str]) -> bool:
        """Whether nothing of the node writes to these clusters any more, nor ever will until it is let in again."""
        without_key = clusters <= self.keys
        return without_key and (self.power_off or clusters <= self.cut)


def why_not(vm: LostVm) -> str:
    """Why it is not to run elsewhere; "" if it is."""
    if vm.leaving:
        return "it is being deleted"
    if vm.local:
        disks = f"disk {vm.local[0]} is a file" if len(vm.local) == 1 else f"disks {', '.join(vm.local)} are files"
        return f"its {disks} of the lost node: it comes back with the node"
    if not vm.ha:
        return "high availability is off for it: it comes back with the node"
    if vm.pinned:
        return "it may run on this node only: it comes back with the node"
    return ""


def order(vms: Iterable[LostVm]) -> list[LostVm]:
    """Those that are to run elsewhere: running ones first, by priority, then as they were made."""
    return sorted((vm for vm in vms if not why_not(vm)), key=lambda vm: (not vm.on, -vm.priority, vm.id))


def left_behind(vms: Iterable[LostVm]) -> dict[str, str]:
    """By VM: why it stays."""
    return {vm.id: words for vm in vms if (words := why_not(vm))}


def stale(have: Iterable[str], elsewhere: Collection[str], wished: Mapping[str, bool], *, fenced: bool) -> list[str]:
    """VMs that a node which returns must be rid of before it is let in.

    `have` are the VMs in its journal, `elsewhere` those of them that are known and not this node's any more, `wished`
    those that it is to have, with whether they have disks in a pool. What moved must go; and of a node that was cut
    off, every VM with such a disk: it writes to nothing any more. What nobody knows is left alone.
    """
    return sorted(vm for vm in have if vm in elsewhere or (fenced and wished.get(vm, False)))
