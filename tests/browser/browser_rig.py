"""What tests of the console share: pages of several people, and that no page breaks its own policy."""

from __future__ import annotations

from typing import Any

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page

from support.cloud import Api, Cloud

NETWORK = {"vpc": "net", "subnet": "lan", "cidr": "10.0.0.0/24"}


class Site:
    """A served cloud. What its pages complain about in the browser's console is collected in `complaints`."""

    def __init__(self, cloud: Cloud, browser: Browser, url: str) -> None:
        self.cloud = cloud
        self.url = url
        self.complaints: list[str] = []
        self.dialogs: list[str] = []
        self._browser = browser
        self._contexts: list[BrowserContext] = []

    async def close(self) -> None:
        for context in self._contexts:
            await context.close()

    async def open(self, **options: Any) -> Page:
        """A browser that knows nobody yet."""
        context = await self._browser.new_context(base_url=self.url, **options)
        self._contexts.append(context)
        page = await context.new_page()
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        return page

    async def sign_in(self, who: Api, **options: Any) -> Page:
        page = await self.open(**options)
        await page.context.add_cookies(
            [
                {
                    "name": "scloud_token",
                    "value": who.secret,
                    "url": self.url,
                    "httpOnly": True,
                    "sameSite": "Strict",
                }
            ]
        )
        return page

    def _note(self, message: ConsoleMessage) -> None:
        """Refusals that the server answers are shown on the page, and no complaint."""
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    async def network(self, who: Api) -> None:
        await who.create("vpcs", NETWORK["vpc"])
        await who.create("subnets", NETWORK["subnet"], vpc=NETWORK["vpc"], cidr=NETWORK["cidr"])

    async def vm(self, who: Api, name: str, **spec: Any) -> dict[str, Any]:
        """A running VM in the network."""
        nics = [{"subnet": NETWORK["subnet"]}]
        return await who.create("vms", name, **{"image": "micro", "nics": nics, **spec})
