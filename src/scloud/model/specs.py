"""What people ask for: the spec of each kind of resource.

References inside a stored spec are ids; requests may also name things (the API resolves them).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from scloud.model.base import Value
from scloud.model.fields import Cidr, Cpus, DiskMib, Ipv4, L4Port, Mac, MemoryMib, SubnetCidr, Vni, worded
from scloud.model.ha import HaSettings
from scloud.model.relocations import RelocationSettings
from scloud.model.snapshots import DiskLimits, SnapshotSchedule

Id = Annotated[str, StringConstraints(max_length=32)]
UserData = Annotated[
    str,
    StringConstraints(max_length=65536, pattern=worded(r"^[^\x00]*$", "a text without NUL characters")),
    Field(description="a script (beginning with #!) or #cloud-config text; at most 64 KiB"),
]
PublicKey = Annotated[
    str,
    StringConstraints(
        max_length=8192,
        pattern=worded(
            r"^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)) [A-Za-z0-9+/]{32,}={0,3}( [^\x00-\x1f\x7f]*)?$",
            "one line of OpenSSH's: ssh-ed25519, ssh-rsa or ecdsa-sha2-nistp*, the key in base 64, and a comment",
        ),
    ),
    Field(description="an OpenSSH public key, one line"),
]


class AccountSpec(Value):
    admin: bool = False


class ClusterSpec(Value):
    """Nodes of one architecture; `cpu_overcommit` virtual CPUs may be promised for each physical one."""

    architecture: Literal["x86_64", "aarch64"] = "x86_64"
    cpu_overcommit: Annotated[float, Field(ge=1.0, le=16.0)] = 4.0
    ha: HaSettings = HaSettings()
    relocation: RelocationSettings = RelocationSettings()


class BmcSpec(Value):
    """How the machine is switched off from outside (Redfish); the password is a secret of the node's."""

    url: Annotated[
        str,
        StringConstraints(
            max_length=256, pattern=worded(r"^https?://[^\s/@]+/?$", "http(s)://HOST or http(s)://HOST:PORT")
        ),
    ]
    user: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    system: Annotated[str, StringConstraints(max_length=64, pattern=worded(r"^[A-Za-z0-9._-]*$", "a system's id"))] = ""
    verify: Annotated[bool, Field(strict=True)] = True


class NodeSpec(Value):
    cluster: Id
    cordoned: bool = False
    draining: bool = False
    """What runs on it goes to other nodes, and nothing new comes: it is `cordoned` as well."""
    bmc: BmcSpec | None = None
    labels: dict[
        Annotated[
            str,
            StringConstraints(
                pattern=worded(r"^[a-z][a-z0-9-]{0,30}$", "1-31 of a-z, 0-9 and '-', beginning with a letter")
            ),
        ],
        Annotated[
            str,
            StringConstraints(pattern=worded(r"^[A-Za-z0-9._-]{1,63}$", "1-63 of letters, digits, '.', '_' and '-'")),
        ],
    ] = {}


class KeypairSpec(Value):
    public_key: PublicKey


