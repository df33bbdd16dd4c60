"""What a lab is made of: its nodes, their addresses, the names of its devices. Kept in ROOT/lab.json."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import orjson
from pydantic import ValidationError

import scloud
from scloud.agent.config import AgentConfig, Underlay
from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind
from scloud.node.command import run
from scloud.node.layout import DEFAULT_LAB_ROOT, Layout, tag
from scloud.node.sandbox import Sandbox
from scloud.setup.manager import Endpoints, free_port, own_port
from scloud.setup.postgres import Postgres

MAX_NODES = 64
_FIRST_HOST = 10
UNDERLAY = ipaddress.IPv4Network("172.31.0.0/24")
"""Only ever seen in the lab's own network namespace, so every lab can have the same."""
API_PORT = 7880
LINK_PORT = 7890


class LabPlan(Value):
    """`management` is the network on which the agents reach the managers; its first address is this host's.

    `source` is where the code that made it lies, `boot` the boot it was made in: a lab of another one is not used.
    """

    root: Path
    nodes: tuple[str, ...]
    management: str
    endpoints: Endpoints
    standbys: tuple[Endpoints, ...] = ()
    """Of further managers; with any, they share a PostgreSQL server on `database_port`."""
    database_port: int = 0
    source: str
    boot: str
    complete: bool = False

    @property
    def layout(self) -> Layout:
        return Layout(root=self.root)

    @property
    def postgres(self) -> Postgres:
        return Postgres(self.root / "postgres", self.database_port, more=tuple(self.database_addresses))

    @property
    def database_addresses(self) -> list[str]:
        """Under which the database answers each of several managers, and nobody else; none for one manager alone."""
        number = int(tag(self.root), 16)
        of_lab = f"127.{number >> 16}.{number >> 8 & 255}"
        count = len(self.standbys) + 1 if self.standbys else 0
        return [f"{of_lab}.{_FIRST_HOST + one}" for one in range(1, count + 1)]

    @property
    def link_addresses(self) -> list[str]:
        """Where nodes reach each manager, in the management network."""
        return [endpoints.link.rpartition(":")[0] for endpoints in (self.endpoints, *self.standbys)]

    @property
    def context(self) -> str:
        """The name of the lab's context: `lab`, with a suffix if it is not the usual one."""
        return "lab" if self.root == DEFAULT_LAB_ROOT else f"lab-{tag(self.root)}"

    @property
    def host_device(self) -> str:
        """The only device of the lab in the host's network."""
        return f"lab-{tag(self.root)}"

    @property
    def fabric(self) -> Sandbox:
        """The namespaces that hold the lab's two switches."""
        return Sandbox(name="fabric", root=self.root / "fabric", isolated=True)

    def sandbox(self, node: str) -> Sandbox:
        """The node's namespaces. NOT_FOUND if the lab has none of that name."""
        if node not in self.nodes:
            known = ", ".join(self.nodes)
            raise CloudError(ErrorKind.NOT_FOUND, f"there is no node '{node}' in this lab; it has {known}")
        return self.layout.sandbox(node, isolated=True)

    @property
    def host_address(self) -> str:
        """This host's own, in the management network; of one manager alone, its link's too."""
        return str(ipaddress.IPv4Network(self.management)[1])

    def management_address(self, node: str) -> str:
        return str(ipaddress.IPv4Network(self.management)[_FIRST_HOST + self._number(node)])

    def tunnel_address(self, node: str) -> str:
        return str(UNDERLAY[_FIRST_HOST + self._number(node)])

    def _number(self, node: str) -> int:
        return self.nodes.index(node) + 1

    def agent_config(self, node: str) -> AgentConfig:
        address = self.tunnel_address(node)
        return AgentConfig(
            node=node,
            root=self.sandbox(node).root,
            manager=self.endpoints.link,
            tunnel_ip=address,
            underlay=Underlay(device="eth0", address=address, prefix=UNDERLAY.prefixlen),
            datapath="netdev",
            gpus=False,
        )

    def save(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        fresh = self.root / "lab.json.new"
        fresh.write_text(self.model_dump_json(indent=2) + "\n")
        fresh.replace(self.root / "lab.json")


def source() -> str:
    """Where our own code lies."""
    return str(Path(scloud.__file__).parent)


def new_plan(root: Path, count: int, boot: str, managers: int = 1) -> LabPlan:
    """A plan for `count` nodes, with a network and ports that are free on this machine."""
    usual = root == DEFAULT_LAB_ROOT
    # Labs that are started at the same moment must not find the same network and port free.
    management = free_network(0 if usual else int(tag(root), 16))
    port = free_port("127.0.0.1", API_PORT if usual else own_port(root))
    endpoints = []
    for number in range(managers):
        # Each of several has an address of its own, so that it can be cut off alone.
        link = management[1] if managers == 1 else management[2 + number]
        endpoints.append(Endpoints(api=f"127.0.0.1:{port}", link=f"{link}:{LINK_PORT}"))
        port = free_port("127.0.0.1", port + 1)
    nodes = tuple(f"n{number}" for number in range(1, count + 1))
    return LabPlan(
        root=root,
        nodes=nodes,
        management=str(management),
        endpoints=endpoints[0],
        standbys=tuple(endpoints[1:]),
        database_port=port if managers > 1 else 0,
        source=source(),
        boot=boot,
    )


def read_plan(root: Path) -> LabPlan | None:
    """The plan of the lab that was made under this root, if one was."""
    try:
        return LabPlan.model_validate_json((root / "lab.json").read_bytes())
    except (OSError, ValidationError):
        return None


def need_plan(root: Path) -> LabPlan:
    """The lab's plan; NOT_FOUND with what to do if there is no lab."""
    plan = read_plan(root)
    if plan is None:
        raise CloudError(ErrorKind.NOT_FOUND, f"there is no lab in {root}: `./scloud lab up` makes one")
    return plan


def free_network(first: int = 0) -> ipaddress.IPv4Network:
    """One of 10.98.0.0/24, 10.98.1.0/24, ... that this machine neither has nor routes; tried from `first` on."""
    routes = orjson.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]))
    taken = []
    for route in routes:
        text = str(route.get("dst", "default"))
        if text != "default":
            taken.append(ipaddress.IPv4Network(text, strict=False))
    for number in range(256):
        network = ipaddress.IPv4Network(f"10.98.{(first + number) % 256}.0/24")
        if not any(network.overlaps(other) for other in taken):
            return network
    raise CloudError(ErrorKind.UNAVAILABLE, "every network of 10.98.0.0/16 is in use on this machine")
