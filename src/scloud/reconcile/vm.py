"""One VM on its node: desired state, what is, and what is remembered -> what to do next. Pure.

`vm_plan` is asked again after every step, with fresh facts, so a crash between any two steps loses nothing: each step
is worked out from what then is. Steps of one plan do not depend on each other; while one fails the others go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from scloud.model.desired import DesiredVm
from scloud.model.observed import Observed
from scloud.model.snapshots import DiskLimits
from scloud.reconcile.memory import FRESH, NO_LIMITS, VmMemory

DEATH_WINDOW_S = 600.0
FIRST_RESTART_S = 0.5
LAST_RESTART_S = 60.0
BUTTON_EVERY_S = 10.0
"""A guest that is still booting misses the power button, so it is pressed again."""
REBOOT_RETRY_S = 120.0
"""A reboot whose outcome got lost (the agent died in it) is repeated only while the user would still expect it."""
SEED_SUFFIX = "-cidata"
"""The id of a VM's NoCloud disk is the VM's id and this; it is no disk of the user's."""


@dataclass(frozen=True, slots=True)
class DomainView:
    """The domain as the hypervisor has it."""

    running: bool
    cpus: int
    memory_mib: int
    paused: bool = False
    off_reason: Literal["guest", "requested", "crashed", "unknown"] = "unknown"
    disks: tuple[str, ...] = ()
    nics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DiskView:
    """`stale`: the bytes on disk are of another incarnation than wanted. `failed`: making it ready fails for good."""

    state: Literal["ready", "stale", "missing"]
    size_mib: int = 0
    failed: bool = False
    reason: str = ""
    limits: DiskLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class NicView:
    """`ready` when its tap, its flows and its VPC's services are in place."""

    ready: bool
    failed: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """Start the domain with all its disks and nics."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Ask the guest over ACPI."""


@dataclass(frozen=True, slots=True)
class Destroy:
    """Switch off at once."""


@dataclass(frozen=True, slots=True)
class Undefine:
    pass


@dataclass(frozen=True, slots=True)
class Reboot:
    pass


@dataclass(frozen=True, slots=True)
class SetCpus:
    cpus: int


@dataclass(frozen=True, slots=True)
class SetMemory:
    memory_mib: int


@dataclass(frozen=True, slots=True)
class AttachDisk:
    disk: str


@dataclass(frozen=True, slots=True)
class DetachDisk:
    disk: str


@dataclass(frozen=True, slots=True)
class GrowDisk:
    disk: str
    size_mib: int


@dataclass(frozen=True, slots=True)
class LimitDisk:
    disk: str
    limits: DiskLimits


@dataclass(frozen=True, slots=True)
class AttachNic:
    nic: str


@dataclass(frozen=True, slots=True)
class DetachNic:
    nic: str


Action = (
    Start
    | Shutdown
    | Destroy
    | Undefine
    | Reboot
    | SetCpus
    | SetMemory
    | AttachDisk
    | DetachDisk
    | GrowDisk
    | LimitDisk
    | AttachNic
    | DetachNic
)


@dataclass(frozen=True, slots=True)
class Step:
    """Remember `before`, act, then remember `after` (or `refused`, when the guest does not take it live)."""

    action: Action
    before: VmMemory
    after: VmMemory
    refused: VmMemory | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """`memory` is to be kept even when there is no step. `wake_at`: when to look again if nothing happens before."""

    observed: Observed
    memory: VmMemory
    steps: tuple[Step, ...] = ()
    wake_at: float | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that a plan is made from."""

    desired: DesiredVm
    domain: DomainView | None
    disks: Mapping[str, DiskView]
    nics: Mapping[str, NicView]
    memory: VmMemory
    now: float
    boot_id: str = ""
    log: str = field(default="its console log")
    """Where the guest's console log is, for messages."""


def vm_plan(at: Situation) -> Plan:
    """What to do next for this VM, and what to say of it."""
    running = at.domain is not None and at.domain.running
    match at.desired.power:
        case "absent":
            return _absent(at, running)
        case "off":
            return _stop(at) if running else _stopped(at)
        case "on":
            return _keep_up(at) if running else _bring_up(at, at.memory)


