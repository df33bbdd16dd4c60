"""The configuration of clusters' daemons and clients, as text.

Only what a daemon cannot do without is in its file: what is set in the cluster's own configuration database, such as
the pace of recovery and the hours of scrubbing, would be overruled by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from scloud.drivers.ceph.layout import DaemonFolder
from scloud.model.desired import DesiredStore, MgrDaemon, MonDaemon, OsdDaemon

PORTS = 200
"""How many after its first one are a cluster's own."""
SMALL_CACHE = 48 * 2**20
"""Bytes of cache of an OSD in a sparse file: many of them share a machine."""

CLIENT_OPTIONS: Mapping[str, str] = {
    # Without these two a client stands still for 10-15 s when a primary OSD dies; with them 2 s.
    "objecter timeout": "1",
    "objecter tick interval": "0.5",
    # Seconds. Whoever speaks to a monitor that is gone without a word learns of no new map until it notices: else 30.
    "mon client ping interval": "1",
    "mon client ping timeout": "3",
}
_COMMON = {
    # cephx is on by default only for whoever has a keyring.
    "auth cluster required": "cephx",
    "auth service required": "cephx",
    "auth client required": "cephx",
    "auth allow insecure global id reclaim": "false",
    "ms bind msgr1": "false",
    # Read by OSDs and monitors alike.
    "osd heartbeat interval": "1",
    "osd heartbeat grace": "6",
}
_DAEMON = {
    "log to file": "false",
    "log to stderr": "true",
    "err to stderr": "true",
    "log flush on exit": "false",
    "pid file": "",
}
_MON = {
    "mon allow pool delete": "true",
    "mon allow pool size one": "true",
    "mon cluster log to file": "false",
    "mon cluster log to stderr": "false",
    "mon data avail warn": "5",
    "mon data avail crit": "2",
    # Seconds: a quorum is formed in less than one.
    "mon election timeout": "1",
    "mon probe timeout": "1",
    # Seconds. A monitor whose machine has died without a word stops all commands for two leases: with Ceph's own 5 s
    # lost nodes could not be cut off for 10 s.
    "mon lease": "2",
    "ms initial backoff": "0.05",
    "ms max backoff": "0.5",
    "debug rocksdb": "1/5",
}
_MGR = {
    "mgr initial modules": "",
    "mgr disabled modules": "zabbix influx telegraf insights localpool selftest test_orchestrator k8sevents "
    "diskprediction_local prometheus restful",
    # Seconds. Between two reports of an OSD, and of the manager to the monitors: what `show` says is as old as both.
    "mgr stats period": "2",
    "mgr tick period": "1",
}
_OSD = {
    "osd objectstore": "bluestore",
    "osd heartbeat min size": "0",
    "osd fast shutdown": "true",
    # The class comes with the OSD's making; a look at the device would call every file an HDD.
    "osd class update on start": "false",
    "bluestore fsck on mount": "false",
    "bdev flock retry": "20",
    "debug rocksdb": "1/5",
    "debug bluestore": "0/5",
    "debug bluefs": "0/5",
    "debug bdev": "0/5",
}
_SMALL_OSD = {
    "bluestore cache autotune": "false",
    "bluestore cache size": str(SMALL_CACHE),
    "bluestore rocksdb options annex": "write_buffer_size=16777216,max_write_buffer_number=4",
    "osd op num shards": "2",
    "osd op num threads per shard": "1",
}


def client_conf(store: DesiredStore, keyring: Path) -> str:
    """For clients on the node."""
    return _text(
        {
            "global": {**_identity(store), **_COMMON, "keyring": str(keyring)},
            "client": {**CLIENT_OPTIONS, "log file": ""},
        }
    )


def daemon_conf(
    store: DesiredStore, daemon: MonDaemon | MgrDaemon | OsdDaemon, folder: DaemonFolder, socket: Path, address: str
) -> str:
    """One daemon's. `address` is the node's own, for all that do not have one in the cluster's map."""
    common = {
        **_identity(store),
        **_COMMON,
        **_DAEMON,
        "keyring": str(folder.keyring),
        "admin socket": str(socket),
        "run dir": str(socket.parent),
        "crash dir": str(folder.path / "crash"),
    }
    if not isinstance(daemon, MonDaemon):
        common |= {
            "public addr": address,
            "cluster addr": address,
            "ms bind port min": str(store.first_port + 1),
            "ms bind port max": str(store.first_port + PORTS),
        }
    return _text({"global": common, daemon.type: _special(daemon, folder)})


def _special(daemon: MonDaemon | MgrDaemon | OsdDaemon, folder: DaemonFolder) -> dict[str, str]:
    match daemon:
        case MonDaemon():
            # A monitor without a keyring of its own silently does without cephx, and three never form a quorum.
            own = {"mon data": str(folder.data), "public addrv": f"[v2:{daemon.address}]"}
            return {**_MON, **own, "keyring": str(folder.data / "keyring")}
        case MgrDaemon():
            return {**_MGR, "mgr data": str(folder.data)}
        case OsdDaemon():
            place = " ".join(f"{level}={bucket}" for level, bucket in daemon.crush.items())
            return {
                **_OSD,
                **(_SMALL_OSD if daemon.size_mib is not None else {}),
                "osd data": str(folder.data),
                "bluestore block path": daemon.path,
                "bluestore block create": "false",
                "crush location": place,
            }


def digest(conf: str) -> str:
    """What a running daemon's configuration is compared by.

    Not by where the monitors are or where in the CRUSH tree it is to be: it learns the one from the cluster, and the
    other is the cluster's to change; both are for its next start.
    """
    kept = [line for line in conf.splitlines() if not line.startswith(("mon host =", "crush location ="))]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def _identity(store: DesiredStore) -> dict[str, str]:
    return {"fsid": store.fsid, "mon host": store.mon_host}


def _text(sections: Mapping[str, Mapping[str, str]]) -> str:
    lines = []
    for name, options in sections.items():
        lines += [f"[{name}]", *(f"{key} = {value}".rstrip() for key, value in options.items()), ""]
    return "\n".join(lines)
