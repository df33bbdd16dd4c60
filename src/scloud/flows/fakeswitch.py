"""A switch that runs packets through compiled flows, and accounts for every step.

It knows the matches and actions that the compiler uses and refuses all others, and it refuses to choose between two
flows of equal priority: what a real switch does then is undefined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from scloud.flows import conntrack
from scloud.flows.conntrack import Conntrack
from scloud.flows.ir import Flow, Match
from scloud.flows.packet import Packet, ip, mac
from scloud.flows.pipeline import Table

_MACS = {"eth_src", "eth_dst", "arp_sha", "arp_tha"}
_IPS = {"ip_src", "ip_dst", "arp_spa", "arp_tpa", "tun_src", "tun_dst"}
_STATE = {
    "new": conntrack.NEW,
    "est": conntrack.EST,
    "rel": conntrack.REL,
    "rpl": conntrack.RPL,
    "inv": conntrack.INV,
    "trk": conntrack.TRK,
}
FRAGMENT = 1
"""The bit of `ip_frag` that every fragment has."""
_NXM = {
    "NXM_OF_ETH_SRC[]": "eth_src",
    "NXM_OF_ETH_DST[]": "eth_dst",
    "NXM_NX_ARP_SHA[]": "arp_sha",
    "NXM_NX_ARP_THA[]": "arp_tha",
    "NXM_OF_ARP_SPA[]": "arp_spa",
    "NXM_OF_ARP_TPA[]": "arp_tpa",
    "NXM_OF_IP_SRC[]": "ip_src",
    "NXM_OF_IP_DST[]": "ip_dst",
    "NXM_NX_REG1[]": "reg1",
    "NXM_NX_REG2[0..15]": "reg2",
    "NXM_NX_REG3[]": "reg3",
    "NXM_NX_CT_MARK[]": "ct_mark",
}
_L4 = ("tcp_src", "tcp_dst", "udp_src", "udp_dst", "icmp_type", "icmp_code")
"""What flows do not see of a fragment. Connection tracking, which puts the datagram together, does."""
_INNER = ("metadata", "in_port", "ct_", "reg", "xreg")
"""Fields that do not leave the switch with a packet."""


class AmbiguousFlows(AssertionError):
    """Two flows of equal priority match one packet."""


@dataclass(frozen=True)
class Lookup:
    """One table's part in a packet's way. `flow` is None when nothing matched; `fields` are as the table saw them."""

    table: Table
    flow: Flow | None
    fields: dict[str, int]

    @property
    def dropped(self) -> bool:
        return self.flow is None or not self.flow.actions


@dataclass
class Account:
    """What became of one packet."""

    outputs: list[tuple[int, Packet]] = field(default_factory=list)
    lookups: list[Lookup] = field(default_factory=list)
    expired: bool = False
    """Dropped by dec_ttl."""

    def ports(self) -> list[int]:
        """Where it was sent, in order."""
        return [ofport for ofport, _ in self.outputs]


@lru_cache(maxsize=65536)
def _matcher(match: Match) -> tuple[str, int, int]:
    """(field, value, mask); mask -1 for all bits."""
    name, text = match.name, match.value
    if name == "ct_state":
        value = mask = 0
        for sign, flag in re.findall(r"([+-])(\w+)", text):
            mask |= _STATE[flag]
            value |= _STATE[flag] if sign == "+" else 0
        return name, value, mask
    if name == "ip_frag":
        if text != "yes":
            raise ValueError(f"ip_frag={text}: the fake switch knows only `yes`")
        return name, FRAGMENT, FRAGMENT
    if "/" not in text:
        return name, _number(name, text), -1
    head, tail = text.split("/")
    if name in _IPS:
        width = int(tail)
        return name, ip(head), (0xFFFF_FFFF << (32 - width)) & 0xFFFF_FFFF
    return name, int(head, 0), int(tail, 0)


def _number(name: str, text: str) -> int:
    if name in _MACS:
        return mac(text)
    return ip(text) if name in _IPS else int(text, 0)


class FakeSwitch:
    """One bridge. Ports are numbers; what is output to one is in the account."""

    def __init__(self, flows: Iterable[Flow] = ()) -> None:
        self.conntrack = Conntrack()
        self._tables: dict[int, dict[tuple[int, tuple[Match, ...]], Flow]] = {}
        self.replace(flows)

    def flows(self) -> list[Flow]:
        """Every flow, by table."""
        return [flow for table in sorted(self._tables) for flow in self._tables[table].values()]

    def replace(self, flows: Iterable[Flow]) -> None:
        """Have exactly these flows. Connections stay."""
        self._tables = {}
        self.change((), flows)

    def change(self, remove: Iterable[Flow], add: Iterable[Flow]) -> None:
        """Apply a difference: a removed flow need not be there, an added one replaces its like."""
        for flow in remove:
            self._tables.get(flow.table, {}).pop((flow.priority, flow.match), None)
        for flow in add:
            self._tables.setdefault(flow.table, {})[flow.priority, flow.match] = flow

    def receive(self, in_port: int, packet: Packet, *, tun_id: int = 0, tun_src: str = "0.0.0.0") -> Account:
        """Run one packet that comes in by a port; by the tunnel's with its VNI and the peer it comes from."""
        account = Account()
        fields = {**packet.fields, "in_port": in_port, "tun_id": tun_id, "tun_src": ip(tun_src)}
        hidden = {name: fields.pop(name) for name in _L4 if name in fields} if packet.get("ip_frag") else {}
        _Run(self, account, fields, hidden, packet.about).table(Table.CLASSIFY)
        return account

    def lookup(self, table: int, fields: dict[str, int]) -> Flow | None:
        """The flow that decides, or None. Raises AmbiguousFlows where several would."""
        found: list[Flow] = []
        for flow in self._tables.get(table, {}).values():
            if found and flow.priority < found[0].priority:
                continue
            if all(_matches(fields, match) for match in flow.match):
                if found and flow.priority > found[0].priority:
                    found.clear()
                found.append(flow)
        if len(found) > 1:
            raise AmbiguousFlows(f"table {Table(table).name}: {fields} matches all of {found}")
        return found[0] if found else None


