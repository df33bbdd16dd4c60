"""A lab's storage cluster, looked at through the API and through its processes."""

from __future__ import annotations

import time
from typing import Any

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

    def healthy(self, seconds: float = 120.0, osds: int | None = None) -> float:
        """Wait until all OSDs are up and nothing is amiss; seconds that it took."""
        began, since = time.monotonic(), time.time()

        def look() -> bool:
            cluster = self.show()
            up = sum(osd["up"] for osd in cluster["status"]["osds"])
            # What was seen before is of another time.
            fresh = cluster["status"]["observed_at"] > since
            return fresh and not troubles(cluster) and osds in (None, up)

        until(look, "a healthy cluster", seconds)
        return time.monotonic() - began

    def returned(self, name: str, pid: int, seconds: float = 30.0) -> float:
        """Wait until a daemon runs as another process; seconds that it took."""
        began = time.monotonic()
        until(lambda: self.daemons().get(name, ("", pid))[1] != pid, f"{name} runs again", seconds)
        return time.monotonic() - began
