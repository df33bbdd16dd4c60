"""Nodes that are lost, in the manager's tests: a pool that they have keys for, and how its storage answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from scloud.controllers import node_state
from scloud.controllers.storage import rows
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.ha import Incident, IncidentState
from scloud.model.storage import PoolSpec, PoolStatus
from scloud.store import incidents, secrets
from scloud.store.database import Tx
from scloud.store.resources import find, save
from support.node import ScriptedNode
from support.pools import make_pool

KEY = "a2V5"


def make_reached_pool(tx: Tx, nodes: Sequence[str], type_: str = "standard") -> str:
    """As `make_pool`, with a key for each node, and the pool seen in its cluster. The storage cluster's id."""
    pool = find(tx, make_pool(tx, nodes, type_))
    assert pool is not None
    save(tx, pool, status=pool.status_as(PoolStatus).model_copy(update={"observed_generation": 1}))
    cluster = pool.spec_as(PoolSpec).cluster
    for node in nodes:
        secrets.put(tx, cluster, rows.client_secret(node), f"{node}:{KEY}")
        secrets.put(tx, cluster, rows.granted_secret(node), json.dumps(["p"]))
    return cluster


class Storage:
    """What the living nodes hear of their storage: it takes keys away and cuts sessions off, or does not answer.

    `calls` are (method, storage cluster or node it is about, node that was asked), in the order they came.
    """

    def __init__(self, nodes: Iterable[ScriptedNode]) -> None:
        self.keys = self.sessions = self.bmc = True
        self.key = KEY
        """The one that the storage has for each node."""
        self.calls: list[tuple[str, str, str]] = []
        for node in nodes:
            node.answers |= {
                "ceph_command": lambda params, of=node.name: self._command(params, of),
                "fence": lambda params, of=node.name: self._fence(params, of),
                "unfence": lambda params: {},
                "evict": lambda params: [f"vm/{vm}" for vm in params["vms"]],
                "power": lambda params, of=node.name: self._power(params, of),
            }

    def _command(self, params: dict[str, Any], of: str) -> Any:
        command = params["command"]
        if command["prefix"] == "auth get-key":
            return {"key": self.key}
        if command["prefix"] != "auth del":
            raise CloudError(ErrorKind.UNAVAILABLE, "this storage is asked for nothing else")
        self.calls.append(("auth del", params["cluster"], of))
        if not self.keys:
            raise CloudError(ErrorKind.UNAVAILABLE, "no quorum of the monitors answers")
        return ""

    def _fence(self, params: dict[str, Any], of: str) -> Any:
        self.calls.append(("fence", params["node"], of))
        if not self.sessions:
            raise CloudError(ErrorKind.UNAVAILABLE, "no OSD answers")
        return {}

    def _power(self, params: dict[str, Any], of: str) -> Any:
        self.calls.append(("power", params["url"], of))
        if not self.bmc:
            raise CloudError(ErrorKind.UNAVAILABLE, "the BMC does not answer")
        return {}

    def asked(self, method: str) -> list[str]:
        """By whom, each time."""
        return [of for name, _, of in self.calls if name == method]


def declare(tx: Tx, node: ScriptedNode) -> str:
    """An incident as a verdict begins one; its id."""
    incident = Incident(
        id=tx.new_id("inc"), node=node.id, node_name=node.name, state=IncidentState.FENCING, began_at=tx.now
    )
    node_state.lost(tx, node.id, 0.0)
    return incidents.save(tx, incident).id
