"""Networks, rules and the trace."""

from __future__ import annotations

from browser_rig import Site
from playwright.async_api import Page, expect


async def test_a_network_is_made_and_its_problems_are_told_beside_the_form(site: Site, page: Page) -> None:
    await page.goto("/networks")
    vpc = page.locator("form[action='/vpcs']")
    await vpc.get_by_label("Name").fill("Bad Name")
    await vpc.get_by_role("button").click()
    name = vpc.get_by_label("Name")
    await expect(name).to_have_attribute("aria-invalid", "true")
    await expect(name).to_be_focused()
    await expect(vpc.locator(".wrong")).to_contain_text("1-63 of a-z")
    await name.fill("net")
    await vpc.get_by_role("button").click()
    await expect(page.locator("#networks")).to_contain_text("net")
    await expect(vpc.locator(".wrong")).to_have_count(0)
    await expect(name).to_have_value("")

    subnet = page.locator("form[action='/subnets']")
    for cidr, told in (("10.0.0.1/24", "no host bits set"), ("10.0.0.0/24", "")):
        await subnet.get_by_label("Name").fill("lan")
        await subnet.get_by_label("VPC").fill("net")
        await subnet.get_by_label("Addresses").fill(cidr)
        await subnet.get_by_role("button").click()
        if told:
            await expect(subnet.locator(".wrong")).to_contain_text(told)
    await expect(page.get_by_role("row", name="lan")).to_contain_text("10.0.0.0/24")

    await page.locator("article", has_text="net").get_by_label("Delete net").click()
    await page.get_by_role("button", name="Delete net").click()
    await expect(page.locator("article .answer", has_text="subnet lan")).to_be_visible()
    assert not site.complaints


async def test_a_rule_decides_what_the_trace_says(site: Site, page: Page) -> None:
    cloud = site.cloud
    await site.network(cloud.admin)
    await cloud.admin.create("security-groups", "closed")
    nics = [{"subnet": "lan", "security_groups": ["closed"]}]
    await site.vm(cloud.admin, "a")
    await site.vm(cloud.admin, "b", nics=nics)

    async def trace(verdict: str) -> None:
        await page.goto("/networks/trace")
        await page.get_by_label("From", exact=True).fill("a")
        await page.get_by_label("To", exact=True).fill("b")
        await page.get_by_label("Port", exact=True).fill("443")
        await page.get_by_role("button", name="Trace").click()
        await expect(page.locator("#verdict")).to_have_text(verdict)
        await expect(page.locator(f".steps .{'drop' if verdict == 'Dropped' else 'pass'}").first).to_be_visible()

    await trace("Dropped")
    await page.goto("/security-groups/closed")
    rules = page.locator("#rules tbody tr")
    await expect(rules).to_have_count(2)
    form = page.locator("form.form")
    await form.get_by_label("Port", exact=True).fill("443")
    await form.get_by_role("button", name="Add rule").click()
    await expect(form.locator(".problem")).to_contain_text("exactly one of cidr and group")
    await form.get_by_label("Addresses of the peer").fill("10.0.0.0/24")
    await form.get_by_role("button", name="Add rule").click()
    await expect(rules).to_have_count(3)
    await expect(rules.last).to_contain_text("443")
    await expect(page.locator("#head")).to_contain_text("ready")
    await trace("Delivered")

    await page.goto("/security-groups/closed")
    await page.get_by_role("button", name="Remove the rule inbound tcp 443").click()
    await expect(rules).to_have_count(2)
    await trace("Dropped")
    assert not site.complaints


async def test_the_trace_tells_what_it_cannot_do(site: Site, page: Page) -> None:
    await page.goto("/networks/trace?from=nobody&to=10.0.0.9&protocol=tcp&port=22")
    await expect(page.get_by_role("alert")).to_contain_text("names no VM and no nic")
    await page.goto("/networks/trace?from=nobody&to=10.0.0.9&protocol=tcp&port=ssh")
    await expect(page.get_by_role("alert")).to_contain_text("must be a whole number")
