"""Two nodes with a switch each and guests on them: once in memory, once with real Open vSwitch, packets and sockets."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "flows"))
from flow_world import World

from scloud.drivers.switch.fake import FakeOvs, Wires
from scloud.drivers.switch.ovs import OvsConfig, OvsSwitch
from scloud.drivers.switch.protocol import Switch
from scloud.flows.compile import compile_view
from scloud.flows.packet import ACK, Ends, Packet, answer_to, arp_request, echo, icmp_error, mac_text, tcp, udp
from scloud.flows.pipeline import METADATA_IP, SERVICE_MAC

GUEST = Path(__file__).with_name("switch_guest.py")
QUIET_S = 0.7
"""How long nothing must arrive to be called silent; answers take a millisecond."""
CUT_S = 1.2
"""How long a connection must be silent to be called cut; TCP asks again after 0.2 s, 0.6 s and 1.4 s."""
ANSWER_S = 5.0


class Connection(Protocol):
    async def echo(self, size: int = 1) -> bool:
        """Whether bytes go there and come back."""
        ...

    async def pushed(self, by: str) -> bool:
        """Whether a byte arrives that the nic at the other end sends unasked."""
        ...


class Rig(Protocol):
    """`world` says who is where. `plug` makes a nic's device and puts it on its node's switch."""

    world: World
    switches: dict[str, Switch]

    def device(self, node: str, name: str) -> None: ...
    async def plug(self, nic: str) -> None: ...
    async def plug_service(self, node: str, vpc: str) -> None: ...
    async def ping(self, source: str, ip: str, *, spoof: str | None = None, expect: bool = True) -> bool: ...
    async def connect(self, source: str, ip: str, port: int, *, expect: bool = True) -> Connection | None: ...
    async def udp(self, source: str, ip: str, port: int, *, listening: bool = True) -> str: ...
    async def tap_arp(self, node: str, tap: str, mac: str, ip: str, target: str) -> str | None: ...
    async def restart(self, node: str) -> None: ...
    def close(self) -> None: ...


def service_name(node: str, vpc: str) -> str:
    return f"svc-{vpc[4:]}-{node}"


async def learn(rig: Rig) -> None:
    """Every node gets to know the others' underlay addresses."""
    for node, switch in rig.switches.items():
        for other, ip in rig.world.nodes.items():
            if other != node:
                await switch.learn_peer(ip)


async def apply(rig: Rig) -> None:
    """Every node's flows as the world says now."""
    for node, switch in rig.switches.items():
        await switch.replace_flows(compile_view(rig.world.view(node)))


# --- in memory


class FakeConnection:
    def __init__(self, rig: FakeRig, source: str, packet: Packet) -> None:
        self._rig, self._source, self._packet = rig, source, packet
        ((_, _, self._at_other_end),) = rig.wires.send(*rig.where[source], packet)

    async def echo(self, size: int = 1) -> bool:
        return self._rig.answered(self._source, self._packet.but(tcp_flags=ACK))

    async def pushed(self, by: str) -> bool:
        at, name = self._rig.where[by]
        packet = answer_to(self._at_other_end).but(tcp_flags=ACK)
        return [who for _, who, _ in self._rig.wires.send(at, name, packet)] == [self._source]


