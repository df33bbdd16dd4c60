"""Guests of a VPC, pretended or real, for the tests of network functions.

A real one is a network namespace on a plain Linux bridge with the foot of the VPC, asking with busybox's DHCP client
and with DNS questions written here byte by byte. Everything has names of its own and is taken away in the end.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import secrets
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

from scloud.drivers.netfunc import namespace
from scloud.drivers.netfunc.command import batch, run
from scloud.drivers.netfunc.fake import FakeLease, FakeNetwork, FakeNetworkFunctions
from scloud.drivers.netfunc.linux import LinuxNetworkFunctions
from scloud.drivers.netfunc.protocol import HostEntry, NetworkFunctions, VpcServiceSpec
from scloud.drivers.supervisor.process import ProcessSupervisor

A, PTR, AAAA = 1, 12, 28
NOERROR, NXDOMAIN, REFUSED = 0, 3, 5
_T = TypeVar("_T")


async def eventually(ask: Callable[[], Awaitable[_T]], expected: _T, within_s: float = 5.0) -> None:
    """A daemon takes a change up in its own time, which nothing announces: ask until the answer is right."""
    deadline = time.monotonic() + within_s
    while (answer := await ask()) != expected:
        assert time.monotonic() < deadline, f"still {answer!r}, not {expected!r}, after {within_s} s"
        await asyncio.sleep(0.01)


class Guest(Protocol):
    async def dhcp(self) -> FakeLease | None:
        """Ask, and from then on have the address."""
        ...

    async def resolve(self, name: str) -> set[str]: ...
    async def reverse(self, ip: str) -> set[str]: ...
    async def serve(self, port: int) -> socket.socket: ...
    async def connect(self, address: str, port: int) -> socket.socket: ...


class Bench(Protocol):
    functions: NetworkFunctions

    def port(self) -> str: ...
    def vpc(self) -> str: ...
    def restart(self) -> None: ...
    async def guest(self, spec: VpcServiceSpec, host: HostEntry) -> Guest: ...
    async def kill_service(self, vpc: str) -> None: ...
    async def service(self, vpc: str) -> object:
        """Something that changes when the service is interrupted."""
        ...

    async def close(self) -> None: ...


class FakeGuest:
    def __init__(self, network: FakeNetwork, spec: VpcServiceSpec, host: HostEntry) -> None:
        self._network = network
        self._vpc = spec.vpc
        self._host = host

    async def dhcp(self) -> FakeLease | None:
        return self._network.lease(self._vpc, self._host.mac)

    async def resolve(self, name: str) -> set[str]:
        return self._network.resolve(self._vpc, name)

    async def reverse(self, ip: str) -> set[str]:
        return self._network.reverse(self._vpc, ip)

    async def serve(self, port: int) -> socket.socket:
        return self._network.serve(self._vpc, self._host.ip, port)

    async def connect(self, address: str, port: int) -> socket.socket:
        return self._network.dial(self._vpc, address, port)


class FakeBench:
    def __init__(self) -> None:
        self.network = FakeNetwork()
        self.functions: NetworkFunctions = FakeNetworkFunctions(self.network)

    def port(self) -> str:
        return f"sp{secrets.token_hex(4)}"

    def vpc(self) -> str:
        return f"vpc-{secrets.token_hex(8)}"

    def restart(self) -> None:
        self.functions = FakeNetworkFunctions(self.network)

    async def guest(self, spec: VpcServiceSpec, host: HostEntry) -> Guest:
        return FakeGuest(self.network, spec, host)

    async def kill_service(self, vpc: str) -> None:
        self.network.broken.add(vpc)

    async def service(self, vpc: str) -> object:
        return vpc in self.network.broken

    async def close(self) -> None:
        for listener in self.network.listeners.values():
            listener.close()


class LinuxGuest:
    def __init__(self, name: str, host: HostEntry, spec: VpcServiceSpec, folder: Path) -> None:
        self.name = name
        self.env: dict[str, str] = {}
        self._host = host
        self._server = next(subnet.service_ip for subnet in spec.subnets if subnet.id == host.subnet)
        self._folder = folder

    async def plug(self, bridge: str) -> None:
        port = f"sg{secrets.token_hex(4)}"
        await namespace.create(self.name)
        await batch(
            [
                f"link add {port} type veth peer name eth0 address {self._host.mac} netns {self.name}",
                f"link set {port} addrgenmode none master {bridge} up",
            ]
        )
        await batch(["link set lo up", "link set eth0 addrgenmode none", "link set eth0 up"], self.name)

    async def dhcp(self, *more: str) -> FakeLease | None:
        script, result = self._folder / f"{self.name}.sh", self._folder / f"{self.name}.env"
        result.unlink(missing_ok=True)
        script.write_text(f'#!/bin/sh\n[ "$1" = bound ] && env > {result}\nexit 0\n')
        script.chmod(0o755)
        client = await asyncio.create_subprocess_exec(
            *("nsenter", f"--net={namespace.FOLDER / self.name}", "busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n"),
            *("-t", "3", "-T", "1", "-O", "mtu", "-O", "staticroutes", "-s", str(script), *more),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await client.wait()
        if not result.exists():
            return None
        env = self.env = dict(line.split("=", 1) for line in result.read_text().splitlines() if "=" in line)
        network = ipaddress.IPv4Interface(f"{env['ip']}/{env['subnet']}").network
        await batch(
            [
                "address flush dev eth0",
                f"link set eth0 mtu {env['mtu']}",
                f"address add {env['ip']}/{network.prefixlen} dev eth0",
                "route replace 169.254.169.254/32 dev eth0",
            ],
            self.name,
        )
        return FakeLease(
            ip=env["ip"],
            hostname=env["hostname"],
            cidr=str(network),
            gateway=env["router"],
            dns=env["dns"],
            domain=env["domain"],
            mtu=int(env["mtu"]),
        )

    async def ask(self, name: str, kind: int) -> tuple[int, set[str]]:
        """(response code, answers) of one question to the subnet's server."""
        client = await self._socket(socket.SOCK_DGRAM)
        loop = asyncio.get_running_loop()
        labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
        question = struct.pack("!HHHHHH", 4711, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)
        with client:
            await loop.sock_connect(client, (self._server, 53))
            for _ in range(5):
                try:
                    async with asyncio.timeout(1):
                        await loop.sock_sendall(client, question)
                        return parse(await loop.sock_recv(client, 4096), len(question))
                except (TimeoutError, ConnectionRefusedError):
                    continue
        return -1, set()

    async def resolve(self, name: str) -> set[str]:
        return (await self.ask(name, A))[1]

    async def reverse(self, ip: str) -> set[str]:
        return (await self.ask(ipaddress.IPv4Address(ip).reverse_pointer, PTR))[1]

    async def serve(self, port: int) -> socket.socket:
        listener = await self._socket(socket.SOCK_STREAM)
        listener.bind((self._host.ip, port))
        listener.listen()
        return listener

    async def connect(self, address: str, port: int) -> socket.socket:
        client = await self._socket(socket.SOCK_STREAM)
        async with asyncio.timeout(5):
            await asyncio.get_running_loop().sock_connect(client, (address, port))
        return client

    async def _socket(self, kind: socket.SocketKind) -> socket.socket:
        made = await namespace.inside(self.name, lambda: socket.socket(socket.AF_INET, kind))
        made.setblocking(False)
        return made


