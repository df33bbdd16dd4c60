"""What an operator may tune. Every number has its unit in its name."""

from __future__ import annotations

from scloud.model.base import Value


class Settings(Value):
    node_grace_s: float = 5.0
    """How long a node may be without a connection before it counts as down."""
    gathering_s: float = 120.0
    """So long at most a new leader calls no node lost while others still come."""
    tick_s: float = 1.0
    """How often silence and deadlines are looked at."""
    network_settle_s: float = 20.0
    """How long an operation waits for the slowest connected node's switch; the node follows by itself after that."""
    event_days: float = 30.0
    operation_days: float = 30.0
    idempotency_hours: float = 24.0
    incident_days: float = 90.0
    """How long the story of a lost node is kept after it has returned."""
    relocation_look_s: float = 1.0
    """Between looks at a drain or a rebalance while VMs move; ten times as long while nothing can be done."""
    relocation_days: float = 30.0
    """How long it is kept what became of each VM of a drain or a rebalance."""
    trash_hours: float = 24.0
    """How long a deleted disk of a shared pool can be had back."""


ACTION_SECONDS: dict[str, float] = {
    "vm.create": 300.0,
    "vm.start": 120.0,
    "vm.stop": 120.0,
    "vm.reboot": 60.0,
    "vm.resize": 60.0,
    "vm.rebuild": 300.0,
    "vm.recover": 180.0,
    # As long as the memory of all its VMs takes.
    # One that is lost is cut off from its storage first.
    "node.delete": 120.0,
    "node.drain": 86400.0,
    "cluster.rebalance": 86400.0,
    "vm.migrate": 3600.0,
    "image.import": 3600.0,
    "disk.create": 60.0,
    "storage-cluster.create": 600.0,
    "storage-cluster.adopt": 120.0,
    "storage-cluster.device-add": 600.0,
    # Draining takes as long as the bytes take.
    "storage-cluster.device-remove": 7 * 86400.0,
    "storage-cluster.device-replace": 7 * 86400.0,
    "storage-cluster.node-remove": 7 * 86400.0,
    "storage-cluster.node-add": 300.0,
    "storage-cluster.repair": 6 * 3600.0,
    "storage-cluster.delete": 120.0,
    "pool.create": 300.0,
    "pool.delete": 120.0,
    "disk.rollback": 300.0,
    "disk.flatten": 3600.0,
    "disk.import": 86400.0,
    "disk.move": 86400.0,
    "snapshot.create": 120.0,
}
DEFAULT_SECONDS = 60.0


def seconds_for(action: str) -> float:
    """The deadline of an operation, from its beginning."""
    return ACTION_SECONDS.get(action, DEFAULT_SECONDS)
