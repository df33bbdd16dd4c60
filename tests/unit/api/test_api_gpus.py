"""GPUs: the checked table, whose they are, and what they keep a VM from."""

from __future__ import annotations

import asyncio

import pytest

from scloud.model.desired import DesiredVm
from scloud.model.gpus import COMBINATIONS, Gpu, refusal
from support.cloud import Cloud

T4 = tuple(Gpu(address=f"0000:3{n}:00.0", model="t4", companions=(f"0000:3{n}:00.1",)) for n in range(3))
V100 = Gpu(address="0000:80:00.0", model="v100")
BROKEN = Gpu(address="0000:90:00.0", model="t4", reason="the host's IOMMU is off")
ONE = {"image": "micro", "gpus": 1, "cpus": 4, "memory_mib": 8192}


@pytest.fixture
async def gpus(cloud: Cloud) -> Cloud:
    await cloud.node("n1", cpus=64, memory_mib=262144)
    await cloud.node("n2", cpus=64, memory_mib=262144, gpus=(*T4, V100, BROKEN))
    await cloud.image()
    return cloud


def test_the_table() -> None:
    allowed = {
        (gpus, cpus, gib)
        for gpus in range(1, 9)
        for cpus in range(1, 65)
        for gib in range(1, 257)
        if refusal(gpus, cpus, gib * 1024) is None
    }
    assert allowed == {(gpus, cpus, gib) for (gpus, cpus), sizes in COMBINATIONS.items() for gib in sizes}
    assert len(allowed) == 12 and refusal(0, 3, 100) is None
    assert refusal(1, 4, 4096) == (
        "go with 4 CPUs with 8 or 16 GiB; or 8 CPUs with 16 or 32 GiB of memory; not with 4 CPUs and 4096 MiB"
    )
    assert refusal(3, 8, 16384) == "must be 1, 2 or 4"


async def test_a_gpu_is_one_vms_alone_until_the_vm_has_left(gpus: Cloud) -> None:
    alice = gpus.alice
    vm = await alice.create("vms", "a", **ONE, gpu_model="v100")
    assert vm["status"]["node"] == "n2"
    told = gpus.nodes["n2"].objects[f"vm/{vm['id']}"]
    assert isinstance(told, DesiredVm) and told.gpus == ("0000:80:00.0",)
    op = await alice.end("POST", "/vms", {"name": "b", "spec": {**ONE, "gpu_model": "v100"}}, state="failed")
    assert "too few GPUs of model v100 free (0, 1 asked for) (2 of 2 nodes)" in op["error"]["message"]
    await alice.end("DELETE", "/vms/a")
    await alice.end("POST", "/vms/b/actions/start")
    assert [gpu["address"] for gpu in (await alice.get("/vms/b"))["status"]["gpus"]] == ["0000:80:00.0"]


async def test_as_many_vms_at_once_as_there_are_gpus(gpus: Cloud) -> None:
    bodies = [{"name": f"g{n}", "spec": {**ONE, "gpu_model": "t4"}} for n in range(6)]
    made = await asyncio.gather(*(gpus.alice.do("POST", "/vms", body) for body in bodies))
    ended = [await gpus.alice.get(f"/operations/{one['operation']['id']}", wait=10) for one in made]
    assert sorted(op["state"] for op in ended) == ["done"] * 3 + ["failed"] * 3, "the one with a reason is not used"
    mine = [vm["status"]["gpus"] for vm in await gpus.alice.list("/vms") if vm["status"]["gpus"]]
    assert sorted(gpu["address"] for [gpu] in mine) == [gpu.address for gpu in T4]
    told = [item.gpus for item in gpus.nodes["n2"].objects.values() if isinstance(item, DesiredVm)]
    assert sorted(told) == [(gpu.address, *gpu.companions) for gpu in T4]


async def test_other_vms_stay_away_and_wrong_combinations_are_refused(gpus: Cloud) -> None:
    alice = gpus.alice
    vm = await alice.create("vms", "plain", image="micro")
    assert vm["status"]["node"] == "n1" and vm["status"]["gpus"] == []
    before = gpus.dump()
    for spec, field in (
        ({**ONE, "cpus": 5}, "spec.gpus"),
        ({**ONE, "gpus": 3}, "spec.gpus"),
        ({"image": "micro", "gpu_model": "t4"}, "spec.gpu_model"),
    ):
        problem = await alice.fail("POST", "/vms", {"name": "x", "spec": spec}, status=422, code="invalid")
        assert problem["fields"][0]["field"] == field
    assert gpus.dump() == before
    await alice.create("vms", "g", **ONE)
    body = {"cpus": 5}
    problem = await alice.fail("POST", "/vms/g/actions/resize", body, status=422, code="invalid")
    assert "its 1 GPUs go with" in problem["fields"][0]["rule"]
    found = await gpus.admin.get("/clusters/default/rebalance")
    assert found["stays"] == {
        "have GPUs, and devices of a host cannot be moved": 1,
        "have disks in their node's own storage": 1,
    }
