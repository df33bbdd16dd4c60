"""A VM that has come from another node, and that the hypervisor holds although it was let run."""

from __future__ import annotations

import pytest
from agent_clock import run
from agent_node import one_vm, running_node, vm_id

from scloud.drivers.hypervisor.fake import FakeHypervisor

VM = vm_id(1)
KEY = f"vm/{VM}"


def test_one_that_stays_paused_is_told_of_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            domain = node.host.domains[VM]
            tries = 0

            async def deaf(hypervisor: FakeHypervisor, vm: str) -> None:
                nonlocal tries
                tries += 1
                domain.paused = domain.complete = tries < 4

            monkeypatch.setattr(FakeHypervisor, "resume", deaf)
            domain.paused = domain.complete = True
            await node.boss.change(KEY, name="renamed")
            await node.until(lambda: "stays paused" in node.boss.heard[KEY].reason)
            await node.settled(KEY, "running")
            assert tries == 4

    run(main())
