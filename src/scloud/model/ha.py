"""High availability: what may be tuned, and what is remembered of a node that was lost."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from scloud.model.base import Value


class HaProfile(StrEnum):
    """`default` is patient: 50 missed checks, then ten probes. `fast` declares a node dead within ten seconds."""

    DEFAULT = "default"
    FAST = "fast"


LEAST_CHECK_S, LEAST_SILENCE_S = 0.5, 2.0
"""Agents send a heartbeat every second: what looks more often, or is content with less silence, suspects everybody."""


class HaSettings(Value):
    """When a node counts as dead, and when its agent gives its VMs up by itself. Of a cluster of nodes."""

    enabled: Annotated[bool, Field(strict=True)] = True
    check_s: Annotated[float, Field(ge=0.2, le=60.0)] = 1.0
    """Seconds between health checks; at least `LEAST_CHECK_S`, and `LEAST_SILENCE_S` together with `misses`."""
    misses: Annotated[int, Field(strict=True, ge=2, le=3600)] = 50
    """Checks in a row that have to fail before other nodes probe."""
    probes: Annotated[int, Field(strict=True, ge=1, le=100)] = 10
    """Layer-2 probes that each prober sends on each network."""
    probe_interval_s: Annotated[float, Field(ge=0.1, le=10.0)] = 0.4
    max_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """When more than this share of the nodes that were there is missing at once, nothing is recovered."""
    lease_s: Annotated[float, Field(ge=2.0, le=600.0)] = 30.0
    """Seconds after which a node that reaches neither the manager nor its storage stops its VMs with shared disks."""

    @property
    def detection_s(self) -> float:
        """From the last sign of life to the verdict."""
        return self.misses * self.check_s + self.probes * self.probe_interval_s


PROFILES: dict[HaProfile, HaSettings] = {
    HaProfile.DEFAULT: HaSettings(),
    HaProfile.FAST: HaSettings(check_s=0.5, misses=8, probes=5, probe_interval_s=0.4, lease_s=4.0),
}


class IncidentState(StrEnum):
    """`fencing` until it is certain that the node runs nothing; `recovering` until every VM that can be is placed and
    running; `waiting` while some find no room; `recovered` while nothing is left to do but the node's return."""

    FENCING = "fencing"
    RECOVERING = "recovering"
    WAITING = "waiting"
    RECOVERED = "recovered"
    CLOSED = "closed"


class Moment(Value):
    """One line of an incident's story; `at` is seconds since 1970."""

    at: float
    what: Literal[
        "heard", "missed", "suspected", "probed", "dead", "declared", "fencing", "key", "power", "fenced", "failed",
        "placed", "running", "left", "waiting", "recovered", "back", "cleaned", "let in", "closed",
    ]  # fmt: skip
    text: str


class VmRecovery(Value):
    """What became of one VM of the lost node. `running_at` is seconds since 1970."""

    vm: str
    name: str
    state: Literal["pending", "placed", "running", "stopped", "left", "waiting", "gone"]
    node: str | None = None
    """The name of the node that it was placed on."""
    reason: str = ""
    placed_at: float | None = None
    running_at: float | None = None


class Incident(Value):
    """A node that was lost, from the last sign of life to its return."""

    id: str
    node: str
    node_name: str
    state: IncidentState
    reason: str = ""
    began_at: float
    ended_at: float | None = None
    attempted: bool = False
    """Something was done to cut the node off: from then on it has to be let in when it is back."""
    keys: tuple[str, ...] = ()
    """Storage clusters that take the node's key no more."""
    cut: tuple[str, ...] = ()
    """Storage clusters in which every session of the node is cut off."""
    power_off: bool = False
    """Its BMC has said that the machine is off."""
    fenced: bool = False
    """All of them: nothing of the node can write to shared disks until it is let in."""
    removing: bool = False
    """An administrator has declared it lost: it is taken out of the cloud as soon as it is cut off."""
    moments: tuple[Moment, ...] = ()
    vms: tuple[VmRecovery, ...] = ()

    @property
    def open(self) -> bool:
        return self.state != IncidentState.CLOSED
