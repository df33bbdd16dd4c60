"""Monitors: what the first ones agree on, and whether they answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from scloud.drivers.ceph.keyring import first_keyring
from scloud.drivers.ceph.layout import DaemonFolder, write
from scloud.drivers.ceph.run import run
from scloud.model.desired import DesiredStore, MonDaemon
from scloud.model.errors import CloudError, ErrorKind

LOOK_S = 1.0


async def make_monitor(store: DesiredStore, daemon: MonDaemon, folder: DaemonFolder) -> None:
    """The data a monitor begins with; what is half made is made anew. Its configuration is there already.

    All first monitors are given the same map and the same keys, and need nobody to begin: they look for one another
    when they run. One that comes later finds those of the map and joins them.
    """
    if folder.made.exists():
        return
    first = store.initial_monitors or ((daemon.name, daemon.address),)
    await run("rm", "-rf", str(folder.data))
    folder.data.mkdir(parents=True)
    monmap, keys = folder.path / "monmap", folder.path / "first.keyring"
    addresses = [part for name, address in sorted(first) for part in ("--addv", name, f"[v2:{address}]")]
    await run("monmaptool", "--create", "--clobber", "--fsid", store.fsid, *addresses, str(monmap))
    write(keys, first_keyring(store.mon_key, store.admin_key, store.bootstrap_key))
    await run(
        *("ceph-mon", "-c", str(folder.conf), "--mkfs", "-i", daemon.name),
        *("--monmap", str(monmap), "--keyring", str(keys)),
    )
    # With its key alone: the others are in the cluster's own database from here on.
    write(folder.data / "keyring", first_keyring(store.mon_key, "", ""))
    monmap.unlink()
    keys.unlink()
    write(folder.made, "")


async def silent(monitors: Sequence[tuple[str, str]]) -> list[str]:
    """Names of those of (name, IP:PORT) on whose port nobody listens."""

    async def asks(address: str) -> bool:
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(LOOK_S):
                _, writer = await asyncio.open_connection(host, int(port))
        except (OSError, TimeoutError, ValueError):
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    answers = await asyncio.gather(*(asks(address) for _, address in monitors))
    return [name for (name, _), answer in zip(monitors, answers, strict=True) if not answer]


async def waiting_for(store: DesiredStore, error: CloudError) -> CloudError:
    """The same error in words that say who is missing, where it is only that."""
    if error.kind is not ErrorKind.UNAVAILABLE:
        return error
    missing = await silent(store.initial_monitors)
    total = len(store.initial_monitors)
    if not missing:
        return CloudError(ErrorKind.UNAVAILABLE, f"waiting for the {total} monitors to form a quorum")
    names = ", ".join(missing)
    return CloudError(ErrorKind.UNAVAILABLE, f"waiting for {len(missing)} of {total} monitors: {names}")
