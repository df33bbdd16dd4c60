"""Who may see and do what: tokens, accounts, other sites, and hostile text."""

from __future__ import annotations

import contextlib
import re

import httpx
from browser_rig import Site
from playwright.async_api import Error, Page, expect

from scloud.console.session import csrf_of
from scloud.model.observed import Observed

HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>\'"{{7*7}}'
PAGES = ("/", "/vms", "/vms/new", "/images", "/disks", "/networks", "/networks/trace", "/keys", "/activity")


async def test_signing_in_and_out(site: Site) -> None:
    page = await site.open()
    await page.goto("/vms")
    await expect(page).to_have_url(f"{site.url}/login?next=/vms")
    await page.get_by_label("Token").fill("not a token")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("unknown or out of date")
    await page.get_by_label("Token").fill(site.cloud.alice.secret)
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(f"{site.url}/vms")
    await expect(page.locator(".who")).to_contain_text("alice")
    (cookie,) = await page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("scloud_token", True, "Strict")
    assert await page.evaluate("document.cookie") == ""
    await page.get_by_role("button", name="Sign out").click()
    await expect(page).to_have_url(f"{site.url}/login")
    assert await page.context.cookies() == []
    await page.goto("/login?next=//elsewhere.example/")
    await page.get_by_label("Token").fill(site.cloud.alice.secret)
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(f"{site.url}/")
    assert not site.complaints


async def test_a_token_that_is_revoked_ends_the_visit(site: Site) -> None:
    made = await site.cloud.alice.do("POST", "/tokens", {"name": "short"})
    page = await site.sign_in(site.cloud.client(made["secret"]))
    await page.goto("/vms")
    await expect(page.get_by_role("heading", name="Virtual machines")).to_be_visible()
    await site.cloud.alice.ask("DELETE", f"/tokens/{made['token']['id']}")
    # The page's live connection may see it first and leave for the login by itself, which aborts this navigation.
    with contextlib.suppress(Error):
        await page.goto("/")
    await expect(page.get_by_label("Token")).to_be_visible()


async def test_another_account_sees_and_does_nothing(site: Site) -> None:
    cloud = site.cloud
    await site.network(cloud.admin)
    vm = await site.vm(cloud.admin, "secret-vm")
    page = await site.sign_in(cloud.alice)
    for path in PAGES:
        await page.goto(path)
        text = await page.inner_text("main")
        assert "secret-vm" not in text and vm["id"] not in text and "n1" not in text, path
    for path in (f"/vms/{vm['id']}", f"/vms/{vm['id']}/console", "/vms/secret-vm"):
        answer = await page.goto(path)
        assert answer is not None and answer.status == 404
    for path in ("/nodes", "/accounts", "/vms?all=1"):
        await page.goto(path)
        assert "secret-vm" not in await page.inner_text("main")
    async with _client(site, cloud.alice.secret) as http:
        form = {"csrf": csrf_of(cloud.alice.secret)}
        assert (await http.post(f"/vms/{vm['id']}/delete", data=form)).status_code == 404
        assert (await http.post("/nodes", data={**form, "name": "n9"})).status_code == 403
    assert (await cloud.admin.get(f"/vms/{vm['id']}"))["status"]["state"] == "running"


def _client(site: Site, secret: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=site.url, cookies={"scloud_token": secret}, trust_env=False)


async def test_other_sites_can_do_nothing_in_ones_name(site: Site) -> None:
    """The cookie alone is not enough, not even from a page on another port of the same host."""
    secret = site.cloud.alice.secret
    form = {"name": "net", "csrf": csrf_of(secret)}
    foreign = {"Origin": "http://127.0.0.1:9"}
    async with _client(site, secret) as http:
        assert (await http.post("/vpcs", data={"name": "net"})).status_code == 403
        assert (await http.post("/vpcs", data={**form, "csrf": csrf_of("another")})).status_code == 403
        assert (await http.post("/vpcs", data=form, headers=foreign)).status_code == 403
        assert (await http.post("/vpcs", data=form, headers={"Sec-Fetch-Site": "same-site"})).status_code == 403
        assert (await http.post("/api/v1/vpcs", json={"name": "net"}, headers=foreign)).status_code == 401
        assert (await http.get("/api/v1/whoami", headers=foreign)).status_code == 401
        login = {"token": site.cloud.admin.secret}
        assert (await http.post("/login", data=login, headers=foreign)).status_code == 403
        assert await site.cloud.alice.list("/vpcs") == []
        assert (await http.post("/vpcs", data=form, headers={"Origin": site.url})).status_code == 303
        assert len(await site.cloud.alice.list("/vpcs")) == 1
        for path in (*PAGES, "/login", "/no-such-page"):
            answer = await http.get(path)
            policy = answer.headers["content-security-policy"]
            assert "script-src 'self';" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert not re.search(r"<script(?![^>]*\ssrc=)|\son\w+=|\sstyle=|javascript:", answer.text), path
        assert (await http.get("/no-such-page")).status_code == 404
        problem = (await http.get("/api/v1/nothing")).headers["content-type"]
        assert problem == "application/problem+json", "the API's unknown paths stay the API's"


async def test_hostile_text_stays_text(site: Site, page: Page) -> None:
    """From guests, nodes, tenants and links; shown to the administrator."""
    cloud = site.cloud
    for node in cloud.nodes.values():
        node.answers["console_log"] = lambda params: f"\x1b[31mred\x1b[0m {HOSTILE}\x1b]0;title\x07"
    await site.network(cloud.admin)
    vm = await site.vm(cloud.admin, "web", user_data=f"#!/bin/sh\n{HOSTILE}")
    node = cloud.nodes[vm["status"]["node"]]
    await page.goto(f"/vms/{vm['id']}")
    await node.say(
        Observed(key=f"vm/{vm['id']}", generation=vm["generation"], state="error", settled=True, reason=HOSTILE)
    )
    await expect(page.locator("#reason")).to_contain_text(HOSTILE)
    await expect(page.locator("#vm-events")).to_contain_text(HOSTILE)
    await expect(page.locator("#log pre")).to_have_text(f"red {HOSTILE}")
    await page.get_by_text("User data").click()
    await expect(page.locator("details pre")).to_contain_text(HOSTILE)
    for path in ("/", "/vms", "/activity"):
        await page.goto(path)
        await expect(page.locator("main")).to_contain_text(HOSTILE)
    for place in ("from={0}&to={0}&protocol=tcp&port=1", "from=a&to=b&protocol={0}", "op={0}"):
        await page.goto("/networks/trace?" + place.format(httpx.QueryParams({"x": HOSTILE})["x"].replace("&", "%26")))
        assert await page.evaluate("window.pwned") is None
    await page.goto("/vpcs/" + HOSTILE.replace("/", "%2F"))
    await page.goto("/networks")
    form = page.locator("form[action='/vpcs']")
    await form.get_by_label("Name").fill(HOSTILE)
    await form.get_by_role("button").click()
    await expect(form.locator(".answer .problem")).to_be_visible()
    assert await page.evaluate("window.pwned") is None
    assert not site.complaints, "nothing even tried to run"
