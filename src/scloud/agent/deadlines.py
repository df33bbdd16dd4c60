"""How long each class of step may take on a node. One table; nothing the agent awaits from an engine is without one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Literal, TypeVar

from scloud.model.errors import CloudError, ErrorKind

Step = Literal[
    "query",
    "start",
    "power",
    "plug",
    "disk",
    "delete",
    "image",
    "switch",
    "flows",
    "services",
    "daemons",
    "connect",
    "fence",
]

DEADLINES_S: dict[Step, float] = {
    "query": 10.0,  # reading state from libvirt, the switch or the storage
    "start": 60.0,  # QEMU's start, with hundreds of others going on
    "power": 20.0,  # asking, resetting, switching off: libvirt gives QEMU 15 s to die
    "plug": 45.0,  # hot plug; the driver itself gives a guest 20 s to let go of a device
    "disk": 1800.0,  # copying an image's bytes into a disk
    "delete": 300.0,  # freeing a large sparse file
    "image": 3600.0,  # fetching an image over the link
    "switch": 15.0,  # one port
    "flows": 60.0,  # a whole node's flows: 100,000 take 3-8 s
    "services": 30.0,  # a namespace, its veth and dnsmasq
    "daemons": 300.0,  # monitors, managers and OSDs of a node, made and started; a device's wiping
    "fence": 60.0,  # cutting a node off: a dead primary OSD is waited for until it is known to be dead
    "connect": 10.0,  # a guest's TCP port, the manager
}
T = TypeVar("T")


async def within(step: Step, what: str, awaitable: Awaitable[T]) -> T:
    """The result, or `CloudError(TIMED_OUT)` naming `what` (such as "starting vm-1")."""
    limit = DEADLINES_S[step]
    scope = asyncio.timeout(limit)
    try:
        async with scope:
            return await awaitable
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise CloudError(ErrorKind.TIMED_OUT, f"{what} took longer than {limit:g} s") from error