def _absent(at: Situation, running: bool) -> Plan:
    if running:
        before = at.memory.model_copy(update={"phase": "off", "stop_since": at.now})
        return _doing(at, before, Step(Destroy(), before, before), "being switched off, to be deleted")
    if at.domain is not None:
        return _doing(at, at.memory, Step(Undefine(), at.memory, FRESH), "being deleted")
    return Plan(_observed(at, "absent", settled=True), FRESH)


def _stop(at: Situation) -> Plan:
    assert at.domain is not None
    grace = at.desired.stop_grace_s
    since = _past(at.memory.stop_since, at.now)
    asked = at.memory.model_copy(update={"phase": "off", "stop_since": at.now if since is None else since})
    waited = since is not None and at.now - since >= grace
    if at.desired.force_stop or at.domain.paused or waited or grace <= 0:
        return _doing(at, asked, Step(Destroy(), asked, asked), "being switched off", state="running")
    pressed = _past(at.memory.button_at, at.now) if since is not None else None
    deadline = (at.now if since is None else since) + grace
    reason = f"the guest was asked to shut down; it is switched off if it has not after {grace:g} s"
    if pressed is None or at.now - pressed >= BUTTON_EVERY_S:
        before = asked.model_copy(update={"button_at": at.now})
        return _doing(at, before, Step(Shutdown(), before, before), reason, state="running", wake_at=deadline)
    wake_at = min(deadline, pressed + BUTTON_EVERY_S)
    return Plan(_observed(at, "running", settled=False, reason=reason), asked, wake_at=wake_at)


def _stopped(at: Situation) -> Plan:
    memory = VmMemory(
        phase="new" if at.memory.phase == "new" else "off",
        starts=at.desired.starts,
        reboots=at.desired.reboots,
        restarts=at.memory.restarts,
    )
    return Plan(_observed(at, "stopped", settled=True), memory)


def _bring_up(at: Situation, memory: VmMemory) -> Plan:
    """Wanted on, and off."""
    if at.desired.starts > memory.starts or memory.phase in ("new", "off"):
        return _start(at, memory)
    if memory.phase == "guest":
        reason = "the guest powered itself off; `scloud vm start` starts it again"
        return Plan(_observed(at, "stopped", memory=memory, settled=True, reason=reason, guest_stopped=True), memory)
    if memory.phase == "failed":
        return Plan(_observed(at, "error", memory=memory, settled=True, reason=_too_often(at, memory)), memory)
    if memory.phase == "dead":
        restart_at = memory.restart_at or at.now
        # a time beyond any backoff was set before the host's clock started anew
        if restart_at <= at.now or restart_at > at.now + LAST_RESTART_S:
            return _start(at, memory)
        reason = f"QEMU died unexpectedly; restart {len(memory.deaths)} of {at.desired.restart_limit} follows"
        return Plan(_observed(at, "working", memory=memory, settled=False, reason=reason), memory, wake_at=restart_at)
    if memory.boot_id != at.boot_id:
        return _start(at, memory)
    if at.domain is not None and at.domain.off_reason == "guest":
        return _bring_up(at, memory.model_copy(update={"phase": "guest", "told": {}}))
    return _bring_up(at, _died(at, memory))


def _died(at: Situation, memory: VmMemory) -> VmMemory:
    deaths = (*(t for t in memory.deaths if 0 <= at.now - t < DEATH_WINDOW_S), at.now)
    if len(deaths) > at.desired.restart_limit:
        return memory.model_copy(update={"phase": "failed", "deaths": deaths, "told": {}})
    delay = min(LAST_RESTART_S, FIRST_RESTART_S * 2.0 ** (len(deaths) - 1))
    return memory.model_copy(
        update={
            "phase": "dead",
            "deaths": deaths,
            "told": {},
            "restart_at": at.now + delay,
            "restarts": memory.restarts + 1,
        }
    )


def _too_often(at: Situation, memory: VmMemory) -> str:
    times = "once" if len(memory.deaths) == 1 else f"{len(memory.deaths)} times"
    return (
        f"QEMU died {times} within ten minutes, and {at.desired.restart_limit} restarts are allowed; "
        f"see {at.log}, then start it with `scloud vm start {at.desired.name}`"
    )


