"""Rows of the database to the objects that nodes are told. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from scloud.model.desired import (
    DesiredDisk,
    DesiredGroup,
    DesiredPort,
    DesiredSnapshot,
    DesiredSubnet,
    DesiredVm,
    DesiredVpc,
    MoveIn,
    MoveOut,
    VmDisk,
)
from scloud.model.kinds import State
from scloud.model.specs import DiskSpec, NicSpec, SecurityGroupSpec, SubnetSpec, VmSpec, VpcSpec
from scloud.model.statuses import VmStatus
from scloud.store.resources import Resource


def gateway_of(cidr: str) -> str:
    """The first host address is the gateway."""
    return str(ipaddress.IPv4Network(cidr).network_address + 1)


def service_of(cidr: str) -> str:
    """The second host address is the DHCP and DNS service."""
    return str(ipaddress.IPv4Network(cidr).network_address + 2)


def leaving(row: Resource) -> bool:
    """Whether the resource is to be gone from its node."""
    return row.gone or row.state == State.DELETING


def vm(row: Resource, disks: Sequence[tuple[str, bool]], nics: Sequence[str]) -> DesiredVm:
    """`disks` are (id, system) in the order they were attached, `nics` ids likewise."""
    spec = row.spec_as(VmSpec)
    return DesiredVm(
        id=row.id,
        generation=row.generation,
        name=row.name,
        account=row.account,
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        power="absent" if leaving(row) else spec.power,
        starts=spec.starts,
        reboots=spec.reboots,
        force_stop=spec.force_stop,
        restart_limit=spec.restart_limit,
        disks=tuple(VmDisk(id=id, system=system) for id, system in sorted(disks, key=lambda d: (not d[1], d[0]))),
        nics=tuple(sorted(nics)),
        keys=spec.public_keys,
        user_data=spec.user_data,
        gpus=tuple(one for gpu in row.status_as(VmStatus).gpus for one in (gpu.address, *gpu.companions)),
    )


def moves(row: Resource, told: DesiredVm, pools: Mapping[str, str]) -> dict[str, DesiredVm]:
    """What each node concerned is told of a VM: its own, the one that it migrates to, those that it has left."""
    status = row.status_as(VmStatus)
    gone = told.model_copy(update={"power": "absent", "force_stop": True})
    result = {node: gone.model_copy(update={"leftovers": status.leftovers.get(node, ())}) for node in status.leaving}
    if row.node is not None:
        result[row.node] = told
    move = status.migration
    if move is None or leaving(row):
        return result
    asked = MoveIn(number=move.number, source=move.source, pools=dict(pools), copies=move.copies, asked=move.asked)
    result[move.target] = told.model_copy(update={"move_in": asked})
    if move.phase == "copying":
        out = MoveOut(
            number=move.number,
            target=move.target,
            address=move.address,
            copies=tuple(copy.disk for copy in move.copies),
            bandwidth_mib_s=move.bandwidth_mib_s,
            downtime_ms=move.downtime_ms,
            stuck=move.stuck,
            cancel=move.cancel,
        )
        result[move.source] = told.model_copy(update={"move_out": out})
    return result


def disk(
    row: Resource,
    spec: DiskSpec,
    image_sha256: str | None,
    snapshots: Sequence[Resource] = (),
    origin: Resource | None = None,
) -> DesiredDisk:
    """`snapshots` are the disk's own, `origin` is the one that it was made from."""
    return DesiredDisk(
        id=row.id,
        generation=row.generation,
        size_mib=spec.size_mib,
        image=spec.image,
        image_sha256=image_sha256,
        incarnation=spec.rebuilds,
        absent=leaving(row),
        pool=spec.pool,
        origin=(origin.parent, origin.id) if origin is not None and origin.parent else None,
        snapshots=tuple(DesiredSnapshot(id=item.id, absent=leaving(item)) for item in snapshots),
        rollbacks=spec.rollbacks,
        rollback_to=spec.rollback_to,
        limits=spec.limits,
        flattened=spec.flattened,
    )


def port(
    row: Resource, spec: NicSpec, hostname: str, tunnel_ip: str | None, second: tuple[str, str] | None = None
) -> DesiredPort:
    return DesiredPort(
        id=row.id,
        generation=row.generation,
        vpc=spec.vpc,
        subnet=spec.subnet,
        vm=spec.vm,
        hostname=hostname,
        mac=spec.mac,
        ip=spec.ip,
        groups=spec.security_groups,
        node_id=row.node,
        tunnel_ip=tunnel_ip,
        second=second,
        absent=leaving(row) or spec.vm is None,
    )


def vpc(row: Resource, subnets: Sequence[Resource]) -> DesiredVpc:
    """Its generation grows with its subnets', so that a change of either is a change."""
    rendered = []
    for subnet in sorted(subnets, key=lambda item: item.id):
        cidr = subnet.spec_as(SubnetSpec).cidr
        rendered.append(
            DesiredSubnet(
                id=subnet.id, name=subnet.name, cidr=cidr, gateway=gateway_of(cidr), service_ip=service_of(cidr)
            )
        )
    return DesiredVpc(
        id=row.id,
        generation=row.generation,
        name=row.name,
        vni=row.spec_as(VpcSpec).vni,
        subnets=tuple(rendered),
    )


def group(row: Resource) -> DesiredGroup:
    return DesiredGroup(id=row.id, generation=row.generation, rules=row.spec_as(SecurityGroupSpec).rules)
