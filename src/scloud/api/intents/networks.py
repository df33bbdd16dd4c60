"""VPCs, subnets, security groups and nics."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from scloud.api.context import accepted, begin, begin_and_end
from scloud.api.intents.addresses import take_ip, take_mac, take_vni
from scloud.api.intents.common import refuse_while_leaving, resolve
from scloud.controllers import finishing, migration
from scloud.model.errors import CloudError, ErrorKind, not_found
from scloud.model.kinds import PREFIX, Kind, State
from scloud.model.specs import (
    Direction,
    NicSpec,
    Protocol,
    RuleSpec,
    SecurityGroupSpec,
    StoredRule,
    SubnetSpec,
    VmSpec,
    VpcSpec,
)
from scloud.model.statuses import NicStatus, Status, VmStatus
from scloud.store import operations, tokens
from scloud.store.database import Tx
from scloud.store.resources import (
    Resource,
    children,
    create,
    find,
    find_many,
    get,
    refer,
    refer_all,
    refuse_if_used,
    remove,
    save,
    sources_of,
    unrefer,
)

MAX_RULES = 200
MAX_NICS = 8
DEFAULT_GROUP = "default"


def create_vpc(tx: Tx, account: str, name: str, vni: int | None) -> dict[str, Any]:
    id = tx.new_id(PREFIX[Kind.VPC])
    spec = VpcSpec(vni=take_vni(tx, id, vni))
    row = create(tx, Kind.VPC, account, name, spec, Status(state=State.READY), id=id)
    return accepted(begin_and_end(tx, "vpc.create", row), row)


def create_subnet(tx: Tx, account: str, name: str, vpc_ref: str, cidr: str) -> dict[str, Any]:
    vpc = resolve(tx, "spec.vpc", Kind.VPC, vpc_ref, account)
    network = ipaddress.IPv4Network(cidr)
    for other in children(tx, Kind.SUBNET, vpc.id):
        theirs = ipaddress.IPv4Network(other.spec_as(SubnetSpec).cidr)
        if theirs.overlaps(network):
            raise CloudError(
                ErrorKind.CONFLICT, f"spec.cidr: {cidr} overlaps subnet '{other.name}' ({theirs}) of the same VPC"
            )
    row = create(
        tx, Kind.SUBNET, account, name, SubnetSpec(vpc=vpc.id, cidr=cidr), Status(state=State.READY), parent=vpc.id
    )
    refer(tx, row.id, vpc.id, "vpc")
    return accepted(begin_and_end(tx, "subnet.create", row), row)


# --- security groups


def create_group(tx: Tx, account: str, name: str) -> dict[str, Any]:
    """A new group lets everything out and its members in."""
    row = make_group(tx, account, name)
    return accepted(begin_and_end(tx, "security-group.create", row), row)


def make_group(tx: Tx, account: str, name: str) -> Resource:
    row = create(tx, Kind.SECURITY_GROUP, account, name, SecurityGroupSpec(), Status(state=State.READY))
    rules = (
        _stored(tx, RuleSpec(direction=Direction.OUTBOUND, protocol=Protocol.ANY, cidr="0.0.0.0/0")),
        _stored(tx, RuleSpec(direction=Direction.INBOUND, protocol=Protocol.ANY, group=row.id)),
    )
    return save(tx, row, spec=SecurityGroupSpec(rules=rules))


def _stored(tx: Tx, rule: RuleSpec) -> StoredRule:
    return StoredRule(**rule.model_dump(), id=tx.new_id("rul"), mark=tokens.next_number(tx, "rule-mark"))


def add_rule(tx: Tx, account: str, ref: str, rule: RuleSpec) -> dict[str, Any]:
    row = get(tx, Kind.SECURITY_GROUP, ref, account)
    if rule.group is not None:
        peer = resolve(tx, "group", Kind.SECURITY_GROUP, rule.group, account)
        rule = rule.model_copy(update={"group": peer.id})
        if peer.id != row.id:
            refer(tx, row.id, peer.id, "peer")
    spec = row.spec_as(SecurityGroupSpec)
    if len(spec.rules) >= MAX_RULES:
        raise CloudError(ErrorKind.NO_CAPACITY, f"a security group holds at most {MAX_RULES} rules; use another group")
    for known in spec.rules:
        if known.model_dump(exclude={"id", "mark"}) == rule.model_dump():
            raise CloudError(ErrorKind.CONFLICT, f"security group '{row.name}' has this rule already: {known.id}")
    row = save(tx, row, spec=SecurityGroupSpec(rules=(*spec.rules, _stored(tx, rule))), status=_updating())
    return _networked(tx, "security-group.rule.add", row)


def remove_rule(tx: Tx, account: str, ref: str, rule_id: str) -> dict[str, Any]:
    row = get(tx, Kind.SECURITY_GROUP, ref, account)
    spec = row.spec_as(SecurityGroupSpec)
    kept = tuple(rule for rule in spec.rules if rule.id != rule_id)
    if len(kept) == len(spec.rules):
        raise not_found("rule", rule_id)
    peers = {rule.group for rule in kept}
    for rule in spec.rules:
        if rule.group and rule.group not in peers:
            unrefer(tx, row.id, rule.group, "peer")
    row = save(tx, row, spec=SecurityGroupSpec(rules=kept), status=_updating())
    return _networked(tx, "security-group.rule.remove", row)


def _updating() -> Status:
    return Status(state=State.UPDATING, reason="being applied")


def _networked(tx: Tx, action: str, row: Resource) -> dict[str, Any]:
    """An operation that ends when the switches concerned have followed."""
    op = begin(tx, action, row)
    operations.enqueue(tx, row.key)
    return accepted(op, row)


def groups_for(tx: Tx, account: str, refs: Sequence[str] | None, field: str) -> tuple[str, ...]:
    """Ids of the groups named; the account's `default` one if none was said; `[]` means none at all."""
    if refs is None:
        try:
            return (get(tx, Kind.SECURITY_GROUP, DEFAULT_GROUP, account).id,)
        except CloudError:
            return (make_group(tx, account, DEFAULT_GROUP).id,)
    ids = [resolve(tx, field, Kind.SECURITY_GROUP, ref, account).id for ref in refs]
    return tuple(dict.fromkeys(ids))


