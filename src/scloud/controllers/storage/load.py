"""All that the database has of one storage cluster, read in one transaction."""

from __future__ import annotations

from dataclasses import dataclass

from scloud.controllers.storage import rows
from scloud.controllers.storage.rows import PoolRow
from scloud.model.kinds import Kind, State
from scloud.model.storage import StorageClusterSpec, StorageClusterStatus
from scloud.reconcile.ceph.auth import BOOTSTRAP_OSD, MANAGER, Entity, client_caps
from scloud.reconcile.ceph.devices import crowded_out
from scloud.reconcile.ceph.layout import Site, spots
from scloud.reconcile.ceph.view import View
from scloud.store.database import Tx
from scloud.store.resources import Resource, find
from scloud.store.secrets import secrets_of


@dataclass(frozen=True)
class Load:
    row: Resource
    spec: StorageClusterSpec
    status: StorageClusterStatus
    secrets: dict[str, str]
    sites: dict[str, Site]
    """Those of the spec's nodes that are still part of the cloud."""
    pools: list[PoolRow]

    @property
    def deployed(self) -> bool:
        return self.spec.mode == "deployed"

    @property
    def leaving(self) -> bool:
        return self.row.gone or self.row.state == State.DELETING

    @property
    def pool_names(self) -> list[str]:
        """Inside the cluster, of those that are to stay."""
        return sorted(name for pool in self.pools if not pool.leaving for name in pool.names)

    @property
    def admitted(self) -> list[str]:
        """Its nodes but for those that are cut off."""
        return [node for node in self.sites if rows.fenced_secret(node) not in self.secrets]

    def in_place(self, view: View) -> set[str]:
        """Uuids of devices to be replaced whose data have nowhere else to go, or no room there."""
        left = spots(self.spec.devices, self.sites)
        found = rows.filled_in_place(self.spec.devices, left, (p.spec for p in self.pools if not p.leaving))
        # Dead in two looks: one that only begins anew is back before the next.
        dead = {osd.uuid for osd in view.osds if not osd.up} & rows.dead(self.status)
        return found | crowded_out(self.spec.devices, dead, any("toofull" in state for state in view.pg_states))

    def names(self, nodes: tuple[str, ...]) -> list[str]:
        return [self.sites[node].name for node in nodes if node in self.sites]

    def clients(self) -> dict[str, Entity]:
        """By node: its client as it is to be."""
        caps = client_caps(self.pool_names)
        found = {}
        for node in self.admitted:
            client = rows.client_of(self.secrets, node)
            if client is not None:
                found[node] = Entity(f"client.{client[0]}", client[1], caps)
        return found

    def entities(self) -> list[Entity]:
        wanted = list(self.clients().values())
        if self.deployed:
            wanted.append(Entity("client.bootstrap-osd", self.secrets[rows.BOOTSTRAP], BOOTSTRAP_OSD))
            wanted += [
                Entity(f"mgr.{self.sites[node].name}", self.secrets[rows.mgr_secret(node)], MANAGER)
                for node in self.spec.managers
                if node in self.sites
            ]
        return wanted

    def former_clients(self) -> dict[str, str]:
        """By node: entities of nodes that are no longer part of the cluster, or cut off; or all once it is let go."""
        found = {}
        for name in self.secrets:
            kind, _, node = name.partition("/")
            client = rows.client_of(self.secrets, node) if kind == "client" else None
            if client is not None and (node not in self.admitted or self.leaving):
                found[node] = f"client.{client[0]}"
        return found


def load(tx: Tx, id: str) -> Load | None:
    row = find(tx, id, gone=True)
    if row is None or row.kind != Kind.STORAGE_CLUSTER:
        return None
    spec = row.spec_as(StorageClusterSpec)
    return Load(
        row=row,
        spec=spec,
        status=row.status_as(StorageClusterStatus),
        secrets=secrets_of(tx, id),
        sites=rows.sites_of(tx, spec.nodes),
        pools=rows.pools_of(tx, id),
    )
