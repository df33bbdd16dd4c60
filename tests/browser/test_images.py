"""Images by upload."""

from __future__ import annotations

from pathlib import Path

from browser_rig import Site
from playwright.async_api import Page, expect


async def test_a_file_is_uploaded_and_becomes_an_image(site: Site, page: Page, tmp_path: Path) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(b"\x00" * (1 << 20) + b"data" * 1024 + b"\x00" * (1 << 20))
    await page.goto("/images")
    form = page.locator("form[data-upload]")
    await form.get_by_label("Name").fill("mine")
    await form.get_by_label("File").set_input_files(file)
    await form.get_by_label("Format").select_option("raw")
    await form.get_by_role("button", name="Upload").click()
    row = page.get_by_role("row", name="mine")
    await expect(row).to_contain_text("ready")
    image = await site.cloud.admin.get("/images/mine")
    assert image["status"]["size_mib"] == 3, "2 MiB and 4 KiB"
    await page.set_viewport_size({"width": 400, "height": 800})
    await page.get_by_label("Delete mine …").click()
    await page.get_by_role("button", name="Delete mine", exact=True).click()
    await expect(row).to_have_count(0)
    assert not site.complaints
