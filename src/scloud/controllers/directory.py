"""What every node is to have, held in memory and kept in step with the database, change by change.

A node is told of the VMs and disks placed on it, of each VPC it has a nic in (the VPC and all nics of it, wherever they
are), and of the security groups on its own nics. Everything here can be rebuilt from the database at any time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from scloud.controllers import render
from scloud.controllers.storage.render import stores
from scloud.link.digest import digest_of
from scloud.model.desired import DesiredDisk, DesiredGroup, DesiredPort, DesiredStore, DesiredVm, DesiredVpc
from scloud.model.kinds import Kind
from scloud.model.specs import DiskSpec, NicSpec, NodeSpec
from scloud.model.statuses import ImageStatus, NicStatus, NodeStatus, VmStatus
from scloud.store.database import Tx
from scloud.store.resources import Resource, all_of, children, children_of, find_many

AnyDesired = DesiredVm | DesiredDisk | DesiredPort | DesiredVpc | DesiredGroup | DesiredStore
RENDERED = (
    *(Kind.NODE, Kind.STORAGE_CLUSTER, Kind.POOL),
    *(Kind.IMAGE, Kind.VPC, Kind.SUBNET, Kind.SECURITY_GROUP, Kind.NIC, Kind.DISK, Kind.VM),
)
"""Kinds that matter to nodes, in an order in which each finds what it builds upon."""
UNDER = {Kind.VPC: Kind.SUBNET, Kind.DISK: Kind.SNAPSHOT}
"""Kinds that nodes are told of with what they belong to."""
WITH_ITS_PARENT = (Kind.SUBNET, Kind.POOL)
"""A change of one of these changes what nodes are told of its parent."""


class Directory:
    """Not shared between threads. `changed` collects (node, key) pairs whose wish may be another one now."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[AnyDesired, str]] = {}
        self._tunnel_ip: dict[str, str] = {}
        self._image_sha: dict[str, str] = {}
        self._vm_row: dict[str, Resource] = {}
        self._vm_disks: defaultdict[str, dict[str, bool]] = defaultdict(dict)
        self._vm_nics: defaultdict[str, set[str]] = defaultdict(set)
        self._disk_vm: dict[str, str] = {}
        self._disk_pool: dict[str, str] = {}
        self._told: defaultdict[str, dict[str, tuple[DesiredVm, str]]] = defaultdict(dict)
        """By `vm/ID`: what each node is told of it, which differs while it migrates."""
        self._nic: dict[str, tuple[Resource, NicSpec, frozenset[str]]] = {}
        self._placed: defaultdict[str, set[str]] = defaultdict(set)  # node -> vm/, disk/ and store/ keys
        self._node_of: dict[str, str] = {}
        self._vpc_ports: defaultdict[str, set[str]] = defaultdict(set)
        self._vpc_nodes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._group_nodes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._node_vpcs: defaultdict[str, set[str]] = defaultdict(set)
        self._node_groups: defaultdict[str, set[str]] = defaultdict(set)
        self._stores: dict[str, set[str]] = {}  # storage cluster -> nodes that are told of it
        self._sites: dict[str, tuple[str, str]] = {}  # node -> what a storage cluster is told of it
        self._outdated: dict[str, None] = {}
        self.changed: set[tuple[str, str]] = set()

    # --- questions

    def wish(self, node: str, key: str) -> tuple[AnyDesired, str] | None:
        """The object and its digest if the node is to have it."""
        if key.startswith("vm/"):
            return self._told[key].get(node) if key in self._told else None
        entry = self._objects.get(key)
        if entry is None:
            return None
        item = entry[0]
        if isinstance(item, DesiredVm | DesiredDisk | DesiredStore):
            wanted = self._node_of.get(key) == node
        elif isinstance(item, DesiredPort):
            wanted = node in self._vpc_nodes[item.vpc] and item.node_id is not None
        elif isinstance(item, DesiredVpc):
            wanted = node in self._vpc_nodes[item.id]
        else:
            wanted = node in self._group_nodes[item.id]
        return entry if wanted else None

    def wishes(self, node: str) -> set[str]:
        """All keys the node is to have."""
        keys = set(self._placed[node])
        for vpc in self._node_vpcs[node]:
            keys.add(f"vpc/{vpc}")
            keys |= self._vpc_ports[vpc]
        keys.update(f"group/{group}" for group in self._node_groups[node])
        return {key for key in keys if self.wish(node, key) is not None}

    def vms_of(self, node: str) -> list[DesiredVm]:
        """The VMs the node is to have, each as this node is told of it."""
        told = (self._told[key].get(node) for key in self._placed[node] if key in self._told)
        return [entry[0] for entry in told if entry is not None]

    def tunnel_ip(self, node: str) -> str:
        return self._tunnel_ip.get(node, "")

    def mac_of(self, vpc: str, ip: str) -> str | None:
        """The MAC that answers for an address in a VPC."""
        for key in self._vpc_ports[vpc]:
            entry = self._objects.get(key)
            if entry is not None and isinstance(entry[0], DesiredPort) and entry[0].ip == ip:
                return entry[0].mac
        return None

    def nodes_of_vpc(self, vpc: str) -> set[str]:
        return set(self._vpc_nodes[vpc])

    def nodes_of_group(self, group: str) -> set[str]:
        return set(self._group_nodes[group])

    # --- changes

    def load(self, tx: Tx) -> None:
        """Everything, from nothing."""
        vms = all_of(tx, Kind.VM, gone=True)
        self._vm_row = {row.id: row for row in vms}  # known from the beginning, so that each nic is rendered only once
        for kind in RENDERED:
            if kind not in WITH_ITS_PARENT:
                rows = vms if kind == Kind.VM else all_of(tx, kind, gone=True)
                under = _under(tx, kind, [row.id for row in rows])
                for row in rows:
                    self._put(tx, row, under.get(row.id, []))
        self._render_vms()

    def refresh(self, tx: Tx, keys: Iterable[str]) -> None:
        """Look at these `kind/id` again."""
        wanted: dict[str, str] = {}
        for key in keys:
            kind, _, id = key.partition("/")
            if kind in RENDERED:
                wanted[id] = kind
        rows = find_many(tx, wanted)
        for kind in RENDERED:
            ids = [id for id, own in wanted.items() if own == kind]
            under = _under(tx, kind, ids)
            for id in ids:
                row = rows.get(id)
                if row is None:
                    self._forget(tx, kind, id)
                else:
                    self._put(tx, row, under.get(id, []))
        self._render_vms()

    def _put(self, tx: Tx, row: Resource, under: list[Resource]) -> None:
        """Take in one row as it now is, with those `UNDER` it."""
        match row.kind:
            case Kind.NODE:
                self._put_node(row)
                self._put_site(tx, row)
            case Kind.STORAGE_CLUSTER:
                self._put_stores(tx, row)
            case Kind.POOL:
                if row.parent:
                    self._refresh_stores(tx, row.parent)
            case Kind.IMAGE:
                self._image_sha[row.id] = row.status_as(ImageStatus).sha256
            case Kind.VPC:
                self._set(f"vpc/{row.id}", render.vpc(row, [subnet for subnet in under if not subnet.gone]))
            case Kind.SUBNET:
                if row.parent:
                    self._refresh_vpc(tx, row.parent)
            case Kind.SECURITY_GROUP:
                self._set(f"group/{row.id}", render.group(row))
            case Kind.NIC:
                self._put_nic(row)
            case Kind.DISK:
                self._put_disk(tx, row, under)
            case Kind.VM:
                self._put_vm(row)

    def _put_node(self, row: Resource) -> None:
        tunnel_ip = row.status_as(NodeStatus).tunnel_ip
        if self._tunnel_ip.get(row.id) != tunnel_ip:
            self._tunnel_ip[row.id] = tunnel_ip
            for nic, _spec, nodes in list(self._nic.values()):
                if row.id in nodes:
                    self._put_nic(nic)

    def _put_site(self, tx: Tx, row: Resource) -> None:
        """A node's labels and address matter to the storage clusters it is part of."""
        site = (row.status_as(NodeStatus).storage_ip, repr(sorted(row.spec_as(NodeSpec).labels.items())))
        if self._sites.get(row.id) != site:
            self._sites[row.id] = site
            for cluster in [id for id, nodes in self._stores.items() if row.id in nodes]:
                self._refresh_stores(tx, cluster)

    def _refresh_stores(self, tx: Tx, cluster: str) -> None:
        row = find_many(tx, [cluster]).get(cluster)
        if row is not None:
            self._put_stores(tx, row)

    def _put_stores(self, tx: Tx, row: Resource) -> None:
        wanted = stores(tx, row)
        self._drop_stores(row.id, keep=set(wanted))
        self._stores[row.id] = set(wanted)
        for node, item in wanted.items():
            key = f"store/{item.id}"
            self._place(key, node)
            self._set(key, item)

    def _drop_stores(self, cluster: str, keep: set[str]) -> None:
        for node in self._stores.pop(cluster, set()) - keep:
            key = f"store/{cluster}.{node}"
            self._place(key, None)
            self._drop(key)

    def _put_vm(self, row: Resource) -> None:
        before = self._vm_row.get(row.id)
        self._vm_row[row.id] = row
        self._render_vm(row.id)
        if before is None or before.name != row.name or _way(before) != _way(row):
            for nic in list(self._vm_nics[row.id]):
                self._put_nic(self._nic[nic][0])

    def _render_vm(self, id: str) -> None:
        """Once all that was changed has been taken in: a VM is made of several rows, which mostly change together."""
        self._outdated[id] = None

    def _render_vms(self) -> None:
        outdated, self._outdated = self._outdated, {}
        for id in outdated:
            row = self._vm_row.get(id)
            if row is None:
                continue
            told = render.vm(row, list(self._vm_disks[id].items()), list(self._vm_nics[id]))
            pools = {disk: self._disk_pool[disk] for disk in self._vm_disks[id] if disk in self._disk_pool}
            self._tell(f"vm/{id}", render.moves(row, told, pools))

    def _tell(self, key: str, wanted: dict[str, DesiredVm]) -> None:
        """Each node its own view of a VM."""
        before = self._told.pop(key, {})
        after = {node: (item, digest_of(item)) for node, item in wanted.items()}
        if after:
            self._told[key] = after
        for node in before.keys() | after.keys():
            if before.get(node) != after.get(node):
                self.changed.add((node, key))
            if node in after:
                self._placed[node].add(key)
            else:
                self._placed[node].discard(key)

    def _put_disk(self, tx: Tx, row: Resource, snapshots: list[Resource]) -> None:
        spec = row.spec_as(DiskSpec)
        key = f"disk/{row.id}"
        old_vm = self._disk_vm.pop(row.id, None)
        attached = spec.vm is not None and not (render.leaving(row) and not spec.system)
        if spec.vm is not None and attached:
            self._disk_vm[row.id] = spec.vm
            self._vm_disks[spec.vm][row.id] = spec.system
        if old_vm is not None and old_vm != self._disk_vm.get(row.id):
            self._vm_disks[old_vm].pop(row.id, None)
            self._render_vm(old_vm)
        if spec.pool is not None:
            self._disk_pool[row.id] = spec.pool
        sha = self._image_sha.get(spec.image) if spec.image else None
        self._place(key, row.node)
        if row.node is None:
            self._drop(key)
        else:
            origin = find_many(tx, [spec.snapshot]).get(spec.snapshot) if spec.snapshot else None
            self._set(key, render.disk(row, spec, sha, snapshots, origin))
        if spec.vm is not None and attached:
            self._render_vm(spec.vm)

    def _put_nic(self, row: Resource) -> None:
        spec = row.spec_as(NicSpec)
        key = f"port/{row.id}"
        known = self._nic.get(row.id)
        nodes = self._nodes_of(row, spec)
        moved = known is None or (known[2], known[1].security_groups) != (nodes, spec.security_groups)
        if known is not None and moved:
            self._count_nic(key, *known[1:], add=False)
        self._nic[row.id] = (row, spec, nodes)
        owner = self._vm_row.get(spec.vm) if spec.vm else None
        hostname = owner.name if owner else row.name
        if row.node is None:
            self._drop(key)
        else:
            move = owner.status_as(VmStatus).migration if owner else None
            second = (move.target, self._tunnel_ip.get(move.target, "")) if move and row.node == move.source else None
            self._set(key, render.port(row, spec, hostname, self._tunnel_ip.get(row.node), second))
        if moved:
            self._count_nic(key, spec, nodes, add=True)
        old_vm = known[1].vm if known else None
        for vm in {old_vm, spec.vm} - {None}:
            if vm == spec.vm:
                self._vm_nics[vm].add(row.id)  # type: ignore[index]
            else:
                self._vm_nics[vm].discard(row.id)  # type: ignore[index]
            self._render_vm(vm)  # type: ignore[arg-type]

    def _nodes_of(self, row: Resource, spec: NicSpec) -> frozenset[str]:
        """The nodes that have a tap of it, or may have one still."""
        if row.node is None:
            return frozenset()
        owner = self._vm_row.get(spec.vm) if spec.vm else None
        status = owner.status_as(VmStatus) if owner else None
        if status is None:
            return frozenset({row.node, *row.status_as(NicStatus).former})
        return frozenset({row.node, *status.leaving, *([status.migration.target] if status.migration else [])})

    def _count_nic(self, key: str, spec: NicSpec, nodes: frozenset[str], *, add: bool) -> None:
        """Keep count of which node has nics of which VPC and group."""
        if add:
            self._vpc_ports[spec.vpc].add(key)
        else:
            self._vpc_ports[spec.vpc].discard(key)
        for node in sorted(nodes):
            self.changed.add((node, key))  # also if nothing else of the VPC is there any more
            if self._tally(self._vpc_nodes[spec.vpc], self._node_vpcs[node], spec.vpc, node, add):
                self.changed.add((node, f"vpc/{spec.vpc}"))
                self.changed.update((node, port) for port in self._vpc_ports[spec.vpc])
            for group in spec.security_groups:
                if self._tally(self._group_nodes[group], self._node_groups[node], group, node, add):
                    self.changed.add((node, f"group/{group}"))

    @staticmethod
    def _tally(nodes: Counter[str], of_node: set[str], thing: str, node: str, add: bool) -> bool:
        """Count up or down; True when the first comes or the last goes."""
        if add:
            nodes[node] += 1
            of_node.add(thing)
            return nodes[node] == 1
        nodes[node] -= 1
        if nodes[node] <= 0:
            del nodes[node]
            of_node.discard(thing)
            return True
        return False

    def _refresh_vpc(self, tx: Tx, vpc: str) -> None:
        row = find_many(tx, [vpc]).get(vpc)
        if row is not None:
            self._set(f"vpc/{vpc}", render.vpc(row, children(tx, Kind.SUBNET, vpc)))

    def _forget(self, tx: Tx, kind: Kind, id: str) -> None:
        match kind:
            case Kind.VM:
                self._vm_row.pop(id, None)
                self._tell(f"vm/{id}", {})
                self._vm_disks.pop(id, None)
                self._vm_nics.pop(id, None)
            case Kind.DISK:
                vm = self._disk_vm.pop(id, None)
                if vm is not None:
                    self._vm_disks[vm].pop(id, None)
                    self._render_vm(vm)
                self._disk_pool.pop(id, None)
                self._place(f"disk/{id}", None)
                self._drop(f"disk/{id}")
            case Kind.NIC:
                known = self._nic.pop(id, None)
                if known is not None:
                    self._mark(f"port/{id}")
                    self._count_nic(f"port/{id}", *known[1:], add=False)
                    if known[1].vm is not None:
                        self._vm_nics[known[1].vm].discard(id)
                        self._render_vm(known[1].vm)
                self._drop(f"port/{id}")
            case Kind.SECURITY_GROUP:
                self._drop(f"group/{id}")
            case Kind.VPC:
                self._drop(f"vpc/{id}")
                self._vpc_ports.pop(id, None)
                self._vpc_nodes.pop(id, None)
            case Kind.SUBNET:
                for key, (item, _digest) in list(self._objects.items()):
                    if isinstance(item, DesiredVpc) and any(subnet.id == id for subnet in item.subnets):
                        self._refresh_vpc(tx, key.partition("/")[2])
            case Kind.NODE:
                self._tunnel_ip.pop(id, None)
                self._sites.pop(id, None)
                for cluster in [cluster for cluster, nodes in self._stores.items() if id in nodes]:
                    self._refresh_stores(tx, cluster)
            case Kind.STORAGE_CLUSTER:
                self._drop_stores(id, keep=set())
            case Kind.IMAGE:
                self._image_sha.pop(id, None)

    def _place(self, key: str, node: str | None) -> None:
        before = self._node_of.get(key)
        if before == node:
            return
        if before is not None:
            self._placed[before].discard(key)
            self.changed.add((before, key))
        if node is None:
            self._node_of.pop(key, None)
        else:
            self._node_of[key] = node
            self._placed[node].add(key)
            self.changed.add((node, key))

    def _set(self, key: str, item: AnyDesired) -> None:
        digest = digest_of(item)
        known = self._objects.get(key)
        if known is not None and known[1] == digest:
            return
        self._objects[key] = (item, digest)
        self._mark(key)

    def _drop(self, key: str) -> None:
        self._mark(key)
        self._objects.pop(key, None)

    def _mark(self, key: str) -> None:
        """Every node that is to have this object must look at it again."""
        entry = self._objects.get(key)
        if entry is None:
            return
        item = entry[0]
        if isinstance(item, DesiredVm | DesiredDisk | DesiredStore):
            node = self._node_of.get(key)
            if node is not None:
                self.changed.add((node, key))
        elif isinstance(item, DesiredPort):
            self.changed.update((node, key) for node in self._vpc_nodes[item.vpc])
        elif isinstance(item, DesiredVpc):
            self.changed.update((node, key) for node in self._vpc_nodes[item.id])
        else:
            self.changed.update((node, key) for node in self._group_nodes[item.id])


def _under(tx: Tx, kind: Kind, ids: list[str]) -> dict[str, list[Resource]]:
    below = UNDER.get(kind)
    return children_of(tx, below, ids) if below is not None else {}


def _way(vm: Resource) -> tuple[object, ...]:
    """Where a VM's nics have to be, beside its own node."""
    status = vm.status_as(VmStatus)
    move = status.migration
    return status.leaving, move.target if move is not None else None, vm.node
