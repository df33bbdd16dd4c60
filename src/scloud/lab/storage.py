"""`lab up --ceph`: a storage cluster on the lab's nodes, made through the REST API as any other, and a pool in it."""

from __future__ import annotations

import time
from typing import Any

from scloud.client.http import Client
from scloud.lab.plan import LabPlan
from scloud.model.errors import CloudError, ErrorKind
from scloud.setup.defaults import ensure, find
from scloud.setup.steps import Steps

CLUSTER, POOL, DISK_TYPE = "ceph", "standard", "standard"
OSDS_PER_NODE = 2
OSD_MIB = 10 * 1024
"""Of sparse files: what is not written occupies nothing."""
CLUSTER_TIMEOUT_S = 300.0
POOL_TIMEOUT_S = 120.0
_LOOK_S = 0.1


def make_storage(steps: Steps, plan: LabPlan, client: Client) -> None:
    """Cluster, pool and disk type; those that are there stay as they are."""
    with steps.step("Storage cluster") as step:
        _, made = ensure(client, "storage-clusters", CLUSTER, cluster_spec(plan), CLUSTER_TIMEOUT_S)
        if not made:
            step.already()
        step.say(describe(wait_healthy(client)))
    with steps.step("Pool and disk type") as step:
        spec = {"cluster": CLUSTER, "redundancy": f"replica:{min(3, len(plan.nodes))}", "fault_domain": "host"}
        pool, made_pool = ensure(client, "pools", POOL, spec, POOL_TIMEOUT_S)
        _, made_type = ensure(client, "disk-types", DISK_TYPE, {"pool": POOL})
        if not made_pool and not made_type:
            step.already()
        step.say(f"{POOL}: {pool['spec']['redundancy']} over hosts")


def cluster_spec(plan: LabPlan) -> dict[str, Any]:
    """Two OSDs a node, in files below the node's own folder: the nodes of a lab share one file system."""
    devices = [
        {"node": node, "path": str(plan.sandbox(node).root / "osds" / f"osd-{number}.img"), "size_mib": OSD_MIB}
        for node in plan.nodes
        for number in range(1, OSDS_PER_NODE + 1)
    ]
    return {"nodes": list(plan.nodes), "devices": devices}


def wait_healthy(client: Client) -> dict[str, Any]:
    """The cluster, once every OSD is up and nothing about it is amiss. The error says what is."""
    deadline = time.monotonic() + CLUSTER_TIMEOUT_S
    while True:
        cluster = find(client, "storage-clusters", CLUSTER) or {}
        amiss = troubles(cluster)
        if not amiss:
            return cluster
        if time.monotonic() > deadline:
            raise CloudError(
                ErrorKind.TIMED_OUT,
                f"storage cluster {CLUSTER} is not healthy after {CLUSTER_TIMEOUT_S:g} s: {'; '.join(amiss)}",
            )
        # The API has no way to wait for a cluster's health.
        time.sleep(_LOOK_S)


def troubles(cluster: dict[str, Any]) -> list[str]:
    """What is not as it should be, in words."""
    status, spec = cluster.get("status", {}), cluster.get("spec", {})
    if status.get("state") != "ready":
        return [status.get("reason") or f"it is {status.get('state', 'not there')}"]
    up = sum(osd["up"] for osd in status.get("osds", []))
    wanted = len(spec.get("devices", []))
    amiss = [f"{up} of {wanted} OSDs are up"] if up < wanted else []
    return amiss + [item["message"] for item in status.get("conditions", []) if item["level"] != "info"]


def describe(cluster: dict[str, Any]) -> str:
    """The cluster in words."""
    status = cluster["status"]
    total = status.get("capacity", {}).get("total_mib", 0) // 1024
    return f"{len(status.get('monitors_up', []))} monitors, {len(status.get('osds', []))} OSDs, {total} GiB, healthy"
