"""Storage clusters as tests of controllers have them: deployed on scripted nodes, with a fake of the cluster itself."""

from __future__ import annotations

from typing import Any

import pytest

from scloud.controllers.storage import controller
from scloud.model.desired import DesiredStore
from support.ceph import FakeCeph
from support.cloud import Cloud
from support.node import ScriptedNode


def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow one another at once."""
    for name in ("SOON_S", "MOVING_S", "CALM_S", "AWAY_S"):
        monkeypatch.setattr(controller, name, 0.02)


async def three_nodes(cloud: Cloud, count: int = 3) -> tuple[FakeCeph, list[ScriptedNode]]:
    nodes = [await cloud.node(f"n{number}") for number in range(1, count + 1)]
    ceph = FakeCeph()
    ceph.join(*nodes)
    return ceph, nodes


def devices(count: int = 2, nodes: int = 3, media: str = "ssd") -> list[dict[str, Any]]:
    return [
        {"node": f"n{node}", "path": f"/osd/{number}", "size_mib": 10240, "media": media}
        for node in range(1, nodes + 1)
        for number in range(count)
    ]


def store_of(node: ScriptedNode, cluster: str) -> DesiredStore:
    item = node.objects[f"store/{cluster}.{node.id}"]
    assert isinstance(item, DesiredStore)
    return item


async def deployed(cloud: Cloud, count: int = 3, per_node: int = 2) -> tuple[FakeCeph, list[ScriptedNode], str]:
    ceph, nodes = await three_nodes(cloud, count)
    made = await cloud.admin.create("storage-clusters", "c1", devices=devices(per_node, count))
    return ceph, nodes, made["id"]


async def shown(cloud: Cloud, true: Any, path: str = "/storage-clusters/c1") -> dict[str, Any]:
    """The resource once something is so of it."""
    seen: dict[str, Any] = {}

    async def so() -> bool:
        nonlocal seen
        seen = await cloud.admin.get(path)
        return bool(true(seen["status"]))

    try:
        await cloud.eventually(so)
    except TimeoutError:
        raise AssertionError(f"it never became so: {seen['status']}") from None
    return seen


def is_(true: Any) -> Any:
    """For `Cloud.eventually`: something that is asked of the test's own objects."""

    async def asked() -> bool:
        return bool(true())

    return asked
