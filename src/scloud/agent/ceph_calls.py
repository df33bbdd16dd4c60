"""Commands of the manager to a storage cluster, passed on by this node. Keys are in memory only, and in no log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from scloud.drivers.ceph.protocol import Access, CephControl
from scloud.model.base import Value
from scloud.model.errors import invalid


class Command(Value):
    """The parameters of `ceph_command`. `data` is what some commands take besides, such as a keyring."""

    cluster: str
    fsid: str
    mon_host: str
    user: str
    key: str
    target: str = "mon"
    command: dict[str, Any]
    data: str = ""
    timeout_s: float = 30.0


class CephCalls:
    def __init__(self, control: CephControl) -> None:
        self._control = control

    async def command(self, params: Mapping[str, Any]) -> Any:
        """The command's answer: JSON, or text where the cluster gives no JSON."""
        try:
            asked = Command.model_validate(dict(params))
        except ValidationError as error:
            # Without the input: it holds a key.
            first = error.errors(include_input=False, include_url=False)[0]
            raise invalid(".".join(map(str, first["loc"])) or "params", str(first["msg"])) from None
        access = Access(cluster=asked.cluster, fsid=asked.fsid, mon_host=asked.mon_host, user=asked.user, key=asked.key)
        return await self._control.command(access, asked.target, asked.command, asked.data.encode(), asked.timeout_s)
