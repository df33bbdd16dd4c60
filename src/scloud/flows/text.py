"""A flow in the syntax of ovs-ofctl. Every value is a number or an address, so nothing needs quoting."""

from __future__ import annotations

from scloud.flows.ir import Flow


def _where(flow: Flow) -> str:
    match = "".join(f",{field.name}={field.value}" for field in flow.match)
    return f"table={int(flow.table)},priority={int(flow.priority)}{match}"


def flow_text(flow: Flow) -> str:
    """For add-flows and replace-flows."""
    return f"cookie={flow.cookie:#x},{_where(flow)},actions={','.join(flow.actions) or 'drop'}"


def add_text(flow: Flow) -> str:
    """One line of a bundle of changes: adds the flow, or replaces the one with its table, priority and match."""
    return f"add {flow_text(flow)}"


def delete_text(flow: Flow) -> str:
    """One line of a bundle of changes: removes this flow and no other."""
    return f"delete_strict {_where(flow)}"
