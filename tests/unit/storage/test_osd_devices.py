"""Devices of OSDs that fail: what is said names them, and what is dead can be given up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scloud.drivers.ceph.layout import DaemonFolder
from scloud.drivers.ceph.osds import give_back, make_osd
from scloud.model.desired import OsdDaemon
from scloud.model.errors import CloudError, ErrorKind

UUID = "6a7d2b1c-0000-4000-8000-000000000001"
DEAD = "/proc/self/mem"
"""Answers a read of its beginning with EIO, as a dead device does."""


@pytest.fixture
def folder(tmp_path: Path) -> DaemonFolder:
    found = DaemonFolder(tmp_path / f"osd.{UUID}")
    found.path.mkdir()
    return found


async def test_an_osd_that_cannot_be_made_names_its_device(folder: DaemonFolder) -> None:
    osd = OsdDaemon(uuid=UUID, key="k", path="/proc/none/disk.img", size_mib=64, media="ssd", crush={"host": "n1"})
    with pytest.raises(CloudError, match=r"the device /proc/none/disk\.img cannot be written: ") as failed:
        await make_osd(osd, "fsid", 3, folder)
    assert failed.value.kind is ErrorKind.ENGINE


def test_an_osd_on_a_dead_device_is_given_up(folder: DaemonFolder) -> None:
    folder.device.write_text(json.dumps({"path": DEAD, "file": False}))
    give_back(folder)
    assert not folder.path.exists()


def test_a_device_that_is_there_and_cannot_be_wiped_is_kept(folder: DaemonFolder, tmp_path: Path) -> None:
    folder.device.write_text(json.dumps({"path": str(tmp_path), "file": False}))
    with pytest.raises(CloudError, match=f"the device {tmp_path} of osd.{UUID} cannot be wiped: Is a directory"):
        give_back(folder)
    assert folder.path.exists()
