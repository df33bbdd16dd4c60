"""Nodes and clusters: the administrator's."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Query, Response

from scloud.api.commands import AdminCommandDep
from scloud.api.context import (
    Context,
    accepted,
    begin_and_end,
)
from scloud.api.intents import storage_pools
from scloud.api.intents.common import resolve
from scloud.api.reading import add_reading, router_for
from scloud.api.schemas import (
    Accepted,
    BmcAsk,
    ClusterCreate,
    ClusterPatch,
    ClusterPatchSpec,
    NodeAccepted,
    NodeCreate,
    RefPath,
)
from scloud.api.storage_schemas import NodePatch
from scloud.controllers import node_removal
from scloud.controllers.ha.fencing import BMC_PASSWORD
from scloud.controllers.relocation import drain, rebalance
from scloud.model.errors import invalid
from scloud.model.ha import LEAST_CHECK_S, LEAST_SILENCE_S, PROFILES, HaSettings
from scloud.model.kinds import Kind, State
from scloud.model.specs import ClusterSpec, NodeSpec
from scloud.model.statuses import NodeStatus, Status
from scloud.store import operations, relocations, tokens
from scloud.store import secrets as node_secrets
from scloud.store.database import Tx
from scloud.store.resources import SYSTEM, all_of, create, get, refer, refuse_if_used, remove, save

nodes = router_for(Kind.NODE)
add_reading(nodes, Kind.NODE)
JOIN_TOKEN_S = 24 * 3600.0


@nodes.post("", status_code=202, response_model=NodeAccepted)
async def add_node(body: NodeCreate, command: AdminCommandDep) -> Response:
    """Expect a node; the answer has the one command to run on it."""

    def make(tx: Tx) -> dict[str, object]:
        cluster = resolve(tx, "spec.cluster", Kind.CLUSTER, body.spec.cluster, SYSTEM)
        status = NodeStatus(state=State.JOINING, reason="waiting for the host to join")
        row = create(tx, Kind.NODE, SYSTEM, body.name, NodeSpec(cluster=cluster.id), status)
        refer(tx, row.id, cluster.id, "cluster")
        op = operations.begin(tx, "node.create", row, seconds=JOIN_TOKEN_S, account=command.caller.account)
        return accepted(op, row)

    return await command.run_afresh(make, _join(command.context))


def _join(context: Context) -> Callable[[Tx, str], dict[str, Any]]:
    """A new join token and the command to use it; tokens given before stop working."""
    secret = secrets.token_urlsafe(24)

    def join(tx: Tx, id: str) -> dict[str, Any]:
        row = get(tx, Kind.NODE, id, SYSTEM)
        tokens.revoke_all(tx, id)
        tokens.add(tx, id, "join", secret, purpose="join", ttl_s=JOIN_TOKEN_S)
        token = f"{id}.{secret}.{context.ca_pin}"
        command = f"./scloud node join --name {row.name} --manager {context.join_address} --token {token}"
        return {"join": {"token": token, "command": command}}

    return join


@nodes.post("/{ref}/actions/join-token", status_code=202, response_model=NodeAccepted)
async def new_join_token(ref: RefPath, command: AdminCommandDep) -> Response:
    """Another join token, for a host that lost its certificate; tokens given before stop working."""

    def make(tx: Tx) -> dict[str, object]:
        row = get(tx, Kind.NODE, ref, SYSTEM)
        return accepted(begin_and_end(tx, "node.join-token", row), row)

    return await command.run_afresh(make, _join(command.context))


@nodes.post("/{ref}/actions/cordon", status_code=202, response_model=Accepted)
async def cordon(ref: RefPath, command: AdminCommandDep) -> Response:
    """Place no new VMs on it; what runs there goes on."""
    return await command.run(_cordon, ref, True, command.caller.account_name)


@nodes.post("/{ref}/actions/uncordon", status_code=202, response_model=Accepted)
async def uncordon(ref: RefPath, command: AdminCommandDep) -> Response:
    """Place VMs on it again; a drain is undone with that."""
    return await command.run(_cordon, ref, False, command.caller.account_name)


def _cordon(tx: Tx, ref: str, cordoned: bool, by: str) -> dict[str, object]:
    row = get(tx, Kind.NODE, ref, SYSTEM)
    spec = row.spec_as(NodeSpec)
    if spec.draining and not cordoned:
        row = drain.undo(tx, row, by, cancel=False)
        return accepted(begin_and_end(tx, "node.uncordon", row), row)
    action = "node.cordon" if cordoned else "node.uncordon"
    if spec.cordoned == cordoned:
        return accepted(begin_and_end(tx, action, row, "it is so already"), row)
    row = save(tx, row, spec=spec.model_copy(update={"cordoned": cordoned}))
    operations.record(tx, row, "info", "cordoned" if cordoned else "uncordoned")
    return accepted(begin_and_end(tx, action, row), row)


@nodes.post("/{ref}/actions/bmc", status_code=202, response_model=Accepted)
async def set_bmc(ref: RefPath, body: BmcAsk, command: AdminCommandDep) -> Response:
    """How its machine is switched off from outside (Redfish) when it is lost; without `bmc`, not at all."""

    def change(tx: Tx) -> dict[str, object]:
        row = get(tx, Kind.NODE, ref, SYSTEM)
        if body.bmc is None:
            node_secrets.forget(tx, row.id, BMC_PASSWORD)
        else:
            node_secrets.put(tx, row.id, BMC_PASSWORD, body.password)
        row = save(tx, row, spec=row.spec_as(NodeSpec).model_copy(update={"bmc": body.bmc}))
        return accepted(begin_and_end(tx, "node.bmc", row), row)

    return await command.run(change)


@nodes.patch("/{ref}", status_code=202, response_model=Accepted)
async def change_node(ref: RefPath, body: NodePatch, command: AdminCommandDep) -> Response:
    """Its labels, all of them. `rack` and `datacenter` say where it stands; storage clusters follow."""

    def change(tx: Tx) -> dict[str, object]:
        row = get(tx, Kind.NODE, ref, SYSTEM)
        storage_pools.check_labels(tx, row, body.spec.labels)
        row = save(tx, row, spec=row.spec_as(NodeSpec).model_copy(update={"labels": body.spec.labels}))
        return accepted(begin_and_end(tx, "node.update", row), row)

    return await command.run(change)


@nodes.delete("/{ref}", status_code=202, response_model=Accepted)
async def remove_node(
    ref: RefPath,
    command: AdminCommandDep,
    force: Annotated[bool, Query(description="it is lost: also with VMs on it, and what only it has goes")] = False,
    powered_off: Annotated[
        bool, Query(description="with `force`: its machine is off and stays off, so nothing has to be cut off first")
    ] = False,
) -> Response:
    """Take a node out of the cloud; refused while it has VMs or disks, unless it is lost and `force` says so.

    A lost node that may have disks of pools open is cut off from its storage first, and is out when that is certain.
    """

    removed: list[str] = []

    def delete(tx: Tx) -> dict[str, object]:
        row = get(tx, Kind.NODE, ref, SYSTEM)
        alive = row.id in command.context.manager.sessions
        op = node_removal.ask(tx, row, alive=alive, force=force, powered_off=powered_off)
        if not op.open:
            removed.append(row.id)
        return accepted(op, row)

    response = await command.run(delete)
    for session in filter(None, map(command.context.manager.sessions.get, removed)):
        await session.hang_up()  # from now on it is refused
    return response


clusters = router_for(Kind.CLUSTER)
add_reading(clusters, Kind.CLUSTER)


@clusters.post("", status_code=202, response_model=Accepted)
async def create_cluster(body: ClusterCreate, command: AdminCommandDep) -> Response:
    """Nodes of one architecture, with one CPU overcommit."""

    def make(tx: Tx) -> dict[str, object]:
        spec = ClusterSpec(architecture=body.spec.architecture, cpu_overcommit=body.spec.cpu_overcommit)
        row = create(tx, Kind.CLUSTER, SYSTEM, body.name, spec, Status(state=State.READY))
        return accepted(begin_and_end(tx, "cluster.create", row), row)

    return await command.run(make)


@clusters.patch("/{ref}", status_code=202, response_model=Accepted)
async def change_cluster(ref: RefPath, body: ClusterPatch, command: AdminCommandDep) -> Response:
    """Another name or another overcommit; VMs that are placed stay where they are."""

    def change(tx: Tx) -> dict[str, object]:
        row = get(tx, Kind.CLUSTER, ref, SYSTEM)
        spec = row.spec_as(ClusterSpec)
        if body.spec is not None:
            spec = _patched(tx, spec, body.spec)
            if spec.relocation != row.spec_as(ClusterSpec).relocation:
                operations.enqueue(tx, f"rebalance/{row.id}")
        row = save(tx, row, name=body.name, spec=spec)
        return accepted(begin_and_end(tx, "cluster.update", row), row)

    return await command.run(change)


def _patched(tx: Tx, spec: ClusterSpec, ask: ClusterPatchSpec) -> ClusterSpec:
    if ask.cpu_overcommit is not None:
        spec = spec.model_copy(update={"cpu_overcommit": ask.cpu_overcommit})
    if ask.relocation is not None:
        settings = spec.relocation.model_copy(update=ask.relocation.model_dump(exclude_none=True))
        spec = spec.model_copy(update={"relocation": settings})
    if ask.ha is None:
        return spec
    ha = PROFILES[ask.ha.profile] if ask.ha.profile is not None else spec.ha
    ha = ha.model_copy(update=ask.ha.model_dump(exclude_none=True, exclude={"profile"}))
    if ha.enabled and ha.lease_s >= ha.detection_s:
        raise invalid(
            "spec.ha.lease_s",
            f"must be less than the {ha.detection_s:g} s after which a node counts as dead: its VMs end before",
        )
    _refuse_restless(spec.ha, ha)
    for row in all_of(tx, Kind.STORAGE_CLUSTER):
        tx.touch(row.key)  # its nodes are told their lease with it
    return spec.model_copy(update={"ha": ha})


def _refuse_restless(before: HaSettings, ha: HaSettings) -> None:
    """Numbers with which a node that is well would be suspected between two heartbeats."""
    if (ha.check_s, ha.misses) == (before.check_s, before.misses):
        return
    if ha.check_s < LEAST_CHECK_S:
        raise invalid(
            "spec.ha.check_s", f"must be at least {LEAST_CHECK_S:g}: nodes send a heartbeat every second, no more often"
        )
    if ha.check_s * ha.misses < LEAST_SILENCE_S:
        raise invalid(
            "spec.ha.misses",
            f"{ha.misses} checks every {ha.check_s:g} s are {ha.check_s * ha.misses:g} s, and must be at least "
            f"{LEAST_SILENCE_S:g} s: nodes send a heartbeat every second; raise misses or check_s",
        )


@clusters.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_cluster(ref: RefPath, command: AdminCommandDep) -> Response:
    """Delete a cluster that has no nodes."""

    def delete(tx: Tx) -> dict[str, object]:
        row = get(tx, Kind.CLUSTER, ref, SYSTEM)
        refuse_if_used(tx, row)
        rebalance.stop(tx, row)
        relocations.forget_subject(tx, row.id)
        op = begin_and_end(tx, "cluster.delete", row, "deleted")
        remove(tx, row)
        return accepted(op, row)

    return await command.run(delete)
