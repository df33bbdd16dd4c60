"""Each VM's NoCloud disk, written anew before every start."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from scloud.images.nocloud import Seed, seed_image
from scloud.model.desired import DesiredPort, DesiredVm


def seed_of(vm: DesiredVm, ports: Sequence[DesiredPort]) -> Seed:
    """What a VM is told of itself; the same as the metadata service tells."""
    return Seed(
        instance_id=vm.id,
        hostname=vm.name,
        keys=vm.keys,
        user_data=vm.user_data,
        macs=tuple(port.mac for port in ports),
    )


class SeedFolder:
    """ISO images in a folder, one a VM, each written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def build(self, vm: DesiredVm, ports: Sequence[DesiredPort]) -> Path:
        return await asyncio.to_thread(self._write, vm.id, seed_of(vm, ports))

    async def remove(self, vm: str) -> None:
        await asyncio.to_thread(self._path(vm).unlink, missing_ok=True)

    def _path(self, vm: str) -> Path:
        return self._folder / f"{vm}.iso"

    def _write(self, vm: str, seed: Seed) -> Path:
        path = self._path(vm)
        data = seed_image(seed)
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        # user data may hold secrets
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        return path
