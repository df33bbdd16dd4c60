"""`scloud lab up`: namespaces and wires first; from there on a lab's cloud comes up as any other."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from scloud.agent.config import save_config
from scloud.client.contexts import Context
from scloud.client.http import Client
from scloud.drivers.supervisor.identity import boot_id
from scloud.lab import wires
from scloud.lab.cuts import remove_cuts
from scloud.lab.plan import MAX_NODES, LabPlan, new_plan, read_plan, source
from scloud.lab.status import node_state
from scloud.lab.storage import make_storage
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.node.keeping import set_units, start_keeper
from scloud.node.layout import DEFAULT_LAB_ROOT, Layout, tag
from scloud.node.stopping import clear
from scloud.setup import defaults, host, manager
from scloud.setup.down import forget
from scloud.setup.enrol import enrol, join_token, wait_nodes
from scloud.setup.learn import learn_qemu
from scloud.setup.steps import Steps
from scloud.setup.up import describe, farewell, make_defaults


def lab_up(
    root: Path,
    count: int,
    *,
    fresh: bool = False,
    ceph: bool = False,
    managers: int = 1,
    console: Console | None = None,
) -> LabPlan:
    """A lab of `count` nodes, with a storage cluster on them if asked for.

    One that runs is completed; what else an earlier one has left is cleared first.
    """
    if not 1 <= count <= MAX_NODES:
        raise invalid("nodes", f"must be 1 to {MAX_NODES}")
    steps = Steps(console)
    with steps.step("Engines") as step:
        step.already(host.check_engines())
    plan = None if fresh else _usable(root, count, managers)
    if plan is None:
        with steps.step("Clearing") as step:
            killed = lab_clear(root, keep_cache=True)
            step.say(f"{killed} processes of an earlier lab" if killed else "nothing was left of an earlier lab")
        with steps.step("Namespaces and wires") as step:
            plan = new_plan(root, count, boot_id(), managers)
            plan.save()
            wires.make_fabric(plan)
            for node in plan.nodes:
                plan.sandbox(node).create()
                wires.connect(plan, node)
            step.say(f"{count} nodes on {plan.management}")
    _start(steps, plan, ceph=ceph)
    plan.model_copy(update={"complete": True}).save()
    command = "./scloud" if root == DEFAULT_LAB_ROOT else f"./scloud --context {plan.context}"
    farewell(steps, plan.endpoints.url, command)
    return plan


def _usable(root: Path, count: int, managers: int) -> LabPlan | None:
    """The lab under this root, if it was completed by this code in this boot, and no node of it is broken."""
    plan = read_plan(root)
    if plan is None or not plan.complete or plan.boot != boot_id() or plan.source != source():
        return None
    if not all(plan.sandbox(node).exists() for node in plan.nodes) or not plan.fabric.exists():
        return None
    if len(plan.nodes) != count:
        raise CloudError(
            ErrorKind.CONFLICT,
            f"a lab of {len(plan.nodes)} nodes is up: `scloud lab down` first, or `lab up --fresh` to lose it",
        )
    if len(plan.standbys) + 1 != managers:
        raise CloudError(
            ErrorKind.CONFLICT,
            f"the lab that is up has --managers {len(plan.standbys) + 1}: `scloud lab down` first, or `lab up --fresh`",
        )
    broken = [f"{node} is {state}" for node in plan.nodes if (state := node_state(plan, node)) not in ("up", "killed")]
    if broken:
        raise CloudError(ErrorKind.CONFLICT, f"{', '.join(broken)}: `scloud lab heal NODE` first, or `lab up --fresh`")
    return plan


def _start(steps: Steps, plan: LabPlan, *, ceph: bool) -> None:
    layout = plan.layout
    with ThreadPoolExecutor(2) as background:
        image = background.submit(defaults.micro_image, layout.cache)
        learning = background.submit(learn_qemu, layout, plan.sandbox(plan.nodes[0]))
        with steps.step("Manager") as step:
            changed = [start_keeper(layout)]
            if plan.standbys:
                changed.append(manager.start_database(layout, plan.postgres, plan.database_addresses))
            for number, endpoints in enumerate((plan.endpoints, *plan.standbys), 1):
                changed.append(manager.start_manager(layout, endpoints, number=number))
            if not any(changed):
                step.already()
            step.say(" and ".join(endpoints.url for endpoints in (plan.endpoints, *plan.standbys)))
            context = admin_context(plan)
            manager.save_admin_context(context, make_current=plan.root == DEFAULT_LAB_ROOT)
        with Client(context) as client:
            with steps.step("Nodes") as step:
                began = time.time()
                if not _start_nodes(plan, client):
                    step.already()
                nodes = wait_nodes(client, layout, plan.nodes, since=began if step.changed else 0.0)
                step.say(f"{', '.join(plan.nodes)}; each {describe(nodes[0])}")
            with steps.step("Guest image micro") as step:
                path, built = image.result()
                if not built:
                    step.already("built before")
            learning.result()
            make_defaults(steps, client, path)
            if ceph:
                make_storage(steps, plan, client)


def admin_context(plan: LabPlan) -> Context:
    """The administrator's way to the lab's cloud."""
    context = manager.admin_context(plan.layout, plan.context, plan.endpoints)
    return replace(context, others=tuple(endpoints.url for endpoints in plan.standbys))


def _start_nodes(plan: LabPlan, client: Client) -> bool:
    """Enrol those that have no certificate, and run all agents; False if all ran."""
    layout = plan.layout
    for node in plan.nodes:
        sandbox = plan.sandbox(node)
        config = plan.agent_config(node)
        if not (config.pki / "cert.pem").exists():
            enrol(sandbox, config, join_token(client, node))
        save_config(config, sandbox.root / "agent.json")
    units = [layout.agent_unit(plan.sandbox(node)) for node in plan.nodes]
    before = [layout.pid_of(unit.name) for unit in units]
    set_units(layout, *units)
    return before != [layout.pid_of(unit.name) for unit in units]


def lab_clear(root: Path, *, keep_cache: bool) -> int:
    """Remove all of a lab, in whatever state it is; how many processes there were."""
    killed = clear(Layout(root=root), isolated=True, keep_cache=keep_cache)
    wires.remove_host_device(f"lab-{tag(root)}")
    remove_cuts(root)
    return killed


def lab_down(root: Path, *, purge: bool, console: Console | None = None) -> None:
    """Remove a lab. What was dear to make (the guest image, what libvirt learnt of QEMU) stays unless purged."""
    steps = Steps(console)
    plan = read_plan(root)
    with steps.step("Removing the lab") as step:
        if plan is not None:
            forget(plan.context)
        killed = lab_clear(root, keep_cache=not purge)
        if not killed and plan is None:
            step.already("there was none")
        else:
            step.say(f"{killed} processes")
    if purge and root.exists():
        shutil.rmtree(root)
