"""Switching a machine off by its BMC, against a stand-in that speaks Redfish over HTTP."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from scloud.drivers.bmc.protocol import BmcAccess
from scloud.drivers.bmc.redfish import RedfishBmc
from scloud.model.errors import CloudError, ErrorKind

AUTH = "Basic " + base64.b64encode(b"admin:secret").decode()


class StandIn(ThreadingHTTPServer):
    """A BMC whose machine needs `slow` more looks until it is off; `deaf` ones take the order and do nothing."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.systems = ["1"]
        self.state = "On"
        self.slow = 2
        self.orders: list[dict[str, Any]] = []

    @property
    def access(self) -> BmcAccess:
        return BmcAccess(url=f"http://127.0.0.1:{self.server_address[1]}", user="admin", password="secret")


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def _say(self, code: int, body: dict[str, Any] | None = None) -> None:
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        bmc = self.server
        if self.headers["Authorization"] != AUTH:
            self._say(401)
        elif self.path == "/redfish/v1/Systems":
            self._say(200, {"Members": [{"@odata.id": f"/redfish/v1/Systems/{name}"} for name in bmc.systems]})
        elif self.path.rpartition("/")[2] in bmc.systems:
            if bmc.orders and bmc.slow > 0:
                bmc.slow -= 1
                bmc.state = "Off" if bmc.slow == 0 else "PoweringOff"
            self._say(200, {"PowerState": bmc.state})
        else:
            self._say(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.orders.append({"path": self.path, **body})
        self._say(204)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def bmc() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scloud.drivers.bmc.redfish.LOOK_EVERY_S", 0.01)


async def test_it_returns_when_the_machine_is_off_and_not_before(bmc: StandIn) -> None:
    await RedfishBmc().power_off(bmc.access)
    assert bmc.state == "Off"
    reset = "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset"
    assert bmc.orders == [{"path": reset, "ResetType": "ForceOff"}]
    await RedfishBmc().power_off(bmc.access)
    assert len(bmc.orders) == 1, "what is off is left alone"


async def test_an_order_that_was_taken_is_no_proof(bmc: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    bmc.slow = 10**9
    monkeypatch.setattr("scloud.drivers.bmc.redfish.OFF_S", 0.2)
    with pytest.raises(CloudError, match="has not switched off") as caught:
        await RedfishBmc().power_off(bmc.access)
    assert caught.value.kind is ErrorKind.TIMED_OUT


async def test_which_of_several_systems_has_to_be_said(bmc: StandIn) -> None:
    bmc.systems = ["1", "2"]
    with pytest.raises(CloudError, match="2 systems"):
        await RedfishBmc().power_off(bmc.access)
    await RedfishBmc().power_off(bmc.access.model_copy(update={"system": "2"}))
    assert bmc.orders[0]["path"].startswith("/redfish/v1/Systems/2/")


async def test_what_can_be_wrong(bmc: StandIn) -> None:
    wrong = bmc.access.model_copy(update={"password": "hush-hush"})
    with pytest.raises(CloudError) as caught:
        await RedfishBmc().power_off(wrong)
    assert caught.value.kind is ErrorKind.FORBIDDEN and "hush-hush" not in caught.value.message
    for change, kind in (
        ({"system": "9"}, ErrorKind.ENGINE),
        ({"url": "http://127.0.0.1:1"}, ErrorKind.UNAVAILABLE),
        ({"url": "ftp://127.0.0.1"}, ErrorKind.INVALID),
    ):
        with pytest.raises(CloudError) as caught:
            await RedfishBmc().power_off(bmc.access.model_copy(update=change))
        assert caught.value.kind is kind
