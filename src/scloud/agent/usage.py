"""Which running domain has which disks and nics open. Disks and taps are only touched in agreement with this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scloud.agent.journal import AnyDesired
from scloud.drivers.hypervisor.protocol import DomainFacts
from scloud.model.desired import DesiredVm


@dataclass(frozen=True, slots=True)
class Open:
    disks: tuple[str, ...]
    nics: tuple[str, ...]


class Usage:
    """Told by every look at the hypervisor, and, before a start or an attachment, by who is about to do it.

    Until `known` nothing may be deleted: what runs has not been listed yet.
    """

    def __init__(self) -> None:
        self._open: dict[str, Open] = {}
        self._clock = 0
        self._touched: dict[str, int] = {}
        self.known = False

    def mark(self) -> int:
        """A moment, to be taken before all domains are listed: what is learnt meanwhile is newer than the list."""
        self._clock += 1
        return self._clock

    def saw(self, vm: str, facts: DomainFacts | None) -> None:
        """The domain as it is now."""
        self._touched[vm] = self._clock
        if facts is not None and facts.running:
            self._open[vm] = Open(facts.disks, facts.nics)
        else:
            self._open.pop(vm, None)

    def saw_all(self, domains: Iterable[DomainFacts], mark: int, busy: Iterable[str] = ()) -> dict[str, Open]:
        """All domains as listed since `mark`; returns the VMs of which this was news, with what they had or have open.

        Of those in `busy`, which are being worked on, only more can be learnt: what they run is not yet free.
        """
        before, newer = dict(self._open), {vm for vm, moment in self._touched.items() if moment >= mark}
        working = set(busy)
        running = {facts.vm: facts for facts in domains if facts.running}
        for vm in [vm for vm in self._open if vm not in running and vm not in newer and vm not in working]:
            del self._open[vm]
        for vm, facts in running.items():
            if vm in newer:
                continue
            if vm in working:
                self.about_to(vm, facts.disks, facts.nics)
            else:
                self.saw(vm, facts)
        self.known = True
        news = {}
        for vm in sorted(before.keys() | self._open.keys()):
            if before.get(vm) != self._open.get(vm):
                old, new = before.get(vm, Open((), ())), self.of(vm)
                news[vm] = Open((*old.disks, *new.disks), (*old.nics, *new.nics))
        return news

    def about_to(self, vm: str, disks: Iterable[str] = (), nics: Iterable[str] = ()) -> None:
        """From now on these count as open by the VM."""
        self._touched[vm] = self._clock
        now = self._open.get(vm, Open((), ()))
        self._open[vm] = Open(
            tuple(dict.fromkeys((*now.disks, *disks))),
            tuple(dict.fromkeys((*now.nics, *nics))),
        )

    def of(self, vm: str) -> Open:
        """What the VM has open; nothing while it is off."""
        return self._open.get(vm, Open((), ()))

    def disk_open_by(self, disk: str) -> str | None:
        return next((vm for vm, use in self._open.items() if disk in use.disks), None)

    def nic_open_by(self, nic: str) -> str | None:
        return next((vm for vm, use in self._open.items() if nic in use.nics), None)

    def disk_wanted_by(self, disk: str, desired: Mapping[str, AnyDesired]) -> str | None:
        """The running VM that is to have the disk."""
        for vm in self._open:
            item = desired.get(f"vm/{vm}")
            if isinstance(item, DesiredVm) and item.power != "absent" and any(one.id == disk for one in item.disks):
                return vm
        return None

    def nic_wanted_by(self, nic: str, desired: Mapping[str, AnyDesired]) -> str | None:
        """The running VM that is to have the nic."""
        for vm in self._open:
            item = desired.get(f"vm/{vm}")
            if isinstance(item, DesiredVm) and item.power != "absent" and nic in item.nics:
                return vm
        return None


def open_or_wanted(usage: Usage, disk: str, desired: Mapping[str, AnyDesired]) -> bool:
    """Whether a VM here has a disk open or is to have it: then it is this node's, connected or not."""
    return usage.disk_open_by(disk) is not None or bool(users_of_disk(disk, desired))


def users_of_disk(disk: str, desired: Mapping[str, AnyDesired]) -> list[str]:
    """Keys of the VMs that are to have a disk, running or not."""
    return [
        key
        for key, item in desired.items()
        if isinstance(item, DesiredVm) and any(one.id == disk for one in item.disks)
    ]
