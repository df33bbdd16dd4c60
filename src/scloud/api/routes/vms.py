"""Virtual machines."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Response
from starlette.responses import PlainTextResponse

from scloud.api.commands import CommandDep
from scloud.api.context import CallerDep, ContextDep, send
from scloud.api.intents import vms
from scloud.api.reading import add_show, fetch, list_page, owner_for, router_for
from scloud.api.schemas import (
    TEXT,
    Accepted,
    AcceptedMany,
    AllAccounts,
    Cursor,
    Limit,
    MigrateAsk,
    NameFilter,
    PlanOut,
    RebuildAsk,
    RefFilter,
    RefPath,
    ResizeAsk,
    ResourcePage,
    StopAsk,
    VmCreate,
    VmPatch,
)
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.observed import VmFigures
from scloud.store.database import Tx
from scloud.store.resources import SYSTEM, Resource, get

router = router_for(Kind.VM)


@router.get("", response_model=ResourcePage)
async def list_vms(
    context: ContextDep,
    caller: CallerDep,
    limit: Limit = 100,
    cursor: Cursor = None,
    name: NameFilter = None,
    node: RefFilter = None,
    state: State | None = None,
    all_accounts: AllAccounts = False,
) -> Response:
    """A page of VMs, oldest first; on one node or in one state if asked."""

    def read(tx: Tx) -> object:
        node_id = None
        if node is not None:
            caller.need_admin()
            node_id = get(tx, Kind.NODE, node, SYSTEM).id
        filters = {"name": name, "node": node_id, "state": state}
        return list_page(tx, Kind.VM, caller, all_accounts, limit, cursor, filters)

    return send(await context.store.read(read))


add_show(router, Kind.VM)


@router.post(
    "",
    status_code=202,
    response_model=Accepted | AcceptedMany,
    responses={200: {"description": "of a dry run", "model": PlanOut}},
)
async def create_vm(
    body: VmCreate,
    command: CommandDep,
    dry_run: Annotated[bool, Query(description="only say where it would go, and why not elsewhere")] = False,
) -> Response:
    """Create one VM, or several alike."""
    loads = command.context.manager.loads()
    if dry_run:
        plan = await command.context.store.read(lambda tx: vms.dry_run(tx, command.caller.account, body.spec, loads))
        names = {candidate.node: candidate.name for candidate in plan.candidates}
        candidates = [
            {
                "node": c.name,
                "fits": c.fits,
                "reasons": list(c.reasons),
                "score": round(c.score, 3),
                "parts": {name: round(value, 3) for name, value in c.parts.items()},
            }
            for c in plan.candidates
        ]
        return send({"node": names.get(plan.node or ""), "candidates": candidates})
    return await command.run(vms.create_vms, command.caller.account, body, loads)


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def change_vm(ref: RefPath, body: VmPatch, command: CommandDep) -> Response:
    """Give it another name, or say what becomes of it when its node is lost."""
    return await command.on(Kind.VM, ref, vms.change, body)


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_vm(
    ref: RefPath,
    command: CommandDep,
    keep_disks: Annotated[bool, Query(description="its system disk waits in the trash for a while")] = False,
) -> Response:
    """Delete it with its system disk and the nics made with it; data disks stay."""
    keep_s = command.context.manager.settings.trash_hours * 3600 if keep_disks else None
    return await command.on(Kind.VM, ref, vms.delete, keep_s)


@router.post("/{ref}/actions/start", status_code=202, response_model=Accepted)
async def start_vm(ref: RefPath, command: CommandDep) -> Response:
    """Start it; one in `error` is tried again."""
    return await command.on(Kind.VM, ref, vms.start)


@router.post("/{ref}/actions/stop", status_code=202, response_model=Accepted)
async def stop_vm(ref: RefPath, command: CommandDep, body: StopAsk | None = None) -> Response:
    """Ask the guest to shut down, and switch it off after a minute; with `force` at once."""
    force = body.force if body else False
    return await command.on(Kind.VM, ref, vms.stop, force)


@router.post("/{ref}/actions/reboot", status_code=202, response_model=Accepted)
async def reboot_vm(ref: RefPath, command: CommandDep) -> Response:
    """Reset a running VM."""
    return await command.on(Kind.VM, ref, vms.reboot)


@router.post("/{ref}/actions/resize", status_code=202, response_model=Accepted)
async def resize_vm(ref: RefPath, body: ResizeAsk, command: CommandDep) -> Response:
    """Other CPUs or memory: live where the guest allows it, else from its next start on."""
    return await command.on(Kind.VM, ref, vms.resize, body.cpus, body.memory_mib)


@router.post("/{ref}/actions/migrate", status_code=202, response_model=Accepted)
async def migrate_vm(ref: RefPath, command: CommandDep, body: MigrateAsk | None = None) -> Response:
    """Bring a running VM to another node without stopping it, or end that. For administrators."""
    loads = command.context.manager.loads()

    def go(tx: Tx) -> dict[str, Any]:
        account = owner_for(tx, Kind.VM, ref, command.caller)
        get(tx, Kind.VM, ref, account)  # of another's VM nobody learns that it is there
        command.caller.need_admin()
        return vms.migrate(tx, account, ref, body or MigrateAsk(), loads)

    return await command.run(go)


@router.post("/{ref}/actions/rebuild", status_code=202, response_model=Accepted)
async def rebuild_vm(ref: RefPath, command: CommandDep, body: RebuildAsk | None = None) -> Response:
    """Make its system disk anew from its image, or another one; what was on that disk is lost."""
    image = body.image if body else None
    return await command.on(Kind.VM, ref, vms.rebuild, image)


@router.get("/{ref}/log", response_class=PlainTextResponse, responses={200: TEXT})
async def vm_log(
    ref: RefPath,
    context: ContextDep,
    caller: CallerDep,
    bytes: Annotated[int, Query(ge=1, le=1024 * 1024, description="how much of its end")] = 65536,
) -> Response:
    """What the guest has written to its serial console."""
    row = await _placed(context, caller, ref)
    text = await context.manager.call(row.node, f"vm '{row.name}'", "console_log", vm=row.id, bytes=bytes)
    return PlainTextResponse(str(text))


@router.get("/{ref}/figures", response_model=VmFigures)
async def vm_figures(ref: RefPath, context: ContextDep, caller: CallerDep) -> Response:
    """CPU and memory, as the hypervisor counts them."""
    row = await _placed(context, caller, ref)
    figures = await context.manager.call(row.node, f"vm '{row.name}'", "figures", vm=row.id)
    if figures is None:
        raise CloudError(ErrorKind.CONFLICT, f"vm '{row.name}' is {row.state}; only a running VM has figures")
    return send(figures)


async def _placed(context: ContextDep, caller: CallerDep, ref: str) -> Resource:
    row = await context.store.read(lambda tx: fetch(tx, Kind.VM, ref, caller))
    if row.node is None:
        raise CloudError(ErrorKind.CONFLICT, f"vm '{row.name}' is {row.state} and on no node yet")
    return row