def _matches(fields: dict[str, int], match: Match) -> bool:
    name, value, mask = _matcher(match)
    if name.startswith("xreg"):
        high = 2 * int(name[4:])
        return (fields.get(f"reg{high}", 0) << 32 | fields.get(f"reg{high + 1}", 0)) == value
    return (fields.get(name, 0) & mask) == value


class _Run:
    """One packet, or one branch of it, on its way through the tables."""

    def __init__(
        self,
        switch: FakeSwitch,
        account: Account,
        fields: dict[str, int],
        hidden: dict[str, int],
        about: Packet | None,
    ) -> None:
        self._switch = switch
        self._account = account
        self._fields = fields
        self._hidden = hidden
        self._about = about

    def table(self, number: int) -> None:
        flow = self._switch.lookup(number, self._fields)
        self._account.lookups.append(Lookup(Table(number), flow, dict(self._fields)))
        if flow is None:
            return
        for action in flow.actions:
            if not self._apply(action, number):
                return

    def _packet(self) -> Packet:
        kept = {name: value for name, value in self._fields.items() if not name.startswith(_INNER)}
        return Packet({**kept, **self._hidden}, self._about)

    def _apply(self, action: str, number: int) -> bool:
        """False ends the packet's way."""
        for pattern, method in _ACTIONS:
            found = pattern.fullmatch(action)
            if found is not None:
                return method(self, found, number)
        raise ValueError(f"the fake switch does not know the action {action}")

    def _set(self, found: re.Match[str], _: int) -> bool:
        name = found["field"]
        value = _number(name, found["value"])
        if name.startswith("xreg"):
            high = 2 * int(name[4:])
            self._fields[f"reg{high}"], self._fields[f"reg{high + 1}"] = value >> 32, value & 0xFFFF_FFFF
        else:
            self._fields[name] = value
        return True

    def _move(self, found: re.Match[str], _: int) -> bool:
        self._fields[_NXM[found["to"]]] = self._fields.get(_NXM[found["from"]], 0)
        return True

    def _goto(self, found: re.Match[str], number: int) -> bool:
        target = int(found["table"])
        if target <= number:
            raise ValueError(f"goto_table:{target} from table {number}: only forward")
        self.table(target)
        return False

    def _dec_ttl(self, _found: re.Match[str], _: int) -> bool:
        if self._fields["nw_ttl"] <= 1:
            self._account.expired = True
            return False
        self._fields["nw_ttl"] -= 1
        return True

    def _output(self, found: re.Match[str], _: int) -> bool:
        target = found["port"]
        ofport = int(target) if target.isdigit() else self._fields.get(_NXM[target], 0)
        if ofport != self._fields["in_port"]:
            self._account.outputs.append((ofport, self._packet()))
        return True

    def _in_port(self, _found: re.Match[str], _: int) -> bool:
        self._account.outputs.append((self._fields["in_port"], self._packet()))
        return True

    def _zone(self, text: str) -> int:
        return int(text) if text.isdigit() else self._fields.get(_NXM[text], 0) & 0xFFFF

    def _ct_table(self, found: re.Match[str], _: int) -> bool:
        packet = self._packet()
        state, mark = self._switch.conntrack.track(packet, self._zone(found["zone"]))
        fields = {**self._fields, "ct_state": state, "ct_mark": mark}
        branch = _Run(self._switch, self._account, fields, self._hidden, self._about)
        branch.table(int(found["table"]))
        return True

    def _ct_commit(self, found: re.Match[str], _: int) -> bool:
        mark = self._fields.get(_NXM[found["mark"]], 0) if found["mark"] else None
        self._switch.conntrack.commit(self._packet(), self._zone(found["zone"]), mark)
        return True


_ACTIONS: tuple[tuple[re.Pattern[str], Callable[[_Run, re.Match[str], int], bool]], ...] = (
    (re.compile(r"set_field:(?P<value>[^>]+)->(?P<field>\w+)"), _Run._set),
    (re.compile(r"move:(?P<from>[^>]+)->(?P<to>[\w\[\].]+)"), _Run._move),
    (re.compile(r"goto_table:(?P<table>\d+)"), _Run._goto),
    (re.compile(r"dec_ttl"), _Run._dec_ttl),
    (re.compile(r"output:(?P<port>\d+|NXM_NX_REG1\[\])"), _Run._output),
    (re.compile(r"in_port"), _Run._in_port),
    (re.compile(r"ct\(table=(?P<table>\d+),zone=(?P<zone>[\w\[\].]+)\)"), _Run._ct_table),
    (
        re.compile(r"ct\(commit,zone=(?P<zone>[\w\[\].]+)(,exec\(move:(?P<mark>[^>]+)->NXM_NX_CT_MARK\[\]\))?\)"),
        _Run._ct_commit,
    ),
)
