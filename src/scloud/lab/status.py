"""What runs in a lab, and how its nodes are. Found by looking, not remembered."""

from __future__ import annotations

from typing import Literal

from scloud.lab import wires
from scloud.lab.plan import LabPlan
from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind
from scloud.node.processes import Process, of_node, scan

NodeState = Literal["up", "partitioned", "hung", "killed"]


class LabProcess(Value):
    """`guest` is the name of a qemu process's domain, `daemon` a storage daemon's in its cluster, such as `osd.3`."""

    role: str
    node: str | None
    pid: int
    stopped: bool
    guest: str | None = None
    daemon: str | None = None


class LabNode(Value):
    """`state`: up, or what has been done to it. `killed` also when its agent does not run for another reason."""

    name: str
    state: NodeState
    management: str
    tunnel: str
    root: str


class LabStatus(Value):
    root: str
    context: str
    url: str
    token_file: str
    complete: bool
    nodes: tuple[LabNode, ...]
    processes: tuple[LabProcess, ...]


def lab_status(plan: LabPlan) -> LabStatus:
    """Every process by role, node and pid, and every node's state."""
    everything = scan()
    nodes, processes = [], []
    for node in plan.nodes:
        mine = _processes(plan, node, everything)
        nodes.append(
            LabNode(
                name=node,
                state=_state(plan, node, mine),
                management=plan.management_address(node),
                tunnel=plan.tunnel_address(node),
                root=str(plan.sandbox(node).root),
            )
        )
        processes += [_describe(process, node) for process in mine if process.kind]
    own = [p for p in everything if p.root == str(plan.root) and p.kind in ("manager", "keeper", "postgres")]
    processes = [_describe(process, None) for process in own] + processes
    return LabStatus(
        root=str(plan.root),
        context=plan.context,
        url=plan.endpoints.url,
        token_file=str(plan.layout.manager / "admin.token"),
        complete=plan.complete,
        nodes=tuple(nodes),
        processes=tuple(sorted(processes, key=lambda p: (p.node or "", p.role, p.pid))),
    )


def node_state(plan: LabPlan, node: str) -> NodeState:
    """How one node is."""
    return _state(plan, node, _processes(plan, node, scan()))


def _processes(plan: LabPlan, node: str, everything: list[Process]) -> list[Process]:
    belongs = of_node(plan.root, node, plan.sandbox(node).mount_namespace())
    return [process for process in everything if belongs(process)]


def _state(plan: LabPlan, node: str, mine: list[Process]) -> NodeState:
    agents = [process for process in mine if process.kind == "agent"]
    if not agents:
        return "killed"
    if all(process.state in "Tt" for process in agents):
        return "hung"
    return "partitioned" if wires.is_partitioned(plan, node) else "up"


def _describe(process: Process, node: str | None) -> LabProcess:
    guest = next((part.split("guest=")[1].split(",")[0] for part in process.argv if part.startswith("guest=")), None)
    return LabProcess(
        role=process.kind or process.command,
        node=node,
        pid=process.pid,
        stopped=process.state in "Tt",
        guest=guest,
        daemon=process.daemon,
    )


def daemon_process(plan: LabPlan, name: str) -> Process:
    """The process of a storage daemon; NOT_FOUND names those that run, CONFLICT says that several clusters have one."""
    inside = {plan.sandbox(node).mount_namespace() for node in plan.nodes}
    running = [process for process in scan() if process.daemon and process.mount_namespace in inside]
    found = [process for process in running if process.daemon == name]
    if not found:
        known = ", ".join(sorted(process.daemon or "" for process in running)) or "none"
        raise CloudError(ErrorKind.NOT_FOUND, f"no storage daemon '{name}' runs in this lab; there is {known}")
    if len(found) > 1:
        pids = ", ".join(str(process.pid) for process in found)
        raise CloudError(ErrorKind.CONFLICT, f"several storage clusters have {name}; see the processes {pids}")
    return found[0]
