"""What the manager may ask of a node besides desired state: one method a question."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from scloud.agent.ceph_calls import CephCalls
from scloud.agent.console import read_log
from scloud.agent.deadlines import within
from scloud.agent.figures import Figures
from scloud.agent.ha_calls import HaCalls
from scloud.agent.journal import Journal
from scloud.agent.network import Network
from scloud.agent.stores import Stores
from scloud.agent.streams import Streams
from scloud.agent.transfers import KINDS, Transfers
from scloud.agent.vms import VmSettings
from scloud.drivers.ceph.protocol import CephDaemons
from scloud.drivers.hypervisor.protocol import DiskFigures, Hypervisor
from scloud.drivers.netfunc.protocol import NetworkFunctions
from scloud.drivers.switch.protocol import Switch
from scloud.flows.pipeline import PIPELINE_OWNER, cookie_of
from scloud.model.errors import CloudError, ErrorKind, invalid, not_found
from scloud.model.observed import Inventory, PoolLeft, VmFigures
from scloud.reconcile.vm import SEED_SUFFIX

MAX_LOG = 4 * 1024 * 1024
Params = dict[str, Any]


class Calls:
    """`answer` is a `session.CallHandler`."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        switch: Switch,
        stores: Stores,
        functions: NetworkFunctions,
        journal: Journal,
        network: Network,
        figures: Figures,
        streams: Streams,
        settings: VmSettings,
        daemons: CephDaemons,
        ceph: CephCalls,
        transfers: Transfers,
        ha: HaCalls,
    ) -> None:
        self._hypervisor = hypervisor
        self._switch = switch
        self._stores = stores
        self._functions = functions
        self._journal = journal
        self._network = network
        self._figures = figures
        self._streams = streams
        self._settings = settings
        self._daemons = daemons
        self._transfers = transfers
        self._methods: dict[str, Callable[[Params], Awaitable[Any]]] = {
            "ping": self._ping,
            "inventory": self._inventory,
            "figures": self._get_figures,
            "disk_figures": self._disk_figures,
            "pool_owners": self._pool_owners,
            "delete_image": self._delete_image,
            "console_log": self._console_log,
            "trace": self._trace,
            "open": self._open,
            "ceph_command": ceph.command,
            **ha.methods,
        }

    async def answer(self, method: str, params: Params) -> Any:
        handler = self._methods.get(method)
        if handler is None:
            known = ", ".join(sorted(self._methods))
            raise CloudError(ErrorKind.NOT_FOUND, f"this agent has no method '{method}'; it has {known}")
        return await handler(params)

    async def _ping(self, params: Params) -> Any:
        return {}

    async def _inventory(self, params: Params) -> Inventory:
        """What exists here and bears one of our stamps, wanted or not."""
        domains = await within("query", "listing the node's VMs", self._hypervisor.domains())
        disks = await within("query", "listing the node's disks", self._stores.local.disks())
        ports = await within("query", "listing the switch's ports", self._switch.ports())
        vpcs = await within("query", "listing the VPCs' services", self._functions.vpcs())
        cookies = await within("flows", "counting the switch's flows", self._switch.flow_owners())
        daemons = await within("query", "listing the node's storage daemons", self._daemons.daemons())
        pool_disks, pool_left = await self._in_pools()
        keys = {*self._journal.desired, *self._journal.ofports, *(port.owner for port in ports)}
        names = {cookie_of(key): key for key in keys}
        owners = {names.get(cookie, f"unknown/{cookie:#x}") for cookie in cookies if cookie != _PIPELINE}
        return Inventory(
            domains=tuple(sorted(f"vm/{facts.vm}" for facts in domains)),
            running=tuple(sorted(f"vm/{facts.vm}" for facts in domains if facts.running)),
            disks=tuple(sorted(f"disk/{facts.disk}" for facts in disks)),
            ports=tuple(sorted(port.owner for port in ports)),
            namespaces=tuple(sorted(f"vpc/{vpc}" for vpc in vpcs)),
            flow_owners=tuple(sorted(owners)),
            daemons=tuple(sorted(f"{facts.cluster}/{facts.name}" for facts in daemons)),
            pool_disks=tuple(sorted(pool_disks)),
            pool_left=tuple(pool_left),
        )

    async def _in_pools(self) -> tuple[set[str], list[PoolLeft]]:
        """Of the pools that this node can reach; one that does not answer leaves the whole question unanswered, for
        what it has would look as if it were gone."""
        keys: set[str] = set()
        others: list[PoolLeft] = []
        for pool, storage in self._stores.shared().items():
            # First what may be on its way to be a disk: as a disk it is seen then.
            left = await within("query", f"listing what is unfinished in pool {pool}", storage.left())
            locks: list[tuple[str, str]] = []
            for facts in await within("query", f"listing the disks of pool {pool}", storage.disks()):
                locks += [(f"disk/{facts.disk}", address) for address in facts.abandoned]
                keys.add(f"disk/{facts.disk}")
                keys.update(f"snapshot/{snapshot}" for snapshot, _ in facts.snapshots)
            images = await within("query", f"listing the images of pool {pool}", storage.images())
            keys.update(f"image/{image}" for image in images)
            strangers = await within("query", f"listing what else is in pool {pool}", storage.strangers())
            keys.update(f"stranger/{pool}/{name}" for name in strangers)
            others.append(left.model_copy(update={"pool": pool, "locks": tuple(locks)}))
        return keys, others

    async def _delete_image(self, params: Params) -> Any:
        """Remove what disks of a pool are made from; `CloudError(IN_USE)` names those that depend on it."""
        image, pool = _text(params, "image"), _text(params, "pool")
        await within("delete", f"deleting image {image} of pool {pool}", self._stores.of(pool).delete_image(image))
        return {}

    async def _disk_figures(self, params: Params) -> list[DiskFigures]:
        """Of the disks of one running VM, without its NoCloud disk."""
        vm = _text(params, "vm")
        figures = await within("query", f"reading the figures of {vm}'s disks", self._hypervisor.disk_figures(vm))
        return [item for item in figures if not item.disk.endswith(SEED_SUFFIX)]

    async def _pool_owners(self, params: Params) -> dict[str, tuple[str, int]]:
        """Whose bytes lie in objects of a pool."""
        objects = params.get("objects")
        if not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
            raise invalid("objects", "must be a list of names")
        storage = self._stores.of(_text(params, "pool"))
        return await within("query", "looking whose objects these are", storage.owners(objects))

    async def _get_figures(self, params: Params) -> list[VmFigures] | VmFigures | None:
        """Of one VM (None if it does not run), or of all."""
        figures = await self._figures.vms()
        if "vm" not in params:
            return figures
        vm = _text(params, "vm")
        return next((item for item in figures if item.vm == vm), None)

    async def _console_log(self, params: Params) -> str:
        """The end of a VM's console log; what is not UTF-8 in it is replaced."""
        vm = _text(params, "vm")
        if f"vm/{vm}" not in self._journal.desired:
            raise not_found("vm", vm)
        limit = min(MAX_LOG, max(1, _number(params, "bytes", 65536)))
        data = await asyncio.to_thread(read_log, self._settings.log_of(vm), limit)
        return data.decode(errors="replace")

    async def _trace(self, params: Params) -> str:
        """The switch's own account of a packet that `port` sends, with these match fields."""
        port = _text(params, "port")
        number = self._network.ofport(f"port/{port}")
        if number is None:
            raise not_found("nic", port)
        fields = params.get("fields")
        if not isinstance(fields, dict) or not all(isinstance(value, str | int) for value in fields.values()):
            raise invalid("fields", "must map match fields to values")
        return await within("query", "tracing a packet", self._switch.trace({"in_port": number, **fields}))

    async def _open(self, params: Params) -> Any:
        if params.get("kind") in KINDS:
            await self._transfers.open(_text(params, "stream"), _text(params, "kind"), params)
            return {}
        port = _number(params, "port", 0)
        await self._streams.open(_text(params, "stream"), _text(params, "kind"), _text(params, "vm"), port or None)
        return {}


_PIPELINE = cookie_of(PIPELINE_OWNER)


def _text(params: Params, name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise invalid(name, "must be given")
    return value


def _number(params: Params, name: str, default: int) -> int:
    value = params.get(name, default)
    if not isinstance(value, int):
        raise invalid(name, "must be a number")
    return value