# --- nics


def make_nic(
    tx: Tx,
    account: str,
    name: str,
    subnet: Resource,
    ip: str | None,
    groups: tuple[str, ...],
    *,
    vm: str | None = None,
    node: tuple[str, str] | None = None,
    with_vm: bool = False,
    id: str | None = None,
    state: State = State.READY,
) -> Resource:
    """The row, its address, MAC and references. `vm` is an id, `node` its node's (id, name) if it has one."""
    id = id or tx.new_id(PREFIX[Kind.NIC])
    vpc = subnet.spec_as(SubnetSpec).vpc
    spec = NicSpec(
        subnet=subnet.id,
        vpc=vpc,
        ip=take_ip(tx, subnet, id, ip),
        mac=take_mac(tx, id),
        security_groups=groups,
        vm=vm,
        delete_with_vm=with_vm,
    )
    status = NicStatus(state=state, node=node[1] if node else None)
    row = create(tx, Kind.NIC, account, name, spec, status, id=id, parent=vpc, node=node[0] if node else None)
    uses = [(id, subnet.id, "subnet"), *((id, group, "group") for group in groups)]
    if vm is not None:
        uses.append((id, vm, "vm"))
    refer_all(tx, uses)
    return row


def create_nic(
    tx: Tx,
    account: str,
    name: str,
    subnet_ref: str,
    ip: str | None,
    group_refs: Sequence[str] | None,
    vm_ref: str | None,
) -> dict[str, Any]:
    subnet = resolve(tx, "spec.subnet", Kind.SUBNET, subnet_ref, account)
    groups = groups_for(tx, account, group_refs, "spec.security_groups")
    vm = resolve(tx, "spec.vm", Kind.VM, vm_ref, account) if vm_ref else None
    if vm is not None:
        _check_nic_room(tx, vm)
    placed = vm is not None and vm.node is not None
    state = State.CREATING if placed else State.READY
    node = (vm.node, vm.status_as(VmStatus).node or "") if vm is not None and vm.node is not None else None
    row = make_nic(tx, account, name, subnet, ip, groups, vm=vm.id if vm else None, node=node, state=state)
    if vm is not None:
        _devices_changed(tx, vm)
    if not placed:
        return accepted(begin_and_end(tx, "nic.create", row), row)
    return _networked(tx, "nic.create", row)


def _check_nic_room(tx: Tx, vm: Resource) -> None:
    refuse_while_leaving(vm)
    nics = [row for row in find_many(tx, sources_of(tx, vm.id, "vm")).values() if row.kind == Kind.NIC]
    if len(nics) >= MAX_NICS:
        raise CloudError(ErrorKind.NO_CAPACITY, f"a VM has at most {MAX_NICS} nics")


def _devices_changed(tx: Tx, vm: Resource) -> Resource:
    """A VM whose devices changed has a new generation, so that it is known when its node has followed."""
    rows = find_many(tx, sources_of(tx, vm.id, "vm")).values()
    addresses = tuple(row.spec_as(NicSpec).ip for row in sorted(rows, key=lambda r: r.id) if row.kind == Kind.NIC)
    status = vm.status_as(VmStatus).model_copy(update={"addresses": addresses})
    return save(tx, vm, spec=vm.spec_as(VmSpec), status=status)


