"""What becomes of the VMs of a node that is lost, row by row."""

from __future__ import annotations

from scloud.controllers.ha import recovery
from scloud.controllers.ha.room import Reasons
from scloud.model.statuses import DiskStatus
from scloud.store.database import Tx
from scloud.store.resources import find
from support.cloud import Cloud
from support.pools import make_pool


async def test_a_disk_that_was_still_to_come_is_not_taken_from_who_has_it_open(cloud: Cloud) -> None:
    """It was given to a VM of the lost node, while a guest on a living one had not yet let go of it."""
    giving, taking, healthy = [await cloud.node(name) for name in ("n1", "n2", "n3")]
    await cloud.image()
    await cloud.store.write(lambda tx: make_pool(tx, [giving.id, taking.id, healthy.id]))
    await cloud.admin.create("disks", "data", size_mib=8, type="standard")
    await cloud.admin.create("vms", "giver", image="micro", disk_type="standard", node="n1")
    await cloud.until(cloud.admin, "/vms/giver", "running")
    for name in ("n1", "n3"):
        await cloud.admin.end("POST", f"/nodes/{name}/actions/cordon")
    taker = await cloud.admin.create("vms", "taker", image="micro", disk_type="standard")
    await cloud.until(cloud.admin, "/vms/taker", "running")
    await cloud.admin.end("POST", "/nodes/n3/actions/uncordon")
    await cloud.admin.end("POST", "/disks/data/actions/attach", {"vm": "giver"})
    disk = (await cloud.admin.get("/disks/data"))["id"]
    giving.holding = True
    await cloud.admin.do("POST", "/disks/data/actions/detach")
    await cloud.admin.do("POST", "/disks/data/actions/attach", {"vm": "taker"})

    def recover(tx: Tx) -> tuple[str | None, bool]:
        vm = find(tx, taker["id"])
        assert vm is not None and vm.node == taking.id
        moved = recovery._place(tx, [vm], "n2", {}, Reasons(), [], {})
        assert moved[vm.id].node == "n3"
        row = find(tx, disk)
        assert row is not None
        return row.node, row.status_as(DiskStatus).held

    await cloud.admin.end("POST", "/nodes/n2/actions/cordon")
    assert await cloud.store.write(recover) == (giving.id, True)
