"""The story of a node that was lost, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def story(incident: Mapping[str, Any]) -> dict[str, Any]:
    """An incident with `ms` since the last sign of life, and since the line before, for each moment."""
    moments, last = [], incident["began_at"]
    for moment in sorted(incident["moments"], key=lambda one: float(one["at"])):
        ms = (moment["at"] - incident["began_at"]) * 1000
        moments.append({**moment, "ms": round(ms), "since_ms": round((moment["at"] - last) * 1000)})
        last = moment["at"]
    return {**incident, "moments": moments}