def attach_nic(tx: Tx, account: str, ref: str, vm_ref: str) -> dict[str, Any]:
    nic = get(tx, Kind.NIC, ref, account)
    vm = resolve(tx, "vm", Kind.VM, vm_ref, account)
    refuse_while_leaving(nic)
    spec = nic.spec_as(NicSpec)
    if spec.vm == vm.id:
        return accepted(begin_and_end(tx, "nic.attach", nic, "it is attached to this VM already"), nic)
    if spec.vm is not None or nic.node is not None:
        other = find(tx, spec.vm) if spec.vm else None
        what = f"is attached to vm {other.name}" if other else "is still being detached"
        raise CloudError(ErrorKind.IN_USE, f"nic '{nic.name}' {what}; detach it first")
    _check_nic_room(tx, vm)
    refer(tx, nic.id, vm.id, "vm")
    status = NicStatus(state=State.UPDATING if vm.node else State.READY, node=vm.status_as(VmStatus).node)
    nic = save(tx, nic, spec=spec.model_copy(update={"vm": vm.id}), status=status, node=vm.node)
    _devices_changed(tx, vm)
    if vm.node is None:
        return accepted(begin_and_end(tx, "nic.attach", nic), nic)
    return _networked(tx, "nic.attach", nic)


def detach_nic(tx: Tx, account: str, ref: str) -> dict[str, Any]:
    nic = get(tx, Kind.NIC, ref, account)
    refuse_while_leaving(nic)
    vm_id = nic.spec_as(NicSpec).vm
    if vm_id is None:
        return accepted(begin_and_end(tx, "nic.detach", nic, "it is attached to no VM"), nic)
    vm = find(tx, vm_id)
    if vm is not None:
        migration.refuse_while_moving(vm)
    spec = nic.spec_as(NicSpec).model_copy(update={"delete_with_vm": False})
    nic = finishing.detach_nic(tx, save(tx, nic, spec=spec))
    if vm is not None:
        _devices_changed(tx, vm)
    if nic.node is None:
        return accepted(begin_and_end(tx, "nic.detach", nic), nic)
    return accepted(begin(tx, "nic.detach", nic), nic)


def change_nic(tx: Tx, account: str, ref: str, name: str | None, group_refs: Sequence[str] | None) -> dict[str, Any]:
    nic = get(tx, Kind.NIC, ref, account)
    refuse_while_leaving(nic)
    spec = nic.spec_as(NicSpec)
    if group_refs is not None:
        groups = groups_for(tx, account, group_refs, "spec.security_groups")
        unrefer(tx, nic.id, role="group")
        for group in groups:
            refer(tx, nic.id, group, "group")
        spec = spec.model_copy(update={"security_groups": groups})
    if nic.node is None:
        nic = save(tx, nic, name=name, spec=spec)
        return accepted(begin_and_end(tx, "nic.update", nic), nic)
    status = nic.status_as(NicStatus).model_copy(update={"state": State.UPDATING})
    nic = save(tx, nic, name=name, spec=spec, status=status)
    return _networked(tx, "nic.update", nic)


def delete_nic(tx: Tx, account: str, ref: str) -> dict[str, Any]:
    nic = get(tx, Kind.NIC, ref, account)
    if nic.spec_as(NicSpec).vm is not None and nic.state != State.DELETING:
        refuse_attached(tx, nic, nic.spec_as(NicSpec).vm)
    op = begin(tx, "nic.delete", nic)
    finishing.leave(tx, nic, "being deleted")
    return accepted(operations.get(tx, op.id, None) or op, find(tx, nic.id) or nic)


def refuse_attached(tx: Tx, row: Resource, vm_id: str | None) -> None:
    vm = find(tx, vm_id) if vm_id else None
    if vm is not None:
        raise CloudError(
            ErrorKind.IN_USE,
            f"{row.kind} '{row.name}' is attached to vm {vm.name}; detach it or delete the VM first",
            users=[f"vm {vm.name}"],
        )


def delete_plain(tx: Tx, kind: Kind, account: str | None, ref: str) -> dict[str, Any]:
    """For what lives in the database alone: refused while used, else gone at once."""
    row = get(tx, kind, ref, account)
    refuse_if_used(tx, row)
    finishing.complete_deletion(tx, row)
    if kind in (Kind.VPC, Kind.SUBNET) and finishing.bury_network(tx, row):
        message = "deleted; its addresses stay reserved until a node that does not answer has let go of them"
        return accepted(begin_and_end(tx, f"{kind}.delete", row, message), row)
    op = begin_and_end(tx, f"{kind}.delete", row, "deleted")
    remove(tx, row)
    if kind is Kind.SUBNET and row.parent:
        finishing.dig_up(tx, row.parent)
    return accepted(op, row)


def rename_plain(tx: Tx, kind: Kind, account: str | None, ref: str, name: str) -> dict[str, Any]:
    row = save(tx, get(tx, kind, ref, account), name=name)
    return accepted(begin_and_end(tx, f"{kind}.rename", row), row)
