"""Incidents: an administrator follows what becomes of a lost node's VMs."""

from __future__ import annotations

from browser_rig import Site
from playwright.async_api import Page, expect

from scloud.model.ha import Incident, IncidentState, Moment, VmRecovery
from scloud.store import incidents
from scloud.store.database import Tx


def _lost(tx: Tx, node: str, vm: str) -> Incident:
    at = tx.now - 10.0
    moments = (
        Moment(at=at, what="heard", text="last sign of life"),
        Moment(at=at + 6.25, what="dead", text="it is taken for dead"),
    )
    return incidents.save(
        tx,
        Incident(
            id="inc-1",
            node=node,
            node_name="n1",
            state=IncidentState.FENCING,
            reason="being cut off from its storage",
            began_at=at,
            moments=moments,
            vms=(VmRecovery(vm=vm, name="db", state="pending", reason="its node is not cut off"),),
        ),
    )


def _recovered(tx: Tx, before: Incident) -> None:
    moments = (*before.moments, Moment(at=before.began_at + 8.275, what="fenced", text="every session is cut off"))
    vms = (before.vms[0].model_copy(update={"state": "running", "node": "n2", "reason": ""}),)
    update = {"moments": moments, "vms": vms, "state": IncidentState.RECOVERED}
    incidents.save(tx, before.model_copy(update=update))


async def test_an_administrator_follows_a_lost_node(site: Site, page: Page) -> None:
    cloud = site.cloud
    await page.goto("/incidents")
    await expect(page.locator("#incidents")).to_contain_text("No node was ever lost")
    await expect(page.locator("#settings").get_by_role("row", name="default")).to_contain_text("54 s")
    node = cloud.nodes["n1"].id
    # The node is there, and the manager would close the incident for that.
    async with cloud.manager.ha._locks[node]:
        incident = await cloud.store.write(lambda tx: _lost(tx, node, "vm-1"))
        story = page.get_by_role("article", name="Incident of n1")
        # No event tells of it: the page looks by itself.
        await expect(story).to_contain_text("being cut off from its storage")
        await expect(story.get_by_role("row", name="dead")).to_contain_text("6,250 ms")
        await expect(story.get_by_role("row", name="db")).to_contain_text("its node is not cut off")
        await cloud.store.write(lambda tx: _recovered(tx, incident))
        await expect(story.get_by_role("row", name="fenced")).to_contain_text("2,025 ms")
        await expect(story.get_by_role("row", name="db")).to_contain_text("n2")
    assert not site.complaints


async def test_only_administrators_see_incidents(site: Site, page: Page) -> None:
    other = await site.sign_in(site.cloud.alice)
    await expect(other.get_by_role("link", name="Incidents")).to_have_count(0)
    await other.goto("/incidents")
    await expect(other.locator("#main")).to_contain_text("administrator")
