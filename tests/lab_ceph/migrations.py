"""Migrations as their operations tell of them."""

from __future__ import annotations

from typing import Any

from scloud.client.http import Client
from scloud.model.errors import CloudError, ErrorKind


def ended_in(client: Client, operation: str) -> dict[str, Any] | None:
    """The operation at its end; None while it is under way, or no manager answers."""
    try:
        found: dict[str, Any] = client.get(f"/operations/{operation}")
    except CloudError as error:
        assert error.kind is ErrorKind.UNAVAILABLE, error
        return None
    return found if found["state"] in ("done", "failed", "cancelled") else None
