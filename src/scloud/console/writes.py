"""Every form that changes something. Most are one request of the API whose body the fields describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from scloud.client.problems import failure
from scloud.console.api import part
from scloud.console.forms import Field, Fields, Form
from scloud.console.visit import Handler, Visit
from scloud.model.errors import invalid

T, N, M = Field.TEXT, Field.NUMBER, Field.MANY

CREATE: Mapping[str, Fields] = {
    "vpcs": {"name": T, "spec.vni": N},
    "subnets": {"name": T, "spec.vpc": T, "spec.cidr": T},
    "security-groups": {"name": T},
    "disks": {"name": T, "spec.size_mib": N, "spec.type": T},
    "snapshots": {"name": T, "spec.disk": T},
    "keypairs": {"name": T, "spec.public_key": T},
    "placement-groups": {"name": T, "spec.policy": T, "spec.over": T},
    "images": {
        "name": T,
        "spec.source": T,
        "spec.format": T,
        "spec.sha256": T,
        "spec.login_user": T,
        "spec.public": Field.FLAG,
    },
    "accounts": {"name": T, "spec.admin": Field.FLAG},
    "nics": {"name": T, "spec.subnet": T, "spec.ip": T, "spec.vm": T, "spec.security_groups": M},
}
ACTIONS: Mapping[tuple[str, str], Fields] = {
    ("vms", "start"): {},
    ("vms", "stop"): {"force": Field.FLAG},
    ("vms", "reboot"): {},
    ("vms", "resize"): {"cpus": N, "memory_mib": N},
    ("vms", "rebuild"): {"image": T},
    ("disks", "attach"): {"vm": T},
    ("disks", "detach"): {},
    ("disks", "resize"): {"size_mib": N},
    ("disks", "move"): {"type": T},
    ("disks", "restore"): {},
    ("disks", "rollback"): {"snapshot": T},
    ("nics", "detach"): {},
    ("nodes", "cordon"): {},
    ("nodes", "uncordon"): {},
    ("nodes", "drain"): {},
    ("nodes", "undrain"): {"cancel": Field.FLAG},
    ("clusters", "rebalance"): {"stop": Field.FLAG},
}
CHANGE: Mapping[str, Fields] = {
    "vms": {"name": T},
    "nics": {"spec.security_groups": M},
    "clusters": {"spec.cpu_overcommit": Field.DECIMAL},
}
DELETE = frozenset(
    {"vms", "images", "vpcs", "subnets", "security-groups", "disks", "keypairs", "placement-groups", "accounts", "nics"}
    | {"nodes", "snapshots"}
)
LIST_OF = {"security-groups": "/networks"}
"""Where one gets from the page of something that is deleted, if not to the list of its kind."""
_RULE: Fields = {"direction": T, "protocol": T, "port_min": N, "port_max": N, "cidr": T, "group": T}
_VM: Fields = {
    "name": T,
    "count": N,
    "spec.image": T,
    "spec.cpus": N,
    "spec.memory_mib": N,
    "spec.disk_mib": N,
    "spec.keypairs": M,
    "spec.disks": M,
    "spec.user_data": Field.LINES,
    "spec.node": T,
    "spec.placement_group": T,
    "spec.gpus": N,
    "spec.gpu_model": T,
}


def _collection(visit: Visit, known: Any) -> str:
    name = visit.ref("kind")
    if name not in known:
        raise failure("not_found", "there is no such form")
    return name


def creator(kind: str) -> Handler:
    async def create(visit: Visit) -> Response:
        return await visit.began(await visit.api.post(f"/{kind}", (await visit.form()).body(CREATE[kind])))

    return create


async def act(visit: Visit) -> Response:
    kind, action = visit.ref("kind"), visit.ref("action")
    fields = ACTIONS.get((kind, action))
    if fields is None:
        raise failure("not_found", "there is no such action")
    body = (await visit.form()).body(fields)
    return await visit.began(await visit.api.post(f"/{kind}/{part(visit.ref())}/actions/{action}", body))


async def change(visit: Visit) -> Response:
    kind = _collection(visit, CHANGE)
    body = (await visit.form()).body(CHANGE[kind])
    return await visit.began(await visit.api.patch(f"/{kind}/{part(visit.ref())}", body))


async def delete(visit: Visit) -> Response:
    kind = _collection(visit, DELETE)
    ticked = {name: True for name in ("force", "powered_off") if (await visit.form()).text(name)}
    answer = await visit.api.delete(f"/{kind}/{part(visit.ref())}", **ticked)
    leaves = (await visit.form()).text("leave") is not None
    return await visit.began(answer, to=LIST_OF.get(kind, f"/{kind}") if leaves else None)


async def add_rule(visit: Visit) -> Response:
    """One port may be given alone."""
    body = (await visit.form()).body(_RULE)
    if "port_min" in body:
        body.setdefault("port_max", body["port_min"])
    return await visit.began(await visit.api.post(f"/security-groups/{part(visit.ref())}/rules", body))


async def remove_rule(visit: Visit) -> Response:
    path = f"/security-groups/{part(visit.ref())}/rules/{part(visit.ref('rule'))}"
    return await visit.began(await visit.api.delete(path))


def _vm_body(form: Form) -> dict[str, Any]:
    """A nic in each subnet that is ticked, all with the same groups; an address goes with a single one."""
    body = form.body(_VM)
    spec = body.setdefault("spec", {})
    subnets, groups, ip = form.many("subnets"), form.many("groups"), form.text("ip")
    if ip is not None and len(subnets) != 1:
        raise invalid("ip", "goes with exactly one subnet")
    spec["nics"] = [
        {"subnet": subnet, **({"ip": ip} if ip else {}), **({"security_groups": groups} if groups else {})}
        for subnet in subnets
    ]
    return body


async def create_vm(visit: Visit) -> Response:
    answer = await visit.api.post("/vms", _vm_body(await visit.form()))
    made = answer.get("resource")
    return await visit.began(answer, to=f"/vms/{made['id']}" if made else "/vms")


async def plan_vm(visit: Visit) -> Response:
    """Where it would go; nothing is made."""
    form = await visit.form()
    body = _vm_body(form)
    body.setdefault("name", "unnamed")
    plan = await visit.api.post("/vms", body, dry_run=True)
    return await visit.answer("plan.html", title="Where would it go?", plan=plan)


async def add_node(visit: Visit) -> Response:
    answer = await visit.api.post("/nodes", (await visit.form()).body({"name": T, "spec.cluster": T}))
    name = answer["resource"]["name"]
    text = f"Run this as root in the source folder on {name}; it is good for a day, once:"
    return await visit.answer("reveal.html", title="Add a node", text=text, secret=answer["join"]["command"])


async def join_token(visit: Visit) -> Response:
    answer = await visit.api.post(f"/nodes/{part(visit.ref())}/actions/join-token", {})
    text = "Run this as root on the host; commands given before no longer work:"
    return await visit.answer("reveal.html", title="Join a node again", text=text, secret=answer["join"]["command"])


async def add_token(visit: Visit) -> Response:
    form = await visit.form()
    body = form.body({"name": T, "account": T})
    days = form.number("days")
    if days is not None:
        body["ttl_s"] = days * 86400
    answer = await visit.api.post("/tokens", body)
    text = "Copy it now: it is shown this once, and nobody can tell it again."
    return await visit.answer("reveal.html", title="A new token", text=text, secret=answer["secret"])


async def delete_token(visit: Visit) -> Response:
    await visit.api.delete(f"/tokens/{part(visit.ref())}")
    return await visit.answer("revoked.html", title="Token revoked")


async def cancel(visit: Visit) -> Response:
    return await visit.began(await visit.api.post(f"/operations/{part(visit.ref())}/cancel", {}))


POSTS: Mapping[str, Handler] = {
    "/vms": create_vm,
    "/vms/plan": plan_vm,
    "/nodes": add_node,
    "/nodes/{ref}/join-token": join_token,
    "/tokens": add_token,
    "/tokens/{ref}/delete": delete_token,
    "/operations/{ref}/cancel": cancel,
    "/security-groups/{ref}/rules": add_rule,
    "/security-groups/{ref}/rules/{rule}/delete": remove_rule,
    **{f"/{kind}": creator(kind) for kind in CREATE},
    "/{kind}/{ref}/change": change,
    "/{kind}/{ref}/delete": delete,
    "/{kind}/{ref}/actions/{action}": act,
}
