"""The pipeline, declared once: tables in the order packets visit them, priority bands, registers and constants.

```
nic ----> CLASSIFY > PORT_SECURITY > ARP | SERVICE > EGRESS_STATE > PEER > RULES > COMMIT > L3 > L2 --> other node
tunnel -> CLASSIFY ----------------------------------------------------------------------------> L2 \\
service > CLASSIFY > ARP | FROM_SERVICE > SERVICE_OPEN ------------------------------> a local nic   |
                                          a local nic <-- OUTPUT < COMMIT < RULES < PEER < INGRESS_STATE
```

A packet that no flow of a table matches is dropped: nothing is flooded, ever. Between any two flows of equal priority
in a table no packet may match both; the tests push packets through a switch that refuses to guess.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from functools import lru_cache

from scloud.flows.ir import Flow, Match

GATEWAY_MAC = "02:00:5c:00:00:01"
"""The virtual router: first host address of every subnet, on every node."""
SERVICE_MAC = "02:00:5c:00:00:02"
"""DHCP, DNS and metadata: second host address of every subnet, on every node that has a nic of the VPC."""
METADATA_IP = "169.254.169.254"
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"
PIPELINE_OWNER = "switch/pipeline"
"""Owner of the flows that are the same on every node."""


class Table(IntEnum):
    """Numbers leave room for tables to come; a packet only goes to higher ones."""

    CLASSIFY = 0
    PORT_SECURITY = 10
    ARP = 15
    SERVICE = 20
    SERVICE_REPLY = 22
    FROM_SERVICE = 25
    SERVICE_OPEN = 27
    EGRESS_STATE = 30
    EGRESS_PEER = 31
    EGRESS_RULES = 32
    EGRESS_COMMIT = 33
    L3 = 40
    L2 = 45
    INGRESS_STATE = 60
    INGRESS_PEER = 61
    INGRESS_RULES = 62
    INGRESS_COMMIT = 63
    OUTPUT = 90


class Band(IntEnum):
    """Priorities, highest first. KEPT and RULE are the tops of bands of RANKS priorities that go downwards."""

    GUARD = 60000
    """What must never pass, and what must be seen before anything else."""
    KEPT = 40000
    """A connection whose own rule still allows it."""
    RULE = 20000
    """The first rule that allows a packet."""
    EXACT = 400
    """One service or one state of one address."""
    ADDRESS = 300
    """One address."""
    NETWORK = 200
    """Everything else of an address family or a VPC."""
    REST = 1
    """Goes on to the next table unchanged."""


RANKS = 15000
"""Rules of one policy and direction that have a priority of their own; further ones share the last."""

# --- what the registers hold, between the tables
VPC = "metadata"
"""The VPC's VNI, from CLASSIFY on."""
ORIGIN = "reg0"
OUT_PORT = "reg1"
"""The port of the local nic that the packet is for, from L2 or FROM_SERVICE on."""
ZONE = "reg2"
"""Connection tracking zone of the local nic that is being asked: the sender's up to L3, then the receiver's."""
MARK = "reg3"
"""Mark of the rule that allows the packet, from RULES to COMMIT."""
POLICY = "xreg2"
"""`policy_id` of the groups of the local nic that is being asked (reg4, reg5)."""
PEER = "xreg3"
"""`policy_id` of the groups of the other end, 0 if it has none or is no nic of the VPC (reg6, reg7)."""

ZONE_FIELD = "NXM_NX_REG2[0..15]"
MARK_FIELD = "NXM_NX_REG3[]"
OUT_PORT_FIELD = "NXM_NX_REG1[]"


class Origin(IntEnum):
    """Where a packet came from (ORIGIN)."""

    NIC = 0
    TUNNEL = 1
    SERVICE = 2


# --- matches used by many flows
IP = Match("eth_type", "0x0800")
ARP_TYPE = Match("eth_type", "0x0806")
ARP_REQUEST = Match("arp_op", "1")
ICMP = Match("ip_proto", "1")
TCP = Match("ip_proto", "6")
UDP = Match("ip_proto", "17")


def goto(table: Table) -> str:
    """The last action of a flow that goes on."""
    return f"goto_table:{table.value}"


@lru_cache(maxsize=65536)
def cookie_of(key: str) -> int:
    """The 32-bit, non-zero cookie of everything that the object with this `kind/id` key owns."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") or 1


_PIPELINE_COOKIE = cookie_of(PIPELINE_OWNER)


def fixed(table: Table, priority: int, match: tuple[Match, ...], actions: tuple[str, ...], note: str) -> Flow:
    """A flow that is the same on every node."""
    return Flow(table.value, priority, match, actions, _PIPELINE_COOKIE, note)
