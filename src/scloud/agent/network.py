"""The node's network: taps, the services of each VPC, and the flows, each made as desired and kept so.

Taps (`port/ID`), services (`vpc/ID`), peers (`peer/IP`) and the flows (`flows`) are worked on separately: a VPC whose
services cannot be made holds up nobody else. The flows take whatever is in place when they are compiled; what comes
meanwhile is in the next round, which begins at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from scloud.agent.board import Board
from scloud.agent.deadlines import within
from scloud.agent.disks import FAILED_AFTER
from scloud.agent.journal import Journal
from scloud.agent.usage import Usage
from scloud.agent.vpcs import VpcServices
from scloud.agent.work import Workers
from scloud.drivers.netfunc.protocol import NetworkFunctions
from scloud.drivers.switch.protocol import TUNNEL_OFPORT, Switch
from scloud.flows.compile import Compiler
from scloud.flows.l2 import places
from scloud.flows.view import LocalPort
from scloud.model.connections import Brought, Connection
from scloud.model.desired import DesiredPort, DesiredVpc
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import Observed
from scloud.reconcile.network import node_view, still_known, tap_name
from scloud.reconcile.port import AddTap, PortPlan, PortSituation, RemoveTap, port_plan
from scloud.reconcile.vm import NicView

log = logging.getLogger(__name__)

WATCH_SWITCH_S = 1.0
"""How often the switch is asked whether it has lost its flows."""
MAX_CONNECTIONS = 2000
"""Of a nic, that go with it when it migrates: each is a flow."""
RELEARN_S = 300.0
"""A peer's underlay address is resolved again so often; Open vSwitch forgets it after 15 minutes."""


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """`offload` is False on the userspace datapath; `mtu` is what a guest may send, bytes."""

    node: str
    tunnel_ip: str
    mtu: int
    offload: bool


