"""How each kind of resource looks in a table and on a card."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scloud.cli import human
from scloud.cli.names import Names
from scloud.cli.output import Column, Resource

if TYPE_CHECKING:
    from scloud.client.http import Client

Refs = Callable[[Resource], Iterable[str | None]]


@dataclass(frozen=True)
class Look:
    """`refs` says which other kinds' ids are to be shown by name; the functions get the names then."""

    noun: str
    collection: str
    columns: Callable[[Names], Sequence[Column]]
    card: Callable[[Names], Sequence[Column]]
    refs: tuple[tuple[str, Refs], ...] = ()
    beside: Callable[[Client, Sequence[Resource]], None] | None = None
    """Puts into the resources, under names of their own, what another request tells of them."""


def at(resource: Resource, path: str) -> Any:
    """The value at `spec.cpus`, or None where the path ends early."""
    value: Any = resource
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def text(path: str) -> Callable[[Resource], str]:
    return lambda resource: "" if at(resource, path) is None else str(at(resource, path))


def mib(path: str) -> Callable[[Resource], str]:
    return lambda resource: "" if at(resource, path) is None else human.size(at(resource, path))


def yes(path: str) -> Callable[[Resource], str]:
    return lambda resource: "yes" if at(resource, path) else "no"


def joined(path: str) -> Callable[[Resource], str]:
    return lambda resource: ", ".join(at(resource, path) or ())


def age(path: str = "created_at") -> Callable[[Resource], str]:
    return lambda resource: human.age(time.time() - at(resource, path)) if at(resource, path) else "-"


def moment(path: str) -> Callable[[Resource], str]:
    """A time with how long ago it was, for cards."""

    def value(resource: Resource) -> str:
        seconds = at(resource, path)
        if not seconds:
            return ""
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))} ({human.ago(time.time() - seconds)})"

    return value


def named(names: Names, collection: str, path: str) -> Callable[[Resource], str]:
    def value(resource: Resource) -> str:
        ref = at(resource, path)
        return names.all(collection, ref) if isinstance(ref, list | tuple) else names.of(collection, ref)

    return value


def _refs(*pairs: tuple[str, str]) -> tuple[tuple[str, Refs], ...]:
    def at_path(path: str) -> Refs:
        def values(resource: Resource) -> Iterable[str | None]:
            ref = at(resource, path)
            return ref if isinstance(ref, list | tuple) else (ref,)

        return values

    return tuple((collection, at_path(path)) for collection, path in pairs)


NAME = Column("NAME", text("name"))
STATE = Column("STATE", text("status.state"), state=True)
AGE = Column("AGE", age())
_TOP = (
    Column("Name", text("name")),
    Column("Id", text("id")),
    Column("State", text("status.state"), state=True),
    Column("Reason", text("status.reason")),
)
_BOTTOM = (Column("Created", moment("created_at")), Column("Changed", moment("updated_at")))


def look_of(
    noun: str,
    columns: Callable[[Names], Sequence[Column]],
    card: Callable[[Names], Sequence[Column]],
    *refs: tuple[str, str],
    state: bool = True,
) -> Look:
    """Every table begins with name and state and ends with the age; every card begins and ends alike."""
    first = (NAME, STATE) if state else (NAME,)
    return Look(
        noun,
        f"{noun}s",
        lambda names: (*first, *columns(names), AGE),
        lambda names: (*_TOP, *card(names), *_BOTTOM),
        _refs(*refs),
    )


def _half(spec: str, status: str, show: Callable[[Any], str]) -> Callable[[Resource], str]:
    """A value as asked for and, where the running guest has another one, that too."""

    def value(resource: Resource) -> str:
        wanted, actual = at(resource, spec), at(resource, status)
        if wanted is None:
            return ""
        return show(wanted) if actual in (None, wanted) else f"{show(wanted)} (now {show(actual)})"

    return value


def rule_text(names: Names, rule: Resource) -> str:
    """A security group's rule in words: `inbound tcp 22 from 0.0.0.0/0`."""
    low, high = rule.get("port_min"), rule.get("port_max")
    port = "" if low is None else f" {human.ports(low, high)}"
    peer = rule.get("cidr") or f"group {names.of('security-groups', rule.get('group'))}"
    return f"{rule['direction']} {rule['protocol']}{port} {'from' if rule['direction'] == 'inbound' else 'to'} {peer}"


def _rules(names: Names) -> Callable[[Resource], str]:
    return lambda resource: "\n".join(rule_text(names, rule) for rule in at(resource, "spec.rules") or ())


def _accelerator(resource: Resource) -> str:
    kind, reason = at(resource, "status.accelerator.kind"), at(resource, "status.accelerator.reason")
    return f"{kind}: {reason}" if kind else ""


