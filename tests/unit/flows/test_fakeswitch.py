"""The fake switch itself: it must not be kinder than a real one."""

from __future__ import annotations

import pytest

from scloud.flows.fakeswitch import AmbiguousFlows, FakeSwitch
from scloud.flows.ir import Flow, Match
from scloud.flows.packet import ACK, Ends, answer_to, echo, icmp_error, tcp, udp

ENDS = Ends("06:00:00:00:00:01", "06:00:00:00:00:02", "10.0.0.1", "10.0.0.2")
IP = Match("eth_type", "0x0800")


def _flow(priority: int, match: tuple[Match, ...], *actions: str, table: int = 0) -> Flow:
    return Flow(table, priority, match, actions, 1)


def test_the_highest_priority_decides() -> None:
    switch = FakeSwitch([_flow(1, (IP,), "output:2"), _flow(2, (IP, Match("ip_dst", "10.0.0.0/30")), "output:3")])
    assert switch.receive(1, echo(ENDS)).ports() == [3]


def test_overlapping_flows_of_one_priority_are_refused() -> None:
    switch = FakeSwitch([_flow(2, (IP,), "output:2"), _flow(2, (Match("ip_dst", "10.0.0.2"),), "output:3")])
    with pytest.raises(AmbiguousFlows):
        switch.receive(1, echo(ENDS))


def test_no_flow_is_a_drop_and_is_accounted_for() -> None:
    account = FakeSwitch().receive(1, echo(ENDS))
    assert account.outputs == []
    assert [lookup.flow for lookup in account.lookups] == [None]


def test_a_packet_does_not_leave_by_the_port_it_came_by_unless_told() -> None:
    assert FakeSwitch([_flow(1, (IP,), "output:1")]).receive(1, echo(ENDS)).ports() == []
    assert FakeSwitch([_flow(1, (IP,), "in_port")]).receive(1, echo(ENDS)).ports() == [1]


def test_fields_are_set_moved_and_masked() -> None:
    flows = [
        _flow(1, (IP,), "set_field:0x100000002->xreg2", "move:NXM_OF_IP_SRC[]->NXM_OF_IP_DST[]", "goto_table:10"),
        _flow(1, (Match("xreg2", "0x100000002"), Match("tcp_dst", "0x10/0xfff0")), "dec_ttl", "output:4", table=10),
    ]
    (out,) = FakeSwitch(flows).receive(1, tcp(ENDS, 5, 22)).outputs
    assert out[1]["ip_dst"] == out[1]["ip_src"]
    assert out[1]["nw_ttl"] == 63
    assert "reg4" not in out[1].fields
    assert FakeSwitch(flows).receive(1, tcp(ENDS, 5, 32)).outputs == []


def test_an_unknown_action_and_a_way_back_are_errors() -> None:
    for action in ("normal", "goto_table:0", "output:reg9"):
        with pytest.raises(ValueError):
            FakeSwitch([_flow(1, (IP,), action)]).receive(1, echo(ENDS))


def _tracker() -> FakeSwitch:
    """Commits what comes by port 1 in zone 5 with mark 9; outputs to 10 + a number for each state."""
    states = {"+new+trk": 11, "+est-rpl": 12, "+est+rpl": 13, "+rel+rpl": 14, "+rel-rpl": 15, "+inv": 16}
    flows = [_flow(1, (IP,), "ct(table=22,zone=5)")]
    for state, port in states.items():
        flows.append(_flow(2, (IP, Match("ct_state", state)), f"output:{port}", table=22))
    commit = "ct(commit,zone=NXM_NX_REG2[0..15],exec(move:NXM_NX_REG3[]->NXM_NX_CT_MARK[]))"
    flows.append(
        _flow(
            3,
            (IP, Match("ct_state", "+new"), Match("in_port", "1")),
            "set_field:5->reg2",
            "set_field:9->reg3",
            commit,
            "output:11",
            table=22,
        )
    )
    flows.append(_flow(4, (IP, Match("ct_state", "+rpl"), Match("ct_mark", "9")), "output:17", table=22))
    return FakeSwitch(flows)


def test_connections_have_states_directions_and_marks() -> None:
    switch = _tracker()
    opening = tcp(ENDS, 5, 22)
    answer = answer_to(opening)
    assert switch.receive(2, opening).ports() == [11]
    assert switch.receive(2, answer).ports() == [16]
    assert switch.receive(1, opening).ports() == [11]
    assert switch.receive(2, answer).ports() == [17]
    assert switch.receive(1, tcp(ENDS, 5, 22, ACK)).ports() == [12]
    assert switch.receive(1, tcp(ENDS, 6, 22, ACK)).ports() == [11]
    switch.conntrack.forget()
    assert switch.receive(2, tcp(ENDS, 5, 22)).ports() == [11]


def test_errors_are_related_to_what_they_are_about() -> None:
    switch = _tracker()
    sent = udp(ENDS, 5, 53)
    switch.receive(1, sent)
    back = Ends(ENDS.eth_dst, ENDS.eth_src, ENDS.ip_dst, ENDS.ip_src)
    assert switch.receive(2, icmp_error(back, sent)).ports() == [17]
    assert switch.receive(2, icmp_error(ENDS, answer_to(sent))).ports() == [15]
    assert switch.receive(2, icmp_error(back, sent.but(udp_src=6))).ports() == [16]


def test_a_change_removes_and_replaces() -> None:
    switch = FakeSwitch([_flow(1, (IP,), "output:2"), _flow(1, (IP,), "output:3", table=10)])
    switch.change([_flow(1, (IP,), table=10)], [_flow(1, (IP,), "output:5")])
    assert [flow.actions for flow in switch.flows()] == [("output:5",)]
