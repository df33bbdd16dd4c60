"""What the agent asks of the node's virtual switch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from scloud.flows.ir import Flow
from scloud.model.base import Value
from scloud.model.connections import Connection

TUNNEL_OFPORT = 1
"""The VXLAN port's number on the integration bridge."""


class PortFacts(Value):
    """A port of ours on the integration bridge; `owner` is the `kind/id` key stamped on it."""

    name: str
    owner: str
    ofport: int


class Switch(Protocol):
    """One integration bridge. Failures are `CloudError(ENGINE)`."""

    async def ensure_bridge(self) -> None:
        """Bridge, tunnel port and underlay as configured; changes nothing that is right."""
        ...

    async def add_tap(self, name: str, owner: str, ofport: int, mtu: int) -> None:
        """Make the tap if need be and put it on the bridge with that number."""
        ...

    async def add_port(self, name: str, owner: str, ofport: int) -> None:
        """Put an existing device on the bridge."""
        ...

    async def remove_port(self, name: str) -> None:
        """Take a port off; a tap of ours is deleted too."""
        ...

    async def ports(self) -> list[PortFacts]: ...

    async def replace_flows(self, flows: Sequence[Flow]) -> None:
        """Make the bridge's flows exactly these, in one atomic bundle.

        What the switch has in its cache for known traffic it goes over next: a packet may still find the former flows
        for a moment (milliseconds; Open vSwitch does it in a thread of its own, which a busy host can hold up).
        """
        ...

    async def change_flows(self, remove: Sequence[Flow], add: Sequence[Flow]) -> None:
        """Apply a difference, in one atomic bundle; traffic follows as with `replace_flows`."""
        ...

    async def flow_owners(self) -> dict[int, int]:
        """Flow counts by cookie, as the switch has them."""
        ...

    async def incarnation(self) -> str:
        """Changes whenever the switch has lost its flows (a restart of the daemon)."""
        ...

    async def learn_peer(self, tunnel_ip: str, mac: str | None = None) -> None:
        """Resolve a peer's underlay address now, so that the first tunnelled packet is not lost."""
        ...

    async def connections(self, zone: int) -> list[Connection]:
        """TCP and UDP connections that are tracked in a zone and marked, but for those that are over."""
        ...

    async def trace(self, fields: Mapping[str, str | int]) -> str:
        """The switch's own account (`ofproto/trace`) of a packet with these match fields."""
        ...