def _capacity(resource: Resource) -> str:
    capacity = at(resource, "status.capacity") or {}
    if not capacity.get("cpus"):
        return ""
    memory, disk = human.size(capacity["memory_mib"]), human.size(capacity["disk_mib"])
    return f"{capacity['cpus']} CPUs, {memory} of memory, {disk} of disk"


LOADS = (("cpu", "CPU"), ("memory", "memory"), ("disk", "disk space"), ("network", "network"), ("storage", "storage"))


def _usage(client: Client, nodes: Sequence[Resource]) -> None:
    """What nodes have promised and how busy they are, as `usage`."""
    only = nodes[0]["id"] if len(nodes) == 1 else None
    found = {item["node"]: item for item in client.get("/usage", node=only)["items"]}
    for node in nodes:
        node["usage"] = found.get(node["id"])


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f}%"


def _busiest(node: Resource) -> str:
    """The part of it that is busiest: `CPU 12%`."""
    smoothed = at(node, "usage.smoothed")
    if not smoothed:
        return "-"
    worst = max(LOADS, key=lambda item: smoothed[item[0]] if item[0] != "disk" else 0.0)
    return f"{worst[1]} {_percent(smoothed[worst[0]])}"


def _load(node: Resource) -> str:
    smoothed = at(node, "usage.smoothed")
    if not smoothed:
        return "not known: it does not answer"
    parts = [f"{name} {_percent(smoothed[key])}" for key, name in LOADS]
    return ", ".join([*parts, f"{smoothed['storage_ms']:.1f} ms a storage request"])


def _promised(node: Resource) -> str:
    has, can = at(node, "usage.promised"), at(node, "usage.promisable")
    if not has or not can or not can["cpus"]:
        return ""
    memory, disk = (f"{human.size(has[key])} of {human.size(can[key])}" for key in ("memory_mib", "disk_mib"))
    return f"{has['cpus']} of {can['cpus']} CPUs, {memory} of memory, {disk} of disk"


def _schedulable(resource: Resource) -> str:
    if at(resource, "spec.draining"):
        return "draining"
    return "cordoned" if at(resource, "spec.cordoned") else ""


def _at_once(cluster: Resource) -> str:
    return f"{at(cluster, 'spec.relocation.at_once')}, {at(cluster, 'spec.relocation.per_node')} from or to one node"


def _rebalance(cluster: Resource) -> str:
    every, window = at(cluster, "spec.relocation.rebalance_every_s"), at(cluster, "spec.relocation.rebalance_window")
    if not every:
        return "when asked for"
    return f"every {human.age(every)}" + (f", {window} UTC" if window else "")


def _gpu(gpu: Resource) -> str:
    return f"{gpu['model']} at {gpu['address']}" + (f": {gpu['reason']}" if gpu.get("reason") else "")


def _over(group: Resource) -> str:
    return f"{at(group, 'spec.over') or 'node'}s"


