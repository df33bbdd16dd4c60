"""The real switch: Open vSwitch, through its own tools at their default paths.

`br-int` (fail-mode secure) has the guests' taps, the services' veths and the VXLAN port. With the userspace datapath
the tunnel's address has to be on an OVS bridge as well: `br-phy`, with the underlay device if there is one. The
daemons are started by others.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from scloud.drivers.switch.commands import Commands
from scloud.drivers.switch.protocol import TUNNEL_OFPORT, PortFacts
from scloud.flows.ir import Flow
from scloud.flows.text import add_text, delete_text, flow_text
from scloud.model.base import Value
from scloud.model.connections import Connection
from scloud.model.errors import CloudError, ErrorKind

BRIDGE = "br-int"
UNDERLAY_BRIDGE = "br-phy"
TUNNEL_PORT = "vxlan0"
BRIDGE_OWNER = "switch/bridge"
TUNNEL_OWNER = "switch/tunnel"
_OWNER_KEY = "scloud-owner"
_PROTOCOL = ("-O", "OpenFlow15")
_FLOW_TIMEOUT_S = 60.0
"""100,000 flows take 3-8 s; a busy host several times that."""
_COOKIE = re.compile(r"cookie=(0x[0-9a-f]+)")
_NO_PORT = -1
_CONNECTION = re.compile(
    r"(?P<protocol>tcp|udp),"
    r"orig=\(src=(?P<source>[\d.]+),dst=(?P<target>[\d.]+),sport=(?P<source_port>\d+),dport=(?P<target_port>\d+)\),"
)
_MARK = re.compile(r",mark=(\d+)")
_OVER = ("state=TIME_WAIT", "state=CLOSED", "state=CLOSING")


class OvsConfig(Value):
    """`underlay_device` and `underlay_address` (with prefix) go to `br-phy`; without them it has `tunnel_ip` alone.

    They are not used with the `system` datapath, where the kernel routes tunnels. `mtu` is the underlay's, in bytes.
    `rundir` is Open vSwitch's run directory as the caller sees it; `prefix` goes before every command.
    """

    datapath: Literal["netdev", "system"]
    tunnel_ip: str
    underlay_device: str | None = None
    underlay_address: str | None = None
    mtu: int = 1500
    rundir: Path = Path("/run/openvswitch")
    prefix: tuple[str, ...] = ()


class OvsSwitch:
    """Implements `Switch`."""

    def __init__(self, config: OvsConfig) -> None:
        self._config = config
        self._commands = Commands(config.prefix)

    async def ensure_bridge(self) -> None:
        """All settings in one transaction: setting what is already so does nothing, and disturbs no traffic."""
        config = self._config
        await self._vsctl(*self._underlay_settings(), *self._bridge_settings())
        if config.datapath == "netdev":
            await self._ensure_underlay_address()
        number = await self._ofport(TUNNEL_PORT)
        if number != TUNNEL_OFPORT:
            raise CloudError(
                ErrorKind.ENGINE,
                f"the tunnel port {TUNNEL_PORT} has number {number}, not {TUNNEL_OFPORT}: "
                f"`ovs-vsctl del-br {BRIDGE}` lets it be made anew",
            )

    def _bridge_settings(self) -> list[str]:
        """`options` is set as a whole, so that nothing stale stays in it."""
        return [
            *("--", "--may-exist", "add-br", BRIDGE),
            *("--", "set", "bridge", BRIDGE, f"datapath_type={self._config.datapath}", "fail_mode=secure"),
            *("protocols=OpenFlow13,OpenFlow15", f"external_ids:{_OWNER_KEY}={BRIDGE_OWNER}"),
            *("--", "--may-exist", "add-port", BRIDGE, TUNNEL_PORT),
            *("--", "set", "port", TUNNEL_PORT, f"external_ids:{_OWNER_KEY}={TUNNEL_OWNER}"),
            *("--", "set", "interface", TUNNEL_PORT, "type=vxlan", f"ofport_request={TUNNEL_OFPORT}"),
            f"options={{key=flow,remote_ip=flow,local_ip={self._config.tunnel_ip}}}",
        ]

    def _underlay_settings(self) -> list[str]:
        config = self._config
        if config.datapath != "netdev":
            return []
        words = [
            *("--", "--may-exist", "add-br", UNDERLAY_BRIDGE),
            *("--", "set", "bridge", UNDERLAY_BRIDGE, "datapath_type=netdev", "fail_mode=standalone"),
            *(f'other_config:hwaddr="{_underlay_mac(config.tunnel_ip)}"', f"external_ids:{_OWNER_KEY}={BRIDGE_OWNER}"),
            *("--", "set", "interface", UNDERLAY_BRIDGE, f"mtu_request={config.mtu}"),
        ]
        if config.underlay_device is not None:
            words += ["--", "--may-exist", "add-port", UNDERLAY_BRIDGE, config.underlay_device]
        return words

    async def _ensure_underlay_address(self) -> None:
        config = self._config
        address = config.underlay_address or f"{config.tunnel_ip}/32"
        if config.underlay_device is not None:
            # The device's own ARP would answer for the address on br-phy too, with a MAC that no tunnel ends at.
            await self._commands.run("ip", "link", "set", "dev", config.underlay_device, "arp", "off", "up")
        # Checksums left to a device that does not exist would be wrong on the wire; ping works then, TCP does not.
        await self._commands.run("ethtool", "-K", UNDERLAY_BRIDGE, "tx", "off")
        await self._commands.run("ip", "address", "replace", address, "dev", UNDERLAY_BRIDGE)
        await self._commands.run("ip", "link", "set", UNDERLAY_BRIDGE, "up")

    async def add_tap(self, name: str, owner: str, ofport: int, mtu: int) -> None:
        if not await self._exists(name):
            await self._commands.run("ip", "tuntap", "add", "dev", name, "mode", "tap")
        await self._commands.run("ip", "link", "set", "dev", name, "mtu", str(mtu), "up")
        await self.add_port(name, owner, ofport)

    async def add_port(self, name: str, owner: str, ofport: int) -> None:
        """Raises CloudError(ENGINE) if the device is missing, and CloudError(CONFLICT) if the number is taken."""
        if not await self._exists(name):
            raise CloudError(ErrorKind.ENGINE, f"there is no device {name} to put on the switch")
        await self._commands.run("ip", "link", "set", "dev", name, "up")
        await self._vsctl(
            *("--", "--may-exist", "add-port", BRIDGE, name),
            *("--", "set", "port", name, f"external_ids:{_OWNER_KEY}={owner}"),
            *("--", "set", "interface", name, f"ofport_request={ofport}"),
        )
        given = await self._ofport(name)
        if given == ofport:
            return
        await self._vsctl("--", "--if-exists", "del-port", BRIDGE, name)
        raise CloudError(
            ErrorKind.CONFLICT, f"the switch gave {name} the number {given} instead of {ofport}: another port has it"
        )

    async def remove_port(self, name: str) -> None:
        await self._vsctl("--", "--if-exists", "del-port", BRIDGE, name)
        found = await self._link(name)
        if found.get("linkinfo", {}).get("info_kind") == "tun":
            await self._commands.run("ip", "link", "delete", name)

    async def ports(self) -> list[PortFacts]:
        """Without the tunnel's. `ofport` is -1 for a port whose device is gone."""
        output = await self._commands.run(
            *("ovs-vsctl", "--format=json", "--columns=name,ofport", "list", "interface"),
            *("--", "--columns=name,external_ids", "list", "port"),
        )
        interfaces, ports = (_rows(json.loads(line)) for line in output.splitlines())
        numbers = {str(row["name"]): row["ofport"] for row in interfaces}
        found = []
        for row in ports:
            owner = dict(row["external_ids"][1]).get(_OWNER_KEY)
            if owner is not None and owner != TUNNEL_OWNER:
                number = numbers.get(row["name"])
                ofport = number if isinstance(number, int) else _NO_PORT
                found.append(PortFacts(name=row["name"], owner=owner, ofport=ofport))
        return sorted(found, key=lambda port: port.name)

    async def replace_flows(self, flows: Sequence[Flow]) -> None:
        text = "".join(f"{flow_text(flow)}\n" for flow in flows)
        await self._bundle("replace-flows", text)

    async def change_flows(self, remove: Sequence[Flow], add: Sequence[Flow]) -> None:
        if not remove and not add:
            return
        lines = [*(delete_text(flow) for flow in remove), *(add_text(flow) for flow in add)]
        await self._bundle("add-flows", "".join(f"{line}\n" for line in lines))

    async def _bundle(self, command: str, text: str) -> None:
        argv = ("ovs-ofctl", *_PROTOCOL, "--bundle", command, BRIDGE, "-")
        await self._commands.run(*argv, stdin=text, timeout_s=_FLOW_TIMEOUT_S)

    async def flow_owners(self) -> dict[int, int]:
        output = await self._commands.run(
            *("ovs-ofctl", *_PROTOCOL, "--no-stats", "--no-names", "dump-flows", BRIDGE), timeout_s=_FLOW_TIMEOUT_S
        )
        counts: Counter[int] = Counter()
        for line in output.splitlines():
            if "actions=" in line:
                cookie = _COOKIE.search(line)
                counts[int(cookie.group(1), 16) if cookie is not None else 0] += 1
        return dict(counts)

    async def incarnation(self) -> str:
        """The daemon's pid and start time, and the bridge's control socket, which is new when the bridge is.

        Reads a pidfile and two directory entries, and runs nothing: cheap enough for every second.
        """
        try:
            pid = int((self._config.rundir / "ovs-vswitchd.pid").read_text())
            started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        except (OSError, ValueError, IndexError) as error:
            raise CloudError(ErrorKind.ENGINE, f"ovs-vswitchd is not running: {error}") from error
        try:
            socket = (self._config.rundir / f"{BRIDGE}.mgmt").stat()
        except OSError as error:
            raise CloudError(ErrorKind.ENGINE, f"the bridge {BRIDGE} is not there: {error}") from error
        return f"{pid}-{started}-{socket.st_ino}-{socket.st_ctime_ns}"

    async def learn_peer(self, tunnel_ip: str, mac: str | None = None) -> None:
        """A peer that does not answer is no error: it is asked again by the first packet to it."""
        if self._config.datapath != "netdev":
            await self._commands.attempt("ping", "-n", "-c", "1", "-W", "1", tunnel_ip)
            return
        if mac is None:
            mac = await self._resolve(tunnel_ip)
        if mac is not None:
            await self._commands.run("ovs-appctl", "tnl/neigh/set", UNDERLAY_BRIDGE, tunnel_ip, mac)

    async def _resolve(self, tunnel_ip: str) -> str | None:
        await self._commands.attempt("ping", "-n", "-c", "1", "-W", "1", "-I", UNDERLAY_BRIDGE, tunnel_ip)
        output = await self._commands.run("ip", "-j", "neighbour", "show", tunnel_ip, "dev", UNDERLAY_BRIDGE)
        for entry in json.loads(output or "[]"):
            if "lladdr" in entry:
                return str(entry["lladdr"])
        return None

    async def connections(self, zone: int) -> list[Connection]:
        lines = await self._commands.run("ovs-appctl", "dpctl/dump-conntrack", f"zone={zone}")
        found = (_connection(line) for line in lines.splitlines())
        return [item for item in found if item is not None]

    async def trace(self, fields: Mapping[str, str | int]) -> str:
        flow = ",".join(f"{name}={value}" for name, value in fields.items())
        return await self._commands.run("ovs-appctl", "ofproto/trace", BRIDGE, flow)

    # --- pieces

    async def _vsctl(self, *words: str) -> str:
        return await self._commands.run("ovs-vsctl", "--timeout=15", *words)

    async def _ofport(self, name: str) -> int:
        output = await self._vsctl("--", "get", "interface", name, "ofport", "--", "get", "interface", name, "error")
        number, _, error = output.strip().partition("\n")
        if error not in ("[]", '""', ""):
            raise CloudError(ErrorKind.ENGINE, f"the switch cannot open {name}: {error}")
        return int(number) if number.lstrip("-").isdigit() else _NO_PORT

    async def _link(self, name: str) -> dict[str, Any]:
        """What the kernel says of a device; empty if there is none."""
        status, output, _ = await self._commands.attempt("ip", "-j", "-d", "link", "show", "dev", name)
        found: list[dict[str, Any]] = json.loads(output or "[]") if status == 0 else []
        return found[0] if found else {}

    async def _exists(self, name: str) -> bool:
        return bool(await self._link(name))


def _rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(table["headings"], row, strict=True)) for row in table["data"]]


def _underlay_mac(tunnel_ip: str) -> str:
    """A MAC of our own for `br-phy`, made from its address, so that it stays the same when the bridge is made anew."""
    return "02:5c:" + ":".join(f"{octet:02x}" for octet in ipaddress.IPv4Address(tunnel_ip).packed)


def _connection(line: str) -> Connection | None:
    """One line of `dpctl/dump-conntrack`."""
    ends, mark = _CONNECTION.match(line), _MARK.search(line)
    if ends is None or mark is None or mark[1] == "0" or any(state in line for state in _OVER):
        return None
    return Connection.model_validate({**ends.groupdict(), "mark": int(mark[1])})
