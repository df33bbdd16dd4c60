"""A standby's copies of the leader's images, so that it has them when it leads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import OperationalError

from scloud.link import channel
from scloud.link.images import receive_image
from scloud.link.pki import ClientFiles
from scloud.model.errors import CloudError
from scloud.model.kinds import Kind, State
from scloud.model.statuses import ImageStatus
from scloud.standby.relay import Address
from scloud.store.database import Store
from scloud.store.resources import all_of

log = logging.getLogger(__name__)
LOOK_S = 2.0


async def keep_copies(
    store: Store, path_of: Callable[[str], Path], leader: Callable[[], Address | None], files: ClientFiles
) -> None:
    """Fetch every image that is ready and not here, until cancelled."""
    while True:
        with contextlib.suppress(CloudError, OperationalError):
            rows = await store.read(lambda tx: all_of(tx, Kind.IMAGE))
            for row in rows:
                target = leader()
                if row.state == State.READY and target is not None and not path_of(row.id).exists():
                    await _fetch(row.id, row.status_as(ImageStatus).sha256, path_of(row.id), target, files)
        await asyncio.sleep(LOOK_S)


async def _fetch(image: str, sha256: str, path: Path, leader: Address, files: ClientFiles) -> None:
    part = path.with_suffix(".copy")
    part.unlink(missing_ok=True)
    try:
        connection = await channel.dial(*leader, files.context())
        try:
            await receive_image(connection, image, part, sha256)
            part.replace(path)
            log.info("image %s is here, too", image)
        finally:
            await connection.close()
    except (OSError, CloudError) as error:
        log.info("image %s could not be copied: %s; it is tried again", image, error)
        part.unlink(missing_ok=True)
