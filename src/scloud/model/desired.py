"""What the manager tells a node: small keyed objects. A node's desired state is a set of them.

The agent keeps the last set on its own disk and needs no manager to hold it. An object missing from the set is left
alone and reported as an orphan; what is to go is said by `power="absent"` or `absent=True`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scloud.model.base import Value
from scloud.model.specs import StoredRule


class DesiredSubnet(Value):
    id: str
    name: str
    cidr: str
    gateway: str
    service_ip: str


class DesiredVpc(Value):
    kind: Literal["vpc"] = "vpc"
    id: str
    generation: int
    name: str
    vni: int
    subnets: tuple[DesiredSubnet, ...] = ()


class DesiredGroup(Value):
    kind: Literal["group"] = "group"
    id: str
    generation: int
    rules: tuple[StoredRule, ...] = ()


class DesiredPort(Value):
    """A nic of a VPC present on the node. Local if `node_id` is the node's own, else reached at `tunnel_ip`."""

    kind: Literal["port"] = "port"
    id: str
    generation: int
    vpc: str
    subnet: str
    vm: str | None
    hostname: str
    mac: str
    ip: str
    groups: tuple[str, ...] = ()
    node_id: str | None
    tunnel_ip: str | None
    absent: bool = False


class DesiredDisk(Value):
    """`incarnation` counts rebuilds: another number means the bytes are to be made anew from `image`."""

    kind: Literal["disk"] = "disk"
    id: str
    generation: int
    size_mib: int
    image: str | None
    image_sha256: str | None
    incarnation: int = 0
    absent: bool = False


class VmDisk(Value):
    id: str
    system: bool


class DesiredVm(Value):
    """`starts` and `reboots` count requests: a number higher than the one last carried out asks for one more."""

    kind: Literal["vm"] = "vm"
    id: str
    generation: int
    name: str
    account: str
    cpus: int
    memory_mib: int
    power: Literal["on", "off", "absent"]
    starts: int
    reboots: int
    force_stop: bool = False
    stop_grace_s: float = 60.0
    """How long the guest may take to shut down by itself before it is switched off."""
    restart_limit: int
    disks: tuple[VmDisk, ...]
    nics: tuple[str, ...]
    keys: tuple[str, ...] = ()
    user_data: str = ""


DesiredObject = Annotated[
    DesiredVpc | DesiredGroup | DesiredPort | DesiredDisk | DesiredVm, Field(discriminator="kind")
]


def key_of(item: DesiredVpc | DesiredGroup | DesiredPort | DesiredDisk | DesiredVm) -> str:
    """`kind/id`, the name of the object in messages, journals and reports."""
    return f"{item.kind}/{item.id}"
