"""Storage clusters that exist only in memory: nodes whose daemons make them, and commands to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from scloud.drivers.ceph.protocol import Access, DaemonFacts
from scloud.drivers.ceph.target import check_target
from scloud.model.desired import DesiredStore, MgrDaemon, MonDaemon, OsdDaemon
from scloud.model.errors import CloudError, ErrorKind


@dataclass
class FakeOsd:
    number: int
    key: str
    media: str
    crush: dict[str, str] = field(default_factory=dict)
    up: bool = False


@dataclass
class FakeCluster:
    """What its monitors know together. `keys` are cephx keys by entity."""

    fsid: str
    monitors: dict[str, bool] = field(default_factory=dict)
    """By name, whether each runs. The cluster answers while most of them do."""
    keys: dict[str, str] = field(default_factory=dict)
    osds: dict[str, FakeOsd] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def quorum(self) -> bool:
        return sum(self.monitors.values()) * 2 > len(self.monitors)

    def admit(self, cluster: str, entity: str, key: str) -> None:
        """UNAVAILABLE without a quorum, FORBIDDEN with another key than the entity's."""
        if not self.quorum:
            missing = [name for name, runs in self.monitors.items() if not runs]
            count = f"{len(missing)} of {len(self.monitors)} monitors"
            raise CloudError(ErrorKind.UNAVAILABLE, f"waiting for {count}: {', '.join(missing)}")
        if self.keys.get(entity) != key:
            raise CloudError(ErrorKind.FORBIDDEN, f"storage cluster {cluster} does not take the key of {entity}")

    def new_osd(self, uuid: str, key: str, media: str) -> int:
        """The OSD's number: that which it has, or the first that is free."""
        known = self.osds.get(uuid)
        if known is None:
            taken = {osd.number for osd in self.osds.values()}
            number = next(number for number in range(len(taken) + 1) if number not in taken)
            known = self.osds[uuid] = FakeOsd(number, key, media)
        elif known.key != key:
            raise CloudError(ErrorKind.CONFLICT, f"osd new: OSD {uuid} is there with another key")
        return known.number


@dataclass
class FakeCeph:
    """All clusters there are, by fsid."""

    clusters: dict[str, FakeCluster] = field(default_factory=dict)

    def at(self, cluster: str, fsid: str) -> FakeCluster:
        found = self.clusters.get(fsid)
        if found is None or not found.monitors:
            raise CloudError(ErrorKind.UNAVAILABLE, f"no quorum of the monitors of storage cluster {cluster} answers")
        return found


@dataclass
class _Daemon:
    """`name` as `mon.n1` or `osd.UUID`; `made` once its data are complete."""

    name: str
    conf: tuple[object, ...]
    number: int | None = None
    pid: int | None = None
    path: str = ""


@dataclass
class FakeNode:
    """What of a node outlives its agent: daemons by (cluster, name), and what its devices hold."""

    daemons: dict[tuple[str, str], _Daemon] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    """Path to the uuid of the OSD on it; "" for an empty one, `foreign` for somebody else's bytes."""
    fsids: dict[str, str] = field(default_factory=dict)
    next_pid: int = 1000
    death: asyncio.Event = field(default_factory=asyncio.Event)
    """The next one; another event is put here then."""


