"""Connections of a nic, as the switch tracks them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scloud.model.base import Value
from scloud.model.fields import Ipv4

Port = Annotated[int, Field(ge=0, le=65535)]


class Connection(Value):
    """`source` began it, to `target`; `mark` is that of the security group's rule that allowed it."""

    protocol: Literal["tcp", "udp"]
    source: Ipv4
    target: Ipv4
    source_port: Port
    target_port: Port
    mark: Annotated[int, Field(ge=1, le=0xFFFFFFFF)]

    @property
    def ends(self) -> tuple[str, str, str, int, int]:
        """What tells it from all others in a zone."""
        return self.protocol, self.source, self.target, self.source_port, self.target_port


class Brought(Value):
    """What a nic brought from the node that it migrated from. `at` is the node's monotonic clock, seconds."""

    at: float
    connections: tuple[Connection, ...]
