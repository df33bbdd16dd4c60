"""L2: the receiving nic by its MAC: here, or on the node to tunnel to. What came by a tunnel is not tunnelled again."""

from __future__ import annotations

from scloud.flows.ir import Flow, Match
from scloud.flows.pipeline import IP, ORIGIN, OUT_PORT, POLICY, VPC, ZONE, Band, Origin, Table, cookie_of
from scloud.flows.policy import policy_id
from scloud.flows.view import LocalPort
from scloud.model.desired import DesiredPort


def local(item: LocalPort, vni: int, tunnel_ip: str, tunnel_ofport: int) -> list[Flow]:
    """To a nic on this node, whose own tunnel address is given: its inbound security groups decide.

    While its VM migrates, the other node gets a copy of what guests here send to it: whichever of the two runs answers.
    """
    match = (Match(VPC, str(vni)), IP, Match("eth_dst", item.port.mac))
    note = f"for nic {item.port.id} ({item.port.ip}) on this node"
    cookie = cookie_of(f"port/{item.port.id}")
    flows = [Flow(Table.L2, Band.ADDRESS, match, _here(item), cookie, note)]
    others = [ip for ip in places(item.port) if ip != tunnel_ip]
    if others:
        copies = tuple(action for ip in others for action in _tunnelled(vni, ip, tunnel_ofport))
        note += f", and by the tunnel to {', '.join(others)}: it migrates"
        sent_here = (Match(ORIGIN, str(Origin.NIC.value)), *match)
        flows.append(Flow(Table.L2, Band.EXACT, sent_here, (*copies, *_here(item)), cookie, note))
    return flows


def places(port: DesiredPort) -> list[str]:
    """The tunnel addresses of the nodes that have a tap of it."""
    found = [port.tunnel_ip, port.second[1] if port.second is not None else None]
    return [ip for ip in found if ip]


def _tunnelled(vni: int, tunnel_ip: str, tunnel_ofport: int) -> tuple[str, ...]:
    return f"set_field:{vni}->tun_id", f"set_field:{tunnel_ip}->tun_dst", f"output:{tunnel_ofport}"


def _here(item: LocalPort) -> tuple[str, ...]:
    return (
        f"set_field:{item.ofport}->{OUT_PORT}",
        f"set_field:{item.zone}->{ZONE}",
        f"set_field:{policy_id(item.port.groups):#x}->{POLICY}",
        f"ct(table={Table.INGRESS_STATE.value},zone={item.zone})",
    )


def remote(nic: DesiredPort, vni: int, tunnel_ofport: int) -> Flow:
    """To a nic on another node, or on two while its VM migrates: whose inbound security groups decide there."""
    ips = places(nic)
    return Flow(
        Table.L2,
        Band.ADDRESS,
        (Match(ORIGIN, str(Origin.NIC.value)), Match(VPC, str(vni)), IP, Match("eth_dst", nic.mac)),
        tuple(action for ip in ips for action in _tunnelled(vni, ip, tunnel_ofport)),
        cookie_of(f"port/{nic.id}"),
        f"for nic {nic.id} ({nic.ip}), by the tunnel to {', '.join(ips)}",
    )