class FakeCephDaemons:
    """`CephDaemons`. Give a successor the same node, and it finds everything again."""

    def __init__(self, ceph: FakeCeph, node: FakeNode | None = None) -> None:
        self.ceph = ceph
        self.node = node or FakeNode()

    async def ensure(self, store: DesiredStore) -> dict[str, int]:
        self.node.fsids[store.cluster] = store.fsid
        named = {_name(daemon) for daemon in store.daemons}
        for (cluster, name), daemon in list(self.node.daemons.items()):
            if cluster == store.cluster and name not in named:
                self._end(store.cluster, daemon)
                if not name.startswith("osd."):
                    self._forget(store.cluster, name)
        errors: list[CloudError] = []
        order = {"mon": 0, "mgr": 1, "osd": 2}
        for wanted in sorted(store.daemons, key=lambda item: order[item.type]):
            with _kept(errors):
                self._ensure_one(store, wanted)
            await asyncio.sleep(0)
        if errors:
            raise min(errors, key=lambda error: error.kind is ErrorKind.UNAVAILABLE)
        return await self.numbers(store)

    def _ensure_one(self, store: DesiredStore, daemon: MonDaemon | MgrDaemon | OsdDaemon) -> None:
        name = _name(daemon)
        known = self.node.daemons.get((store.cluster, name))
        if isinstance(daemon, OsdDaemon) and daemon.absent:
            if known is not None:
                self._wipe(store.cluster, known)
            return
        conf = (daemon.model_copy(update={"crush": {}}) if isinstance(daemon, OsdDaemon) else daemon, store.first_port)
        if known is None:
            known = self._make(store, daemon, conf)
            self.node.daemons[store.cluster, name] = known
        if known.conf != conf and known.pid is not None:
            self._end(store.cluster, known)
        known.conf = conf
        if known.pid is None:
            self.node.next_pid += 1
            known.pid = self.node.next_pid
            self._tell(store.cluster, known, True)

    def _make(
        self, store: DesiredStore, daemon: MonDaemon | MgrDaemon | OsdDaemon, conf: tuple[object, ...]
    ) -> _Daemon:
        made = _Daemon(_name(daemon), conf)
        if isinstance(daemon, MonDaemon):
            cluster = self.ceph.clusters.setdefault(store.fsid, FakeCluster(store.fsid))
            for name, _ in store.initial_monitors or ((daemon.name, daemon.address),):
                cluster.monitors.setdefault(name, False)
            cluster.keys.setdefault("mon.", store.mon_key)
            cluster.keys.setdefault("client.admin", store.admin_key)
            cluster.keys.setdefault("client.bootstrap-osd", store.bootstrap_key)
            return made
        cluster = self.ceph.at(store.cluster, store.fsid)
        entity = f"mgr.{daemon.name}" if isinstance(daemon, MgrDaemon) else "client.bootstrap-osd"
        try:
            cluster.admit(store.cluster, entity, daemon.key if isinstance(daemon, MgrDaemon) else store.bootstrap_key)
        except CloudError as error:
            if error.kind is not ErrorKind.FORBIDDEN:
                raise
            raise CloudError(ErrorKind.UNAVAILABLE, f"waiting for the cluster to be told of {entity}") from error
        if isinstance(daemon, OsdDaemon):
            if daemon.size_mib is None and daemon.path not in self.node.devices:
                raise CloudError(ErrorKind.NOT_FOUND, f"there is no device {daemon.path} on this node")
            if self.node.devices.get(daemon.path, "") not in ("", daemon.uuid):
                raise CloudError(ErrorKind.CONFLICT, f"{daemon.path} holds data: choose another device")
            made.number = cluster.new_osd(daemon.uuid, daemon.key, daemon.media)
            cluster.osds[daemon.uuid].crush = dict(daemon.crush)
            cluster.keys[f"osd.{made.number}"] = daemon.key
            made.path = daemon.path
            self.node.devices[daemon.path] = daemon.uuid
        return made

    async def remove(self, store: DesiredStore) -> None:
        for (cluster, name), daemon in list(self.node.daemons.items()):
            if cluster == store.cluster:
                if name.startswith("osd."):
                    self._wipe(cluster, daemon)
                else:
                    self._end(cluster, daemon)
                    self._forget(cluster, name)

    async def numbers(self, store: DesiredStore) -> dict[str, int]:
        return {
            name.removeprefix("osd."): daemon.number
            for (cluster, name), daemon in sorted(self.node.daemons.items())
            if cluster == store.cluster and daemon.number is not None
        }

    async def died(self, cluster: str) -> str:
        while True:
            for (of, _), daemon in self.node.daemons.items():
                if of == cluster and daemon.pid is None:
                    return _shown(daemon)
            await self.node.death.wait()

    async def daemons(self) -> list[DaemonFacts]:
        return [
            DaemonFacts(
                cluster=cluster,
                name=_shown(daemon),
                running=daemon.pid is not None,
                uuid=name.removeprefix("osd.") if name.startswith("osd.") else "",
                pid=daemon.pid,
            )
            for (cluster, name), daemon in sorted(self.node.daemons.items())
        ]

    def kill(self, cluster: str, name: str) -> None:
        """A daemon, named as in its facts, dies by itself."""
        for (of, _), daemon in self.node.daemons.items():
            if of == cluster and _shown(daemon) == name:
                self._end(cluster, daemon)

    # --- what the cluster sees of it

    def _end(self, cluster: str, daemon: _Daemon) -> None:
        if daemon.pid is not None:
            daemon.pid = None
            self._tell(cluster, daemon, False)
        self.node.death.set()
        self.node.death = asyncio.Event()

    def _tell(self, cluster: str, daemon: _Daemon, runs: bool) -> None:
        type, _, name = daemon.name.partition(".")
        known = self.ceph.clusters.get(self.node.fsids[cluster])
        if known is not None and type == "mon":
            known.monitors[name] = runs
        elif known is not None and type == "osd" and name in known.osds:
            known.osds[name].up = runs

    def _forget(self, cluster: str, name: str) -> None:
        self.node.daemons.pop((cluster, name), None)

    def _wipe(self, cluster: str, daemon: _Daemon) -> None:
        self._end(cluster, daemon)
        self._forget(cluster, daemon.name)
        if self.node.devices.get(daemon.path) == daemon.name.removeprefix("osd."):
            self.node.devices[daemon.path] = ""