class FakeRig:
    def __init__(self) -> None:
        self.world = World()
        self.fakes = {node: FakeOvs(ip) for node, ip in self.world.nodes.items()}
        self.switches: dict[str, Switch] = dict(self.fakes)
        self.wires = Wires(tuple(self.fakes.values()))
        self.where: dict[str, tuple[FakeOvs, str]] = {}
        self.sport = itertools.count(40000)

    def close(self) -> None:
        self.where.clear()

    def device(self, node: str, name: str) -> None:
        self.fakes[node].devices.add(name)

    async def plug(self, nic: str) -> None:
        node = self.world.ports[nic].node_id or ""
        self.where[nic] = (self.fakes[node], nic)
        self.device(node, nic)
        await self.fakes[node].add_port(nic, f"port/{nic}", self.world.numbers[nic])

    async def plug_service(self, node: str, vpc: str) -> None:
        name = service_name(node, vpc)
        self.where[name] = (self.fakes[node], name)
        self.device(node, name)
        await self.fakes[node].add_port(name, f"vpc/{vpc}", self.world.service(vpc))

    def _ends(self, source: str, ip: str) -> Ends:
        if source in self.world.ports:
            mine = self.world.ports[source]
            target = next((nic for nic, port in self.world.ports.items() if (port.vpc, port.ip) == (mine.vpc, ip)), ip)
            return self.world.ends(source, target)
        return Ends(SERVICE_MAC, "00:00:00:00:00:00", "10.0.0.2", ip)

    def answered(self, source: str, packet: Packet, *, error: bool = False) -> bool:
        arrivals = self.wires.send(*self.where[source], packet)
        if [name for _, name, _ in arrivals] == [source]:
            return True  # the pipeline itself answered
        for switch, name, got in arrivals:
            answer = answer_to(got)
            if error:
                back = Ends(*(mac_text(answer[key]) for key in ("eth_src", "eth_dst")), "0.0.0.0", "0.0.0.0")
                answer = icmp_error(back, got).but(ip_src=answer["ip_src"], ip_dst=answer["ip_dst"])
            if [who for _, who, _ in self.wires.send(switch, name, answer)] == [source]:
                return True
        return False

    async def ping(self, source: str, ip: str, *, spoof: str | None = None, expect: bool = True) -> bool:
        ends = self._ends(source, ip)
        return self.answered(source, echo(Ends(ends.eth_src, ends.eth_dst, spoof or ends.ip_src, ends.ip_dst)))

    async def connect(self, source: str, ip: str, port: int, *, expect: bool = True) -> Connection | None:
        packet = tcp(self._ends(source, ip), next(self.sport), port)
        return FakeConnection(self, source, packet) if self.answered(source, packet) else None

    async def udp(self, source: str, ip: str, port: int, *, listening: bool = True) -> str:
        packet = udp(self._ends(source, ip), next(self.sport), port)
        if not self.answered(source, packet, error=not listening):
            return "silent"
        return "echoed" if listening else "refused"

    async def tap_arp(self, node: str, tap: str, mac: str, ip: str, target: str) -> str | None:
        arrivals = self.wires.send(self.fakes[node], tap, arp_request(mac, ip, target))
        return mac_text(arrivals[0][2]["arp_sha"]) if arrivals else None

    async def restart(self, node: str) -> None:
        self.fakes[node].restart()


# --- real


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.stderr or done.stdout}"
    return done.stdout


