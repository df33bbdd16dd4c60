"""Disks of a node's own storage that come along with a VM from another node, or have gone along with it."""

from __future__ import annotations

import asyncio

import pytest
from agent_clock import run
from agent_node import Node, disk, group, port, running_node, vm, vm_id, vpc

from scloud.drivers.storage.fake import FakeStorage
from scloud.model.desired import DesiredVm, MoveIn, key_of
from scloud.model.migrations import DiskCopy

VM = vm_id(1)
KEY = f"vm/{VM}"
DISK = disk(1).id
SIZE_MIB = 8


async def left_here(node: Node) -> None:
    """Bytes of an earlier attempt, or of the time when this node had the disk."""
    await FakeStorage(node.disk).create(DISK, SIZE_MIB, None, 0)
    node.disk.volumes[DISK].rolled_back = 7


def coming() -> DesiredVm:
    copy = DiskCopy(disk=DISK, size_mib=SIZE_MIB)
    move = MoveIn(number=1, source="nod-0000000000000002", pools={}, copies=(copy,))
    return vm(1, nics=(), move_in=move)


def gone() -> DesiredVm:
    return vm(1, nics=(), power="absent", force_stop=True, leftovers=(DISK,))


def test_room_is_made_anew_for_a_disk_that_is_to_come() -> None:
    async def main() -> None:
        async with running_node() as node:
            await left_here(node)
            await node.boss.want(coming())
            await node.until(lambda: DISK in node.disk.volumes and node.disk.volumes[DISK].rolled_back == 0)
            assert node.disk.volumes[DISK].size_mib == SIZE_MIB

    run(main())


def test_what_went_along_is_deleted_before_the_vm_is_said_to_be_gone() -> None:
    async def main() -> None:
        async with running_node() as node:
            await left_here(node)
            await node.boss.want(gone())
            await node.settled(KEY, "absent")
            assert node.boss.heard[KEY].dropped == (DISK,)
            assert DISK not in node.disk.volumes

    run(main())


def test_a_disk_that_this_node_is_told_of_is_not_deleted_as_left_over() -> None:
    async def main() -> None:
        async with running_node() as node:
            await left_here(node)
            await node.boss.want(disk(1, image=False), gone())
            await asyncio.sleep(30)
            assert DISK in node.disk.volumes and not node.boss.settled(KEY, "absent")
            await node.boss.want(drop=[f"disk/{DISK}"])
            await node.settled(KEY, "absent")
            assert DISK not in node.disk.volumes

    run(main())


def test_one_that_is_called_off_while_it_is_being_prepared_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with running_node() as node:
            nic = port(1, 1)
            node.seeds.takes_s = 1.0
            await node.boss.want(vpc(), group(), nic, coming().model_copy(update={"nics": vm(1).nics}))
            await node.until(lambda: DISK in node.disk.volumes)
            await node.boss.want(gone().model_copy(update={"nics": vm(1).nics}), drop=[key_of(nic)])
            await asyncio.sleep(10)
            await node.boss.want(nic.model_copy(update={"generation": 2, "absent": True, "vm": None}))
            await node.settled(KEY, "absent")
            assert "a defect of the agent" not in caplog.text

    run(main())
