"""VMs: each worked on by its own task, step by step as `reconcile.vm` plans, with fresh facts before every step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from scloud.agent.board import Board
from scloud.agent.deadlines import within
from scloud.agent.disks import FAILED_AFTER, Disks
from scloud.agent.journal import Journal
from scloud.agent.moves import LOOK_EVERY_S, Departures, arrival
from scloud.agent.network import Network
from scloud.agent.passages import Connections, Passages
from scloud.agent.usage import Usage
from scloud.agent.work import Slots, Workers
from scloud.drivers.hypervisor.protocol import DiskSource, DomainFacts, DomainSpec, Hypervisor, NicDevice
from scloud.drivers.storage.place import FilePlace
from scloud.model.desired import DesiredPort, DesiredVm, MoveIn, MoveOut
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.migrations import MoveSeen
from scloud.model.observed import Observed
from scloud.reconcile import vm as plans
from scloud.reconcile.vm import DiskView, DomainView, Plan, Situation, Step, vm_plan

log = logging.getLogger(__name__)

PARALLEL_STARTS = 4
GROWTH = 4
"""A running guest can be given so many times the CPUs and memory that it was started with."""
MAX_CPUS = 255
MAX_UNDONE = 5
UNDONE_S = 1.0


class Seeds(Protocol):
    """The NoCloud disk of each VM."""

    async def build(self, vm: DesiredVm, ports: Sequence[DesiredPort]) -> Path:
        """Write it anew, as it is to be at this start. `CloudError`, OSError."""
        ...

    async def remove(self, vm: str) -> None: ...


@dataclass(frozen=True, slots=True)
class VmSettings:
    """`boot_id` is the host's; `logs` and `sockets` are the folders of console logs and sockets."""

    boot_id: str
    logs: Path
    sockets: Path
    mtu: int
    offload: bool

    def log_of(self, vm: str) -> Path:
        return self.logs / f"{vm}.log"

    def socket_of(self, vm: str) -> Path:
        return self.sockets / f"{vm}.sock"