def _name(daemon: MonDaemon | MgrDaemon | OsdDaemon) -> str:
    return f"osd.{daemon.uuid}" if isinstance(daemon, OsdDaemon) else f"{daemon.type}.{daemon.name}"


def _shown(daemon: _Daemon) -> str:
    return daemon.name if daemon.number is None else f"osd.{daemon.number}"


@contextmanager
def _kept(errors: list[CloudError]) -> Iterator[None]:
    try:
        yield
    except CloudError as error:
        errors.append(error)


Answer = Callable[[FakeCluster, dict[str, Any], bytes], Any]


class FakeCephControl:
    """`CephControl`: a few commands of the monitors, as far as more than one of our own parts relies on them.

    `answers` maps a command's prefix to a function of (cluster, command, data); tests may add their own.
    """

    def __init__(self, ceph: FakeCeph) -> None:
        self.ceph = ceph
        self.answers: dict[str, Answer] = {
            "fsid": lambda cluster, command, data: {"fsid": cluster.fsid},
            "status": _status,
            "osd tree": _tree,
            "osd new": _osd_new,
            "auth add": _auth_add,
            "auth get-key": _auth_get_key,
            "config-key set": _config_set,
            "config-key get": _config_get,
        }

    async def command(
        self, access: Access, target: str, command: dict[str, Any], data: bytes = b"", timeout_s: float = 30.0
    ) -> Any:
        check_target(target)
        await asyncio.sleep(0)
        cluster = self.ceph.at(access.cluster, access.fsid)
        cluster.admit(access.cluster, f"client.{access.user}", access.key)
        answer = self.answers.get(str(command.get("prefix")))
        if answer is None:
            raise CloudError(ErrorKind.INVALID, f"{command.get('prefix')}: command not known")
        return answer(cluster, command, data)

    async def close(self) -> None:
        """Nothing is held."""


def _status(cluster: FakeCluster, command: dict[str, Any], data: bytes) -> Any:
    up = [osd for osd in cluster.osds.values() if osd.up]
    return {
        "fsid": cluster.fsid,
        "health": {"status": "HEALTH_OK", "checks": {}},
        "quorum_names": [name for name, runs in cluster.monitors.items() if runs],
        "osdmap": {"num_osds": len(cluster.osds), "num_up_osds": len(up), "num_in_osds": len(cluster.osds)},
    }


def _tree(cluster: FakeCluster, command: dict[str, Any], data: bytes) -> Any:
    return {
        "nodes": [
            {
                "id": osd.number,
                "name": f"osd.{osd.number}",
                "type": "osd",
                "device_class": osd.media,
                "status": "up" if osd.up else "down",
            }
            for osd in cluster.osds.values()
        ],
        "stray": [],
    }


def _osd_new(cluster: FakeCluster, command: dict[str, Any], data: bytes) -> Any:
    secret = json.loads(data or b"{}")
    number = cluster.new_osd(command["uuid"], secret.get("cephx_secret", ""), secret.get("crush_device_class", ""))
    return {"osdid": number}


def _auth_add(cluster: FakeCluster, command: dict[str, Any], data: bytes) -> Any:
    entity = command["entity"]
    key = data.decode().partition("key = ")[2].partition("\n")[0].strip()
    if cluster.keys.setdefault(entity, key) != key:
        raise CloudError(ErrorKind.INVALID, f"auth add: {entity} is there with another key")
    return f"added key for {entity}"


def _auth_get_key(cluster: FakeCluster, command: dict[str, Any], data: bytes) -> Any:
    entity = command["entity"]
    if entity not in cluster.keys:
        raise CloudError(ErrorKind.NOT_FOUND, f"auth get-key: don't have {entity}")
    return {"key": cluster.keys[entity]}


def _config_set(cluster: FakeCluster, command: dict[str, Any], data: bytes) -> Any:
    cluster.settings[command["key"]] = data.decode() if data else command.get("val", "")
    return f"set {command['key']}"


def _config_get(cluster: FakeCluster, command: dict[str, Any], data: bytes) -> Any:
    if command["key"] not in cluster.settings:
        raise CloudError(ErrorKind.NOT_FOUND, f"config-key get: no such key '{command['key']}'")
    return cluster.settings[command["key"]]
