"""The scheduler over random clouds: never beyond what a node has, and the same every time."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scloud.scheduler.fleet import Fleet
from scloud.scheduler.load import Load, smooth
from scloud.scheduler.plan import place
from scloud.scheduler.snapshot import NodeSnapshot, Request

FRACTIONS = st.integers(0, 8).map(lambda eighths: eighths / 8)
LOADS = st.builds(Load, cpu=FRACTIONS, network=FRACTIONS, storage_ms=st.sampled_from([0.0, 3.3, 70.0]))
GPUS: list[dict[str, int]] = [{}, {}, {"t4": 2}, {"t4": 1, "v100": 3}]
ARCHITECTURES = st.sampled_from(["x86_64", "x86_64", "x86_64", "aarch64"])


@st.composite
def clouds(draw: st.DrawFn) -> list[NodeSnapshot]:
    nodes = []
    for number in range(draw(st.integers(0, 6))):
        cpus, memory, disk = draw(st.integers(0, 16)), draw(st.integers(0, 4096)), draw(st.integers(0, 4096))
        nodes.append(
            NodeSnapshot(
                id=f"nod-{number}",
                name=f"n{number}",
                ready=draw(st.integers(0, 5)) > 0,
                cordoned=draw(st.integers(0, 5)) == 0,
                architecture=draw(ARCHITECTURES),
                cpus=cpus,
                memory_mib=memory,
                disk_mib=disk,
                cpus_used=draw(st.integers(0, cpus + 2)),
                memory_used_mib=draw(st.integers(0, memory)),
                disk_used_mib=draw(st.integers(0, disk)),
                load=draw(LOADS),
                gpus=draw(st.sampled_from(GPUS)),
                rack=draw(st.sampled_from(["", "r1", "r2", "r3"])),
            )
        )
    return nodes


COUNTS = st.dictionaries(st.sampled_from([f"nod-{number}" for number in range(6)]), st.integers(0, 3))
REQUESTS = st.builds(
    Request,
    cpus=st.integers(1, 6),
    memory_mib=st.integers(64, 1024),
    disk_mib=st.integers(1, 1024),
    architecture=ARCHITECTURES,
    node=st.none() | st.none() | st.sampled_from([f"nod-{number}" for number in range(7)]),
    account_vms=COUNTS,
    group_vms=COUNTS,
    group_hard=st.booleans(),
    gpus=st.sampled_from([0, 0, 0, 1, 2]),
    gpu_model=st.none() | st.sampled_from(["t4", "v100", "k80"]),
    group_over=st.sampled_from(["node", "rack"]),
    reachable_from=st.none() | st.frozensets(st.sampled_from([f"nod-{number}" for number in range(6)])),
)


def choose(nodes: list[NodeSnapshot], request: Request) -> str | None:
    return Fleet(nodes).choose(request)


def near(nodes: list[NodeSnapshot], node: NodeSnapshot, request: Request) -> bool:
    """Whether the group forbids this node if it is hard, worked out the long way."""
    if request.group_over == "node":
        return bool(request.group_vms.get(node.id))
    return not node.rack or any(request.group_vms.get(other.id) for other in nodes if other.rack == node.rack)


def enough_gpus(node: NodeSnapshot, request: Request) -> bool:
    return any(number >= request.gpus for name, number in {**node.gpus, "": 0}.items() if _is(name, request))


def _is(name: str, request: Request) -> bool:
    return request.gpu_model in (None, name) or not request.gpus


@given(clouds(), REQUESTS)
def test_choose_and_place_decide_alike_in_any_order(nodes: list[NodeSnapshot], request: Request) -> None:
    plan = place(nodes, request)
    assert plan.node == choose(nodes, request) == choose(nodes[::-1], request) == place(nodes[::-1], request).node
    assert plan == place(list(nodes), replace(request))
    assert {candidate.node for candidate in plan.candidates} == {node.id for node in nodes}
    assert (plan.node is None) == (not any(candidate.fits for candidate in plan.candidates))


@given(clouds(), REQUESTS)
def test_what_is_chosen_has_all_that_was_asked_for(nodes: list[NodeSnapshot], request: Request) -> None:
    chosen = choose(nodes, request)
    if chosen is None:
        return
    node = next(node for node in nodes if node.id == chosen)
    assert node.ready and not node.cordoned and node.architecture == request.architecture
    assert request.node in (None, chosen)
    assert node.cpus_used + request.cpus <= node.cpus
    assert node.memory_used_mib + request.memory_mib <= node.memory_mib
    assert node.disk_used_mib + request.disk_mib <= node.disk_mib
    assert request.reachable_from is None or chosen in request.reachable_from
    assert not (request.group_hard and near(nodes, node, request))


@given(clouds(), REQUESTS)
def test_a_node_is_refused_for_a_true_reason_only(nodes: list[NodeSnapshot], request: Request) -> None:
    for candidate in place(nodes, request).candidates:
        node = next(node for node in nodes if node.id == candidate.node)
        fits = (
            node.ready
            and not node.cordoned
            and node.architecture == request.architecture
            and request.node in (None, node.id)
            and node.cpus - node.cpus_used >= request.cpus
            and node.memory_mib - node.memory_used_mib >= request.memory_mib
            and node.disk_mib - node.disk_used_mib >= request.disk_mib
            and (request.reachable_from is None or node.id in request.reachable_from)
            and enough_gpus(node, request)
            and not (request.group_hard and near(nodes, node, request))
        )
        assert candidate.fits == fits
        assert all(reason == reason.strip() and reason for reason in candidate.reasons)


@given(clouds(), st.lists(REQUESTS, max_size=30))
def test_a_batch_never_overbooks(nodes: list[NodeSnapshot], requests: list[Request]) -> None:
    fleet = Fleet(nodes)
    for request in requests:
        chosen = fleet.choose(request)
        assert chosen == place(fleet.snapshots(), request).node
        if chosen is not None:
            fleet.promise(chosen, request.cpus, request.memory_mib, request.disk_mib)
    now = fleet.snapshots()
    for before, after in zip(nodes, now, strict=True):
        for used, has in (("cpus_used", "cpus"), ("memory_used_mib", "memory_mib"), ("disk_used_mib", "disk_mib")):
            assert getattr(after, used) <= max(getattr(after, has), getattr(before, used))


@given(
    clouds(), st.lists(st.tuples(REQUESTS, st.dictionaries(st.sampled_from(["nod-0", "nod-1"]), LOADS)), max_size=12)
)
def test_loads_that_change_are_seen_by_sizes_that_are_remembered(
    nodes: list[NodeSnapshot], steps: list[tuple[Request, dict[str, Load]]]
) -> None:
    fleet = Fleet(nodes)
    for request, loads in steps:
        for _ in range(2):
            chosen = fleet.choose(request)
            assert chosen == place(fleet.snapshots(), request).node
            if chosen is not None:
                fleet.promise(chosen, request.cpus, request.memory_mib, request.disk_mib)
        fleet.set_loads(loads)


@given(LOADS, LOADS, st.floats(0, 1000))
def test_a_smoothed_load_is_between_what_it_was_and_what_it_is(before: Load, sample: Load, elapsed: float) -> None:
    after = smooth(before, sample, elapsed)
    for name in ("cpu", "memory", "disk", "network", "storage", "storage_ms"):
        low, high = sorted((getattr(before, name), getattr(sample, name)))
        assert low - 1e-9 <= getattr(after, name) <= high + 1e-9
    assert smooth(None, sample, elapsed) == sample


@given(st.integers(2, 6), st.integers(1, 6))
def test_a_hard_group_spreads_and_then_refuses(nodes: int, vms: int) -> None:
    cloud = [NodeSnapshot(f"nod-{n}", f"n{n}", True, False, "x86_64", 64, 65536, 65536) for n in range(nodes)]
    members: dict[str, int] = {}
    for number in range(vms):
        chosen = choose(cloud, Request(1, 64, 1, "x86_64", group_vms=members, group_hard=True))
        assert (chosen is None) == (number >= nodes)
        if chosen is not None:
            members[chosen] = members.get(chosen, 0) + 1
    assert all(count == 1 for count in members.values())


@given(clouds(), REQUESTS)
def test_an_explanation_counts_every_kind_of_reason(nodes: list[NodeSnapshot], request: Request) -> None:
    plan = place(nodes, request)
    if plan.node is not None:
        return
    text = plan.explain()
    if not nodes:
        assert "no node has joined yet" in text
    elif len(nodes) == 1:
        assert text.startswith(f"node {nodes[0].name}: ")
    else:
        assert f"of {len(nodes)} nodes" in text