class ImageFormat(StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"


class ImageSpec(Value):
    """`source` is a file on the manager's host, a URL, or `upload` when the bytes come with the request."""

    source: Annotated[
        str,
        StringConstraints(
            min_length=1, max_length=2048, pattern=worded(r"^[^\x00-\x1f\x7f]+$", "a text without control characters")
        ),
    ]
    format: ImageFormat
    sha256: (
        Annotated[str, StringConstraints(pattern=worded(r"^[0-9a-f]{64}$", "a SHA-256 checksum: 64 of 0-9 and a-f"))]
        | None
    ) = Field(default=None, description="expected checksum of the source's bytes; an import that differs fails")
    architecture: Literal["x86_64", "aarch64"] = "x86_64"
    login_user: Annotated[
        str,
        StringConstraints(
            pattern=worded(
                r"^[a-z_][a-z0-9_-]{0,31}$",
                "a user's name: 1-32 of a-z, 0-9, '_' and '-', beginning with a letter or '_'",
            )
        ),
    ] = "root"
    public: bool = Field(default=False, strict=True, description="usable by every account; an administrator's to set")


class VpcSpec(Value):
    vni: Vni


class SubnetSpec(Value):
    """The first host address is the gateway, the second the DHCP and DNS service."""

    vpc: Id
    cidr: SubnetCidr


class Direction(StrEnum):
    INBOUND = "inbound"
    OUTBOUND = "outbound"


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    ANY = "any"


class RuleSpec(Value):
    """One permission. `peer` is a CIDR or a security group; ports only for tcp and udp.

    For inbound rules the peer is the sender; for outbound ones the receiver; ports are always the receiver's.
    """

    direction: Direction
    protocol: Protocol = Protocol.ANY
    port_min: L4Port | None = None
    port_max: L4Port | None = None
    cidr: Cidr | None = None
    group: Id | None = None

    @model_validator(mode="after")
    def _consistent(self) -> RuleSpec:
        if (self.cidr is None) == (self.group is None):
            raise ValueError("exactly one of cidr and group must be given")
        if (self.port_min is None) != (self.port_max is None):
            raise ValueError("port_min and port_max go together")
        if self.port_min is not None and self.port_max is not None:
            if self.protocol not in (Protocol.TCP, Protocol.UDP):
                raise ValueError("ports go with tcp and udp only")
            if self.port_min > self.port_max:
                raise ValueError("port_min must not exceed port_max")
        return self


class StoredRule(RuleSpec):
    """A rule as kept: its id, and the number that marks connections which it allowed (1..2^32-1)."""

    id: Id
    mark: Annotated[int, Field(ge=1, le=2**32 - 1)]


class SecurityGroupSpec(Value):
    rules: tuple[StoredRule, ...] = ()


class PlacementGroupSpec(Value):
    """Members are spread evenly over nodes or racks: `hard` refuses to place two in one, `soft` avoids it.

    A node's rack is its label `rack`.
    """

    policy: Literal["hard", "soft"] = "soft"
    over: Literal["node", "rack"] = "node"


class NicSpec(Value):
    subnet: Id
    vpc: Id
    ip: Ipv4
    mac: Mac
    security_groups: tuple[Id, ...] = ()
    vm: Id | None = None
    delete_with_vm: bool = False
    """Nics made together with a VM go with it; others are only detached."""


class DiskSpec(Value):
    size_mib: DiskMib
    image: Id | None = None
    vm: Id | None = None
    system: bool = False
    """System disks live and die with their VM."""
    rebuilds: int = 0
    """How often the disk was made anew from its image; part of its identity on the node."""
    type: str | None = None
    """The disk type's name when it was made."""
    pool: Id | None = None
    """None is the local storage of the node it is on."""
    snapshot: Id | None = None
    """The snapshot it was made from, in the same pool."""
    limits: DiskLimits = DiskLimits()
    schedule: SnapshotSchedule | None = None
    rollbacks: int = 0
    """How often it was rolled back; the last time to `rollback_to`."""
    rollback_to: Id | None = None
    flattened: bool = False
    """It is to depend on no image or snapshot any more."""
    purge_at: float | None = None
    """While it is in the trash: when its bytes will be deleted, seconds since 1970."""
    former_name: str | None = None
    """While it is in the trash: what it was called."""


class VmSpec(Value):
    """`start`, `reboot` and `rebuild` count requests, so that each is carried out exactly once."""

    image: Id
    cpus: Cpus
    memory_mib: MemoryMib
    power: Literal["on", "off"] = "on"
    node: Id | None = Field(default=None, description="the only node it may be placed on")
    placement_group: Id | None = None
    gpus: int = 0
    """Of its node's, passed through; `gpu_model` None takes any."""
    gpu_model: str | None = None
    keypairs: tuple[Id, ...] = ()
    public_keys: tuple[str, ...] = ()
    """The keypairs' texts at the time of creation: deleting a keypair does not lock anyone out."""
    user_data: UserData = ""
    restart_limit: Annotated[int, Field(ge=0, le=100)] = 5
    """Unexpected QEMU deaths within ten minutes after which the VM is left in `error`."""
    ha: bool = True
    """Whether it is restarted elsewhere when its node is lost; only possible with all its disks in pools."""
    ha_priority: Annotated[int, Field(strict=True, ge=0, le=100)] = 50
    """Higher ones are restarted first."""
    starts: int = 1
    reboots: int = 0
    force_stop: bool = False
