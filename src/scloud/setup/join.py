"""`scloud node join`: make this host a node of a cloud whose manager is elsewhere."""

from __future__ import annotations

import ipaddress

import orjson
from rich.console import Console

from scloud.agent.config import VXLAN_OVERHEAD, AgentConfig, Underlay, save_config
from scloud.model.errors import invalid
from scloud.node.command import run
from scloud.node.keeping import start_keeper
from scloud.node.layout import Layout
from scloud.setup import host
from scloud.setup.enrol import enrol, enrolled
from scloud.setup.steps import Steps
from scloud.setup.up import run_agent


def join(
    layout: Layout,
    name: str,
    manager: str,
    token: str,
    underlay_device: str | None = None,
    underlay_address: str | None = None,
    console: Console | None = None,
) -> None:
    """Enrol with the token and start the agent. The manager shows the node as ready when it has connected."""
    steps = Steps(console)
    underlay = parse_underlay(underlay_device, underlay_address)
    with steps.step("Engines") as step:
        step.already(host.check_engines())
    datapath, why = host.choose_datapath(layout)
    sandbox = layout.sandbox(name, isolated=False)
    config = AgentConfig(
        node=name,
        root=sandbox.root,
        manager=manager,
        tunnel_ip=underlay.address if underlay else host.primary_address(),
        underlay=underlay,
        datapath=datapath,
        supervisor=host.supervisor(),
        namespaces=sandbox.namespaces(),
        mtu=(_device_mtu(underlay.device) if underlay else 1500) - VXLAN_OVERHEAD,
    )
    with steps.step("Namespaces") as step:
        if not sandbox.create():
            step.already()
        step.say(f"switch: {why}")
    with steps.step("Certificate") as step:
        if enrolled(sandbox):
            step.already("has one")
        else:
            enrol(sandbox, config, token)
    save_config(config, sandbox.root / "agent.json")
    with steps.step("Agent") as step:
        start_keeper(layout, as_service=True)
        if not run_agent(layout, sandbox):
            step.already()
    steps.console.print(
        f"This host is node {name} of the cloud at {manager}: `scloud node show {name}` there tells more."
    )


def parse_underlay(device: str | None, address: str | None) -> Underlay | None:
    """Both or none; the address is A.B.C.D/PREFIX."""
    if (device is None) != (address is None):
        raise invalid("underlay", "--underlay-device and --underlay-address go together")
    if device is None or address is None:
        return None
    try:
        parsed = ipaddress.IPv4Interface(address)
    except ValueError as error:
        raise invalid("underlay-address", "must be an address with its prefix, such as 192.168.7.11/24") from error
    if "/" not in address:
        raise invalid("underlay-address", "must have a prefix, such as 192.168.7.11/24")
    return Underlay(device=device, address=str(parsed.ip), prefix=parsed.network.prefixlen)


def _device_mtu(device: str) -> int:
    return int(orjson.loads(run(["ip", "-json", "link", "show", "dev", device]))[0]["mtu"])
