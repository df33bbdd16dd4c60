"""The tour in docs/ works as it is written. About 3 minutes: `scloud test --long`."""

from __future__ import annotations

import pytest

from lab_ceph.tour import Step, follow, newcomer

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
NOTE = "written before it moved"


def test_a_newcomer_can_follow_it() -> None:
    with newcomer() as shell:
        _, steps = follow(shell, _print)
    said = {step.command: step.output for step in steps}
    read_back = [step.output for step in steps if step.command == "./scloud vm ssh web -- cat /root/note"]
    assert read_back == [NOTE, NOTE], "after it had moved, and after its node had died"
    assert "0% packet loss" in said["wait; tail -n 2 /tmp/ping.txt"]
    assert "running" in said["./scloud ha log"] and "fenced" in said["./scloud ha log"]
    assert "0 findings" in said["./scloud audit"]


def _print(step: Step) -> None:
    print(f"# {step.command}\n{step.output}")
