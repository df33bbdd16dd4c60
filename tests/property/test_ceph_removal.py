"""What leaves a storage cluster's devices fits where it can go, for any cluster and whatever is on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from hypothesis import assume, given
from hypothesis import strategies as st

from scloud.model.kinds import State
from scloud.model.storage import OsdStatus, PoolSpec, StorageClusterStatus
from scloud.reconcile.ceph.removal import ROOM, no_room


@dataclass(frozen=True)
class Cluster:
    """Objects of 1 MiB, each on `width` hosts, on one device of each."""

    width: int
    sizes: dict[str, dict[str, int]]
    """By host and device, MiB."""
    objects: list[list[str]]
    """The devices of each."""

    @property
    def pools(self) -> list[tuple[str, PoolSpec]]:
        return [("p", PoolSpec(cluster="c", redundancy=f"replica:{self.width}"))]

    @property
    def devices(self) -> list[str]:
        return [device for devices in self.sizes.values() for device in devices]

    def status(self, out: Collection[str] = ()) -> StorageClusterStatus:
        used = Counter(device for object in self.objects for device in object)
        osds = [
            OsdStatus(
                osd=0,
                uuid=device,
                node=host,
                media="ssd",
                up=True,
                taken_in=device not in out,
                used_mib=used[device],
                total_mib=size,
                place={"host": host},
            )
            for host, devices in self.sizes.items()
            for device, size in devices.items()
        ]
        return StorageClusterStatus(state=State.READY, osds=tuple(osds))

    def left(self, gone: Collection[str]) -> dict[str, int]:
        """MiB of each host that has any."""
        room = {
            host: sum(size for device, size in devices.items() if device not in gone)
            for host, devices in self.sizes.items()
        }
        return {host: mib for host, mib in room.items() if mib}


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    width = draw(st.integers(1, 4))
    hosts = draw(st.integers(width, width + 2))
    sizes = {
        f"n{host}": {f"{host}.{number}": draw(st.integers(5, 40)) for number in range(draw(st.integers(1, 3)))}
        for host in range(hosts)
    }
    objects = []
    for _ in range(draw(st.integers(0, 30))):
        chosen = draw(st.permutations(sorted(sizes)))[:width]
        objects.append([draw(st.sampled_from(sorted(sizes[host]))) for host in chosen])
    return Cluster(width, sizes, objects)


@given(clusters(), st.data())
def test_what_is_accepted_fits_and_what_is_refused_does_not(cluster: Cluster, data: st.DataObject) -> None:
    leaving = data.draw(st.sets(st.sampled_from(cluster.devices), min_size=1))
    room = cluster.left(leaving)
    assume(len(room) >= cluster.width)
    held = {device for object in cluster.objects for device in object}
    moved = {host for host, devices in cluster.sizes.items() if held & leaving & devices.keys()}
    count = len(cluster.objects)
    fits = count * cluster.width <= sum(room.values()) * ROOM
    if len(room) == cluster.width:
        # Each host that is left has to have a copy of everything; those that nothing comes to are as they were.
        changed = moved if moved <= room.keys() else room.keys()
        fits = fits and all(count <= room[host] * ROOM for host in changed)
    refused = no_room("c", cluster.pools, cluster.status(), leaving)
    assert (refused is None) == (fits or not moved), refused


@given(clusters(), st.booleans(), st.data())
def test_one_after_another_is_accepted_only_if_both_at_once_would_be(
    cluster: Cluster, seen: bool, data: st.DataObject
) -> None:
    """Whether the cluster has been seen to drain the first one or not."""
    assume(len(cluster.devices) > 1)
    first, second = data.draw(st.permutations(cluster.devices))[:2]
    assume(len(cluster.left({first, second})) >= cluster.width)
    both = no_room("c", cluster.pools, cluster.status(), {first, second})
    one = no_room("c", cluster.pools, cluster.status(), {first})
    then = no_room("c", cluster.pools, cluster.status({first} if seen else ()), {second}, {first})
    held = {device for object in cluster.objects for device in object}
    if one is None and then is None and second in held:
        assert both is None
