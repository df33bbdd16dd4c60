"""The foot of a VPC's namespace in the VPC: a veth, its addresses, and what the kernel does with them."""

from __future__ import annotations

import array
import fcntl
import ipaddress
import json
import socket
import struct
from pathlib import Path

from scloud.drivers.netfunc import namespace
from scloud.drivers.netfunc.command import batch, run
from scloud.drivers.netfunc.protocol import VpcServiceSpec
from scloud.model.errors import CloudError

DEVICE = "svc0"
"""The namespace's end of the veth."""
METADATA = "169.254.169.254"
_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17
_SYSCTL = {
    "ipv4/ip_forward": "0",
    # Ask for a guest's MAC from an address of its own subnet, never from the metadata address.
    "ipv4/conf/all/arp_announce": "2",
    "ipv4/conf/default/rp_filter": "0",
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
}


def has(device: str) -> bool:
    """Whether our own namespace has the device."""
    try:
        socket.if_nametoindex(device)
    except OSError:
        return False
    return True


def addresses(spec: VpcServiceSpec) -> set[str]:
    """ADDRESS/PREFIX of everything the namespace answers at."""
    prefixes = {subnet.service_ip: ipaddress.IPv4Network(subnet.cidr).prefixlen for subnet in spec.subnets}
    return {f"{METADATA}/32", *(f"{address}/{prefix}" for address, prefix in prefixes.items())}


async def settle(spec: VpcServiceSpec, name: str) -> int:
    """Make or mend the veth between here and the namespace `name`, as the spec says.

    Returns the foot's index in there: another one means another device, which no open socket is bound to.
    """
    present = await _present(name)
    if present is None or not has(spec.port) or present[0] != socket.if_nametoindex(spec.port):
        await _pair(spec, name, stale=present is not None)
        have: set[str] = set()
    else:
        have = present[1]
    want = addresses(spec)
    await batch(
        [
            "link set lo up",
            f"link set {DEVICE} mtu {spec.mtu}",
            f"link set {DEVICE} address {spec.service_mac}",
            *(f"address delete {address} dev {DEVICE}" for address in sorted(have - want)),
            f"link set {DEVICE} up",
            *(f"address add {address} dev {DEVICE}" for address in sorted(want - have)),
        ],
        name,
    )
    # The switch must not take part in the VPC's traffic with addresses of the node's own.
    await batch([f"link set {spec.port} addrgenmode none mtu {spec.mtu}", f"link set {spec.port} up"])
    return await namespace.inside(name, _offload_off)


async def remove(name: str, port: str | None) -> None:
    """Take the veth away, from whichever end is left."""
    if port is not None:
        await _delete_port(port)
    if await _present(name) is not None:
        await batch([f"link delete {DEVICE}"], name)


async def _pair(spec: VpcServiceSpec, name: str, stale: bool) -> None:
    if stale:
        await batch([f"link delete {DEVICE}"], name)
    await _delete_port(spec.port)
    await namespace.inside(name, _kernel_settings)
    await batch([f"link add {spec.port} type veth peer name {DEVICE} address {spec.service_mac} netns {name}"])


async def _delete_port(port: str) -> None:
    if has(port):
        try:
            await batch([f"link delete {port}"])
        except CloudError:
            # It may just have gone with a namespace that the kernel is taking down.
            if has(port):
                raise


async def _present(name: str) -> tuple[int, set[str]] | None:
    """(index of the peer in its namespace, addresses) of the foot; None if there is none."""
    if namespace.identity(name) is None:
        return None
    links = json.loads(await run("ip", "-netns", name, "-json", "address", "show") or "[]")
    for link in links:
        if link.get("ifname") == DEVICE:
            inet = [info for info in link["addr_info"] if info["family"] == "inet"]
            return link.get("link_index", 0), {f"{info['local']}/{info['prefixlen']}" for info in inet}
    return None


def _kernel_settings() -> None:
    for key, value in _SYSCTL.items():
        file = Path("/proc/sys/net") / key
        # IPv6 may be missing from the kernel altogether.
        if file.exists():
            file.write_text(value)


def _offload_off() -> int:
    """`ethtool -K svc0 tx off`: a userspace switch would pass packets on with the checksum still to be filled in."""
    order = array.array("B", struct.pack("II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP16x", DEVICE.encode(), order.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, _SIOCETHTOOL, request)
    return socket.if_nametoindex(DEVICE)
