"""A lab's storage cluster, looked at through the API and through its processes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rados

from lab.cloud import Lab, until
from scloud.lab.storage import CLUSTER, troubles


class Storage:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def show(self) -> dict[str, Any]:
        return self.lab.show("storage-clusters", CLUSTER)

    def daemons(self) -> dict[str, tuple[str, int]]:
        """Name to (node, pid) of every daemon that runs."""
        found = [p for p in self.lab.status()["processes"] if p["daemon"]]
        assert len({p["daemon"] for p in found}) == len(found), f"something runs twice: {found}"
        return {p["daemon"]: (p["node"], p["pid"]) for p in found}

    @contextmanager
    def access(self, node: str) -> Iterator[Any]:
        """A connection to the cluster as a node has it, with the node's own key; it ends."""
        (conf,) = (self.lab.node_root(node) / "ceph").glob("*/ceph.conf")
        options = {"client_mount_timeout": "10", "rados_mon_op_timeout": "10", "rados_osd_op_timeout": "30"}
        with rados.Rados(name=f"client.scloud-{node}", conffile=str(conf), conf=options) as handle:
            yield handle

    def pool(self, name: str) -> str:
        """What Ceph calls a pool."""
        return str(self.lab.show("pools", name)["spec"]["rados_name"])

    def primary(self, pool: str, name: str) -> str:
        """The OSD that writes to an object of a pool go to, as `osd.3`."""
        with self.access("n1") as handle:
            ask = {"prefix": "osd map", "pool": pool, "object": name, "format": "json"}
            code, out, words = handle.mon_command(json.dumps(ask), b"")
        assert code == 0, words
        return f"osd.{json.loads(out)['acting_primary']}"

    def truth(self) -> dict[str, Any]:
        """What the cluster itself says at this moment, asked with a node's own key; nothing if it does not answer."""
        said = self._status("-f", "json")
        found: dict[str, Any] = json.loads(said) if said else {}
        return found

    def active_mgr(self) -> str | None:
        """The manager daemon of the cluster that works, as `mgr.n1`; the other waits for its end. None if there is
        none, or nobody answers. It is in the words for people alone."""
        match = re.search(r"mgr: (\S+)\(active", self._status())
        return f"mgr.{match[1]}" if match else None

    def _status(self, *options: str) -> str:
        conf = next((self.lab.node_root("n1") / "ceph").glob("*/ceph.conf"))
        ask = ("ceph", "-c", str(conf), "-n", "client.scloud-n1", "--connect-timeout", "10", "status", *options)
        done = self.lab.scloud("lab", "exec", "n1", "--", *ask)
        return done.out if done.code == 0 else ""

    def healthy(self, seconds: float = 120.0, osds: int | None = None) -> float:
        """Wait until all OSDs are up and nothing is amiss, by its own account and by ours; seconds that it took."""
        began = time.monotonic()

        def by_itself() -> bool:
            said = self.truth()
            if not said:
                return False
            total, up = said["osdmap"]["num_osds"], said["osdmap"]["num_up_osds"]
            clean = {item["state_name"] for item in said["pgmap"]["pgs_by_state"]} == {"active+clean"}
            whole = len(said["quorum"]) == said["monmap"]["num_mons"] and said["mgrmap"]["available"]
            # How slow the OSDs' pings were is an average over a minute: it says how things were.
            amiss = [name for name in said["health"]["checks"] if not name.startswith("OSD_SLOW_PING_TIME")]
            return bool(not amiss and up == total == (osds or total) and clean and whole)

        def by_us() -> bool:
            cluster = self.show()
            up = sum(osd["up"] for osd in cluster["status"]["osds"])
            found = cluster["status"]["conditions"]
            cluster["status"]["conditions"] = [one for one in found if one["name"] != "slow-network"]
            return not troubles(cluster) and osds in (None, up)

        until(by_itself, "a healthy cluster", seconds)
        until(by_us, "the manager calls the cluster healthy", seconds)
        return time.monotonic() - began

    def returned(self, name: str, pid: int, seconds: float = 30.0) -> float:
        """Wait until a daemon runs as another process; seconds that it took."""
        began = time.monotonic()
        until(lambda: self.daemons().get(name, ("", pid))[1] != pid, f"{name} runs again", seconds)
        return time.monotonic() - began
