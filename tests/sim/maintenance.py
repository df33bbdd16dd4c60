"""What an operator asks for: nodes drained and opened, the cluster evened out. Each in one transaction."""

from __future__ import annotations

from random import Random
from typing import Any

from scloud.api.context import accepted
from scloud.controllers import node_removal
from scloud.controllers.rebalancing import rebalancing
from scloud.controllers.relocation import drain
from scloud.controllers.relocation import rebalance as runs
from scloud.model.kinds import Kind
from scloud.model.relocations import RelocationSettings
from scloud.model.specs import NodeSpec
from scloud.store.database import Tx
from scloud.store.resources import all_of, find


def drain_one(tx: Tx, rng: Random) -> dict[str, Any]:
    row = rng.choice(all_of(tx, Kind.NODE))
    return accepted(drain.begin(tx, row, "operator"), row)


def undrain_one(tx: Tx, rng: Random) -> None:
    draining = [row for row in all_of(tx, Kind.NODE) if row.spec_as(NodeSpec).draining]
    if draining:
        drain.undo(tx, rng.choice(draining), "operator", cancel=rng.random() < 0.5)


def rebalance(tx: Tx, rng: Random) -> dict[str, Any] | None:
    """Mostly one is begun; else the one under way is stopped, or they come by themselves from now on, or no more."""
    [cluster] = all_of(tx, Kind.CLUSTER)
    what = rng.random()
    if what < 0.2:
        runs.stop(tx, cluster)
        return None
    if what < 0.4:
        every = rng.choice([0, 10])
        runs.set_settings(tx, cluster, RelocationSettings(at_once=2, rebalance_every_s=every))
        return None
    op = runs.begin(tx, cluster, rebalancing(tx, cluster, {}, 4), "operator")
    return accepted(op, cluster) if op is not None else None


def declare_lost(tx: Tx, node: str) -> dict[str, Any] | None:
    """A node that is silent is taken out of the cloud by force, whether it runs on or not."""
    row = find(tx, node)
    if row is None:
        return None
    return accepted(node_removal.ask(tx, row, alive=False, force=True), row)


def stop_by_itself(tx: Tx) -> None:
    """No more rebalances by schedule: the story is to come to an end."""
    for cluster in all_of(tx, Kind.CLUSTER):
        runs.set_settings(tx, cluster, RelocationSettings(at_once=2, rebalance_every_s=0))