def _start(at: Situation, memory: VmMemory) -> Plan:
    asked = at.desired.starts > memory.starts
    failed, waiting = _obstacles(at)
    if failed:
        return Plan(_observed(at, "error", memory=memory, settled=True, reason=failed), memory)
    if waiting:
        return Plan(_observed(at, "working", memory=memory, settled=False, reason=waiting), memory)
    after = VmMemory(
        phase="up",
        starts=at.desired.starts,
        reboots=at.desired.reboots,
        deaths=() if asked else memory.deaths,
        restarts=memory.restarts,
        boot_id=at.boot_id,
        told={disk.id: at.disks[disk.id].size_mib for disk in at.desired.disks},
        limits={
            disk.id: at.disks[disk.id].limits for disk in at.desired.disks if at.disks[disk.id].limits != NO_LIMITS
        },
    )
    return _doing(at, memory, Step(Start(), memory, after), "starting")


def _obstacles(at: Situation) -> tuple[str, str]:
    """(what fails, what is waited for), of the disks and nics that a start needs."""
    failed, waiting = "", ""
    for disk in at.desired.disks:
        view = at.disks.get(disk.id, DiskView("missing"))
        if view.failed:
            failed = failed or f"disk {disk.id}: {view.reason}"
        elif view.state != "ready":
            waiting = waiting or _with_reason(f"waiting for disk {disk.id}", view.reason)
    for nic in at.desired.nics:
        port = at.nics.get(nic, NicView(False))
        if port.failed:
            failed = failed or f"nic {nic}: {port.reason}"
        elif not port.ready:
            waiting = waiting or _with_reason(f"waiting for nic {nic}", port.reason)
    return failed, waiting


def _keep_up(at: Situation) -> Plan:
    """Wanted on, and on."""
    assert at.domain is not None
    memory, wake_at = _settle_running(at)
    stale = next((disk for disk in at.domain.disks if disk in at.disks and at.disks[disk].state == "stale"), None)
    if stale is not None:
        before = memory.model_copy(update={"phase": "off", "stop_since": at.now})
        return _doing(at, before, Step(Destroy(), before, before), f"disk {stale} is being made anew")
    if at.domain.paused:
        reason = (
            "QEMU has paused the guest, mostly because a disk of the node is full or failing; free space, then "
            f"`scloud vm stop {at.desired.name} --force` and `scloud vm start {at.desired.name}`"
        )
        return Plan(_observed(at, "error", settled=True, reason=reason), memory, wake_at=wake_at)
    steps = [*_reboot(at, memory), *_sizes(at, memory), *_disk_steps(at, memory), *_nic_steps(at, memory)]
    if at.desired.reboots > memory.reboots and not any(isinstance(step.action, Reboot) for step in steps):
        memory = memory.model_copy(update={"reboots": at.desired.reboots, "reboot_since": None})
    missing = [f"disk {disk.id}" for disk in at.desired.disks if disk.id not in at.domain.disks]
    missing += [f"nic {nic}" for nic in at.desired.nics if nic not in at.domain.nics]
    reason = _deferred(at, memory)
    if missing:
        reason = "; ".join(part for part in (f"waiting to attach {', '.join(missing)}", reason) if part)
    observed = _observed(at, "running", settled=not steps and not missing, reason=reason)
    return Plan(observed, memory, tuple(steps), wake_at)


def _settle_running(at: Situation) -> tuple[VmMemory, float | None]:
    """What is remembered of a VM found running, however it came to run."""
    memory, wanted = at.memory, at.desired
    since = _past(memory.stop_since, at.now)
    if memory.phase == "off" and since is not None and at.now - since < wanted.stop_grace_s:
        # It was told to stop and is wanted again: it may still obey, and is then started.
        return memory.model_copy(update={"starts": max(memory.starts, wanted.starts)}), since + wanted.stop_grace_s
    update: dict[str, object] = {
        "phase": "up",
        "starts": max(memory.starts, wanted.starts),
        "stop_since": None,
        "button_at": None,
        "restart_at": None,
        "boot_id": at.boot_id,
    }
    if memory.phase == "new":  # adopted, or its start was cut short: earlier requests are not to be repeated
        update["reboots"] = wanted.reboots
    return memory.model_copy(update=update), None


def _reboot(at: Situation, memory: VmMemory) -> list[Step]:
    if at.desired.reboots <= memory.reboots:
        return []
    since = _past(memory.reboot_since, at.now)
    if since is not None and at.now - since > REBOOT_RETRY_S:
        return []
    before = memory.model_copy(update={"reboot_since": at.now if since is None else since})
    after = memory.model_copy(update={"reboots": at.desired.reboots, "reboot_since": None})
    return [Step(Reboot(), before, after)]


