"""What one node's agent is told when it starts: the file `agent.json` in the node's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from scloud.model.base import Value
from scloud.model.fields import Ipv4, Name

VXLAN_OVERHEAD = 50
"""Bytes that VXLAN over IPv4 adds: inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20."""


class Underlay(Value):
    """The device that carries tunnels. It becomes a port of `br-phy`, which then holds the address."""

    device: Annotated[str, StringConstraints(pattern=r"^[^\s/]{1,15}$")]
    address: Ipv4
    prefix: Annotated[int, Field(ge=1, le=32)]


class AgentConfig(Value):
    """`root` is the node's own folder, seen under the same path inside and outside of its namespaces.

    `manager` is HOST:PORT of the manager's link. Without an `underlay` the tunnel address is one the host already has.
    """

    node: Name
    root: Path
    manager: Annotated[str, StringConstraints(pattern=r"^[^\s]+:\d{1,5}$")]
    tunnel_ip: Ipv4
    storage_ip: Ipv4 | None = None
    """Where storage daemons listen; None is the address from which the manager is reached. Not one on `br-phy`."""
    underlay: Underlay | None = None
    datapath: Literal["system", "netdev"] = "netdev"
    mtu: Annotated[int, Field(ge=576, le=9000)] = 1500 - VXLAN_OVERHEAD
    """Bytes of IP that a guest may send in one packet: the underlay's MTU less VXLAN_OVERHEAD."""
    gpus: bool = True
    """Whether this node offers its host's GPUs. Not where nodes share a host: each would offer the same ones."""
    supervisor: Literal["process", "systemd"] = "process"
    namespaces: tuple[Path, ...] = ()
    """Pinned namespaces the node lives in; a supervisor that starts processes from outside enters them first."""

    @property
    def pki(self) -> Path:
        """key.pem, cert.pem and ca.pem, as written by enrolment."""
        return self.root / "agent" / "pki"

    @property
    def state(self) -> Path:
        """The agent's own durable files: its journal, the libvirt host UUID, the accelerator's measurement."""
        return self.root / "agent"

    @property
    def accelerator_cache(self) -> Path:
        return self.state / "accelerator.json"

    @property
    def disks(self) -> Path:
        return self.root / "disks"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def consoles(self) -> Path:
        """Logs of the guests' serial ports."""
        return self.root / "log" / "consoles"

    @property
    def run(self) -> Path:
        """Pidfiles of supervised processes and whatever else ends with the boot."""
        return self.root / "run" / "scloud"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def sockets(self) -> Path:
        """For UNIX sockets: inside the node's namespaces, and short whatever the root (paths may have 107 bytes)."""
        return Path("/run/libvirt/scloud")


def load_config(path: Path) -> AgentConfig:
    """Read `agent.json`; raises OSError or pydantic's ValidationError."""
    return AgentConfig.model_validate_json(path.read_bytes())


def save_config(config: AgentConfig, path: Path) -> bool:
    """Write the file, whole or not at all; False if it already said exactly this."""
    text = config.model_dump_json(indent=2) + "\n"
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)
    return True