VM = look_of(
    "vm",
    lambda names: (
        Column("NODE", named(names, "nodes", "status.node")),
        Column("ADDRESSES", joined("status.addresses")),
        Column("CPUS", text("spec.cpus"), right=True),
        Column("MEMORY", mib("spec.memory_mib"), right=True),
    ),
    lambda names: (
        Column("Node", named(names, "nodes", "status.node")),
        Column("Addresses", joined("status.addresses")),
        Column("CPUs", _half("spec.cpus", "status.cpus", str)),
        Column("Memory", _half("spec.memory_mib", "status.memory_mib", human.size)),
        Column("Image", named(names, "images", "spec.image")),
        Column("Keypairs", named(names, "keypairs", "spec.keypairs")),
        Column("Placement group", named(names, "placement-groups", "spec.placement_group")),
        Column("GPUs", lambda vm: ", ".join(_gpu(gpu) for gpu in at(vm, "status.gpus") or ())),
        Column("Only on node", named(names, "nodes", "spec.node")),
        Column("Wanted power", text("spec.power")),
        Column("Unexpected restarts", lambda vm: str(at(vm, "status.restarts") or "")),
    ),
    ("nodes", "status.node"),
    ("nodes", "spec.node"),
    ("images", "spec.image"),
    ("keypairs", "spec.keypairs"),
    ("placement-groups", "spec.placement_group"),
)
IMAGE = look_of(
    "image",
    lambda _: (
        Column("SIZE", mib("status.size_mib"), right=True),
        Column("FORMAT", text("spec.format")),
        Column("PUBLIC", lambda image: "public" if at(image, "spec.public") else "-"),
    ),
    lambda _: (
        Column("Virtual size", mib("status.size_mib")),
        Column("Stored size", mib("status.file_mib")),
        Column("Imported as", text("spec.format")),
        Column("Source", text("spec.source")),
        Column("SHA-256 (raw)", text("status.sha256")),
        Column("Architecture", text("spec.architecture")),
        Column("Login user", text("spec.login_user")),
        Column("Public", yes("spec.public")),
    ),
)
VPC = look_of(
    "vpc",
    lambda _: (Column("VNI", text("spec.vni"), right=True),),
    lambda _: (Column("VNI", text("spec.vni")),),
)
SUBNET = look_of(
    "subnet",
    lambda names: (Column("VPC", named(names, "vpcs", "spec.vpc")), Column("CIDR", text("spec.cidr"))),
    lambda names: (Column("VPC", named(names, "vpcs", "spec.vpc")), Column("CIDR", text("spec.cidr"))),
    ("vpcs", "spec.vpc"),
)
SECURITY_GROUP = look_of(
    "security-group",
    lambda _: (Column("RULES", lambda group: str(len(at(group, "spec.rules") or ())), right=True),),
    lambda names: (Column("Rules", _rules(names)),),
)
PLACEMENT_GROUP = look_of(
    "placement-group",
    lambda _: (Column("POLICY", text("spec.policy")), Column("OVER", _over)),
    lambda _: (Column("Policy", text("spec.policy")), Column("Spread over", _over)),
)
KEYPAIR = look_of(
    "keypair",
    lambda _: (Column("TYPE", lambda key: (at(key, "spec.public_key") or "-").split(" ")[0]),),
    lambda _: (Column("Public key", text("spec.public_key")),),
    state=False,
)
NIC = look_of(
    "nic",
    lambda names: (
        Column("IP", text("spec.ip")),
        Column("SUBNET", named(names, "subnets", "spec.subnet")),
        Column("VM", named(names, "vms", "spec.vm")),
        Column("MAC", text("spec.mac")),
    ),
    lambda names: (
        Column("IP", text("spec.ip")),
        Column("MAC", text("spec.mac")),
        Column("Subnet", named(names, "subnets", "spec.subnet")),
        Column("VPC", named(names, "vpcs", "spec.vpc")),
        Column("VM", named(names, "vms", "spec.vm")),
        Column("Security groups", named(names, "security-groups", "spec.security_groups")),
        Column("Node", named(names, "nodes", "status.node")),
    ),
    ("subnets", "spec.subnet"),
    ("vpcs", "spec.vpc"),
    ("vms", "spec.vm"),
    ("security-groups", "spec.security_groups"),
    ("nodes", "status.node"),
)


def _limits(disk: Resource) -> str:
    iops, kib = at(disk, "spec.limits.iops"), at(disk, "spec.limits.kib_per_s")
    parts = [f"{iops} IOPS" if iops else "", f"{human.size(kib / 1024)}/s" if kib else ""]
    return ", ".join(part for part in parts if part)


def _schedule(disk: Resource) -> str:
    schedule = at(disk, "spec.schedule")
    return f"every {human.age(schedule['every_s'])}, the newest {schedule['keep']} kept" if schedule else ""


def _disk_name(disk: Resource) -> str:
    return str(at(disk, "spec.former_name") or disk["name"])


