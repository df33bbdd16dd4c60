"""What tenants ask for: the API's own intents, in transactions of the manager, at random."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from scloud.api.context import accepted, begin
from scloud.api.disk_schemas import DiskAsk
from scloud.api.intents import disks, networks, snapshots, vms
from scloud.api.intents.calling_back import call_back
from scloud.api.schemas import VmCreate, VmPatch, VmPatchSpec
from scloud.controllers import finishing, migration
from scloud.model.errors import CloudError, not_found
from scloud.model.kinds import Kind, State
from scloud.model.snapshots import DiskLimits, SnapshotSchedule
from scloud.model.specs import (
    Direction,
    DiskSpec,
    ImageFormat,
    ImageSpec,
    NodeSpec,
    Protocol,
    RuleSpec,
    SecurityGroupSpec,
)
from scloud.model.statuses import ImageStatus
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.resources import Resource, all_of, create, find, refuse_if_used, save

from . import maintenance
from .hardware import TRASH_S
from .world import World

MAX_VMS = 6
Ask = Callable[[Tx], dict[str, Any]]


class Tenant:
    """Asks at random moments until cancelled."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng: Random = world.rng
        self._names = 1000 * world.statistics.get("long_outage", 0)
        verbs: list[tuple[int, Callable[[Tx], dict[str, Any] | None]]] = [
            (12, self._create_vm),
            (7, self._delete_vm),
            (4, self._start),
            (5, self._stop),
            (3, self._reboot),
            (4, self._resize),
            (3, self._rebuild),
            (1, self._rename),
            (3, self._create_disk),
            (4, self._attach_disk),
            (3, self._detach_disk),
            (2, self._resize_disk),
            (2, self._delete_disk),
            (3, self._create_snapshot),
            (2, self._delete_snapshot),
            (2, self._roll_back),
            (1, self._flatten),
            (1, self._limit),
            (1, self._schedule),
            (2, self._restore),
            (5, self._hand_over),
            (5, self._migrate),
            (1, self._cancel_migration),
            (2, self._drain),
            (3, self._undrain),
            (2, self._rebalance),
            (4, self._create_nic),
            (3, self._attach_nic),
            (3, self._detach_nic),
            (2, self._delete_nic),
            (3, self._change_nic),
            (3, self._add_rule),
            (3, self._remove_rule),
            (1, self._create_group),
            (1, self._delete_group),
            (1, self._create_subnet),
            (1, self._delete_subnet),
            (1, self._import_image),
            (1, self._delete_image),
            (1, self._cancel),
            (1, self._cordon),
        ]
        self._verbs = [verb for _, verb in verbs]
        handing = 12 if self._rng.random() < 0.25 else 1  # some stories are about a disk that goes round
        self._weights = [weight * handing if verb == self._hand_over else weight for weight, verb in verbs]

    async def run(self) -> None:
        for verb in (self._create_vpc, self._create_subnet, self._create_vm):
            await self.until_up()
            self.ask(verb)
        mean = self._rng.choice([0.4, 1.0, 2.5])
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / mean))
            await self.until_up()
            for _ in range(self._rng.choice([1, 1, 1, 2, 3])):
                if self._world.manager.up:
                    self.ask(self.any_verb())

    def any_verb(self) -> Callable[[Tx], dict[str, Any] | None]:
        return self._rng.choices(self._verbs, self._weights)[0]

    async def until_up(self) -> None:
        while not self._world.manager.up:
            await asyncio.sleep(0.1)

    def ask(self, verb: Callable[[Tx], dict[str, Any] | None]) -> None:
        """One request. A refusal changes nothing; anything else than an answer or a refusal is a defect."""
        manager, world = self._world.manager, self._world
        assert manager.store is not None and manager.life is not None
        name = getattr(verb, "func", verb).__name__.strip("_")
        world.count("asked")
        try:
            answer = manager.store.commit(verb, manager.life)
        except CloudError as error:
            world.count("refused")
            if world.verbose:
                world.note(f"ask {name}: {error.kind} {error.message}")
        except Exception as error:
            world.violation(f"request {name} failed", error)
        else:
            for op in (answer.get("operations") or [answer["operation"]]) if answer is not None else []:
                about = op["resource"]
                if world.verbose:
                    world.note(f"ask {op['action']} {about['kind']} {about['name']} {about['id']}: {op['state']}")
                kept = world.base.read_now(partial(_operation, id=op["id"]))
                if kept is None or kept.state != op["state"]:
                    world.violation(f"{op['action']} was answered as {op['state']}, and is {kept}")

    # --- choosing

    def _pick(self, tx: Tx, kind: Kind) -> Resource | None:
        rows = [row for row in all_of(tx, kind) if row.account == self._world.account]
        return self._rng.choice(rows) if rows else None

    def _need(self, tx: Tx, kind: Kind) -> Resource:
        row = self._pick(tx, kind)
        if row is None:
            raise _nothing(kind)
        return row

    def _name(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}-{self._names}"

    @property
    def _me(self) -> str:
        return self._world.account

    # --- VMs

    def _create_vm(self, tx: Tx) -> dict[str, Any] | None:
        if len(all_of(tx, Kind.VM, gone=True)) >= MAX_VMS:
            return self._delete_vm(tx)
        rng = self._rng
        images = all_of(tx, Kind.IMAGE)
        spec: dict[str, Any] = {
            "image": rng.choice(images).id if rng.random() < 0.3 else "micro",
            "cpus": rng.choice([1, 1, 2]),
            "memory_mib": rng.choice([256, 512, 1024]),
            "power": "off" if rng.random() < 0.1 else "on",
            "restart_limit": rng.choice([0, 2, 5]),
            "nics": [],
        }
        if rng.random() < 0.4:
            spec["disk_type"] = "standard"
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            free = self._pick(tx, Kind.NIC) if rng.random() < 0.2 else None
            if free is not None:
                spec["nics"].append({"nic": free.id})
            else:
                spec["nics"].append({"subnet": self._need(tx, Kind.SUBNET).id})
        disk = self._pick(tx, Kind.DISK) if rng.random() < 0.2 else None
        if disk is not None:
            spec["disks"] = [disk.id]
        if rng.random() < 0.1:
            spec["node"] = rng.choice(self._world.nodes).name
        count = 1 if disk is not None or rng.random() < 0.8 else 2
        return self._make_vms(tx, VmCreate(name=self._name("vm"), count=count, spec=spec))

    def _make_vms(self, tx: Tx, ask: VmCreate) -> dict[str, Any]:
        assert self._world.manager.manager is not None
        return vms.create_vms(tx, self._me, ask, self._world.manager.manager.loads())

    def _delete_vm(self, tx: Tx) -> dict[str, Any]:
        keep = TRASH_S if self._rng.random() < 0.2 else None
        return vms.delete(tx, self._me, self._need(tx, Kind.VM).id, keep)

    def _start(self, tx: Tx) -> dict[str, Any]:
        return vms.start(tx, self._me, self._need(tx, Kind.VM).id)

    def _stop(self, tx: Tx) -> dict[str, Any]:
        return vms.stop(tx, self._me, self._need(tx, Kind.VM).id, self._rng.random() < 0.5)

    def _reboot(self, tx: Tx) -> dict[str, Any]:
        return vms.reboot(tx, self._me, self._need(tx, Kind.VM).id)

    def _resize(self, tx: Tx) -> dict[str, Any]:
        cpus, memory = self._rng.choice([None, 1, 2, 3]), self._rng.choice([None, 256, 512, 768])
        return vms.resize(tx, self._me, self._need(tx, Kind.VM).id, cpus, memory)

    def _rebuild(self, tx: Tx) -> dict[str, Any]:
        image = self._world.image if self._rng.random() < 0.5 else None
        return vms.rebuild(tx, self._me, self._need(tx, Kind.VM).id, image)

    def _rename(self, tx: Tx) -> dict[str, Any]:
        ask = VmPatch(name=self._name("renamed"), spec=VmPatchSpec(ha_priority=self._rng.randrange(101)))
        return vms.change(tx, self._me, self._need(tx, Kind.VM).id, ask)

    # --- disks

    def _create_disk(self, tx: Tx) -> dict[str, Any]:
        snapshot = self._pick(tx, Kind.SNAPSHOT) if self._rng.random() < 0.4 else None
        if snapshot is not None:
            return disks.create_disk(tx, self._me, self._name("clone"), DiskAsk(snapshot=snapshot.id))
        type_ = "standard" if self._rng.random() < 0.6 else None
        ask = DiskAsk(size_mib=self._rng.choice([1, 4, 16]), type=type_)
        return disks.create_disk(tx, self._me, self._name("disk"), ask)

    def _attach_disk(self, tx: Tx) -> dict[str, Any]:
        return disks.attach(tx, self._me, self._need(tx, Kind.DISK).id, self._need(tx, Kind.VM).id)

    def _detach_disk(self, tx: Tx) -> dict[str, Any]:
        return disks.detach(tx, self._me, self._need(tx, Kind.DISK).id)

    def _resize_disk(self, tx: Tx) -> dict[str, Any]:
        return disks.resize(tx, self._me, self._need(tx, Kind.DISK).id, self._rng.choice([8, 16, 24, 32]))

    def _delete_disk(self, tx: Tx) -> dict[str, Any]:
        now = self._rng.random() < 0.6
        return disks.delete(tx, self._me, self._need(tx, Kind.DISK).id, now=now, trash_s=TRASH_S)

    def _restore(self, tx: Tx) -> dict[str, Any]:
        trashed = [row for row in all_of(tx, Kind.DISK) if row.state == State.TRASHED]
        if not trashed:
            raise _nothing(Kind.DISK)
        return disks.restore(tx, self._me, self._rng.choice(trashed).id, self._name("restored"))

    def _hand_over(self, tx: Tx) -> dict[str, Any]:
        """From one VM to another at once: whoever has it open must let go first."""
        rows = [row for row in all_of(tx, Kind.DISK) if row.state == State.READY]
        shared = [row for row in rows if (spec := row.spec_as(DiskSpec)).pool is not None and not spec.system]
        if not shared:
            ask = DiskAsk(size_mib=4, type="standard")
            return disks.create_disk(tx, self._me, self._name("shared"), ask)
        disk = self._rng.choice(shared)
        others = [row for row in all_of(tx, Kind.VM) if row.id != disk.parent and row.node not in (None, disk.node)]
        if not others:
            elsewhere = [node.name for node in self._world.nodes if node.id != disk.node] or [self._world.nodes[0].name]
            ask_vm = {"image": "micro", "nics": [], "node": self._rng.choice(elsewhere)}
            return self._make_vms(tx, VmCreate(name=self._name("taker"), spec=ask_vm))
        disks.detach(tx, self._me, disk.id)
        return disks.attach(tx, self._me, disk.id, self._rng.choice(others).id)

    def _migrate(self, tx: Tx) -> dict[str, Any]:
        vm = self._need(tx, Kind.VM)
        nodes = [find(tx, node.id) for node in self._world.nodes]
        target = self._rng.choice([None, *nodes])
        op = migration.begin(tx, vm, target, {}, downtime_ms=self._rng.choice([100, 300]))
        return accepted(op, vm)

    def _cancel_migration(self, tx: Tx) -> dict[str, Any] | None:
        moving = [row for row in all_of(tx, Kind.VM) if migration.of(row) is not None]
        if moving:
            migration.cancel(tx, self._rng.choice(moving))
        return None

    def _drain(self, tx: Tx) -> dict[str, Any]:
        return maintenance.drain_one(tx, self._rng)

    def _undrain(self, tx: Tx) -> None:
        maintenance.undrain_one(tx, self._rng)

    def _rebalance(self, tx: Tx) -> dict[str, Any] | None:
        return maintenance.rebalance(tx, self._rng)

    def _create_snapshot(self, tx: Tx) -> dict[str, Any]:
        return snapshots.create(tx, self._me, self._name("snapshot"), self._need(tx, Kind.DISK).id)

    def _delete_snapshot(self, tx: Tx) -> dict[str, Any]:
        return snapshots.delete(tx, self._me, self._need(tx, Kind.SNAPSHOT).id)

    def _roll_back(self, tx: Tx) -> dict[str, Any]:
        snapshot = self._need(tx, Kind.SNAPSHOT)
        return disks.roll_back(tx, self._me, snapshot.parent or "", snapshot.id)

    def _flatten(self, tx: Tx) -> dict[str, Any]:
        return disks.flatten(tx, self._me, self._need(tx, Kind.DISK).id)

    def _limit(self, tx: Tx) -> dict[str, Any]:
        limits = DiskLimits(iops=self._rng.choice([0, 100, 500]))
        return disks.limit(tx, self._me, self._need(tx, Kind.DISK).id, limits)

    def _schedule(self, tx: Tx) -> dict[str, Any]:
        schedule = SnapshotSchedule(every_s=60, keep=2) if self._rng.random() < 0.5 else None
        return disks.set_schedule(tx, self._me, self._need(tx, Kind.DISK).id, schedule)

    # --- networks

    def _create_vpc(self, tx: Tx) -> dict[str, Any]:
        return networks.create_vpc(tx, self._me, self._name("vpc"), None)

    def _create_subnet(self, tx: Tx) -> dict[str, Any]:
        if len(all_of(tx, Kind.VPC)) < 2 and self._rng.random() < 0.5:
            self._create_vpc(tx)
        vpc, third = self._need(tx, Kind.VPC), self._rng.randrange(4)
        return networks.create_subnet(tx, self._me, self._name("subnet"), vpc.id, f"10.0.{third}.0/28")

    def _delete_subnet(self, tx: Tx) -> dict[str, Any]:
        return networks.delete_plain(tx, Kind.SUBNET, self._me, self._need(tx, Kind.SUBNET).id)

    def _create_nic(self, tx: Tx) -> dict[str, Any]:
        vm = self._pick(tx, Kind.VM) if self._rng.random() < 0.6 else None
        subnet = self._need(tx, Kind.SUBNET)
        return networks.create_nic(tx, self._me, self._name("nic"), subnet.id, None, None, vm.id if vm else None)

    def _attach_nic(self, tx: Tx) -> dict[str, Any]:
        return networks.attach_nic(tx, self._me, self._need(tx, Kind.NIC).id, self._need(tx, Kind.VM).id)

    def _detach_nic(self, tx: Tx) -> dict[str, Any]:
        return networks.detach_nic(tx, self._me, self._need(tx, Kind.NIC).id)

    def _delete_nic(self, tx: Tx) -> dict[str, Any]:
        return networks.delete_nic(tx, self._me, self._need(tx, Kind.NIC).id)

    def _change_nic(self, tx: Tx) -> dict[str, Any]:
        groups = [row.id for row in all_of(tx, Kind.SECURITY_GROUP) if self._rng.random() < 0.6]
        return networks.change_nic(tx, self._me, self._need(tx, Kind.NIC).id, None, groups)

    def _create_group(self, tx: Tx) -> dict[str, Any]:
        return networks.create_group(tx, self._me, self._name("group"))

    def _delete_group(self, tx: Tx) -> dict[str, Any]:
        return networks.delete_plain(tx, Kind.SECURITY_GROUP, self._me, self._need(tx, Kind.SECURITY_GROUP).id)

    def _add_rule(self, tx: Tx) -> dict[str, Any]:
        rng = self._rng
        group = self._need(tx, Kind.SECURITY_GROUP)
        peer = self._need(tx, Kind.SECURITY_GROUP).id if rng.random() < 0.3 else None
        port = rng.choice([22, 80, 443])
        rule = RuleSpec(
            direction=rng.choice(list(Direction)),
            protocol=Protocol.TCP,
            port_min=port,
            port_max=port + rng.randrange(3),
            cidr=None if peer else f"10.{rng.randrange(3)}.0.0/16",
            group=peer,
        )
        return networks.add_rule(tx, self._me, group.id, rule)

    def _remove_rule(self, tx: Tx) -> dict[str, Any]:
        group = self._need(tx, Kind.SECURITY_GROUP)
        rules = group.spec_as(SecurityGroupSpec).rules
        return networks.remove_rule(tx, self._me, group.id, self._rng.choice(rules).id if rules else "rul-none")

    # --- what the routes themselves write

    def _import_image(self, tx: Tx) -> dict[str, Any]:
        source = f"http://images/{self._rng.choice(['good', 'bad'])}"
        spec = ImageSpec(source=source, format=ImageFormat.RAW)
        row = create(tx, Kind.IMAGE, self._me, self._name("image"), spec, ImageStatus(state=State.CREATING))
        op = operations.begin(tx, "image.import", row, seconds=3600.0)
        operations.enqueue(tx, row.key)
        return accepted(op, row)

    def _delete_image(self, tx: Tx) -> dict[str, Any]:
        row = self._need(tx, Kind.IMAGE)
        refuse_if_used(tx, row)
        op = begin(tx, "image.delete", row)
        return accepted(op, finishing.leave_image(tx, row))

    def _cancel(self, tx: Tx) -> dict[str, Any] | None:
        creations = [op for op in operations.all_open(tx) if op.action == "vm.create"]
        if not creations:
            return None
        return call_back(tx, self._rng.choice(creations))

    def _cordon(self, tx: Tx) -> dict[str, Any] | None:
        nodes = all_of(tx, Kind.NODE)
        row = self._rng.choice(nodes)
        spec = row.spec_as(NodeSpec)
        save(tx, row, spec=spec.model_copy(update={"cordoned": not spec.cordoned}))
        return None


def _operation(tx: Tx, id: str) -> operations.Operation | None:
    return operations.get(tx, id, None)


def _nothing(kind: Kind) -> CloudError:
    return not_found(kind, "any")
