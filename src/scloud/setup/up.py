"""`scloud up`: a whole cloud on this host, from nothing or from whatever there is of it."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from scloud.agent.config import AgentConfig, load_config, save_config
from scloud.client.http import Client
from scloud.node.keep import read_units
from scloud.node.keeping import set_units, start_keeper
from scloud.node.layout import DEFAULT_ROOT, Layout
from scloud.node.sandbox import Sandbox
from scloud.node.stopping import runs, shut_guests, stop_node
from scloud.setup import defaults, host, manager
from scloud.setup.enrol import enrol, enrolled, join_token, wait_nodes
from scloud.setup.learn import learn_qemu
from scloud.setup.manager import Endpoints
from scloud.setup.steps import Steps

CONTEXT = "local"
API_PORT = 7780
LINK_PORT = 7790


def up(layout: Layout, console: Console | None = None) -> None:
    """Start what does not run, make what is missing; raises CloudError at the first step that fails."""
    steps = Steps(console)
    _report_bootstrap(steps)
    with steps.step("Engines") as step:
        step.already(host.check_engines())
    layout.root.mkdir(parents=True, exist_ok=True)
    sandbox = layout.sandbox(host.node_name(layout), isolated=False)
    finish_down(steps, layout, sandbox)
    with ThreadPoolExecutor(2) as background:
        # Seconds of work for one processor, while the manager starts on another.
        image = background.submit(defaults.micro_image, layout.cache)
        with steps.step("Namespaces") as step:
            if not sandbox.create():
                step.already()
        learning = background.submit(learn_qemu, layout, sandbox)
        with steps.step("Manager") as step:
            endpoints = choose_endpoints(layout)
            started = start_keeper(layout, as_service=True)
            if not manager.start_manager(layout, endpoints) and not started:
                step.already(endpoints.url)
            step.say(endpoints.url)
            context = manager.admin_context(layout, CONTEXT, endpoints)
            manager.save_admin_context(context, make_current=True)
        with Client(context) as client:
            with steps.step(f"Node {sandbox.name}") as step:
                began = time.time()
                if not start_node(layout, sandbox, manager.link_of(layout), client):
                    step.already()
                # What the manager knows of a node whose agent has only now been started is of another time.
                nodes = wait_nodes(client, layout, [sandbox.name], since=began if step.changed else 0.0)
                step.say(describe(nodes[0]))
            with steps.step("Guest image micro") as step:
                path, built = image.result()
                if not built:
                    step.already("built before")
                step.say(f"{path.stat().st_blocks // 2048} MiB")
            learning.result()
            make_defaults(steps, client, path)
    farewell(steps, endpoints.url, "./scloud")


def finish_down(steps: Steps, layout: Layout, sandbox: Sandbox) -> None:
    """A `down` that was broken off is first brought to its end.

    Its guests were shut down from outside; a libvirtd that saw it would tell the agent that they did so themselves.
    """
    unit = read_units(layout).get(layout.agent_unit(sandbox).name)
    if unit is None or unit.wanted != "stop" or not runs(layout, sandbox):
        return
    with steps.step("What `down` left running"):
        shut_guests(layout, sandbox)
        stop_node(layout, sandbox)


def _report_bootstrap(steps: Steps) -> None:
    """What the `scloud` script did before there was a Python to tell of it, as `title=seconds` pairs."""
    for item in filter(None, os.environ.get("SCLOUD_PREPARED", "").split(",")):
        title, _, seconds = item.partition("=")
        steps.report(title, float(seconds))


def choose_endpoints(layout: Layout) -> Endpoints:
    """As before; a link address that this machine no longer has is replaced."""
    known = manager.read_endpoints(layout)
    if known is not None and host.has_address(known.link.rpartition(":")[0]):
        return known
    address = host.primary_address()
    if known is None:
        usual = layout.root == DEFAULT_ROOT
        api = manager.free_port("127.0.0.1", API_PORT if usual else manager.own_port(layout.root))
        link = manager.free_port(address, LINK_PORT if usual else api + 1)
        chosen = Endpoints(api=f"127.0.0.1:{api}", link=f"{address}:{link}")
    else:
        chosen = Endpoints(api=known.api, link=f"{address}:{known.link.rpartition(':')[2]}")
    manager.write_endpoints(layout, chosen)
    return chosen


def start_node(layout: Layout, sandbox: Sandbox, link: str, client: Client) -> bool:
    """The host's own node: namespaces, certificate, agent. False if its agent ran."""
    path = sandbox.root / "agent.json"
    address = link.rpartition(":")[0]
    if path.exists():
        config = load_config(path).model_copy(update={"manager": link, "tunnel_ip": address})
    else:
        datapath, _ = host.choose_datapath(layout)
        config = AgentConfig(
            node=sandbox.name,
            root=sandbox.root,
            manager=link,
            tunnel_ip=address,
            datapath=datapath,
            supervisor=host.supervisor(),
            namespaces=sandbox.namespaces(),
        )
    if not enrolled(sandbox):
        enrol(sandbox, config, join_token(client, sandbox.name))
    changed = save_config(config, path)
    return run_agent(layout, sandbox) or changed


def run_agent(layout: Layout, sandbox: Sandbox) -> bool:
    """Have the keeper run the node's agent; False if it did."""
    unit = layout.agent_unit(sandbox)
    before = layout.pid_of(unit.name)
    set_units(layout, unit)
    return before is None or layout.pid_of(unit.name) != before


def describe(node: dict[str, object]) -> str:
    """One node in words."""
    status = node["status"]
    assert isinstance(status, dict)
    accelerator, capacity = status.get("accelerator") or {}, status.get("capacity") or {}
    return (
        f"{capacity.get('cpus', 0)} CPUs, {capacity.get('memory_mib', 0) // 1024} GiB, "
        f"guests by {accelerator.get('kind', '?')}"
    )


def make_defaults(steps: Steps, client: Client, image: Path) -> None:
    """What every new cloud has; shared by `up` and `lab up`."""
    with steps.step("Import of micro") as step:
        if not defaults.ensure_image(client, image):
            step.already()
    with steps.step("Network and security group") as step:
        if not defaults.ensure_network(client):
            step.already()
        step.say(f"VPC default, {defaults.SUBNET_CIDR}")
    with steps.step("Key") as step:
        if not defaults.ensure_keypair(client):
            step.already()
    with steps.step("VM hello") as step:
        if not defaults.ensure_hello(client):
            step.already()
        status = defaults.wait_hello(client)["status"]
        step.say(f"{status['state']}, {', '.join(status.get('addresses') or [])}")


def farewell(steps: Steps, url: str, command: str) -> None:
    """How to go on from here."""
    say = steps.console.print
    if steps.changed:
        say(f"\n[bold]The cloud is up[/] after {steps.elapsed():.0f} s.")
    else:
        say("\n[bold]Nothing to do:[/] the cloud is up, and everything was as it should be.")
    say(f"  log in        {command} vm ssh hello")
    say(f"  its console   {command} vm console hello")
    say(f"  health        {command} status")
    say(f"  web console   {url}/")
    say(f"  API           {url}/api/v1    docs: {url}/docs", soft_wrap=True)
