"""Storage: clusters and pools as an administrator sees them, disks of a pool as everybody does."""

from __future__ import annotations

from typing import Any

from browser_rig import Site
from playwright.async_api import Page, expect

from scloud.model.kinds import Kind
from scloud.model.storage import (
    Condition,
    OsdStatus,
    PoolStatus,
    Recovery,
    StorageCapacity,
    StorageClusterStatus,
)
from scloud.store.database import Tx
from scloud.store.resources import SYSTEM, find, get, save
from support.pools import make_pool

GIB = 1024


def _osd(number: int, **more: Any) -> OsdStatus:
    place = {"rack": f"r{number // 2}", "host": f"n{number // 2 + 1}"}
    return OsdStatus(
        osd=number, node=place["host"], path=f"/dev/sd{number}", media="ssd", total_mib=10 * GIB, used_mib=3 * GIB,
        place=place, **{"up": True, **more},
    )  # fmt: skip


def _seen(tx: Tx, recovery: Recovery) -> None:
    row = get(tx, Kind.STORAGE_CLUSTER, "c-standard", SYSTEM)
    status = row.status_as(StorageClusterStatus).model_copy(
        update={
            "version": "16.2.15",
            "capacity": StorageCapacity(
                total_mib=40 * GIB,
                used_mib=12 * GIB,
                available_mib=28 * GIB,
                provisioned_mib=60 * GIB,
                full_in_days=9.5,
            ),
            "conditions": (Condition(name="osd-down", level="warning", message="1 OSD is down: osd.3 on n2"),),
            "osds": (_osd(0), _osd(1), _osd(2), _osd(3, up=False)),
            "placement_groups": {"active+clean": 30, "active+undersized+degraded": 10},
            "recovery": recovery,
        }
    )
    save(tx, row, status=status)


def _room(tx: Tx, pool: str) -> None:
    row = find(tx, pool)
    assert row is not None
    capacity = StorageCapacity(total_mib=10 * GIB, used_mib=4 * GIB, available_mib=6 * GIB, provisioned_mib=20 * GIB)
    save(tx, row, status=row.status_as(PoolStatus).model_copy(update={"capacity": capacity}))


async def test_an_administrator_sees_clusters_pools_and_who_has_what(site: Site, page: Page) -> None:
    cloud = site.cloud
    nodes = [node.id for node in cloud.nodes.values()]
    pool = await cloud.store.write(lambda tx: make_pool(tx, nodes))
    await cloud.store.write(lambda tx: (_seen(tx, Recovery(degraded=50, objects_per_s=5.0)), _room(tx, pool)))
    await cloud.alice.create("disks", "data", size_mib=64, type="standard")
    await page.goto("/storage")
    cluster = page.get_by_role("article", name="Storage cluster c-standard")
    for text in (
        "1 OSD is down: osd.3 on n2",
        "12 GiB of 40 GiB used, 28 GiB free",
        "60 GiB promised to disks (150 %)",
        "Full in 9.5 days",
        "50 objects degraded",
        "rack r1",
    ):
        await expect(cluster).to_contain_text(text)
    await expect(cluster.get_by_role("img", name="Placement groups: 30 active+clean")).to_be_visible()
    await expect(cluster.get_by_role("row", name="osd.3")).to_contain_text("down")
    await expect(page.get_by_role("article", name="Pool p-standard")).to_contain_text("4 GiB of 10 GiB used")
    await expect(page.locator("#use").get_by_role("row", name="alice")).to_contain_text("64 MiB")
    # A recovery makes no events; its figures come all the same.
    await cloud.store.write(lambda tx: _seen(tx, Recovery(degraded=7, objects_per_s=5.0, seconds_left=1.0)))
    await expect(cluster).to_contain_text("7 objects degraded")
    assert not site.complaints


async def test_a_disk_of_a_pool_lives_and_comes_back_from_the_trash(site: Site, page: Page) -> None:
    nodes = [node.id for node in site.cloud.nodes.values()]
    await site.cloud.store.write(lambda tx: make_pool(tx, nodes))
    await page.goto("/disks")
    await page.get_by_label("Name").fill("data")
    await page.get_by_label("Type").select_option("standard")
    await page.get_by_role("button", name="Create").click()
    row = page.locator("#disks").get_by_role("row", name="data")
    await expect(row).to_contain_text("standard")
    await expect(row).to_contain_text("ready")
    await row.get_by_role("link", name="data").click()
    await expect(page.locator("#disk")).to_contain_text("really used of 1 GiB")
    await page.get_by_label("Name").fill("s1")
    await page.get_by_role("button", name="Take it").click()
    snapshot = page.locator("#disk").get_by_role("row", name="s1")
    await expect(snapshot).to_contain_text("ready")
    await page.get_by_label("Roll back to s1 …").click()
    await page.get_by_role("button", name="Roll back to s1", exact=True).click()
    await expect(page.locator("#operations")).to_contain_text("Rollback disk")
    await page.get_by_label("Delete s1 …").click()
    await page.get_by_role("button", name="Delete s1", exact=True).click()
    await expect(snapshot).to_have_count(0)
    await page.goto("/disks")
    await page.get_by_label("Delete data …").click()
    await page.get_by_role("button", name="Delete data", exact=True).click()
    await page.get_by_label("Restore data").click()
    await expect(row).to_contain_text("ready")
    await expect(page.locator("#trash").get_by_role("row", name="data")).to_have_count(0)
    assert not site.complaints
