"""Draining nodes and rebalancing clusters: the administrator's."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Response

from scloud.api.commands import AdminCommandDep
from scloud.api.context import AdminDep, ContextDep, accepted, begin_and_end, send
from scloud.api.reading import router_for
from scloud.api.relocation_schemas import DrainOut, RebalanceAsk, RebalanceOut, UndrainAsk
from scloud.api.schemas import Accepted, RefPath
from scloud.controllers.rebalancing import Rebalancing, rebalancing
from scloud.controllers.relocation import drain, moves
from scloud.controllers.relocation import rebalance as runs
from scloud.model.kinds import Kind
from scloud.model.relocations import Relocation
from scloud.model.specs import NodeSpec
from scloud.scheduler.weighers import fullness
from scloud.store import relocations
from scloud.store.database import Tx
from scloud.store.resources import SYSTEM, find, get

nodes = router_for(Kind.NODE)
clusters = router_for(Kind.CLUSTER)
RUNS_SHOWN = 5


@nodes.post("/{ref}/actions/drain", status_code=202, response_model=Accepted)
async def drain_node(ref: RefPath, command: AdminCommandDep) -> Response:
    """Move all its VMs to other nodes, live, and place no new ones on it, until it is undrained.

    The operation ends when nothing runs on it any more; it fails when only VMs are left that cannot leave, with the
    reason of each. The node goes on being drained all the same.
    """

    def write_(tx: Tx) -> dict[str, object]:
        row = get(tx, Kind.NODE, ref, SYSTEM)
        op = drain.begin(tx, row, command.caller.account_name)
        return accepted(op, find(tx, row.id) or row)

    return await command.run(write_)


@nodes.post("/{ref}/actions/undrain", status_code=202, response_model=Accepted)
async def undrain_node(ref: RefPath, body: UndrainAsk, command: AdminCommandDep) -> Response:
    """Open it again, at any moment: no more VMs leave, and new ones come. What has left does not come back."""

    def write_(tx: Tx) -> dict[str, object]:
        row = get(tx, Kind.NODE, ref, SYSTEM)
        spec = row.spec_as(NodeSpec)
        if not spec.draining and not spec.cordoned:
            return accepted(begin_and_end(tx, "node.undrain", row, "it is so already"), row)
        row = drain.undo(tx, row, command.caller.account_name, body.cancel)
        return accepted(begin_and_end(tx, "node.undrain", row), row)

    return await command.run(write_)


@nodes.get("/{ref}/drain", response_model=DrainOut)
async def show_drain(ref: RefPath, context: ContextDep, _admin: AdminDep) -> Response:
    """What has become of each of its VMs since its drain began: of the last one, if it is open again."""

    def read(tx: Tx) -> dict[str, Any]:
        row = get(tx, Kind.NODE, ref, SYSTEM)
        last = next(iter(relocations.newest(tx, "drain", row.id)), None)
        return {
            "node": row.name,
            "draining": row.spec_as(NodeSpec).draining,
            "drain": _shown(tx, last) if last is not None else None,
        }

    return send(await context.store.read(read))


def _shown(tx: Tx, value: Relocation) -> dict[str, Any]:
    shown = moves.told(tx, value)
    counts = {state: shown.count(state) for state in ("waiting", "moving", "moved", "stays", "gone")}
    return {**shown.model_dump(), "counts": counts, "gained": shown.gained}


@clusters.get("/{ref}/rebalance", response_model=RebalanceOut)
async def rebalance(
    ref: RefPath,
    context: ContextDep,
    _admin: AdminDep,
    limit: Annotated[int, Query(ge=1, le=100, description="moves at most")] = 20,
) -> Response:
    """Moves of VMs that would even out the cluster now, the best first, each with what it gains; and what the last
    rebalances have done. Nothing is moved."""
    loads = context.manager.loads()

    def read(tx: Tx) -> dict[str, Any]:
        row = get(tx, Kind.CLUSTER, ref, SYSTEM)
        found = rebalancing(tx, row, loads, limit)
        done = relocations.newest(tx, "rebalance", row.id, RUNS_SHOWN)
        return {**_proposal(found), "next_at": runs.next_due(tx, row.id), "runs": [_shown(tx, one) for one in done]}

    return send(await context.store.read(read))


def _proposal(found: Rebalancing) -> dict[str, Any]:
    names = {node.id: node.name for node in found.nodes}
    after = {node.id: fullness(node) for node in found.proposal.nodes}
    return {
        "moves": [
            {
                "vm": move.vm.id,
                "name": move.vm.name,
                "account": move.vm.account,
                "source": names[move.vm.node],
                "target": names[move.target],
                "gain": round(move.gain, 3),
            }
            for move in found.proposal.moves
        ],
        "nodes": [
            {"node": node.name, "before": round(fullness(node), 3), "after": round(after[node.id], 3)}
            for node in found.nodes
        ],
        "stays": found.stays,
    }


@clusters.post("/{ref}/actions/rebalance", status_code=202, response_model=Accepted)
async def carry_out(ref: RefPath, body: RebalanceAsk, command: AdminCommandDep) -> Response:
    """Make the moves that are proposed now, a few at once; each is judged again before it begins, and left out if it
    would gain too little by then."""
    loads = command.context.manager.loads()
    found = await command.context.store.read(
        lambda tx: rebalancing(tx, get(tx, Kind.CLUSTER, ref, SYSTEM), loads, body.limit)
    )

    def write_(tx: Tx) -> dict[str, object]:
        row = get(tx, Kind.CLUSTER, ref, SYSTEM)
        if body.stop:
            run = runs.stop(tx, row)
            words = moves.words(tx, run) if run is not None else "none is under way"
            return accepted(begin_and_end(tx, "cluster.rebalance-stop", row, words), row)
        op = runs.begin(tx, row, found, command.caller.account_name)
        return accepted(op or begin_and_end(tx, runs.ACTION, row, "nothing is worth moving"), row)

    return await command.run(write_)