def _sizes(at: Situation, memory: VmMemory) -> list[Step]:
    assert at.domain is not None
    steps = []
    cpus, memory_mib = at.desired.cpus, at.desired.memory_mib
    if at.domain.cpus != cpus and memory.cpus_refused != cpus:
        refused = memory.model_copy(update={"cpus_refused": cpus})
        steps.append(Step(SetCpus(cpus), memory, memory.model_copy(update={"cpus_refused": None}), refused))
    if at.domain.memory_mib != memory_mib and memory.memory_refused != memory_mib:
        refused = memory.model_copy(update={"memory_refused": memory_mib})
        done = memory.model_copy(update={"memory_refused": None})
        steps.append(Step(SetMemory(memory_mib), memory, done, refused))
    return steps


def _disk_steps(at: Situation, memory: VmMemory) -> list[Step]:
    assert at.domain is not None
    steps = []
    wanted = {disk.id for disk in at.desired.disks}
    for disk in at.domain.disks:
        if disk not in wanted and not disk.endswith(SEED_SUFFIX):
            told = {key: size for key, size in memory.told.items() if key != disk}
            limits = {key: value for key, value in memory.limits.items() if key != disk}
            after = memory.model_copy(update={"told": told, "limits": limits})
            steps.append(Step(DetachDisk(disk), memory, after))
    for item in at.desired.disks:
        view = at.disks.get(item.id)
        if view is None or view.state != "ready":
            continue
        grown = {"told": {**memory.told, item.id: view.size_mib}}
        limited = {"limits": {**memory.limits, item.id: view.limits}}
        if item.id not in at.domain.disks:
            steps.append(Step(AttachDisk(item.id), memory, memory.model_copy(update={**grown, **limited})))
            continue
        if memory.told.get(item.id) != view.size_mib:
            steps.append(Step(GrowDisk(item.id, view.size_mib), memory, memory.model_copy(update=grown)))
        if memory.limits.get(item.id, NO_LIMITS) != view.limits:
            after = memory.model_copy(update=limited)
            steps.append(Step(LimitDisk(item.id, view.limits), memory, after))
    return steps


def _nic_steps(at: Situation, memory: VmMemory) -> list[Step]:
    assert at.domain is not None
    actions: list[Action] = [DetachNic(nic) for nic in at.domain.nics if nic not in at.desired.nics]
    for nic in at.desired.nics:
        if nic not in at.domain.nics and at.nics.get(nic, NicView(False)).ready:
            actions.append(AttachNic(nic))
    return [Step(action, memory, memory) for action in actions]


def _deferred(at: Situation, memory: VmMemory) -> str:
    assert at.domain is not None
    parts = []
    if at.domain.cpus != at.desired.cpus and memory.cpus_refused == at.desired.cpus:
        parts.append(f"{at.desired.cpus} CPUs")
    if at.domain.memory_mib != at.desired.memory_mib and memory.memory_refused == at.desired.memory_mib:
        parts.append(f"{at.desired.memory_mib} MiB of memory")
    if not parts:
        return ""
    return f"{' and '.join(parts)} at the next start: this guest does not take the change while it runs"


def _doing(
    at: Situation,
    memory: VmMemory,
    step: Step,
    reason: str,
    *,
    state: Literal["running", "working"] = "working",
    wake_at: float | None = None,
) -> Plan:
    return Plan(_observed(at, state, settled=False, reason=reason, memory=memory), memory, (step,), wake_at)


def _observed(
    at: Situation,
    state: Literal["running", "stopped", "ready", "absent", "error", "working"],
    *,
    settled: bool,
    reason: str = "",
    guest_stopped: bool = False,
    memory: VmMemory | None = None,
) -> Observed:
    up = at.domain if at.domain is not None and at.domain.running else None
    return Observed(
        key=f"vm/{at.desired.id}",
        generation=at.desired.generation,
        state=state,
        settled=settled,
        reason=reason,
        cpus=up.cpus if up else None,
        memory_mib=up.memory_mib if up else None,
        restarts=(memory or at.memory).restarts,
        guest_stopped=guest_stopped,
    )


def _past(moment: float | None, now: float) -> float | None:
    """A remembered moment, unless the host's clock has started anew since."""
    return None if moment is None or moment > now else moment


def _with_reason(text: str, reason: str) -> str:
    return f"{text}: {reason}" if reason else text
