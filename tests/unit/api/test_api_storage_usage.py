"""What accounts have of disks, by type and pool."""

from __future__ import annotations

from scloud.model.kinds import Kind
from scloud.model.statuses import DiskStatus
from scloud.store.database import Tx
from scloud.store.resources import get, save
from support.cloud import Cloud
from support.pools import make_pool


def occupy(tx: Tx, account: str, disk: str, mib: int) -> None:
    row = get(tx, Kind.DISK, disk, account)
    save(tx, row, status=row.status_as(DiskStatus).model_copy(update={"used_mib": mib}))


async def test_each_account_is_told_its_own_and_administrators_everyones(cloud: Cloud) -> None:
    ids = [(await cloud.node("n1")).id]
    pools = [await cloud.store.write(lambda tx, name=name: make_pool(tx, ids, name)) for name in ("fast", "slow")]
    for name, type_, size in (("a", "fast", 100), ("b", "fast", 50), ("c", "slow", 7)):
        await cloud.alice.create("disks", name, size_mib=size, type=type_)
    await cloud.alice.create("disks", "here", size_mib=5)
    await cloud.admin.create("disks", "a", size_mib=1000, type="fast")
    for disk, used in (("a", 30), ("b", 4), ("c", 2)):
        await cloud.store.write(lambda tx, disk=disk, used=used: occupy(tx, cloud.alice.account, disk, used))
    await cloud.alice.end("DELETE", "/disks/b")

    mine = await cloud.alice.list("/usage/storage")
    assert [(item["type"], item["disks"], item["provisioned_mib"], item["used_mib"]) for item in mine] == [
        (None, 1, 5, 0),
        ("fast", 2, 150, 34),
        ("slow", 1, 7, 2),
    ]
    assert [(item["trashed"], item["trashed_mib"]) for item in mine] == [(0, 0), (1, 4), (0, 0)]
    assert {item["account_name"] for item in mine} == {"alice"}
    assert {item["pool"] for item in mine} == {None}, "pools are the administrator's to see"
    await cloud.alice.fail("GET", "/usage/storage?all_accounts=true", status=403, code="forbidden")

    everyones = await cloud.admin.list("/usage/storage", all_accounts=True)
    in_fast = {item["account_name"]: item["provisioned_mib"] for item in everyones if item["pool"] == pools[0]}
    assert in_fast == {"alice": 150, "boss": 1000}
    assert [row["disk_mib"] for row in cloud.rows("node_usage", node=pools[0])] == [1150], "as the pool has promised"
    assert [item["provisioned_mib"] for item in await cloud.admin.list("/usage/storage")] == [1000]
