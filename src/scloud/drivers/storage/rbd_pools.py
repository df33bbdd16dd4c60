"""Opens the pools that a node is told of."""

from __future__ import annotations

from pathlib import Path

from scloud.drivers.ceph.conf import client_conf
from scloud.drivers.storage.rbd import RadosPool, RbdStorage
from scloud.drivers.storage.rbd_cluster import Cluster, ClusterAccess
from scloud.model.desired import DesiredStore, StorePool


class RbdPools:
    """One connection for each way to reach a cluster. `folder` is where each cluster has its own, with QEMU's conf."""

    def __init__(self, node: str, folder: Path) -> None:
        self._node = node
        self._folder = folder
        self._clusters: dict[ClusterAccess, Cluster] = {}

    def open(self, store: DesiredStore, pool: StorePool) -> RbdStorage:
        access = ClusterAccess(self._node, store.cluster, store.mon_host, store.client, store.client_key)
        cluster = self._clusters.get(access)
        if cluster is None or cluster.closed:
            cluster = self._clusters[access] = Cluster(access)
        return RbdStorage(cluster, RadosPool(pool.name, pool.data_name), self._conf(store))

    def _conf(self, store: DesiredStore) -> Path:
        """Options without which a guest stands still for 15 s when an OSD dies. The key is libvirt's to give."""
        path = self._folder / store.cluster / "qemu.conf"
        text = client_conf(store, Path("/dev/null"))
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            fresh.write_text(text)
            fresh.replace(path)
        return path
