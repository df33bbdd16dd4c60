"""The agent's process: `python -m scloud.agent --config FILE`.

It starts the node's engines, then makes the node as its journal and the manager say. SIGTERM ends it and nothing else:
VMs, flows and services go on, and the next agent finds them.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from scloud import __version__
from scloud.agent.config import VXLAN_OVERHEAD, AgentConfig, load_config
from scloud.agent.daemon import Daemon, Drivers, Surroundings
from scloud.agent.engines import EngineEvent, Engines
from scloud.agent.enroll import CA, CERTIFICATE, KEY, address_of
from scloud.agent.figures import capacity
from scloud.agent.gpus import find_gpus
from scloud.agent.hostload import ProcLoad
from scloud.agent.images import ImageCache
from scloud.agent.journal import FileJournal
from scloud.agent.managers import Managers
from scloud.agent.network import NetworkSettings
from scloud.agent.passages import TlsPassages
from scloud.agent.seeds import SeedFolder
from scloud.agent.upkeep import keep_tidy
from scloud.agent.vms import VmSettings
from scloud.drivers.bmc.redfish import RedfishBmc
from scloud.drivers.ceph.control import RadosControl
from scloud.drivers.ceph.daemons import NodeDaemons
from scloud.drivers.hypervisor.accelerator import measure
from scloud.drivers.hypervisor.libvirt import LibvirtHypervisor
from scloud.drivers.netfunc.linux import LinuxNetworkFunctions
from scloud.drivers.probe.arp import ArpProber
from scloud.drivers.storage.local import LocalStorage
from scloud.drivers.storage.rbd_pools import RbdPools
from scloud.drivers.supervisor.identity import boot_id
from scloud.drivers.supervisor.process import ProcessSupervisor
from scloud.drivers.supervisor.protocol import Supervisor
from scloud.drivers.supervisor.systemd import SystemdSupervisor
from scloud.drivers.switch.ovs import OvsConfig, OvsSwitch
from scloud.link import pki
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import NodeFacts
from scloud.model.statuses import Accelerator

log = logging.getLogger(__name__)

NSENTER = {"mnt": "--mount", "net": "--net", "uts": "--uts", "pid": "--pid", "ipc": "--ipc"}


def make_supervisor(config: AgentConfig) -> Supervisor:
    """The one the node's configuration names."""
    if config.supervisor == "process":
        return ProcessSupervisor(config.run, config.log)
    enter = [f"{NSENTER[path.name]}={path}" for path in config.namespaces]
    argv = ["nsenter", *enter, "--"] if enter else []
    return SystemdSupervisor(f"scloud-{config.node}-", argv, config.log)


def make_managers(config: AgentConfig) -> tuple[str, Managers]:
    """(this node's id, how to reach a manager). `CloudError` if the node is not enrolled."""
    files = [config.pki / name for name in (CA, CERTIFICATE, KEY)]
    missing = [path for path in files if not path.exists()]
    if missing:
        raise CloudError(
            ErrorKind.UNAUTHENTICATED, f"{missing[0]} is missing: join this node with the token of `scloud node add`"
        )
    managers = Managers(config.manager, config.state / "managers.json", pki.client_context(*files))
    return pki.subject_of(files[1].read_text()), managers


def switch_config(config: AgentConfig) -> OvsConfig:
    underlay = config.underlay
    return OvsConfig(
        datapath=config.datapath,
        tunnel_ip=config.tunnel_ip,
        underlay_device=underlay.device if underlay else None,
        underlay_address=f"{underlay.address}/{underlay.prefix}" if underlay else None,
        mtu=config.mtu + VXLAN_OVERHEAD,
    )


