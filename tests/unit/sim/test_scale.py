"""`scloud sim` in small, and the thin nodes that it is made of."""

from __future__ import annotations

from hashlib import blake2b

import orjson

from scloud.link.digest import digest_of
from scloud.model.desired import DesiredDisk, DesiredSnapshot, DesiredVm, VmDisk
from scloud.model.snapshots import DiskLimits
from scloud.sim.scale import Scale, Watcher
from scloud.sim.thin import _digest

VM = DesiredVm(
    id="vm-1",
    generation=3,
    name="db",
    account="acc-1",
    cpus=2,
    memory_mib=64,
    power="on",
    starts=1,
    reboots=0,
    restart_limit=5,
    disks=(VmDisk(id="dsk-1", system=True),),
    nics=("nic-1",),
    user_data="#!/bin/sh\necho \u00fc",
)
DISK = DesiredDisk(
    id="dsk-1",
    generation=1,
    size_mib=64,
    image=None,
    image_sha256=None,
    snapshots=(DesiredSnapshot(id="snp-1"),),
    limits=DiskLimits(iops=100),
)


def test_a_thin_node_knows_the_digests_that_an_agent_would() -> None:
    for item in (VM, DISK):
        assert _digest(orjson.loads(item.model_dump_json())) == digest_of(item)
        assert digest_of(item) == blake2b(item.model_dump_json().encode(), digest_size=8).hexdigest()


async def test_a_small_cloud_loses_nothing_when_links_break_and_the_manager_is_killed() -> None:
    phases: list[str] = []
    watcher = Watcher(begin=lambda title, total: phases.append(title))
    figures = await Scale(nodes=6, vms=24, churn_s=1.0, seed=7, watcher=watcher, idle_s=1).run()
    assert (figures.failed, figures.lost, figures.stray) == ([], 0, 0)
    assert figures.churn["connections broken"] >= 1
    assert sum(figures.churn[kind] for kind in ("create", "delete", "stop and start")) >= 1
    assert figures.vms_a_second > 0 and figures.restart_s > 0 and figures.loaded_mib > 0
    assert phases[0] == "nodes join" and phases[-1] == "comparing"