class Vms:
    """Handles keys `vm/ID`. `changed` is called with the keys of disks and ports whose use has changed."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        journal: Journal,
        board: Board,
        usage: Usage,
        disks: Disks,
        network: Network,
        seeds: Seeds,
        settings: VmSettings,
        changed: Callable[[Iterable[str]], None],
        passages: Passages,
    ) -> None:
        self._passages = passages
        passages.released = self._released
        passages.brought = self._brought
        self._prepared: dict[str, MoveSeen] = {}
        """What this agent has made ready for VMs that are to come."""
        self.departures = Departures(hypervisor, journal, passages, lambda key: changed([key]), network.connections)
        self._hypervisor = hypervisor
        self._journal = journal
        self._board = board
        self._usage = usage
        self._disks = disks
        self._network = network
        self._seeds = seeds
        self._settings = settings
        self._changed = changed
        self._starts = Slots(PARALLEL_STARTS)
        self._uncertain: set[str] = set()
        """VMs whose start did not answer in time: it may still be under way inside the hypervisor."""
        self.workers = Workers(self._handle)
        self.gone: Callable[[str], None] = lambda vm: None
        """Called with a VM that was seen not to run here."""

    async def _handle(self, key: str) -> float | None:
        vm = key.partition("/")[2]
        failed: dict[plans.Action, CloudError | OSError] = {}
        undone = 0
        let_run = False
        while True:
            desired = self._journal.desired.get(key)
            if not isinstance(desired, DesiredVm):
                return None
            if vm in self._uncertain:
                await within("power", f"switching {vm} off", self._hypervisor.destroy(vm))
                self._uncertain.discard(vm)
            facts = await within("query", f"looking at {vm}", self._hypervisor.show(vm))
            if vm in self._prepared and (facts is None or not facts.running):
                # The hypervisor starts it without asking: its disks count as open until it cannot come.
                self._usage.about_to(vm, [disk.id for disk in desired.disks])
            else:
                self._saw(desired, facts)
            if desired.move_in is not None:
                return await self._expect(desired, desired.move_in, facts)
            if desired.move_out is not None:
                return await self._depart(desired, desired.move_out, facts)
            await self.departures.drop(vm)
            if self._prepared.pop(vm, None) is not None:
                await self._passages.forget(vm)
                continue  # something may have come since it was looked at
            if facts is not None and facts.halved and desired.power == "on":
                log.warning("%s: a post-copy broke off, and part of its memory with it: it is started anew", vm)
                await within("power", f"switching {vm} off", self._hypervisor.destroy(vm))
                continue
            if facts is not None and (facts.moving or facts.complete) and desired.power == "on":
                # Held by a migration; the manager has found out that it runs nowhere else.
                if let_run:
                    raise self._stays_held(desired)
                let_run = True
                await within("power", f"letting {vm} run again", self._hypervisor.resume(vm))
                continue
            try:
                at = await self._situation(desired, facts)
            except (CloudError, OSError) as trouble:
                self._cannot_see(desired, facts, trouble)
                raise
            plan = vm_plan(at)
            if self._journal.desired.get(key) is not desired:
                continue
            await self._journal.remember(vm, plan.memory)
            step = next((step for step in plan.steps if step.action not in failed), None)
            if step is None:
                if failed:
                    error = next(iter(failed.values()))
                    self._report_failure(desired, plan, error)
                    raise error
                if plan.observed.state == "absent":
                    await self._clean_up(desired)
                    if left := [nic for nic in desired.nics if self._network.has_tap(nic)]:
                        # Its taps are told by other objects, which may be dropped once this is said to be gone.
                        self._network.take_away(left)
                        reason = f"the taps of {', '.join(left)} are being removed"
                        update = {"state": "working", "settled": False, "reason": reason}
                        reported = plan.observed.model_copy(update=update)
                        if self._board.get(key) != reported:
                            self._board.put(reported)
                            self._touch(desired)  # once: they wake it in turn
                        return self.workers.now() + UNDONE_S
                    self._board.put(plan.observed.model_copy(update={"dropped": desired.leftovers}))
                    return plan.wake_at
                self._board.put(plan.observed)
                return plan.wake_at
            if self.workers.failures(key) < FAILED_AFTER:
                self._board.put(plan.observed)
            began = self.workers.now()
            try:
                done = await self._carry_out(desired, step)
                undone = 0 if done else undone + 1
                log.info("%s: %s%s in %.3f s", vm, step.action, "" if done else " put off", self.workers.now() - began)
            except (CloudError, OSError) as error:
                log.warning("%s: %s: %s", vm, step.action, error)
                failed[step.action] = error
            if undone >= MAX_UNDONE:  # whatever it waits for is not in its plan: no reason to spin
                return self.workers.now() + UNDONE_S

    def _stays_held(self, desired: DesiredVm) -> CloudError:
        """It was let run, and the hypervisor says that it does not: told, and tried again."""
        reason = "it has come from another node, was let run, and stays paused; it is tried again"
        self._board.put(
            Observed(
                key=f"vm/{desired.id}",
                generation=desired.generation,
                state="working",
                settled=False,
                reason=reason,
            )
        )
        return CloudError(ErrorKind.ENGINE, reason)

    async def _depart(self, desired: DesiredVm, move: MoveOut, facts: DomainFacts | None) -> float:
        """It is to go to another node. Until the manager says how that ended, nothing else is done about it here."""
        seen = await self.departures.look(desired, move, facts)
        if seen.state != "copying":
            self._saw(desired, await within("query", f"looking at {desired.id}", self._hypervisor.show(desired.id)))
        self._say(desired, seen)
        return self.workers.now() + LOOK_EVERY_S

    async def _expect(self, desired: DesiredVm, move: MoveIn, facts: DomainFacts | None) -> float:
        """It is to come from another node. Taps and flows are in place before it does."""
        if move.asked:
            return await self._last_word(desired, move)
        seen = arrival(move.number, facts)
        if seen is None:
            known = self._prepared.get(desired.id)
            if known is not None and known.number == move.number:
                seen = known
            else:
                seen = await self._prepare(desired, move)
        if seen is not None:
            self._say(desired, seen.model_copy(update={"asked": move.asked}))
        return self.workers.now() + LOOK_EVERY_S

    async def _last_word(self, desired: DesiredVm, move: MoveIn) -> float:
        """Nobody but this node can say whether it has come: from now on nothing more of it comes, then it is looked at.

        While what came last still makes its way into the engine, there is no answer.
        """
        await self._passages.forget(desired.id)
        facts = await within("query", f"looking at {desired.id}", self._hypervisor.show(desired.id))
        seen = arrival(move.number, facts) or MoveSeen(number=move.number, state="ready")
        asked = 0 if seen.state == "arriving" else move.asked
        self._say(desired, seen.model_copy(update={"asked": asked}))
        return self.workers.now() + LOOK_EVERY_S

    async def _released(self, vm: str) -> None:
        """All of it has come, and it is gone where it was: whoever sent it says so."""
        desired = self._journal.desired.get(f"vm/{vm}")
        if not isinstance(desired, DesiredVm) or desired.move_in is None:
            return
        try:
            facts = await within("query", f"looking at {vm}", self._hypervisor.show(vm))
            if facts is not None and facts.complete and self._current(desired):
                await within("power", f"letting {vm} run", self._hypervisor.resume(vm))
        except CloudError as error:  # the manager has it let run once it knows that it is gone there
            log.warning("%s was released where it came from, and is not let run yet: %s", vm, error)
        self.workers.wake(f"vm/{vm}", urgent=True)

    async def _brought(self, vm: str, connections: Connections) -> None:
        """Of its nics, where it came from."""
        desired = self._journal.desired.get(f"vm/{vm}")
        if not isinstance(desired, DesiredVm):
            return
        try:
            await self._network.bring({nic: connections[nic] for nic in desired.nics if nic in connections})
        except CloudError as error:
            log.warning("the connections that %s had are not kept: %s", vm, error)

    async def _prepare(self, desired: DesiredVm, move: MoveIn) -> MoveSeen | None:
        """None while something is not in place yet."""
        waiting = [nic for nic in desired.nics if not self._network.nic_view(nic).ready]
        if waiting:
            reason = f"waiting for the taps and flows of {', '.join(waiting)}"
            self._board.put(
                Observed(
                    key=f"vm/{desired.id}",
                    generation=desired.generation,
                    state="working",
                    settled=False,
                    reason=reason,
                )
            )
            return None
        order = [disk.id for disk in sorted(desired.disks, key=lambda disk: not disk.system)]
        copies = {copy.disk: copy for copy in move.copies}
        sources = [
            await self._disks.make_room(copies[disk])
            if disk in copies
            else await self._disks.source_in(disk, self._pool_of(disk, move), move.source)
            for disk in order
        ]
        if not self._can_be_described(desired):
            return None
        spec = await self._spec(desired, sources)
        await within("query", f"preparing for {desired.id}", self._hypervisor.prepare_move(spec))
        address = await self._passages.expect(desired.id, move.source, spec)
        self._prepared[desired.id] = MoveSeen(number=move.number, state="ready", address=address)
        self._usage.about_to(desired.id, order)
        return self._prepared[desired.id]

    def expected(self) -> set[str]:
        """VMs that may come at any moment."""
        return set(self._prepared)

    @staticmethod
    def _pool_of(disk: str, move: MoveIn) -> str:
        if (pool := move.pools.get(disk)) is None:
            raise CloudError(ErrorKind.CONFLICT, f"disk {disk} was attached meanwhile; migrate it again")
        return pool

    def _say(self, desired: DesiredVm, seen: MoveSeen) -> None:
        state: Literal["running", "working"] = "running" if seen.state in ("copying", "stays", "arrived") else "working"
        self._board.put(
            Observed(
                key=f"vm/{desired.id}",
                generation=desired.generation,
                state=state,
                settled=False,
                reason=seen.reason,
                move=seen,
            )
        )

    def _saw(self, desired: DesiredVm, facts: DomainFacts | None) -> None:
        before = self._usage.of(desired.id)
        self._usage.saw(desired.id, facts)
        if facts is None or not facts.running:
            self.gone(desired.id)
        if before != self._usage.of(desired.id):
            self._touch(desired, [*before.disks, *(facts.disks if facts else ())], before.nics)

    def _touch(self, desired: DesiredVm, disks: Iterable[str] = (), nics: Iterable[str] = ()) -> None:
        """The VM's disks and nics may be settled now, or free."""
        keys = [f"disk/{disk}" for disk in (*disks, *(disk.id for disk in desired.disks))]
        keys += [f"port/{nic}" for nic in (*nics, *desired.nics)]
        self._changed(dict.fromkeys(keys))

    async def _situation(self, desired: DesiredVm, facts: DomainFacts | None) -> Situation:
        domain = None
        if facts is not None:
            domain = DomainView(
                running=facts.running,
                cpus=facts.cpus,
                memory_mib=facts.memory_mib,
                paused=facts.paused,
                off_reason=facts.off_reason,
                disks=facts.disks,
                nics=facts.nics,
            )
        disks = {}
        if desired.power == "on":
            running = facts is not None and facts.running
            disks = {disk.id: await self._disk_view(desired, disk.id, running) for disk in desired.disks}
        return Situation(
            desired=desired,
            domain=domain,
            disks=disks,
            nics={nic: self._network.nic_view(nic) for nic in desired.nics},
            memory=self._journal.memory(desired.id),
            now=self.workers.now(),
            boot_id=self._settings.boot_id,
            log=f"`scloud vm log {desired.name}`",
        )

    async def _disk_view(self, desired: DesiredVm, disk: str, running: bool = False) -> DiskView:
        """What cannot be looked at now keeps a VM from starting; one that runs goes on, and so does work on it."""
        other = self._usage.disk_open_by(disk)
        if other not in (None, desired.id):
            return DiskView("missing", reason=f"{other} still has it")
        try:
            return await self._disks.view(disk)
        except (CloudError, OSError) as error:
            if not running:
                raise
            return DiskView("missing", reason=str(error))

    def _cannot_see(self, desired: DesiredVm, facts: DomainFacts | None, error: CloudError | OSError) -> None:
        """It is to start, and what it needs cannot be looked at: it is tried again until it can."""
        if desired.power == "on" and (facts is None or not facts.running):
            self._board.put(
                Observed(
                    key=f"vm/{desired.id}",
                    generation=desired.generation,
                    state="working",
                    settled=False,
                    reason=f"waiting for its disks: {error}",
                )
            )

    def _report_failure(self, desired: DesiredVm, plan: Plan, error: CloudError | OSError) -> None:
        final = self.workers.failures(f"vm/{desired.id}") + 1 >= FAILED_AFTER
        update: dict[str, object] = {"settled": False, "reason": str(error)}
        if plan.observed.state != "running":
            # a running VM with a failing change is still a running VM; what waits for the change has its deadline
            update = {"settled": final, "reason": str(error), "state": "error" if final else "working"}
        self._board.put(plan.observed.model_copy(update=update))

    async def _carry_out(self, desired: DesiredVm, step: Step) -> bool:
        """False if, at the moment of doing it, it was not right any more."""
        vm = desired.id
        await self._journal.remember(vm, step.before)
        match step.action:
            case plans.Start():
                done = await self._start(desired)
            case plans.AttachDisk(disk):
                done = await self._attach_disk(desired, disk)
            case plans.AttachNic() if not self._current(desired):
                done = False
            case plans.AttachNic(nic):
                self._usage.about_to(vm, nics=[nic])
                attaching = self._hypervisor.attach_nic(vm, self._device(nic))
                await within("plug", f"attaching nic {nic} to {vm}", attaching)
                done = True
            case plans.SetCpus(cpus):
                taken = await within("plug", f"giving {vm} {cpus} CPUs", self._hypervisor.set_cpus(vm, cpus))
                await self._journal.remember(vm, step.after if taken or step.refused is None else step.refused)
                return True
            case plans.SetMemory(size):
                taken = await within("plug", f"giving {vm} {size} MiB", self._hypervisor.set_memory(vm, size))
                await self._journal.remember(vm, step.after if taken or step.refused is None else step.refused)
                return True
            case action:
                await self._simple(vm, action)
                done = True
        if done:
            await self._journal.remember(vm, step.after)
            self._touch(desired)
        return done

    async def _simple(self, vm: str, action: plans.Action) -> None:
        match action:
            case plans.Shutdown():
                await within("power", f"asking {vm} to shut down", self._hypervisor.shutdown(vm))
            case plans.Destroy():
                await within("power", f"switching {vm} off", self._hypervisor.destroy(vm))
            case plans.Undefine():
                await within("power", f"forgetting {vm}", self._hypervisor.undefine(vm))
            case plans.Reboot():
                await within("power", f"rebooting {vm}", self._hypervisor.reboot(vm))
            case plans.DetachDisk(disk):
                await within("plug", f"detaching disk {disk} from {vm}", self._hypervisor.detach_disk(vm, disk))
            case plans.GrowDisk(disk, size):
                growing = self._hypervisor.grow_disk(vm, disk, size)
                await within("plug", f"telling {vm} that disk {disk} has {size} MiB", growing)
            case plans.LimitDisk(disk, limits):
                limiting = self._hypervisor.limit_disk(vm, disk, limits)
                await within("plug", f"limiting disk {disk} of {vm}", limiting)
            case plans.DetachNic(nic):
                await within("plug", f"detaching nic {nic} from {vm}", self._hypervisor.detach_nic(vm, nic))

    def _current(self, desired: DesiredVm) -> bool:
        return self._journal.desired.get(f"vm/{desired.id}") is desired

    def _can_be_described(self, desired: DesiredVm) -> bool:
        """Whether it is still what is wanted, with taps to name: asked after every wait before `_spec`."""
        return self._current(desired) and all(self._network.nic_view(nic).ready for nic in desired.nics)

    def _device(self, nic: str) -> NicDevice:
        port = self._journal.desired[f"port/{nic}"]
        assert isinstance(port, DesiredPort)
        tap = self._network.tap(nic)
        return NicDevice(nic=nic, tap=tap, mac=port.mac, mtu=self._settings.mtu, offload=self._settings.offload)

    async def _spec(self, desired: DesiredVm, sources: list[DiskSource]) -> DomainSpec:
        """The domain as it is to be here, with a NoCloud disk that is written now."""
        vm = desired.id
        nics = tuple(self._device(nic) for nic in desired.nics)  # before the wait, in which they may be dropped
        ports = [self._journal.desired.get(f"port/{nic}") for nic in desired.nics]
        here = [port for port in ports if isinstance(port, DesiredPort)]
        seed = await within("disk", f"writing the NoCloud disk of {vm}", self._seeds.build(desired, here))
        seed_disk = DiskSource(disk=vm + plans.SEED_SUFFIX, place=FilePlace(path=seed), read_only=True)
        return DomainSpec(
            vm=vm,
            name=desired.name,
            cpus=desired.cpus,
            max_cpus=max(desired.cpus, min(MAX_CPUS, GROWTH * desired.cpus)),
            memory_mib=desired.memory_mib,
            max_memory_mib=GROWTH * desired.memory_mib,
            disks=(*sources, seed_disk),
            nics=nics,
            console_log=self._settings.log_of(vm),
            console_socket=self._settings.socket_of(vm),
            gpus=desired.gpus,
        )

    async def _start(self, desired: DesiredVm) -> bool:
        """False if something has changed since it was planned."""
        vm = desired.id
        disks = [disk.id for disk in sorted(desired.disks, key=lambda disk: not disk.system)]
        async with self._disks.hold(disks), self._starts.hold():
            for disk in disks:
                if (await self._disk_view(desired, disk)).state != "ready":
                    return False
            sources = [await self._disks.source(disk) for disk in disks]
            if not self._can_be_described(desired):
                return False
            spec = await self._spec(desired, sources)
            self._usage.about_to(vm, disks, desired.nics)
            self._uncertain.add(vm)
            try:
                await within("start", f"starting {vm}", self._hypervisor.start(spec))
            except CloudError as error:
                if error.kind != ErrorKind.TIMED_OUT:
                    self._uncertain.discard(vm)
                raise
            self._uncertain.discard(vm)
        return True

    async def _attach_disk(self, desired: DesiredVm, disk: str) -> bool:
        async with self._disks.hold([disk]):
            if (await self._disk_view(desired, disk)).state != "ready":
                return False
            source = await self._disks.source(disk)
            # From this look on without a pause until it counts as open: told of a detachment meanwhile, this node may
            # have said that nobody here has the disk, and another node may have it by now.
            if not self._current(desired):
                return False
            self._usage.about_to(desired.id, disks=[disk])
            attaching = self._hypervisor.attach_disk(desired.id, source)
            await within("plug", f"attaching disk {disk} to {desired.id}", attaching)
        return True

    async def _clean_up(self, desired: DesiredVm) -> None:
        """Remove what the VM leaves beside its disks, and of them what counts elsewhere."""
        vm = desired.id
        for disk in desired.leftovers:
            await self._disks.drop_copy(disk)
        await within("delete", f"removing the NoCloud disk of {vm}", self._seeds.remove(vm))
        self._settings.log_of(vm).unlink(missing_ok=True)
