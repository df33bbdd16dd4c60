"""Connections of a nic that migrates: what its switch knows of them, what it came with, and how long that counts."""

from __future__ import annotations

import pytest
from agent_clock import run
from agent_node import Node, one_vm, port, running_node, vm_id

from scloud.agent.network import Network
from scloud.flows.ir import Flow
from scloud.flows.packet import ACK, SYN, Ends, tcp
from scloud.flows.pipeline import GATEWAY_MAC
from scloud.model.connections import Connection
from scloud.reconcile.network import KNOWN_S, tap_name

KEY = f"vm/{vm_id(1)}"
NIC = port(1, 1).id
OUTSIDE = "192.0.2.7"


def connection(number: int, protocol: str = "tcp") -> Connection:
    """Opened by the VM, as the rule of its group allows."""
    ends = {"source": "10.0.0.11", "target": OUTSIDE, "source_port": 40000 + number, "target_port": 443}
    return Connection.model_validate({"protocol": protocol, **ends, "mark": 1})


def network(node: Node) -> Network:
    assert node.daemon is not None
    return node.daemon.reconciler.network


def of_connections(node: Node) -> list[Flow]:
    return [flow for flow in node.switch.flows.flows() if "before it migrated" in flow.note]


def test_what_a_nic_came_with_is_known_after_a_restart_and_goes_on_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            assert await network(node).connections([NIC]) == {NIC: []}
            await network(node).bring({NIC: [connection(1), connection(2)], "nic-of-somebody-else": [connection(3)]})
            await node.until(lambda: len(of_connections(node)) == 2)

            await node.kill()
            node.switch.restart()  # its flows are lost, too
            node.start()
            await node.until(lambda: len(of_connections(node)) == 2)

            # The VM speaks in one of the two, and opens a third: its zone knows those now.
            ends = Ends(port(1, 1).mac, GATEWAY_MAC, "10.0.0.11", OUTSIDE)
            node.switch.receive(tap_name(NIC), tcp(ends, 40001, 443, ACK))
            node.switch.receive(tap_name(NIC), tcp(ends, 40003, 443, SYN))
            found = (await network(node).connections([NIC]))[NIC]
            assert sorted(item.source_port for item in found) == [40001, 40002, 40003]

    run(main())


def test_it_does_not_count_for_ever() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            await network(node).bring({NIC: [connection(1), connection(2, "udp")]})
            await node.until(lambda: len(of_connections(node)) == 2)
            await node.until(lambda: len(of_connections(node)) == 1, KNOWN_S["udp"] + 10)
            assert [flow.note for flow in of_connections(node)] and "udp" not in str(of_connections(node)[0].match)
            assert len((await network(node).connections([NIC]))[NIC]) == 1

    run(main())


def test_it_is_forgotten_with_the_nics_port() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            await network(node).bring({NIC: [connection(1)]})
            await node.until(lambda: len(of_connections(node)) == 1)
            await node.boss.change(KEY, power="absent", force_stop=True)
            await node.boss.change(f"port/{NIC}", absent=True)
            await node.until(lambda: f"port/{NIC}" not in node.journal.ofports)
            assert node.journal.brought(NIC) is None and not of_connections(node)

    run(main())
