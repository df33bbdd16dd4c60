"""Ways between managers and others that are cut: packets to and from an address of the lab's own are lost on this host.

Each of several managers has two such addresses, for nothing else: one in the management network for its link, and one
on the loopback under which the database answers it alone. A table of nftables, named after the lab, knows no others.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scloud.lab.plan import LabPlan
from scloud.node.command import run, succeeds
from scloud.node.layout import tag

_TABLE = """
add table inet {table}
add set inet {table} cut {{ type ipv4_addr; }}
add chain inet {table} leaving {{ type filter hook output priority 0; policy accept; }}
add chain inet {table} coming {{ type filter hook input priority 0; policy accept; }}
flush chain inet {table} leaving
flush chain inet {table} coming
add rule inet {table} leaving ip daddr @cut drop
add rule inet {table} leaving ip saddr @cut drop
add rule inet {table} coming ip daddr @cut drop
"""


def cut(plan: LabPlan, addresses: Iterable[str]) -> None:
    """Whatever is sent to or from these addresses is lost from now on."""
    table = _table(plan.root)
    elements = ", ".join(addresses)
    run(["nft", "-f", "-"], stdin=_TABLE.format(table=table) + f"add element inet {table} cut {{ {elements} }}\n")


def mend(plan: LabPlan, addresses: Iterable[str]) -> None:
    """The end of `cut`; nothing where nothing was cut."""
    for address in addresses:
        succeeds(["nft", "delete", "element", "inet", _table(plan.root), "cut", "{", address, "}"])


def remove_cuts(root: Path) -> None:
    """All that a lab has left, whatever became of it."""
    succeeds(["nft", "delete", "table", "inet", _table(root)])


def _table(root: Path) -> str:
    return f"scloud_lab_{tag(root)}"
