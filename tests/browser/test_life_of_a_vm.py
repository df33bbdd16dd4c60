"""What people come for: a VM made, watched, used and deleted, without a reload."""

from __future__ import annotations

import re

from browser_rig import Site
from playwright.async_api import Page, expect

from scloud.model.observed import Observed


async def _mark(page: Page) -> None:
    """A page that is loaded again forgets this."""
    await page.evaluate("window.sameOne = true")


async def _still_marked(page: Page) -> bool:
    return bool(await page.evaluate("window.sameOne === true"))


async def test_create_watch_stop_delete(site: Site, page: Page) -> None:
    cloud = site.cloud
    await site.network(cloud.admin)
    await page.goto("/vms/new")
    await page.get_by_label("Name").fill("web")
    await page.get_by_label("CPUs").fill("2")
    await page.get_by_role("button", name="Where would it go?").click()
    plan = page.locator(".plan")
    await expect(plan).to_contain_text(re.compile("It would go to n[12]"))
    await expect(plan.locator("li")).to_have_count(2)
    assert await cloud.admin.list("/vms") == []

    for node in cloud.nodes.values():
        node.holding = True
    await page.get_by_role("button", name="Create").click()
    await expect(page).to_have_url(re.compile(r"/vms/vm-[0-9a-z]{16}$"))
    await _mark(page)
    head = page.locator("#head")
    await expect(head).to_contain_text("creating")
    card = page.locator(".op")
    await expect(card).to_contain_text("Create VM web")
    for node in cloud.nodes.values():
        await node.release()
    await expect(head).to_contain_text("running")
    await expect(card).to_contain_text("done")
    vm = (await cloud.admin.list("/vms"))[0]
    await expect(page.locator("#facts")).to_contain_text(vm["status"]["addresses"][0])
    await expect(page.locator("#figures")).to_contain_text("1.5 s")
    await expect(page.locator("#log")).to_contain_text(f"log of {vm['id']}")

    await head.get_by_role("button", name="Stop web").click()
    await expect(head).to_contain_text("stopped")
    assert await _still_marked(page)

    await page.goto("/vms")
    await _mark(page)
    row = page.get_by_role("row", name="web")
    await row.get_by_role("button", name="Start web").click()
    await expect(row).to_contain_text("running")
    await row.locator("summary").click()
    await row.get_by_role("button", name="Delete web").click()
    await expect(page.locator("#vms")).to_contain_text("No VMs here")
    assert await _still_marked(page)
    await cloud.until_gone(vm["id"])
    assert not site.complaints


async def test_a_vm_that_is_deleted_elsewhere_leaves_its_page(site: Site, page: Page) -> None:
    await site.network(site.cloud.admin)
    vm = await site.vm(site.cloud.admin, "web")
    await page.goto(f"/vms/{vm['id']}")
    await site.cloud.admin.end("DELETE", f"/vms/{vm['id']}")
    await expect(page.locator("main")).to_contain_text("there is no vm")


async def test_a_failed_start_is_told_with_its_reason(site: Site, page: Page) -> None:
    cloud = site.cloud
    await page.goto("/vms")
    for node in cloud.nodes.values():
        node.holding = True
    made = await cloud.admin.do("POST", "/vms", {"name": "web", "spec": {"image": "micro"}})
    row = page.get_by_role("row", name="web")
    await expect(row).to_contain_text("creating")
    vm = made["resource"]["id"]
    placed = await cloud.admin.get(f"/vms/{vm}")
    said = {"key": f"vm/{vm}", "generation": placed["generation"], "state": "error", "settled": True}
    await cloud.nodes[placed["status"]["node"]].say(Observed(**said, reason="no such firmware; see the node's log"))
    await expect(row).to_contain_text("error")
    await expect(row).to_contain_text("no such firmware")
    await page.goto("/")
    await expect(page.locator("#health")).to_contain_text("1 error")


async def test_the_serial_console_carries_bytes_both_ways(site: Site, page: Page) -> None:
    await site.network(site.cloud.admin)
    vm = await site.vm(site.cloud.admin, "web")
    await page.goto(f"/vms/{vm['id']}")
    await page.get_by_role("link", name="Console", exact=True).click()
    await expect(page.locator("#link")).to_contain_text("connected")
    await page.keyboard.type("whoami, grüezi")
    await expect(page.locator(".xterm-rows")).to_contain_text("WHOAMI, GR")
    colour = await page.locator("#terminal .xterm-rows").evaluate("(rows) => getComputedStyle(rows).color")
    assert colour == "rgb(230, 230, 230)", "the terminal's own style sheet is in force"

    await page.goto("/vms")
    node = site.cloud.nodes[vm["status"]["node"]]
    await node.stop()
    await page.goto(f"/vms/{vm['id']}/console")
    await expect(page.locator("#link")).to_contain_text("unavailable")
    await node.start()
    await page.get_by_role("button", name="Connect again").click()
    await expect(page.locator("#link")).to_contain_text("connected")
    assert not site.complaints
