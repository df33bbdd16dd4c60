"""OUTPUT: to the nic that L2 found."""

from __future__ import annotations

from scloud.flows.ir import Flow
from scloud.flows.pipeline import IP, OUT_PORT_FIELD, Band, Table, fixed


def static() -> tuple[Flow, ...]:
    """One flow for all."""
    return (fixed(Table.OUTPUT, Band.REST, (IP,), (f"output:{OUT_PORT_FIELD}",), "handed to the nic"),)
