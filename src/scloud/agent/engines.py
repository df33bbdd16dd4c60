"""The node's engines: Open vSwitch and libvirt, at their default paths inside the node's mount namespace."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scloud.agent.config import AgentConfig
from scloud.drivers.supervisor.protocol import ProcessSpec, Supervisor
from scloud.model.errors import CloudError, ErrorKind

OVS_RUN = Path("/run/openvswitch")
OVS_DATABASE = Path("/etc/openvswitch/conf.db")
OVS_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
LIBVIRT_ETC = Path("/etc/libvirt")
LIBVIRT_RUN = Path("/run/libvirt")

FIRST_RETRY_S = 0.2
LAST_RETRY_S = 10.0
HEALTHY_AFTER_S = 30.0
"""An engine that has lived this long is started again at once; one that keeps dying waits twice as long each time."""
LOOK_S = 600.0
"""How often a living engine is looked at, for the size of its log."""


@dataclass(frozen=True)
class EngineEvent:
    """What happened to an engine: `started` anew, `died`, or could not be started (`failed`, with the reason)."""

    engine: str
    what: str
    reason: str = ""


def engine_processes(config: AgentConfig) -> list[ProcessSpec]:
    """The engines in the order in which they are started."""
    quiet = ("-vconsole:info", "-vsyslog:off")
    switch = ["ovs-vswitchd", f"unix:{OVS_RUN / 'db.sock'}", "--pidfile", *quiet]
    if config.datapath == "netdev":
        switch.append("--disable-system")
    return [
        ProcessSpec(
            name="ovsdb-server",
            argv=(
                *("ovsdb-server", str(OVS_DATABASE), f"--remote=punix:{OVS_RUN / 'db.sock'}"),
                *("--remote=db:Open_vSwitch,Open_vSwitch,manager_options", "--pidfile", *quiet),
            ),
            env={"SCLOUD_ROLE": "ovsdb-server"},
            ready=OVS_RUN / "db.sock",
        ),
        ProcessSpec(
            name="ovs-vswitchd",
            argv=tuple(switch),
            env={"SCLOUD_ROLE": "ovs-vswitchd"},
            ready=OVS_RUN / "ovs-vswitchd.pid",
        ),
        ProcessSpec(
            name="libvirtd",
            argv=("libvirtd", "--pid-file", str(LIBVIRT_RUN / "libvirtd.pid")),
            env={"SCLOUD_ROLE": "libvirtd"},
            ready=LIBVIRT_RUN / "libvirt-sock",
        ),
    ]


def libvirtd_conf(host_uuid: str) -> str:
    """Only the UNIX socket, and only for root. The UUID is our own: nodes of a lab share one machine's."""
    return (
        'auth_unix_rw = "none"\n'
        'unix_sock_group = "root"\n'
        'unix_sock_rw_perms = "0700"\n'
        f'host_uuid = "{host_uuid}"\n'
        'log_outputs = "3:stderr"\n'
    )


def qemu_conf() -> str:
    """No virtlogd, no cgroups, no namespaces of its own: guests are plain processes of the node."""
    return (
        'user = "root"\n'
        'group = "root"\n'
        'security_driver = "none"\n'
        'stdio_handler = "file"\n'
        "remember_owner = 0\n"
        "namespaces = []\n"
        "cgroup_controllers = []\n"
    )


async def prepare(config: AgentConfig) -> None:
    """Write the engines' files; what is there and right stays as it is."""
    for folder in (OVS_RUN, OVS_DATABASE.parent, LIBVIRT_ETC, LIBVIRT_RUN, config.run, config.log, config.sockets):
        folder.mkdir(parents=True, exist_ok=True)
    _write(LIBVIRT_ETC / "libvirtd.conf", libvirtd_conf(_host_uuid(config)))
    _write(LIBVIRT_ETC / "qemu.conf", qemu_conf())
    if not OVS_DATABASE.exists():
        # Made beside and moved, so that a crash in between leaves none rather than half of one.
        fresh = OVS_DATABASE.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        await _run("ovsdb-tool", "create", str(fresh), str(OVS_SCHEMA))
        fresh.replace(OVS_DATABASE)
    elif await _run("ovsdb-tool", "needs-conversion", str(OVS_DATABASE), str(OVS_SCHEMA)) == "yes":
        await _run("ovsdb-tool", "convert", str(OVS_DATABASE), str(OVS_SCHEMA))
    if config.datapath == "system":
        await _run("modprobe", "openvswitch")


def _host_uuid(config: AgentConfig) -> str:
    file = config.state / "host-uuid"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, str(uuid.uuid4()))
    return file.read_text().strip()


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(text)
        fresh.replace(path)


class Engines:
    """Starts a node's engines and keeps them running. `report` is told of everything that happens to them."""

    def __init__(
        self, config: AgentConfig, supervisor: Supervisor, report: Callable[[EngineEvent], None] = lambda event: None
    ) -> None:
        self._config = config
        self._supervisor = supervisor
        self._report = report

    async def start(self) -> None:
        """Return when all engines can be used. `CloudError(ENGINE)` names the one that cannot, and its log."""
        adopted = {facts.name for facts in await self._supervisor.processes() if facts.running}
        if "ovsdb-server" not in adopted:
            # A running server holds its database; conversion is for the next start.
            await prepare(self._config)
        for spec in engine_processes(self._config):
            if await self._supervisor.ensure(spec):
                self._report(EngineEvent(spec.name, "started"))
            if spec.name == "ovsdb-server":
                await self._identify()

    async def _identify(self) -> None:
        await _run(
            *("ovs-vsctl", "--no-wait", "--timeout=10", "init", "--"),
            *("set", "Open_vSwitch", ".", f"external_ids:system-id={self._config.node}"),
            f"external_ids:hostname={self._config.node}",
        )

    async def run(self) -> None:
        """Start again whichever dies, for ever."""
        async with asyncio.TaskGroup() as group:
            for spec in engine_processes(self._config):
                group.create_task(self._keep(spec))

    async def _keep(self, spec: ProcessSpec) -> None:
        loop = asyncio.get_running_loop()
        delay = 0.0
        while True:
            began = loop.time()
            while not await self._dies_within(spec.name, LOOK_S):
                await self._supervisor.ensure(spec)
            delay = 0.0 if loop.time() - began >= HEALTHY_AFTER_S else min(max(2 * delay, FIRST_RETRY_S), LAST_RETRY_S)
            self._report(EngineEvent(spec.name, "died"))
            await asyncio.sleep(delay)
            try:
                await self._supervisor.ensure(spec)
            except CloudError as error:
                self._report(EngineEvent(spec.name, "failed", error.message))
            else:
                self._report(EngineEvent(spec.name, "started"))

    async def _dies_within(self, name: str, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._supervisor.died(name)
        except TimeoutError:
            return False
        return True


async def _run(*argv: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, complaint = await process.communicate()
    if process.returncode != 0:
        raise CloudError(ErrorKind.ENGINE, f"{' '.join(argv[:2])}: {complaint.decode(errors='replace').strip()}")
    return out.decode().strip()