class Network:
    """`changed` is called with the keys of VMs that should be looked at again."""

    def __init__(
        self,
        switch: Switch,
        functions: NetworkFunctions,
        journal: Journal,
        board: Board,
        usage: Usage,
        settings: NetworkSettings,
        changed: Callable[[Iterable[str]], None],
    ) -> None:
        self._switch = switch
        self._journal = journal
        self._board = board
        self._usage = usage
        self._settings = settings
        self._changed = changed
        self._on_switch: dict[str, tuple[str, int]] = {}
        """Owner's key to device and number, of everything of ours on the bridge."""
        self._clock = 0
        self._touched: dict[str, int] = {}
        """When each owner's entry was last changed by us: newer than a list that began before."""
        self._listed = False
        self._compiler = Compiler()
        self._incarnation: str | None = None
        self._stale = True
        self._brought_until = math.inf
        self._flowing: dict[str, LocalPort] = {}
        self._target = 0
        self._heard = False
        self._problems: dict[str, str] = {}
        self._untold: set[str] = set()
        """Ports that no desired object tells of any more, whose taps are to go all the same."""
        self._peers: set[str] = set()
        self.workers = Workers(self._handle)
        self.services = VpcServices(functions, self, journal, board, settings.node, settings.mtu)

    # --- what happens around it

    def set_target(self, revision: int) -> None:
        """The desired state as journalled is of this revision. 0: a new connection, with numbers of its own."""
        self._target = revision
        if revision == 0:
            self._board.network_revision = 0
        else:
            self._heard = True
            self._wake_flows()

    def desired_changed(self, key: str, vpcs: Iterable[str] = ()) -> None:
        """An object of the network has come, changed or gone. `vpcs` are those that a port was and is in."""
        self._stale = True
        if not key.startswith("group/") and not self._elsewhere(key):
            self.workers.wake(key, urgent=True)
        for vpc in vpcs:
            self.workers.wake(f"vpc/{vpc}", urgent=True)
        self._wake_flows()

    def _elsewhere(self, key: str) -> bool:
        """A port of another node, of which nothing is here: only flows come of it."""
        item = self._journal.desired.get(key)
        mine = not isinstance(item, DesiredPort) or item.on(self._settings.node)
        return not mine and key not in self._on_switch and key not in self._journal.ofports

    def look_at_all(self) -> None:
        """Compare everything with what is desired."""
        for key in self._journal.desired:
            if key.startswith(("port/", "vpc/")) and not self._elsewhere(key):
                self.workers.wake(key)
        self._wake_flows()

    def switch_restarted(self) -> None:
        """The switch's daemon is another one; its flows are gone."""
        self.workers.wake("flows", urgent=True)

    def usage_changed(self, nics: Iterable[str]) -> None:
        for nic in nics:
            if f"port/{nic}" in self._journal.desired:
                self.workers.wake(f"port/{nic}")

    async def list_switch(self) -> None:
        """Learn what is on the bridge, and look again at every port that is not as it was."""
        await within("switch", "preparing the bridge", self._switch.ensure_bridge())
        before = dict(self._on_switch)
        self._clock += 1
        mark = self._clock
        ports = await within("query", "listing the switch's ports", self._switch.ports())
        ours = [port for port in ports if port.owner.startswith(("port/", "vpc/"))]
        now = {port.owner: (port.name, port.ofport) for port in ours}
        for owner in sorted(before.keys() | now.keys()):
            if (
                self.workers.working(owner)
                or self._touched.get(owner, 0) >= mark
                or before.get(owner) == now.get(owner)
            ):
                continue
            if owner in now:
                self._on_switch[owner] = now[owner]
                if owner not in self._journal.ofports and now[owner][1] > TUNNEL_OFPORT:
                    await self._journal.allocate(owner, wanted=now[owner][1])
            else:
                del self._on_switch[owner]
            self._stale = True
            if owner in self._journal.desired:
                self.workers.wake(owner)
        if not self._listed:  # what was woken before had to wait for this
            self._listed = True
            self.look_at_all()
        elif self._stale:
            self._wake_flows()

    # --- what others ask

    def nic_view(self, nic: str) -> NicView:
        """As a VM's plan needs it."""
        port = self._journal.desired.get(f"port/{nic}")
        if not isinstance(port, DesiredPort) or port.absent or not port.on(self._settings.node):
            return NicView(False, reason="this node was not told of it")
        key = f"port/{nic}"
        if not self._port_plan(port).wired:
            failed = self.workers.failures(key) >= FAILED_AFTER
            problem = self._problems.get(key) or self._problems.get("flows", "")
            return NicView(False, failed=failed, reason=problem)
        if not self.services.ready(port.vpc):
            failed = self.workers.failures(f"vpc/{port.vpc}") >= FAILED_AFTER
            problem = self._problems.get(f"vpc/{port.vpc}", "")
            return NicView(False, failed=failed, reason=problem or "the services of its VPC are being made")
        return NicView(True)

    def tap(self, nic: str) -> str:
        """The device of a nic that is ready."""
        return self._on_switch[f"port/{nic}"][0]

    def ofport(self, key: str) -> int | None:
        """The number on the switch of `port/ID` or `vpc/ID`."""
        entry = self._on_switch.get(key)
        return entry[1] if entry else None

    def take_away(self, nics: Iterable[str]) -> None:
        """Nics of a VM that is gone from here: of those that no port tells of any more, the taps go. It comes to that
        when a migration to here has ended while neither node could be reached, and its source is out of the cloud."""
        for key in (f"port/{nic}" for nic in nics):
            if key not in self._journal.desired:
                self._untold.add(key)
                self.workers.wake(key)

    def has_tap(self, nic: str) -> bool:
        """Whether the switch has a port of it, or is just being given one."""
        return self.ofport(f"port/{nic}") is not None or self.workers.working(f"port/{nic}")

    # --- connections of nics that migrate

    async def connections(self, nics: Iterable[str]) -> dict[str, list[Connection]]:
        """What the switch tracks of nics here, `MAX_CONNECTIONS` of each at most. CloudError(ENGINE)."""
        found = {}
        for nic in nics:
            if (zone := self.ofport(f"port/{nic}")) is not None:  # as `node_view` has it
                asking = self._switch.connections(zone)
                tracked = await within("query", f"asking for the connections of {nic}", asking)
                # What it came with, and has been silent since, goes on with it.
                known = {item.ends: item for item in (*self._brought(f"port/{nic}")[0], *tracked)}
                found[nic] = list(known.values())[-MAX_CONNECTIONS:]
        return found

    async def bring(self, connections: Mapping[str, Sequence[Connection]]) -> None:
        """Nics have come with these."""
        now = asyncio.get_running_loop().time()
        for nic, items in connections.items():
            if items and self.ofport(f"port/{nic}") is not None:
                log.info("nic %s brings %d connections", nic, len(items))
                await self._journal.bring(nic, Brought(at=now, connections=tuple(items[:MAX_CONNECTIONS])))
                self._stale = True
        self._wake_flows()

    # --- work

    async def _handle(self, key: str) -> float | None:
        kind, _, id = key.partition("/")
        if kind == "flows":
            return await self._flows()
        if kind == "peer":
            return await self._peer(key, id)
        if not self._listed:
            return None
        try:
            if kind == "vpc":
                before = self.services.ready(id)
                wake_at = await self.services.handle(id)
                if before != self.services.ready(id):
                    self._changed(self._guests_of(id))
            else:
                wake_at = await self._port(key)
        except (CloudError, OSError) as error:
            self._failed(key, error)
            raise
        self._problems.pop(key, None)
        return wake_at

    def _wake_flows(self) -> None:
        self.workers.wake("flows")

    def _guests_of(self, vpc: str) -> list[str]:
        """Keys of the VMs here that have a nic in the VPC."""
        ports = (item for item in self._journal.desired.values() if isinstance(item, DesiredPort))
        here = (port for port in ports if port.vpc == vpc and port.on(self._settings.node))
        return [f"vm/{port.vm}" for port in here if port.vm]

    def _port_plan(self, port: DesiredPort) -> PortPlan:
        key = f"port/{port.id}"
        actual = self.ofport(key)
        flowing = self._flowing.get(key)
        situation = PortSituation(
            ofport=self._journal.ofports.get(key),
            actual=actual,
            flowing=flowing is not None and flowing.port == port and flowing.ofport == actual,
            open_by=self._usage.nic_open_by(port.id),
            wanted_by=self._usage.nic_wanted_by(port.id, self._journal.desired),
        )
        return port_plan(port, situation)

    async def _port(self, key: str) -> float | None:
        while True:
            desired = self._journal.desired.get(key)
            if not isinstance(desired, DesiredPort):
                if key in self._untold:
                    await self._untold_port(key)
                return None
            self._untold.discard(key)
            mine = desired.on(self._settings.node)
            # A nic that is another node's now may have left its tap here.
            port = desired if mine else desired.model_copy(update={"absent": True})
            plan = self._port_plan(port)
            if mine or desired.absent:
                self._board.put(plan.observed)
            match plan.action:
                case AddTap():
                    await self.put_on_switch(key, tap_name(port.id), tap=True)
                case RemoveTap():
                    if not self._usage.known:
                        return None
                    if key in self._flowing:
                        self._stale = True
                        self._wake_flows()
                        return None  # woken again when its flows are gone
                    await self.take_off_switch(key, tap_name(port.id))
                case None:
                    if port.vm is not None:
                        self._changed([f"vm/{port.vm}"])
                    return None

    async def _untold_port(self, key: str) -> None:
        nic = key.removeprefix("port/")
        if not self._usage.known or self._usage.nic_open_by(nic) is not None:
            return  # whose VM is gone asks again
        if key in self._flowing:
            self._stale = True
            self._wake_flows()
            return  # woken again when its flows are gone
        await self.take_off_switch(key, tap_name(nic))
        self._untold.discard(key)

    async def put_on_switch(self, owner: str, device: str, *, tap: bool) -> None:
        """Give the owner's device its number and have it in the next flows."""
        number = await self._journal.allocate(owner)
        if tap:
            adding = self._switch.add_tap(device, owner, number, self._settings.mtu)
        else:
            adding = self._switch.add_port(device, owner, number)
        try:
            await within("switch", f"adding {device} to the switch", adding)
        except CloudError as error:
            if error.kind == ErrorKind.CONFLICT:  # something unknown has the number: the next try takes another
                await self._journal.free(owner)
            raise
        log.info("%s: %s is port %d of the switch", owner, device, number)
        self._on_switch[owner] = (device, number)
        self._touched[owner] = self._clock
        self._stale = True
        self._wake_flows()

    async def take_off_switch(self, owner: str, device: str) -> None:
        """Remove the owner's device, if it is there, and free its number."""
        await within("switch", f"removing {device} from the switch", self._switch.remove_port(device))
        self._on_switch.pop(owner, None)
        self._touched[owner] = self._clock
        self._stale = True
        self._wake_flows()
        await self._journal.free(owner)
        log.info("%s: %s is off the switch", owner, device)

    async def _flows(self) -> float | None:
        """Bring the switch's flows in line with what is desired and in place."""
        loop = asyncio.get_running_loop()
        if not self._listed or not (self._heard or self._journal.desired):
            # An agent that knows nothing must not take away the flows of what runs.
            return loop.time() + WATCH_SWITCH_S
        try:
            incarnation = await within("query", "asking the switch's incarnation", self._switch.incarnation())
        except CloudError as error:
            # The switch is down. It is started by others; until then there is nothing to try harder.
            self._problems["flows"] = error.message
            return loop.time() + WATCH_SWITCH_S
        lost = incarnation != self._incarnation
        if not lost and not self._stale and loop.time() < self._brought_until:
            self._board.network_revision = self._target
            return loop.time() + WATCH_SWITCH_S
        target = self._target
        self._stale = False
        ofports = {owner: number for owner, (_, number) in self._on_switch.items()}
        brought = {owner: self._brought(owner) for owner in ofports}
        self._brought_until = min((until for _, until in brought.values()), default=math.inf)
        view = node_view(
            self._journal.desired.values(),
            self._settings.node,
            ofports,
            self._settings.tunnel_ip,
            TUNNEL_OFPORT,
            {owner: connections for owner, (connections, _) in brought.items() if connections},
        )
        change = self._compiler.update(view)
        try:
            if lost:
                what = "replacing the switch's flows"
                await within("flows", what, self._switch.replace_flows(self._compiler.flows()))
            elif change:
                changing = self._switch.change_flows(change.remove, change.add)
                await within("flows", "changing the switch's flows", changing)
        except BaseException as error:
            self._stale = True
            self._incarnation = None  # what the switch has now is not known
            self._problems["flows"] = str(error)
            raise
        self._problems.pop("flows", None)
        self._incarnation = incarnation
        if lost:
            log.info("all flows: %d", len(self._compiler.flows()))
        elif change:
            log.info("flows: %d removed, %d added", len(change.remove), len(change.add))
        before, self._flowing = self._flowing, {f"port/{item.port.id}": item for item in view.local}
        if self._target >= target:  # else a new connection has begun, with revisions of its own
            self._board.network_revision = target
        for key in sorted(before.keys() | self._flowing.keys()):
            if before.get(key) != self._flowing.get(key):
                self.workers.wake(key)
        ports = [*(item.port for item in view.local), *(item.port for item in view.remote)]
        self._meet({ip for port in ports for ip in places(port)} - {view.tunnel_ip})
        return loop.time() + WATCH_SWITCH_S

    def _brought(self, owner: str) -> tuple[tuple[Connection, ...], float]:
        """What a port came with and is still to be known, and until when."""
        found = self._journal.brought(owner.removeprefix("port/"))
        if found is None:
            return (), math.inf
        return still_known(found, asyncio.get_running_loop().time())

    def _meet(self, peers: set[str]) -> None:
        for gone in sorted(self._peers - peers):
            self.workers.forget(f"peer/{gone}")
        new = peers - self._peers
        self._peers = peers
        for peer in sorted(new):
            self.workers.wake(f"peer/{peer}")

    async def _peer(self, key: str, tunnel_ip: str) -> float | None:
        if tunnel_ip not in self._peers or tunnel_ip == self._settings.tunnel_ip:
            return None
        await within("switch", f"resolving {tunnel_ip}", self._switch.learn_peer(tunnel_ip))
        return asyncio.get_running_loop().time() + RELEARN_S

    def _failed(self, key: str, error: CloudError | OSError) -> None:
        self._problems[key] = str(error)
        item = self._journal.desired.get(key)
        if isinstance(item, DesiredPort | DesiredVpc):
            final = self.workers.failures(key) + 1 >= FAILED_AFTER
            mine = isinstance(item, DesiredVpc) or item.on(self._settings.node)
            if mine:
                self._board.put(
                    Observed(
                        key=key,
                        generation=item.generation,
                        state="error" if final else "working",
                        settled=final,
                        reason=str(error),
                    )
                )
            if isinstance(item, DesiredPort) and item.vm is not None:
                self._changed([f"vm/{item.vm}"])
            elif isinstance(item, DesiredVpc):
                self._changed(self._guests_of(item.id))