def parse(packet: bytes, question_length: int) -> tuple[int, set[str]]:
    """The A and PTR answers of a DNS packet."""
    _, flags, _, count, _, _ = struct.unpack("!HHHHHH", packet[:12])
    answers, at = set(), question_length
    for _ in range(count):
        _, at = read_name(packet, at)
        kind, _, _, length = struct.unpack("!HHIH", packet[at : at + 10])
        at += 10
        if kind == A:
            answers.add(socket.inet_ntoa(packet[at : at + 4]))
        elif kind == PTR:
            answers.add(read_name(packet, at)[0])
        at += length
    return flags & 0xF, answers


def read_name(packet: bytes, at: int) -> tuple[str, int]:
    labels: list[str] = []
    while packet[at]:
        if packet[at] >= 0xC0:
            rest = read_name(packet, (packet[at] & 0x3F) << 8 | packet[at + 1])[0]
            return ".".join([*labels, rest]), at + 2
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode())
        at += 1 + packet[at]
    return ".".join(labels), at + 1


class LinuxBench:
    def __init__(self) -> None:
        self.tag = secrets.token_hex(3)
        self.folder = Path(tempfile.mkdtemp(prefix="scloud-netfunc-"))
        self.folder.chmod(0o755)
        self.run_dir = self.folder / "netfunc"
        self.supervisor = ProcessSupervisor(self.folder / "run", self.folder / "log")
        self.functions: LinuxNetworkFunctions = self._driver()
        self._vpcs: list[str] = []
        self._bridges: dict[str, str] = {}
        self._guests: list[str] = []

    def _driver(self) -> LinuxNetworkFunctions:
        return LinuxNetworkFunctions(self.run_dir, self.supervisor, prefix=f"sct{self.tag}-")

    def namespace(self, vpc: str) -> str:
        return f"sct{self.tag}-{vpc}"

    def port(self) -> str:
        return f"sp{secrets.token_hex(4)}"

    def vpc(self) -> str:
        self._vpcs.append(f"vpc-{secrets.token_hex(8)}")
        return self._vpcs[-1]

    def restart(self) -> None:
        self.supervisor = ProcessSupervisor(self.folder / "run", self.folder / "log")
        self.functions = self._driver()

    async def guest(self, spec: VpcServiceSpec, host: HostEntry) -> LinuxGuest:
        bridge = self._bridges.get(spec.vpc)
        if bridge is None:
            bridge = self._bridges[spec.vpc] = f"sb{secrets.token_hex(4)}"
            await batch([f"link add {bridge} type bridge", f"link set {bridge} addrgenmode none up"])
        await batch([f"link set {spec.port} master {bridge}"])
        self._guests.append(f"sct{self.tag}-guest{len(self._guests)}")
        guest = LinuxGuest(self._guests[-1], host, spec, self.folder)
        await guest.plug(bridge)
        return guest

    async def pid(self, vpc: str) -> int:
        (facts,) = [facts for facts in await self.supervisor.processes() if facts.name == f"dnsmasq-{vpc}"]
        assert facts.pid is not None
        return facts.pid

    async def kill_service(self, vpc: str) -> None:
        os.kill(await self.pid(vpc), 9)
        await self.supervisor.died(f"dnsmasq-{vpc}")

    async def service(self, vpc: str) -> object:
        return await self.pid(vpc), namespace.identity(self.namespace(vpc))

    async def close(self) -> None:
        for vpc in self._vpcs:
            await self.functions.remove(vpc)
        for guest in self._guests:
            await run("ip", "netns", "delete", guest)
        await batch([f"link delete {bridge}" for bridge in self._bridges.values()])
        shutil.rmtree(self.folder)