class Child:
    """A guest's process; one question, one answer."""

    def __init__(self, netns: str) -> None:
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", netns, sys.executable, str(GUEST)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "ready"

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, op: str, **values: Any) -> Any:
        assert self._process.stdin is not None
        print(json.dumps({"op": op, **values}), file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Node:
    """Network and mount namespace with ovsdb-server and ovs-vswitchd at their default paths."""

    def __init__(self, rig: OvsRig, name: str, ip: str) -> None:
        self.netns, self.ip = f"{rig.prefix}{name}", ip
        self.root = rig.root / name
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        run("ip", "netns", "add", self.netns)
        run("ip", "-n", self.netns, "link", "set", "lo", "up")
        uplink = f"{rig.prefix}u{name}"
        run("ip", "link", "add", uplink, "netns", rig.underlay, "type", "veth", "peer", "eth0", "netns", self.netns)
        run("ip", "netns", "exec", rig.underlay, "ethtool", "-K", uplink, "tx", "off")
        run("ip", "-n", rig.underlay, "link", "set", uplink, "master", "und", "up")
        run("ip", "-n", self.netns, "link", "set", "eth0", "up")
        mounts = ["mount --make-rprivate /"]
        for path in ("/run/openvswitch", "/etc/openvswitch", "/var/log/openvswitch"):
            Path(path).mkdir(parents=True, exist_ok=True)
            (self.root / path[1:]).mkdir(parents=True)
            mounts.append(f"mount --bind {self.root}{path} {path}")
        script = " && ".join([*mounts, "echo ok", "exec sleep infinity"])
        self.holder = subprocess.Popen(["ip", "netns", "exec", self.netns, "sh", "-c", script], stdout=subprocess.PIPE)
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"ok\n"
        self.enter = ("nsenter", "-t", str(self.holder.pid), "-m", "-n")
        database = "/etc/openvswitch/conf.db"
        run(*self.enter, "ovsdb-tool", "create", database, "/usr/share/openvswitch/vswitch.ovsschema")
        self.start("ovsdb-server", database, "--remote=punix:/run/openvswitch/db.sock")
        run(*self.enter, "ovs-vsctl", "--no-wait", "--retry", "--timeout=10", "init")
        self.start_switch()

    @property
    def rundir(self) -> Path:
        return self.root / "run/openvswitch"

    def start(self, daemon: str, *arguments: str) -> None:
        log = f"--log-file=/var/log/openvswitch/{daemon}.log"
        self.daemons[daemon] = subprocess.Popen(
            [*self.enter, daemon, *arguments, "--pidfile", log, "-vconsole:off"], stderr=subprocess.DEVNULL
        )

    def start_switch(self) -> None:
        self.start("ovs-vswitchd", "--disable-system")
        pidfile = self.rundir / "ovs-vswitchd.pid"
        wanted = str(self.daemons["ovs-vswitchd"].pid)
        deadline = time.monotonic() + 10
        while not pidfile.exists() or pidfile.read_text().strip() != wanted:
            assert time.monotonic() < deadline, "ovs-vswitchd did not start"
            time.sleep(0.01)
        run(*self.enter, "ovs-appctl", "version")

    def kill_switch(self) -> None:
        self.daemons["ovs-vswitchd"].kill()
        self.daemons["ovs-vswitchd"].wait()

    def close(self) -> None:
        for process in (*reversed(self.daemons.values()), self.holder):
            process.kill()
            process.wait()
        subprocess.run(["ip", "netns", "delete", self.netns], check=False)


class RealConnection:
    def __init__(self, rig: OvsRig, child: Child, number: int, port: int) -> None:
        self._rig, self._child, self._number, self._port = rig, child, number, port

    async def echo(self, size: int = 1) -> bool:
        wait = ANSWER_S if size > 1 else CUT_S
        return bool(self._child.ask("echo", number=self._number, size=size, wait=wait))

    async def pushed(self, by: str) -> bool:
        self._rig.guests[by].ask("push", port=self._port)
        return bool(self._child.ask("hear", number=self._number, wait=CUT_S))


class OvsRig:
    """Guests are namespaces joined by veth; every one listens on the ports of LISTEN."""

    LISTEN = (22, 53, 80, 5000)

    def __init__(self) -> None:
        self.prefix = f"sw{os.getpid() % 10000}"
        self.root = Path(tempfile.mkdtemp(prefix="scloud-switch-", dir="/tmp"))
        self.underlay = f"{self.prefix}und"
        self.world = World()
        self.nodes: dict[str, Node] = {}
        self.guests: dict[str, Child] = {}
        self.links: list[tuple[str, str]] = []
        """(node's namespace, device) of every guest's veth."""
        self.spaces: list[str] = []
        self.numbers = itertools.count()
        run("ip", "netns", "add", self.underlay)
        try:
            run("ip", "-n", self.underlay, "link", "add", "und", "type", "bridge")
            run("ip", "-n", self.underlay, "link", "set", "und", "up")
            for name, ip in self.world.nodes.items():
                self.nodes[name] = Node(self, name, ip)
        except BaseException:
            self.close()
            raise
        self.switches: dict[str, Switch] = {name: self.switch(node) for name, node in self.nodes.items()}

    def switch(self, node: Node) -> OvsSwitch:
        return OvsSwitch(
            OvsConfig(
                datapath="netdev",
                tunnel_ip=node.ip,
                underlay_device="eth0",
                underlay_address=f"{node.ip}/24",
                rundir=node.rundir,
                prefix=node.enter,
            )
        )

    def clear(self) -> None:
        """No guests, no flows, no connections; the switches stay."""
        for child in self.guests.values():
            child.close()
        for netns, name in self.links:  # a namespace takes its devices along, but only some time later
            subprocess.run(["ip", "-n", netns, "link", "delete", name], check=False, capture_output=True)
        for netns in self.spaces:
            run("ip", "netns", "delete", netns)
        self.guests.clear()
        self.links.clear()
        self.spaces.clear()
        self.world = World()
        for node in self.nodes.values():
            run(*node.enter, "ovs-appctl", "dpctl/flush-conntrack")

    def close(self) -> None:
        with contextlib.suppress(AssertionError):
            self.clear()
        for node in self.nodes.values():
            node.close()
        subprocess.run(["ip", "netns", "delete", self.underlay], check=False)
        shutil.rmtree(self.root)

    def device(self, node: str, name: str) -> None:
        netns = self.nodes[node].netns
        run("ip", "-n", netns, "link", "add", name, "type", "veth", "peer", f"{name}-far")
        self.links.append((netns, name))

    def _guest(self, node: str, name: str, mac: str, addresses: list[str], routes: list[tuple[str, ...]]) -> None:
        netns = f"{self.prefix}{name}"
        inside = ("ip", "-n", netns)
        run("ip", "netns", "add", netns)
        self.spaces.append(netns)
        run("ip", "link", "add", name, "netns", self.nodes[node].netns, "type", "veth", "peer", "eth0", "netns", netns)
        self.links.append((self.nodes[node].netns, name))
        run("ip", "netns", "exec", netns, "ethtool", "-K", "eth0", "tx", "off")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "link", "set", "eth0", "address", mac, "mtu", "1450", "up")
        for address in addresses:
            run(*inside, "address", "add", address, "dev", "eth0")
        for route in routes:
            run(*inside, "route", "add", *route)
        self.guests[name] = Child(netns)
        for port in self.LISTEN:
            self.guests[name].ask("listen", port=port)

    async def plug(self, nic: str) -> None:
        port = self.world.ports[nic]
        subnet = next(item for item in self.world.vpcs[port.vpc].subnets if item.id == port.subnet)
        node = port.node_id or ""
        length = subnet.cidr.partition("/")[2]
        self._guest(node, nic, port.mac, [f"{port.ip}/{length}"], [("default", "via", subnet.gateway)])
        await self.switches[node].add_port(nic, f"port/{nic}", self.world.numbers[nic])

    async def plug_service(self, node: str, vpc: str) -> None:
        name = service_name(node, vpc)
        addresses = [f"{item.service_ip}/{item.cidr.partition('/')[2]}" for item in self.world.vpcs[vpc].subnets] + [
            f"{METADATA_IP}/32"
        ]
        self._guest(node, name, SERVICE_MAC, addresses, [])
        await self.switches[node].add_port(name, f"vpc/{vpc}", self.world.service(vpc))

    async def ping(self, source: str, ip: str, *, spoof: str | None = None, expect: bool = True) -> bool:
        if spoof is not None:
            address = ("ip", "-n", f"{self.prefix}{source}", "address", "replace", f"{spoof}/32", "dev", "eth0")
            run(*address)
        return bool(self.guests[source].ask("ping", ip=ip, source=spoof, wait=ANSWER_S if expect else QUIET_S))

    async def connect(self, source: str, ip: str, port: int, *, expect: bool = True) -> Connection | None:
        number = next(self.numbers)
        child = self.guests[source]
        done = child.ask("connect", number=number, ip=ip, port=port, wait=ANSWER_S if expect else QUIET_S)
        return RealConnection(self, child, number, port) if done else None

    async def udp(
        self, source: str, ip: str, port: int, *, listening: bool = True, sizes: tuple[int, ...] = (10,)
    ) -> str:
        return str(self.guests[source].ask("udp", ip=ip, port=port, sizes=sizes, wait=ANSWER_S))

    async def tap_arp(self, node: str, tap: str, mac: str, ip: str, target: str) -> str | None:
        frame = "".join(
            (
                "f" * 12,
                mac.replace(":", ""),
                "0806" + "0001" + "0800" + "0604" + "0001",
                mac.replace(":", ""),
                bytes(map(int, ip.split("."))).hex(),
                "0" * 12,
                bytes(map(int, target.split("."))).hex(),
            )
        )
        wait = ("tap", tap, frame, str(QUIET_S))
        got = run("ip", "netns", "exec", self.nodes[node].netns, sys.executable, str(GUEST), *wait).strip()
        return mac_text(int(got[44:56], 16)) if got else None

    async def restart(self, node: str) -> None:
        self.nodes[node].kill_switch()
        self.nodes[node].start_switch()