async def run(config: AgentConfig) -> None:
    """Until cancelled."""
    node, managers = make_managers(config)
    for folder in (config.state, config.disks, config.images, config.consoles, config.run, config.log, config.sockets):
        folder.mkdir(parents=True, exist_ok=True)
    lock = take_lock(config.state / "agent.lock")
    supervisor = make_supervisor(config)
    reconcilers: list[Callable[[str], None]] = []

    def report(event: EngineEvent) -> None:
        log.warning("%s %s%s", event.engine, event.what, f": {event.reason}" if event.reason else "")
        if event.what == "started":
            for tell in reconcilers:
                tell(event.engine)

    engines = Engines(config, supervisor, report)
    async with asyncio.TaskGroup() as group:
        measuring = group.create_task(measure(config.accelerator_cache))
        await engines.start()
    accelerator = measuring.result()
    log.info("engines are up; guests run by %s", accelerator.reason)
    hypervisor = LibvirtHypervisor("kvm" if accelerator.kind == "kvm" else "tcg")
    storage = LocalStorage(config.disks)
    control = RadosControl()
    drivers = Drivers(
        hypervisor,
        OvsSwitch(switch_config(config)),
        storage,
        LinuxNetworkFunctions(config.run / "vpcs", supervisor),
        RbdPools(node, config.root / "ceph"),
        daemons=NodeDaemons(
            config.root / "ceph", config.sockets, config.log, supervisor, lambda: storage_address(config)
        ),
        control=control,
        prober=ArpProber(),
        bmc=RedfishBmc(),
    )
    journal = FileJournal(config.state / "journal")
    images = ImageCache(config.images, managers.dial, storage.free_mib)
    offload = config.datapath == "system"
    around = Surroundings(
        dial=managers.dial,
        journal=journal,
        images=images,
        seeds=SeedFolder(config.disks.parent / "seeds"),
        facts=lambda: node_facts(config, accelerator, storage),
        load=ProcLoad(config.disks, links=[config.underlay.device] if config.underlay else ()),
        wall=time.time,
        network=NetworkSettings(node, config.tunnel_ip, config.mtu, offload),
        vms=VmSettings(boot_id(), config.consoles, config.sockets, config.mtu, offload),
        managers=managers,
        passages=TlsPassages(
            pki.node_contexts(*(config.pki / name for name in (CA, CERTIFICATE, KEY))), lambda: storage_address(config)
        ),
    )
    daemon = Daemon(drivers, around)
    reconcilers.append(daemon.reconciler.engine_started)
    keeping = [
        asyncio.create_task(engines.run(), name="engines"),
        asyncio.create_task(keep_tidy(config.consoles, images), name="upkeep"),
    ]
    try:
        await daemon.run()
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        await images.close()
        await journal.close()
        await control.close()
        await hypervisor.close()
        os.close(lock)


async def node_facts(config: AgentConfig, accelerator: Accelerator, storage: LocalStorage) -> NodeFacts:
    _, total = await storage.free_mib()
    return NodeFacts(
        hostname=socket.gethostname(),
        architecture=platform.machine(),
        capacity=capacity(total),
        tunnel_ip=config.tunnel_ip,
        storage_ip=storage_address(config),
        accelerator=accelerator,
        agent_version=__version__,
        datapath=config.datapath,
        boot_id=boot_id(),
        gpus=find_gpus() if config.gpus else (),
    )


def storage_address(config: AgentConfig) -> str:
    """Where this node's storage daemons listen; the tunnels' address if the manager cannot be reached at all."""
    if config.storage_ip is not None:
        return config.storage_ip
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: it only chooses the route and with it our address.
            probe.connect(address_of(config.manager))
        except OSError:
            return config.tunnel_ip
        return str(probe.getsockname()[0])


def take_lock(path: Path) -> int:
    """Held while this process lives. `CloudError(CONFLICT)` if another agent serves this node."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise CloudError(ErrorKind.CONFLICT, f"another agent serves this node already: {path} is locked") from error
    return descriptor


async def until_told(config: AgentConfig) -> None:
    """Run until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(run(config))
    told: list[int] = []

    def end(number: int) -> None:
        told.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    try:
        await task
    except asyncio.CancelledError:
        if not told:
            raise
        log.info("told to end; what runs goes on running")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scloud.agent", description="the agent of one node")
    parser.add_argument("--config", type=Path, required=True, help="the node's agent.json")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        config = load_config(options.config)
    except (OSError, ValidationError) as error:
        print(f"agent: {options.config}: {error}", file=sys.stderr)
        return 2
    try:
        asyncio.run(until_told(config))
    except (CloudError, OSError) as error:
        log.error("%s", error)
        return 1
    except ExceptionGroup as group:
        for one in group.exceptions:
            log.error("%s", one)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
