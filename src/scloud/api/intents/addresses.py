"""Addresses, MACs and VNIs: given or the next free one, each taken once."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from sqlalchemy import text

from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.fields import MAX_VNI
from scloud.model.specs import SubnetSpec
from scloud.store.database import Tx
from scloud.store.resources import Resource, claim_value, claimed

_GET = text("SELECT value FROM counter WHERE name = :name")
_SET = text(
    "INSERT INTO counter (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
RESERVED = 3
"""Network address, gateway, DHCP and DNS service: the first addresses of every subnet."""


def scope_of(subnet: Resource) -> str:
    """The VPC's: its subnets do not overlap, and an address that is still reserved stays so in a subnet made anew."""
    return f"ip:{subnet.spec_as(SubnetSpec).vpc}"


def take_ip(tx: Tx, subnet: Resource, owner: str, wanted: str | None) -> str:
    """An address of the subnet. INVALID if it cannot be had, CONFLICT if it is taken, NO_CAPACITY if none is free."""
    network = ipaddress.IPv4Network(subnet.spec_as(SubnetSpec).cidr)
    if wanted is not None:
        return _take_given(tx, subnet, network, owner, ipaddress.IPv4Address(wanted))
    first, last = RESERVED, network.num_addresses - 2
    cursor = max(_cursor(tx, subnet), first)
    # Addresses go round, so that one just given back is not soon somebody else's.
    for number in _candidates(tx, subnet, network, cursor, first, last):
        address = str(network.network_address + number)
        if claim_value(tx, scope_of(subnet), address, owner):
            _move_cursor(tx, subnet, number + 1)
            return address
    raise CloudError(ErrorKind.NO_CAPACITY, f"subnet '{subnet.name}' ({network}) has no free address; add a subnet")


def _take_given(
    tx: Tx, subnet: Resource, network: ipaddress.IPv4Network, owner: str, address: ipaddress.IPv4Address
) -> str:
    if address not in network:
        raise invalid("ip", f"must be within the subnet's {network}")
    number = int(address) - int(network.network_address)
    if number < RESERVED or number > network.num_addresses - 2:
        raise invalid(
            "ip", f"is reserved; take {network.network_address + RESERVED} to {network.broadcast_address - 1}"
        )
    if not claim_value(tx, scope_of(subnet), str(address), owner):
        raise CloudError(ErrorKind.CONFLICT, f"ip: {address} is taken in subnet '{subnet.name}'; choose another")
    return str(address)


def _candidates(
    tx: Tx, subnet: Resource, network: ipaddress.IPv4Network, cursor: int, first: int, last: int
) -> Iterator[int]:
    """Numbers to try, from the cursor on; what is taken is read only when the first guesses fail."""
    yield from range(cursor, min(cursor + 4, last + 1))
    base = int(network.network_address)
    used = {int(ipaddress.IPv4Address(text)) - base for text in claimed(tx, scope_of(subnet))}
    for number in (*range(cursor, last + 1), *range(first, cursor)):
        if number not in used:
            yield number
            return


def _cursor(tx: Tx, subnet: Resource) -> int:
    return int(tx.conn.execute(_GET, {"name": subnet.id}).scalar() or 0)


def _move_cursor(tx: Tx, subnet: Resource, value: int) -> None:
    tx.conn.execute(_SET, {"name": subnet.id, "value": value})


def take_mac(tx: Tx, owner: str) -> str:
    """A random locally administered unicast address; 40 random bits, taken once in the whole cloud."""
    while True:
        bits = tx.random_bits(40)
        mac = "06:" + ":".join(f"{bits >> shift & 255:02x}" for shift in (32, 24, 16, 8, 0))
        if claim_value(tx, "mac", mac, owner):
            return mac


def take_vni(tx: Tx, owner: str, wanted: int | None) -> int:
    if wanted is not None:
        if not claim_value(tx, "vni", str(wanted), owner):
            raise CloudError(ErrorKind.CONFLICT, f"vni: {wanted} is taken by another VPC; choose another or none")
        return wanted
    while True:
        vni = 1 + tx.random_bits(24) % MAX_VNI
        if claim_value(tx, "vni", str(vni), owner):
            return vni
