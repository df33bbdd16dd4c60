"""The services of each VPC that is present on the node: its namespace with DHCP and DNS, its foot in the switch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol

from scloud.agent.board import Board
from scloud.agent.deadlines import within
from scloud.agent.journal import Journal
from scloud.drivers.netfunc.protocol import HostEntry, NetworkFunctions, SubnetEntry, VpcServiceSpec
from scloud.flows.pipeline import SERVICE_MAC
from scloud.model.desired import DesiredPort, DesiredVpc
from scloud.model.observed import Observed
from scloud.reconcile.network import dns_domain, service_name

MEND_EVERY_S = 5.0
"""How often a VPC's services are looked after, at the least; more seldom where there are many."""
MEND_RATE = 20.0
"""VPCs a second that are looked after."""


class Ports(Protocol):
    """What the services need of the network."""

    def ofport(self, key: str) -> int | None: ...

    async def put_on_switch(self, owner: str, device: str, *, tap: bool) -> None: ...

    async def take_off_switch(self, owner: str, device: str) -> None: ...


class Listener(Protocol):
    """Something that serves inside a VPC's namespace while there is one."""

    def ensure(self, vpc: str) -> Awaitable[None]: ...

    def remove(self, vpc: str) -> Awaitable[None]: ...


class VpcServices:
    """Made and mended by `handle`, one VPC at a time."""

    def __init__(
        self, functions: NetworkFunctions, ports: Ports, journal: Journal, board: Board, node: str, mtu: int
    ) -> None:
        self._functions = functions
        self._ports = ports
        self._journal = journal
        self._board = board
        self._node = node
        self._mtu = mtu
        self._made: set[str] = set()
        self._dropped: set[str] = set()
        self.listener: Listener | None = None

    def ready(self, vpc: str) -> bool:
        """Whether a guest that boots now is answered by DHCP (once flows let it through)."""
        return vpc in self._made and self._ports.ofport(f"vpc/{vpc}") is not None

    def dropped(self, vpc: str) -> None:
        """The manager has said that this node has no nic of the VPC any more."""
        self._dropped.add(vpc)

    async def strangers(self) -> list[str]:
        """VPCs that have services here and are not desired."""
        known = await within("query", "listing the VPCs' services", self._functions.vpcs())
        return [vpc for vpc in known if f"vpc/{vpc}" not in self._journal.desired]

    def spec(self, vpc: DesiredVpc) -> VpcServiceSpec:
        """What the VPC's services are to be, by what is desired now."""
        ports = (item for item in self._journal.desired.values() if isinstance(item, DesiredPort))
        hosts = [
            HostEntry(
                nic=port.id,
                hostname=port.hostname,
                mac=port.mac,
                ip=port.ip,
                subnet=port.subnet,
                local=port.on(self._node),
            )
            for port in ports
            if port.vpc == vpc.id and not port.absent
        ]
        return VpcServiceSpec(
            vpc=vpc.id,
            domain=dns_domain(vpc),
            port=service_name(vpc.id),
            service_mac=SERVICE_MAC,
            mtu=self._mtu,
            subnets=tuple(
                SubnetEntry(id=subnet.id, cidr=subnet.cidr, gateway=subnet.gateway, service_ip=subnet.service_ip)
                for subnet in vpc.subnets
            ),
            hosts=tuple(sorted(hosts, key=lambda host: host.nic)),
        )

    async def handle(self, vpc: str) -> float | None:
        """Make, mend or remove; returns when to look again."""
        key = f"vpc/{vpc}"
        desired = self._journal.desired.get(key)
        if not isinstance(desired, DesiredVpc):
            if vpc in self._dropped:
                await self._remove(vpc)
            return None
        self._dropped.discard(vpc)
        await within("services", f"making the services of {vpc}", self._functions.ensure(self.spec(desired)))
        if self._ports.ofport(key) is None or self._ports.ofport(key) != self._journal.ofports.get(key):
            await self._ports.put_on_switch(key, service_name(vpc), tap=False)
        if self.listener is not None:
            await within("services", f"serving metadata in {vpc}", self.listener.ensure(vpc))
        self._made.add(vpc)
        self._board.put(Observed(key=key, generation=desired.generation, state="ready", settled=True))
        return asyncio.get_running_loop().time() + max(MEND_EVERY_S, len(self._made) / MEND_RATE)

    async def _remove(self, vpc: str) -> None:
        """The metadata socket first, then the port, then the namespace: nothing is left that nobody knows of."""
        key = f"vpc/{vpc}"
        self._made.discard(vpc)
        if self.listener is not None:
            await within("services", f"ending metadata in {vpc}", self.listener.remove(vpc))
        await self._ports.take_off_switch(key, service_name(vpc))
        await within("services", f"removing the services of {vpc}", self._functions.remove(vpc))
        self._dropped.discard(vpc)
        self._board.forget(key)
