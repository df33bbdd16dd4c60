"""Without scripts, on a telephone, in the dark, by keyboard; and live for all."""

from __future__ import annotations

import pytest
from browser_rig import Site
from playwright.async_api import Page, expect

PAGES = (
    "/",
    "/vms",
    "/vms/new",
    "/vms/web",
    "/vms/web/console",
    "/images",
    "/disks",
    "/networks",
    "/networks/trace?from=web&to=10.0.0.9&protocol=icmp",
    "/security-groups/default",
    "/keys",
    "/nodes",
    "/incidents",
    "/accounts",
    "/activity",
    "/login",
)
UNNAMED = """() => [...document.querySelectorAll("input:not([type=hidden]), select, textarea, button, a, summary, svg")]
    .filter((item) => item.checkVisibility() && !item.closest(".xterm"))
    .filter((item) => !(item.labels?.length || item.ariaLabel || item.textContent.trim()))
    .map((item) => item.outerHTML)"""
FAINT = """() => {
    const channel = (value) => (value /= 255) <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
    const behind = (item) => {
        for (; item; item = item.parentElement) {
            const colour = parse(getComputedStyle(item).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const faint = [];
    for (const item of document.querySelectorAll("body *")) {
        if (!item.checkVisibility() || item.closest("svg, .xterm, .unseen, :disabled")) continue;
        if (![...item.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
        const pair = [light(parse(getComputedStyle(item).color)), light(behind(item))].sort((a, b) => b - a);
        const ratio = (pair[0] + .05) / (pair[1] + .05);
        if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${item.outerHTML.slice(0, 120)}`);
    }
    return faint;
}"""


@pytest.mark.parametrize(
    "look",
    [
        pytest.param({"color_scheme": "dark", "viewport": {"width": 400, "height": 800}}, id="dark-400"),
        pytest.param({"color_scheme": "light", "viewport": {"width": 1280, "height": 800}}, id="light-1280"),
    ],
)
async def test_every_page_fits_and_can_be_read(site: Site, look: dict[str, object]) -> None:
    cloud = site.cloud
    await site.network(cloud.admin)
    await site.vm(cloud.admin, "web")
    await cloud.admin.fail("DELETE", "/vpcs/net", status=409, code="in_use")
    page = await site.sign_in(cloud.admin, **look)
    width = look["viewport"]["width"]  # type: ignore[index]
    for path in PAGES:
        answer = await page.goto(path)
        assert answer is not None and answer.status == 200, path
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, f"{path} is too wide"
        assert await page.evaluate(UNNAMED) == [], path
        assert await page.evaluate(FAINT) == [], path
    assert not site.complaints


async def test_pages_are_read_and_forms_sent_without_scripts(site: Site) -> None:
    cloud = site.cloud
    await site.network(cloud.admin)
    await site.vm(cloud.admin, "web")
    page = await site.sign_in(cloud.admin, java_script_enabled=False)
    for path, text in (("/", "1 VM runs"), ("/vms/web", "10.0.0.3"), ("/networks", "10.0.0.0/24"), ("/nodes", "n1")):
        await page.goto(path)
        await expect(page.locator("main")).to_contain_text(text)
    await page.goto("/networks")
    form = page.locator("form[action='/vpcs']")
    await form.get_by_label("Name").fill("second")
    await form.get_by_role("button").click()
    await expect(page.locator(".op")).to_contain_text("Create VPC second")
    await expect(page.locator("#networks")).to_contain_text("second")
    await form.get_by_label("Name").fill("second")
    await form.get_by_role("button").click()
    await expect(page.locator(".problem")).to_contain_text("second")


async def test_the_keyboard_is_enough(site: Site, page: Page) -> None:
    await site.network(site.cloud.admin)
    vm = await site.vm(site.cloud.admin, "web")
    await page.goto("/vms")
    await page.keyboard.press("Tab")
    await expect(page.locator(".skip")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#main")).to_be_focused()
    summary = page.get_by_label("Delete web …")
    await summary.focus()
    await page.keyboard.press("Enter")
    button = page.get_by_role("button", name="Delete web", exact=True)
    await expect(button).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(button).to_be_hidden()
    await expect(summary).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await site.cloud.until_gone(vm["id"])


async def test_what_others_do_shows_without_a_reload(site: Site, page: Page) -> None:
    cloud = site.cloud
    await page.goto("/")
    await expect(page.locator("#health")).to_contain_text("There are no VMs yet")
    await cloud.admin.create("vms", "one", image="micro")
    await expect(page.locator("#health")).to_contain_text("1 VM runs")
    await expect(page.locator("#events")).to_contain_text("one")
    await cloud.nodes["n2"].stop()
    await expect(page.locator("#health")).to_contain_text("node n2 does not answer")
    await expect(page.locator("#nodes")).to_contain_text("down")


async def test_secrets_are_shown_once_where_they_were_asked_for(site: Site, page: Page) -> None:
    await page.goto("/nodes")
    form = page.locator("form[action='/nodes']")
    await form.get_by_label("Name").fill("n3")
    await form.get_by_role("button", name="Add node").click()
    await expect(form.locator(".reveal code")).to_contain_text("node join --name n3")
    await page.goto("/accounts")
    form = page.locator("form[action='/tokens']")
    await form.get_by_label("Account").fill("alice")
    await form.get_by_role("button").click()
    secret = (await form.locator(".reveal code").inner_text()).strip()
    other = await site.sign_in(site.cloud.client(secret))
    await other.goto("/")
    await expect(other.locator(".who")).to_have_text("alice")
