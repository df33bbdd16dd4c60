"""What dnsmasq is told, as text, and what it tells: its lease file. No I/O here.

Names and leases are in two files that it reads again on SIGHUP, so that a host comes and goes without a restart (and
without inotify, of which a user has 128 instances by default: one VPC each). Everything else is in the configuration,
whose change restarts it.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from scloud.drivers.netfunc.foot import DEVICE, METADATA
from scloud.drivers.netfunc.protocol import HostEntry, SubnetEntry, VpcServiceSpec
from scloud.model.errors import invalid

LEASE_S = 24 * 3600
"""Long: guests keep their addresses through any outage of this node's services. A host that is removed has its lease
taken back at once (see `release`)."""
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_FULL = rf"{_LABEL}(?:\.{_LABEL})*"
_IP = r"\d{1,3}(?:\.\d{1,3}){3}"
_MAC = r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}"
_LINES = re.compile(rf"(?:(?:{_IP} {_FULL} {_LABEL}|{_MAC},{_IP},{_FULL})\n)*")
_MAGIC_COOKIE = 0x63825363
_OPTION_TYPE, _OPTION_SERVER, _OPTION_END = 53, 54, 255
_DHCPRELEASE = 7


def configuration(spec: VpcServiceSpec, names: Path, leases: Path, lease_file: Path, pid_file: Path, user: str) -> str:
    """The part that needs a restart. All paths must be absolute: dnsmasq works in `/`."""
    lines = [
        f"interface={DEVICE}",
        "except-interface=lo",
        "bind-interfaces",
        f"user={user}",
        f"pid-file={pid_file}",
        "log-facility=-",
        "quiet-dhcp",
        # DNS: the VPC's names and nothing else.
        "no-resolv",
        "no-hosts",
        "domain-needed",
        "bogus-priv",
        f"addn-hosts={names}",
        f"domain={spec.domain}",
        f"local=/{spec.domain}/",
        # DHCP: known hosts only, known by the MAC that the switch lets through, named by us and not by themselves.
        "dhcp-authoritative",
        "no-ping",
        "dhcp-ignore-clid",
        "dhcp-ignore-names",
        "dhcp-lease-max=65536",
        f"dhcp-hostsfile={leases}",
        f"dhcp-leasefile={lease_file}",
        f"dhcp-option-force=option:mtu,{spec.mtu}",
    ]
    subnets = sorted(spec.subnets, key=lambda subnet: subnet.id)
    for index, subnet in enumerate(subnets):
        lines += _subnet(f"s{index}", subnet)
    lines += [f"local=/{zone}/" for zone in sorted({_reverse_zone(subnet) for subnet in subnets})]
    return "\n".join(lines) + "\n"


def _subnet(tag: str, subnet: SubnetEntry) -> list[str]:
    network = ipaddress.IPv4Network(subnet.cidr)
    option = f"dhcp-option=tag:{tag},option"
    routes = f"{METADATA}/32,{subnet.gateway},0.0.0.0/0,{subnet.gateway}"
    return [
        f"dhcp-range=set:{tag},{network.network_address},static,{network.netmask},{LEASE_S}",
        f"{option}:router,{subnet.gateway}",
        f"{option}:dns-server,{subnet.service_ip}",
        # Clients that take this one ignore `router` (RFC 3442), so the default route is in both.
        f"{option}:classless-static-route,{routes}",
    ]


def _reverse_zone(subnet: SubnetEntry) -> str:
    """The smallest zone on an octet's border that holds the subnet: unknown addresses in it do not exist."""
    network = ipaddress.IPv4Network(subnet.cidr)
    octets = str(network.network_address).split(".")[: network.prefixlen // 8]
    return ".".join(reversed(octets)) + ".in-addr.arpa"


def names(spec: VpcServiceSpec) -> str:
    """A hosts file: every host's full and short name; the full one answers reverse questions."""
    return _checked(f"{host.ip} {host.hostname}.{spec.domain} {host.hostname}\n" for host in spec.hosts)


def leases(spec: VpcServiceSpec) -> str:
    """Who gets which address. Names are full: a bare `ignore` or `infinite` would be a keyword here."""
    return _checked(f"{host.mac},{host.ip},{host.hostname}.{spec.domain}\n" for host in _local(spec))


def _checked(lines: Iterable[str]) -> str:
    """Sorted, so that the same hosts in another order are the same file; and none of it more than names and addresses.

    `CloudError(INVALID)` names the first line that is not as it must be.
    """
    text = "".join(sorted(lines))
    if not _LINES.fullmatch(text):
        wrong = next(line for line in text.splitlines(keepends=True) if not _LINES.fullmatch(line))
        raise invalid("hosts", f"must have DNS names, IPv4 and MAC addresses, unlike {wrong!r}")
    return text


def _local(spec: VpcServiceSpec) -> Sequence[HostEntry]:
    return [host for host in spec.hosts if host.local]


def stray(lease_file: str, spec: VpcServiceSpec) -> list[tuple[str, str]]:
    """(MAC, address) of leases that were given and are nobody's now: they block the address and keep the name alive.

    Lines are `EXPIRY MAC ADDRESS NAME CLIENT-ID`; a line that is cut short, because dnsmasq is writing, is left out.
    """
    known = {(host.mac, host.ip) for host in _local(spec)}
    given = [(fields[1], fields[2]) for line in lease_file.splitlines() if len(fields := line.split()) == 5]
    return [lease for lease in given if lease not in known and re.fullmatch(_MAC, lease[0])]


def without_stray(lease_file: str, spec: VpcServiceSpec) -> str:
    """The lease file less those."""
    gone = set(stray(lease_file, spec))
    lines = [line for line in lease_file.splitlines() if len(f := line.split()) == 5 and (f[1], f[2]) not in gone]
    return "".join(f"{line}\n" for line in lines)


def server_of(ip: str, spec: VpcServiceSpec) -> str | None:
    """The service address of the subnet that an address is in."""
    address = ipaddress.IPv4Address(ip)
    inside = (subnet.service_ip for subnet in spec.subnets if address in ipaddress.IPv4Network(subnet.cidr))
    return next(inside, None)


def release(mac: str, ip: str, server: str) -> bytes:
    """A DHCPRELEASE (RFC 2131) as the host itself would send it: dnsmasq forgets the lease and its name at once."""
    head = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0, 0, 0)
    client = ipaddress.IPv4Address(ip).packed
    hardware = bytes.fromhex(mac.replace(":", ""))
    body = head + client + bytes(12) + hardware.ljust(16, b"\0") + bytes(64 + 128) + struct.pack("!I", _MAGIC_COOKIE)
    kind = bytes((_OPTION_TYPE, 1, _DHCPRELEASE))
    to = bytes((_OPTION_SERVER, 4)) + ipaddress.IPv4Address(server).packed
    return body + kind + to + bytes((_OPTION_END,))
