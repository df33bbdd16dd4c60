"""Redfish (DMTF DSP0266): what the BMCs of servers speak. Tried against sushy-tools' simulator, never hardware."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import ssl
from typing import Any
from urllib.parse import urlsplit

from scloud.drivers.bmc.protocol import BmcAccess
from scloud.model.errors import CloudError, ErrorKind

ANSWER_S = 10.0
LOOK_EVERY_S = 0.5
OFF_S = 45.0
SYSTEMS = "/redfish/v1/Systems"


class RedfishBmc:
    async def power_off(self, access: BmcAccess) -> None:
        """`ForceOff`, then asking until `PowerState` is `Off`: that it was asked to is no proof."""
        path = await self._system(access)
        if await self._is_off(access, path):
            return
        target = f"{path}/Actions/ComputerSystem.Reset"
        await asyncio.to_thread(_ask, access, "POST", target, {"ResetType": "ForceOff"})
        try:
            async with asyncio.timeout(OFF_S):
                while not await self._is_off(access, path):
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError as error:
            raise CloudError(
                ErrorKind.TIMED_OUT, f"the BMC at {access.url} took the order and has not switched off in {OFF_S:g} s"
            ) from error

    async def _system(self, access: BmcAccess) -> str:
        if access.system:
            return f"{SYSTEMS}/{access.system}"
        found = await asyncio.to_thread(_ask, access, "GET", SYSTEMS, None)
        members = [str(item.get("@odata.id", "")) for item in found.get("Members", [])]
        if len(members) != 1:
            raise CloudError(
                ErrorKind.INVALID, f"the BMC at {access.url} has {len(members)} systems; say which one is the node"
            )
        return members[0].rstrip("/")

    async def _is_off(self, access: BmcAccess, path: str) -> bool:
        return bool((await asyncio.to_thread(_ask, access, "GET", path, None)).get("PowerState") == "Off")


def _ask(access: BmcAccess, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """Blocking. The password is in no message."""
    parts = urlsplit(access.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CloudError(ErrorKind.INVALID, f"'{access.url}' is no http(s) address of a BMC")
    if parts.scheme == "https":
        context = ssl.create_default_context()
        if not access.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        link: http.client.HTTPConnection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=ANSWER_S, context=context
        )
    else:
        link = http.client.HTTPConnection(parts.hostname, parts.port, timeout=ANSWER_S)
    pass_ = base64.b64encode(f"{access.user}:{access.password}".encode()).decode()
    headers = {"Authorization": f"Basic {pass_}", "Accept": "application/json", "Content-Type": "application/json"}
    try:
        link.request(method, path, None if body is None else json.dumps(body), headers)
        answer = link.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise CloudError(ErrorKind.UNAVAILABLE, f"the BMC at {access.url} does not answer: {error}") from error
    finally:
        link.close()
    if answer.status in (401, 403):
        raise CloudError(ErrorKind.FORBIDDEN, f"the BMC at {access.url} does not take user '{access.user}'")
    if answer.status >= 300:
        raise CloudError(ErrorKind.ENGINE, f"the BMC at {access.url} answered {method} {path} with {answer.status}")
    try:
        found = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise CloudError(ErrorKind.ENGINE, f"the BMC at {access.url} does not speak JSON: {error}") from error
    return found if isinstance(found, dict) else {}
