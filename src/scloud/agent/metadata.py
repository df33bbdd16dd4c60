"""The metadata service: on 169.254.169.254 inside each VPC, telling a VM about itself in EC2's words.

A VM is known by the address its packets come from, inside the VPC whose socket took them; port security lets no nic
send from another's address. Nothing that a request says can make it another VM.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from typing import Union

from scloud.agent.http import Answer, HttpServer, Request
from scloud.agent.journal import AnyDesired, Journal
from scloud.drivers.netfunc.protocol import NetworkFunctions
from scloud.model.desired import DesiredDisk, DesiredPort, DesiredVm, DesiredVpc
from scloud.model.errors import CloudError
from scloud.reconcile.network import dns_domain

log = logging.getLogger(__name__)

ADDRESS = "169.254.169.254"
PORT = 80
CHECK_EVERY_S = 60.0
"""How often it is tried whether the socket still answers inside the VPC."""
VERSIONS = ("1.0", "2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23", "latest")
"""Those that cloud-init asks for; all have the same content."""
TOKEN_TTL_HEADER = "x-aws-ec2-metadata-token-ttl-seconds"
MAX_TOKEN_TTL_S = 21600

Tree = Mapping[str, Union[str, "Tree"]]


def tree_of(vm: DesiredVm, port: DesiredPort, desired: Mapping[str, AnyDesired]) -> Tree:
    """What a VM is told, by path. `port` is the nic it asks through."""
    vpc = desired.get(f"vpc/{port.vpc}")
    domain = dns_domain(vpc) if isinstance(vpc, DesiredVpc) else ""
    name = f"{port.hostname}.{domain}" if domain else port.hostname
    system = next((disk.id for disk in vm.disks if disk.system), None)
    disk = desired.get(f"disk/{system}")
    meta: dict[str, str | Tree] = {
        "ami-id": disk.image if isinstance(disk, DesiredDisk) and disk.image else "none",
        "hostname": name,
        "instance-id": vm.id,
        "instance-type": f"{vm.cpus}cpu-{vm.memory_mib}mib",
        "local-hostname": name,
        "local-ipv4": port.ip,
        "mac": port.mac,
        "network": {"interfaces": {"macs": _interfaces(vm, desired)}},
        "placement": {"availability-zone": "default", "region": "scloud"},
        "security-groups": "\n".join(port.groups),
    }
    if vm.keys:
        meta["public-keys"] = {str(number): {"openssh-key": key} for number, key in enumerate(vm.keys)}
    result: dict[str, str | Tree] = {"meta-data": meta}
    if vm.user_data:
        result["user-data"] = vm.user_data
    return result


def _interfaces(vm: DesiredVm, desired: Mapping[str, AnyDesired]) -> Tree:
    result: dict[str, str | Tree] = {}
    for number, nic in enumerate(vm.nics):
        port = desired.get(f"port/{nic}")
        if not isinstance(port, DesiredPort) or port.absent:
            continue
        vpc = desired.get(f"vpc/{port.vpc}")
        subnets = vpc.subnets if isinstance(vpc, DesiredVpc) else ()
        entry: dict[str, str | Tree] = {
            "device-number": str(number),
            "interface-id": port.id,
            "local-hostname": port.hostname,
            "local-ipv4s": port.ip,
            "mac": port.mac,
            "subnet-id": port.subnet,
            "vpc-id": port.vpc,
        }
        cidr = next((subnet.cidr for subnet in subnets if subnet.id == port.subnet), None)
        if cidr is not None:
            entry["subnet-ipv4-cidr-block"] = cidr
        result[port.mac] = entry
    return result


def look_up(tree: Tree, path: str) -> str | None:
    """A leaf's text, or a folder's listing: one name a line, folders with a slash at their end. None: nothing there."""
    node: str | Tree = tree
    parts = [part for part in path.split("/") if part]
    for part in parts:
        if isinstance(node, str) or part not in node:
            return None
        node = node[part]
    if isinstance(node, str):
        return node
    if parts[-1:] == ["public-keys"]:
        return "\n".join(f"{number}=key-{number}" for number in node)
    return "\n".join(name if isinstance(below, str) else f"{name}/" for name, below in sorted(node.items()))


class Metadata:
    """A socket and a server for each VPC; see `agent.vpcs.Listener`."""

    def __init__(self, functions: NetworkFunctions, journal: Journal) -> None:
        self._functions = functions
        self._journal = journal
        self._servers: dict[str, HttpServer] = {}
        self._checked: dict[str, float] = {}

    async def ensure(self, vpc: str) -> None:
        """Listen in the VPC. `CloudError`, OSError."""
        now = asyncio.get_running_loop().time()
        if vpc in self._servers:
            if now - self._checked[vpc] < CHECK_EVERY_S or await self._answers(vpc):
                return
            log.warning("the metadata socket of %s is not in its namespace any more; listening anew", vpc)
            await self.remove(vpc)
        listener = await self._functions.listen(vpc, ADDRESS, PORT)
        server = HttpServer(lambda client, request: self.respond(vpc, client, request))
        try:
            await server.start(listener)
        except BaseException:
            listener.close()
            raise
        self._servers[vpc] = server
        self._checked[vpc] = now

    async def _answers(self, vpc: str) -> bool:
        try:
            probe = await self._functions.connect(vpc, ADDRESS, PORT, 1.0)
        except (CloudError, OSError):
            return False
        probe.close()
        self._checked[vpc] = asyncio.get_running_loop().time()
        return True

    async def remove(self, vpc: str) -> None:
        server = self._servers.pop(vpc, None)
        self._checked.pop(vpc, None)
        if server is not None:
            await server.stop()

    async def close(self) -> None:
        for vpc in list(self._servers):
            await self.remove(vpc)

    def respond(self, vpc: str, client: str, request: Request) -> Answer:
        """Pure but for the journal: who asks is found by VPC and address alone."""
        if request.path == "/latest/api/token":
            return _token(request)
        if request.method not in ("GET", "HEAD"):
            return Answer(405, b"only GET and HEAD\n", {"Allow": "GET, HEAD"})
        found = self._who(vpc, client)
        if found is None:
            return Answer(404, b"no VM has this address\n")
        text = self._text(*found, request.path)
        if text is None:
            return Answer(404, b"there is nothing here\n")
        return Answer(200, b"" if request.method == "HEAD" else text.encode())

    def _text(self, vm: DesiredVm, port: DesiredPort, path: str) -> str | None:
        version, _, rest = path.strip("/").partition("/")
        if not version:
            return "\n".join(VERSIONS)
        if version not in VERSIONS:
            return None
        return look_up(tree_of(vm, port, self._journal.desired), rest)

    def _who(self, vpc: str, client: str) -> tuple[DesiredVm, DesiredPort] | None:
        desired = self._journal.desired
        for item in desired.values():
            if isinstance(item, DesiredPort) and item.vpc == vpc and item.ip == client and not item.absent:
                vm = desired.get(f"vm/{item.vm}")
                if isinstance(vm, DesiredVm) and vm.power != "absent":
                    return vm, item
        return None


def _token(request: Request) -> Answer:
    """IMDSv2's token, for clients that insist on one. It grants nothing: who asks is known without it."""
    if request.method != "PUT":
        return Answer(405, b"only PUT\n", {"Allow": "PUT"})
    ttl = request.headers.get(TOKEN_TTL_HEADER, "")
    if not (ttl.isascii() and ttl.isdigit() and len(ttl) <= 5 and 1 <= int(ttl) <= MAX_TOKEN_TTL_S):
        return Answer(400, f"{TOKEN_TTL_HEADER} must be 1 to {MAX_TOKEN_TTL_S}\n".encode())
    token = hashlib.blake2b(ttl.encode(), digest_size=20).hexdigest()
    return Answer(200, token.encode(), {TOKEN_TTL_HEADER: ttl})
