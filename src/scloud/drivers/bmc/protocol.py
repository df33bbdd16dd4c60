"""Switching a machine off from outside, by its baseboard management controller."""

from __future__ import annotations

from typing import Protocol

from scloud.model.base import Value


class BmcAccess(Value):
    """`url` is the Redfish service's, such as https://10.0.9.11; `system` the machine's id there, or "" for the only
    one. `verify` says whether its certificate is checked."""

    url: str
    user: str
    password: str
    system: str = ""
    verify: bool = True


class Bmc(Protocol):
    async def power_off(self, access: BmcAccess) -> None:
        """Returns when the BMC itself says that the machine is off. `CloudError(ENGINE | UNAVAILABLE | TIMED_OUT)`."""
        ...