DISK = look_of(
    "disk",
    lambda names: (
        Column("SIZE", mib("spec.size_mib"), right=True),
        Column("USED", mib("status.used_mib"), right=True),
        Column("TYPE", lambda disk: at(disk, "spec.type") or "local"),
        Column("VM", named(names, "vms", "spec.vm")),
        Column("ROLE", lambda disk: "system" if at(disk, "spec.system") else "data"),
    ),
    lambda names: (
        Column("Size", mib("spec.size_mib")),
        Column("Used", mib("status.used_mib")),
        Column("Type", lambda disk: at(disk, "spec.type") or "local: in its node's own storage"),
        Column("VM", named(names, "vms", "spec.vm")),
        Column("Role", lambda disk: "system" if at(disk, "spec.system") else "data"),
        Column("Image", named(names, "images", "spec.image")),
        Column("From snapshot", named(names, "snapshots", "spec.snapshot")),
        Column("Limits", _limits),
        Column("Snapshots", _schedule),
        Column("Next snapshot", moment("status.next_snapshot_at")),
        Column("Device", text("status.device")),
        Column("Node", named(names, "nodes", "status.node")),
        Column("Was called", text("spec.former_name")),
        Column("Kept until", moment("spec.purge_at")),
    ),
    ("vms", "spec.vm"),
    ("images", "spec.image"),
    ("snapshots", "spec.snapshot"),
    ("nodes", "status.node"),
)
TRASH = Look(
    "disk",
    "disks",
    lambda _: (
        Column("NAME", _disk_name),
        Column("ID", text("id")),
        Column("SIZE", mib("spec.size_mib"), right=True),
        Column("TYPE", lambda disk: at(disk, "spec.type") or "local"),
        Column("KEPT UNTIL", moment("spec.purge_at")),
    ),
    lambda _: (),
)
SNAPSHOT = look_of(
    "snapshot",
    lambda names: (
        Column("DISK", named(names, "disks", "spec.disk")),
        Column("SIZE", mib("status.size_mib"), right=True),
        Column("BY", lambda snapshot: "schedule" if at(snapshot, "spec.scheduled") else "hand"),
    ),
    lambda names: (
        Column("Disk", named(names, "disks", "spec.disk")),
        Column("Size", mib("status.size_mib")),
        Column("Taken by", lambda snapshot: "schedule" if at(snapshot, "spec.scheduled") else "hand"),
    ),
    ("disks", "spec.disk"),
)
_NODE = look_of(
    "node",
    lambda names: (
        Column("CLUSTER", named(names, "clusters", "spec.cluster")),
        Column("ADDRESS", lambda node: at(node, "status.address") or at(node, "status.tunnel_ip") or ""),
        Column("CPUS", text("status.capacity.cpus"), right=True),
        Column("MEMORY", mib("status.capacity.memory_mib"), right=True),
        Column("BUSIEST", _busiest),
        Column("NOTE", _schedulable),
    ),
    lambda names: (
        Column("Cluster", named(names, "clusters", "spec.cluster")),
        Column("Placement", lambda node: _schedulable(node) or "takes new VMs"),
        Column("Address", text("status.address")),
        Column("Tunnel address", text("status.tunnel_ip")),
        Column("Architecture", text("status.architecture")),
        Column("Capacity", _capacity),
        Column("Promised", _promised),
        Column("Load", _load),
        Column("GPUs", lambda node: "\n".join(_gpu(gpu) for gpu in at(node, "status.gpus") or ())),
        Column("Accelerator", _accelerator),
        Column("Datapath", text("status.datapath")),
        Column("Agent", text("status.agent_version")),
        Column("Last seen", moment("status.last_seen")),
        Column("Labels", lambda node: ", ".join(f"{k}={v}" for k, v in (at(node, "spec.labels") or {}).items())),
    ),
    ("clusters", "spec.cluster"),
)
NODE = replace(_NODE, beside=_usage)
CLUSTER = look_of(
    "cluster",
    lambda _: (
        Column("ARCHITECTURE", text("spec.architecture")),
        Column("CPU OVERCOMMIT", text("spec.cpu_overcommit"), right=True),
    ),
    lambda _: (
        Column("Architecture", text("spec.architecture")),
        Column("CPU overcommit", lambda cluster: f"{at(cluster, 'spec.cpu_overcommit'):g} virtual for each CPU"),
        Column("Moves at once", _at_once),
        Column("Rebalance", _rebalance),
    ),
)
ACCOUNT = look_of(
    "account",
    lambda _: (Column("ROLE", lambda account: "administrator" if at(account, "spec.admin") else "tenant"),),
    lambda _: (Column("Role", lambda account: "administrator" if at(account, "spec.admin") else "tenant"),),
    state=False,
)
OPERATION = Look(
    "operation",
    "operations",
    lambda _: (
        Column("ID", text("id")),
        Column("ACTION", text("action")),
        Column("RESOURCE", text("resource.name")),
        Column("STATE", text("state"), state=True),
        Column("%", text("progress"), right=True),
        Column("AGE", age()),
    ),
    lambda _: (
        Column("Id", text("id")),
        Column("Action", text("action")),
        Column(
            "Resource", lambda item: " ".join(filter(None, (text(f"resource.{k}")(item) for k in ("kind", "name"))))
        ),
        Column("Resource id", text("resource.id")),
        Column("State", text("state"), state=True),
        Column("Progress", lambda item: f"{item.get('progress', 0)} %"),
        Column("Message", text("message")),
        Column("Error", text("error.message")),
        Column("Asked for", moment("created_at")),
        Column("Started", moment("started_at")),
        Column("Ended", moment("finished_at")),
        Column("Time limit", lambda item: "" if item.get("finished_at") else moment("deadline_at")(item)),
    ),
)
BY_KIND = {
    look.noun: look
    for look in (
        VM, IMAGE, VPC, SUBNET, SECURITY_GROUP, PLACEMENT_GROUP, KEYPAIR, NIC, DISK, SNAPSHOT, NODE, CLUSTER, ACCOUNT,
        OPERATION,
    )
}  # fmt: skip
