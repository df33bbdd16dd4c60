"""Breaking a lab on purpose, and mending it."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from scloud.lab import cuts, wires
from scloud.lab.plan import LabPlan
from scloud.lab.status import daemon_process
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.node.keep import read_units
from scloud.node.keeping import kill_unit, set_units, start_keeper
from scloud.node.layout import Unit
from scloud.node.processes import of_node, signal_all, signal_one
from scloud.setup.manager import start_manager

MANAGER = "manager"


def managers(plan: LabPlan) -> list[str]:
    """The units of all managers."""
    return [MANAGER, *(f"{MANAGER}-{number}" for number in range(2, len(plan.standbys) + 2))]


class How(StrEnum):
    KILL = "kill"
    PARTITION = "partition"
    HANG = "hang"


class Side(StrEnum):
    MANAGER = "manager"
    STORAGE = "storage"
    DATABASE = "database"
    NODES = "nodes"


OF_NODE = (Side.MANAGER, Side.STORAGE)
OF_MANAGER = (Side.DATABASE, Side.NODES)


def fail(plan: LabPlan, node: str, how: How, *, only_agent: bool = False, side: Side | None = None) -> str:
    """Break a node, or only its agent, or the manager (`node` = "manager"), or a storage daemon (`osd.3`); what was
    done, in words.

    `kill` is SIGKILL to every process in it, its wires cut, and none is started again, but for a storage daemon, of
    which its node's agent takes care; `partition` cuts it off from the manager and from the other nodes, or from one
    `side` only: the managers, or the other nodes on the network that storage uses; one of several managers from the
    database and from all that come to its link, nodes and other managers, or from one of these; `hang` stops every
    process in it where it is.
    """
    _check_side(plan, node, how, side)
    if "." in node:
        return _fail_daemon(plan, node, how)
    if node in managers(plan) and how is How.PARTITION and not only_agent:
        return _cut_off(plan, node, OF_MANAGER if side is None else (side,))
    if node in managers(plan) or only_agent:
        return _fail_unit(plan, node, how)
    sandbox = plan.sandbox(node)
    belongs = of_node(plan.root, node, sandbox.mount_namespace())
    if side is not None:
        wires.lose(plan, node, _far(plan, node, side))
        return f"{node} is cut off from {'the manager' if side is Side.MANAGER else 'the storage of other nodes'}"
    if how is How.PARTITION:
        wires.set_links(plan, node, "down")
        return f"{node} is cut off"
    if how is How.HANG:
        return f"{signal_all(belongs, signal.SIGSTOP)} processes of {node} are stopped"
    _want(plan, f"agent-{node}", "leave")
    wires.set_links(plan, node, "down")  # a machine without power answers nobody
    return f"{signal_all(belongs, signal.SIGKILL)} processes of {node} are killed"


def _check_side(plan: LabPlan, node: str, how: How, side: Side | None) -> None:
    if side is None:
        return
    if how is not How.PARTITION or node not in (*plan.nodes, *managers(plan)):
        raise invalid("from", "only a node or a manager can be cut off from something, with `--how partition`")
    sides = OF_NODE if node in plan.nodes else OF_MANAGER
    if side not in sides:
        raise invalid("from", f"`--how partition` can cut {node} off from {' or '.join(sides)}, not from {side}")


def _cut_off(plan: LabPlan, name: str, sides: Iterable[Side]) -> str:
    """One of several managers."""
    if not plan.standbys:
        raise invalid("how", "only one of several managers can be cut off: `lab up --managers 2` makes a lab with two")
    far = {side: _of_manager(plan, name, side) for side in sides}
    cuts.cut(plan, far.values())
    return f"{name} is cut off from {' and '.join('the ' + side for side in far)}"


def _of_manager(plan: LabPlan, name: str, side: Side) -> str:
    """The address that it alone has for this."""
    addresses = plan.database_addresses if side is Side.DATABASE else plan.link_addresses
    return addresses[managers(plan).index(name)]


def _far(plan: LabPlan, node: str, side: Side) -> list[str]:
    """Addresses on the management network."""
    if side is Side.MANAGER:
        return plan.link_addresses
    return [plan.management_address(other) for other in plan.nodes if other != node]


def _fail_unit(plan: LabPlan, node: str, how: How) -> str:
    name = node if node in managers(plan) else f"agent-{plan.sandbox(node).name}"
    if how is How.PARTITION:
        raise invalid("how", "one process alone can only be killed or hung")
    if how is How.KILL:
        _want(plan, name, "leave")
    pid = kill_unit(plan.layout, name, signal.SIGKILL if how is How.KILL else signal.SIGSTOP)
    if pid is None:
        raise CloudError(ErrorKind.CONFLICT, f"{name} does not run")
    return f"{name} ({pid}) is {'killed' if how is How.KILL else 'stopped'}"


def _fail_daemon(plan: LabPlan, name: str, how: How) -> str:
    if how is How.PARTITION:
        raise invalid("how", "one process alone can only be killed or hung")
    process = daemon_process(plan, name)
    signal_one(process, signal.SIGKILL if how is How.KILL else signal.SIGSTOP)
    return f"{name} ({process.pid}) is {'killed' if how is How.KILL else 'stopped'}"


def heal(plan: LabPlan, node: str) -> str:
    """Undo whatever was done to a node (or to the manager, or to a storage daemon); what it took, in words."""
    if "." in node:
        process = daemon_process(plan, node)
        signal_one(process, signal.SIGCONT)
        return f"{node} ({process.pid}) goes on"
    start_keeper(plan.layout)
    if node in managers(plan):
        if plan.standbys:
            cuts.mend(plan, [_of_manager(plan, node, side) for side in OF_MANAGER])
        kill_unit(plan.layout, node, signal.SIGCONT)
        number = managers(plan).index(node) + 1
        start_manager(plan.layout, (plan.endpoints, *plan.standbys)[number - 1], number=number)
        return f"the {node} runs"
    sandbox = plan.sandbox(node)
    wires.find_again(plan, node, [address for side in OF_NODE for address in _far(plan, node, side)])
    wires.set_links(plan, node, "up")
    belongs = of_node(plan.root, node, sandbox.mount_namespace())
    continued = signal_all(belongs, signal.SIGCONT)
    _want(plan, f"agent-{node}", "run")
    return f"{node} is connected, its agent runs" + (f", {continued} processes go on" if continued else "")


def _want(plan: LabPlan, name: str, wanted: Literal["run", "leave"]) -> Unit:
    """The keeper has taken note of it when this returns."""
    unit = read_units(plan.layout).get(name)
    if unit is None:
        raise CloudError(ErrorKind.CONFLICT, f"the lab has no {name} yet: `scloud lab up` first")
    changed = unit.model_copy(update={"wanted": wanted})
    if wanted == "leave":
        start_keeper(plan.layout)
    set_units(plan.layout, changed)
    return changed
