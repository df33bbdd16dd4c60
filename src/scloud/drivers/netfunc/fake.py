"""Network functions in memory, for tests and the simulator.

`FakeNetwork` is the node's kernel and its daemons: it outlives any number of `FakeNetworkFunctions`, as namespaces
outlive an agent. Sockets are real ones on loopback and are ready when they are returned, so no clock is involved.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field

from scloud.drivers.netfunc.protocol import HostEntry, VpcServiceSpec
from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind


class FakeLease(Value):
    """What DHCP tells a guest."""

    ip: str
    hostname: str
    cidr: str
    gateway: str
    dns: str
    domain: str
    mtu: int


@dataclass
class FakeNetwork:
    """The state. A test reaches in to fail calls, kill services, or ask what a guest would be told.

    `failures` are raised by the next calls, in turn; with a method's name in `failing` every call of it fails.
    `call_s` is seconds of the loop's clock, spent before anything changes: a point where the agent may be killed.
    """

    call_s: float = 0.0
    specs: dict[str, VpcServiceSpec] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """VPCs whose dnsmasq has died; the next `ensure` mends it."""
    failures: list[CloudError] = field(default_factory=list)
    failing: dict[str, CloudError] = field(default_factory=dict)
    listeners: dict[tuple[str, str, int], socket.socket] = field(default_factory=dict)
    of_agent: set[tuple[str, str, int]] = field(default_factory=set)
    """Those listeners that die with the agent."""
    changes: int = 0
    """How often an `ensure` or `remove` really changed something."""

    def lease(self, vpc: str, mac: str) -> FakeLease | None:
        """The answer to a DHCP request of that nic; None: no answer."""
        spec = self._answering(vpc)
        host = next((host for host in spec.hosts if host.mac == mac and host.local), None) if spec else None
        if spec is None or host is None:
            return None
        subnet = next(subnet for subnet in spec.subnets if subnet.id == host.subnet)
        return FakeLease(
            ip=host.ip,
            hostname=host.hostname,
            cidr=subnet.cidr,
            gateway=subnet.gateway,
            dns=subnet.service_ip,
            domain=spec.domain,
            mtu=spec.mtu,
        )

    def resolve(self, vpc: str, name: str) -> set[str]:
        """The addresses of a name, asked from inside the VPC."""
        return {host.ip for host in self._hosts(vpc) if name in (host.hostname, f"{host.hostname}.{self._domain(vpc)}")}

    def reverse(self, vpc: str, ip: str) -> set[str]:
        return {f"{host.hostname}.{self._domain(vpc)}" for host in self._hosts(vpc) if host.ip == ip}

    def serve(self, vpc: str, address: str, port: int) -> socket.socket:
        """A listening socket at an address of the VPC, for a service or, in tests, for a guest."""
        key = (vpc, address, port)
        held = self.listeners.get(key)
        if held is not None and held.fileno() != -1:
            raise CloudError(ErrorKind.ENGINE, f"{address}:{port} in {vpc} is already listened on")
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.listeners[key] = listener
        return listener

    def dial(self, vpc: str, address: str, port: int) -> socket.socket:
        """Connect from inside the VPC; loopback completes at once, whatever the clock."""
        listener = self.listeners.get((vpc, address, port))
        if listener is None or listener.fileno() == -1:
            raise CloudError(ErrorKind.UNAVAILABLE, f"nothing listens on {address}:{port} in {vpc}")
        connected = socket.create_connection(listener.getsockname())
        connected.setblocking(False)
        return connected

    def _answering(self, vpc: str) -> VpcServiceSpec | None:
        return None if vpc in self.broken else self.specs.get(vpc)

    def _hosts(self, vpc: str) -> tuple[HostEntry, ...]:
        spec = self._answering(vpc)
        return spec.hosts if spec else ()

    def _domain(self, vpc: str) -> str:
        return self.specs[vpc].domain


class FakeNetworkFunctions:
    """The driver over a `FakeNetwork`. Making one is an agent's start: what the last one listened on is free again."""

    def __init__(self, network: FakeNetwork) -> None:
        self._network = network
        for key in network.of_agent:
            network.listeners.pop(key, None)
        network.of_agent.clear()

    async def _enter(self, method: str) -> None:
        if self._network.call_s:
            await asyncio.sleep(self._network.call_s)
        if method in self._network.failing:
            raise self._network.failing[method]
        if self._network.failures:
            raise self._network.failures.pop(0)

    def _known(self, vpc: str) -> None:
        if vpc not in self._network.specs:
            raise CloudError(ErrorKind.NOT_FOUND, f"{vpc} has no network functions on this node")

    async def ensure(self, spec: VpcServiceSpec) -> None:
        await self._enter("ensure")
        if self._network.specs.get(spec.vpc) != spec or spec.vpc in self._network.broken:
            self._network.changes += 1
        self._network.broken.discard(spec.vpc)
        self._network.specs[spec.vpc] = spec

    async def remove(self, vpc: str) -> None:
        await self._enter("remove")
        if self._network.specs.pop(vpc, None) is not None:
            self._network.changes += 1
        self._network.broken.discard(vpc)
        for key in [key for key in self._network.listeners if key[0] == vpc]:
            self._network.listeners.pop(key)
            self._network.of_agent.discard(key)

    async def vpcs(self) -> list[str]:
        await self._enter("vpcs")
        return sorted(self._network.specs)

    async def listen(self, vpc: str, address: str, port: int) -> socket.socket:
        await self._enter("listen")
        self._known(vpc)
        listener = self._network.serve(vpc, address, port)
        self._network.of_agent.add((vpc, address, port))
        return listener

    async def connect(self, vpc: str, address: str, port: int, timeout_s: float) -> socket.socket:
        await self._enter("connect")
        self._known(vpc)
        return self._network.dial(vpc, address, port)
