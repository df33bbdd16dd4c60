"""One local nic's port on the node's switch: desired state and what is -> the one thing to do next. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from scloud.model.desired import DesiredPort
from scloud.model.observed import Observed


@dataclass(frozen=True, slots=True)
class PortSituation:
    """`ofport` is the number allocated to the nic, `actual` the number its tap has on the switch, None where it is not.

    `open_by` is the running VM whose domain has the nic; `wanted_by` the running VM that is to have it. `flowing` says
    whether the flows now in the switch were made with this very port as it is desired and tapped.
    """

    ofport: int | None
    actual: int | None
    flowing: bool
    open_by: str | None = None
    wanted_by: str | None = None


@dataclass(frozen=True, slots=True)
class AddTap:
    """Allocate a number if there is none, and put the tap on the switch with it."""


@dataclass(frozen=True, slots=True)
class RemoveTap:
    """Take the tap off the switch, then free its number."""


@dataclass(frozen=True, slots=True)
class PortPlan:
    observed: Observed
    action: AddTap | RemoveTap | None = None
    wired: bool = False
    """The nic can be given to a guest: tap and flows are in place."""


def port_plan(desired: DesiredPort, at: PortSituation) -> PortPlan:
    """The tap of a running guest is not removed before the guest has let go of it."""
    if desired.absent:
        if at.actual is None and at.ofport is None:
            return PortPlan(_observed(desired, "absent", settled=True))
        if at.open_by is not None:
            reason = f"waiting for {at.open_by} to let go of it, to be removed"
            return PortPlan(_observed(desired, "working", settled=False, reason=reason))
        return PortPlan(_observed(desired, "working", settled=False, reason="being removed"), RemoveTap())
    if at.ofport is None or at.actual != at.ofport:
        return PortPlan(_observed(desired, "working", settled=False, reason="being made"), AddTap())
    if not at.flowing:
        return PortPlan(_observed(desired, "working", settled=False, reason="waiting for its flows"))
    reason = ""
    if at.open_by is not None and at.open_by != at.wanted_by:
        reason = f"being detached from {at.open_by}"
    elif at.wanted_by is not None and at.open_by is None:
        reason = f"being attached to {at.wanted_by}"
    return PortPlan(_observed(desired, "ready", settled=not reason, reason=reason), wired=True)


def _observed(desired: DesiredPort, state: str, *, settled: bool, reason: str = "") -> Observed:
    return Observed.model_validate(
        {
            "key": f"port/{desired.id}",
            "generation": desired.generation,
            "state": state,
            "settled": settled,
            "reason": reason,
        }
    )
