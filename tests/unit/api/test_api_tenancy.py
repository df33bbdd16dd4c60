"""Accounts, administrators and tokens: what is another's does not exist; what is the administrator's is refused."""

from __future__ import annotations

import re
from typing import Any

from scloud.api.app import PREFIX
from scloud.store.tokens import digest
from support.cloud import Api, Cloud

KEY = "ssh-ed25519 " + "A" * 68
ADMIN = ("accounts", "clusters", "nodes", "storage-clusters", "pools")
FOR_ALL = ("disk-types",)
"""Made by administrators, seen by every account."""
BODIES: dict[str, Any] = {
    "PATCH": {"name": "other"},
    "POST /vms/{ref}/actions/resize": {"cpus": 2},
    "POST /disks/{ref}/actions/attach": {"vm": "own"},
    "POST /disks/{ref}/actions/resize": {"size_mib": 1000},
    "POST /disks/{ref}/actions/limit": {"iops": 1},
    "POST /disks/{ref}/actions/schedule": {"schedule": None},
    "POST /disks/{ref}/actions/rollback": {"snapshot": "own"},
    "POST /disks/{ref}/actions/move": {"type": "standard"},
    "POST /disks/{ref}/actions/image": {"name": "stolen"},
    "POST /vms/{ref}/actions/image": {"name": "stolen"},
    "PUT /disks/{ref}/data": b"bytes",
    "POST /nics/{ref}/actions/attach": {"vm": "own"},
    "POST /security-groups/{ref}/rules": {"direction": "inbound", "cidr": "0.0.0.0/0"},
    "PUT /images/{ref}/data": b"bytes",
}


async def of_every_kind(cloud: Cloud, api: Api, name: str) -> dict[str, dict[str, Any]]:
    """One resource of each tenant's kind, by collection."""
    await cloud.image(name, account=api.account)
    made = {
        "vpcs": await api.create("vpcs", name),
        "subnets": await api.create("subnets", name, vpc=name, cidr="10.0.0.0/24"),
        "security-groups": await api.create("security-groups", name),
        "placement-groups": await api.create("placement-groups", name),
        "keypairs": await api.create("keypairs", name, public_key=KEY),
        "disks": await api.create("disks", name, size_mib=10),
        "nics": await api.create("nics", name, subnet=name),
        "vms": await api.create("vms", name, image=name),
        "images": await api.get(f"/images/{name}"),
        "snapshots": await api.create("snapshots", name, disk=f"{name}-system"),
    }
    made["operations"] = (await api.list("/operations"))[0]
    return made


async def routes(cloud: Cloud) -> list[tuple[str, str]]:
    """(method, path below the prefix) of everything published."""
    document = (await cloud.alice.http.get("/openapi.json")).json()
    return [
        (method.upper(), path.removeprefix(PREFIX)) for path, methods in document["paths"].items() for method in methods
    ]


async def ask(api: Api, method: str, path: str, filled: str) -> Any:
    body = BODIES.get(f"{method} {path}", BODIES.get(method))
    sent = {"content": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
    return await api.ask(method, filled, **sent)


async def test_anothers_id_is_nothing_on_every_route(cloud: Cloud) -> None:
    await cloud.node()
    theirs = await of_every_kind(cloud, cloud.alice, "theirs")
    bob = await cloud.account("bob")
    await of_every_kind(cloud, bob, "own")
    rule = theirs["security-groups"]["spec"]["rules"][0]["id"]
    token = (await cloud.alice.do("POST", "/tokens", {"name": "t"}))["token"]["id"]
    before = cloud.dump()
    asked = set()
    for method, path in await routes(cloud):
        collection = path.split("/")[1]
        if "{ref}" not in path or collection in (*ADMIN, *FOR_ALL):
            continue
        for ref in (token,) if collection == "tokens" else (theirs[collection]["id"], theirs[collection].get("name")):
            if ref is None:
                continue
            answer = await ask(bob, method, path, path.replace("{ref}", ref).replace("{rule}", rule))
            assert answer.status_code == 404, (method, path, answer.text)
            assert answer.json()["code"] == "not_found"
            asked.add(collection)
    assert asked == {*theirs, "tokens"}
    assert cloud.dump() == before


async def test_anothers_id_is_nothing_inside_a_request_either(cloud: Cloud) -> None:
    await cloud.node()
    theirs = {kind: row["id"] for kind, row in (await of_every_kind(cloud, cloud.alice, "theirs")).items()}
    bob = await cloud.account("bob")
    await of_every_kind(cloud, bob, "own")
    before = cloud.dump()
    for method, path, body in (
        ("POST", "/subnets", {"name": "x", "spec": {"vpc": theirs["vpcs"], "cidr": "10.9.0.0/24"}}),
        ("POST", "/nics", {"name": "x", "spec": {"subnet": theirs["subnets"]}}),
        ("POST", "/nics", {"name": "x", "spec": {"subnet": "own", "security_groups": [theirs["security-groups"]]}}),
        ("POST", "/nics", {"name": "x", "spec": {"subnet": "own", "vm": theirs["vms"]}}),
        ("POST", "/nics/own/actions/attach", {"vm": theirs["vms"]}),
        ("PATCH", "/nics/own", {"spec": {"security_groups": [theirs["security-groups"]]}}),
        ("POST", "/disks/own/actions/attach", {"vm": theirs["vms"]}),
        ("POST", "/snapshots", {"name": "x", "spec": {"disk": theirs["disks"]}}),
        ("POST", "/disks", {"name": "x", "spec": {"snapshot": theirs["snapshots"]}}),
        ("POST", "/disks/own/actions/rollback", {"snapshot": theirs["snapshots"]}),
        ("POST", "/vms", {"name": "x", "spec": {"image": theirs["images"]}}),
        ("POST", "/vms", {"name": "x", "spec": {"image": "own", "keypairs": [theirs["keypairs"]]}}),
        ("POST", "/vms", {"name": "x", "spec": {"image": "own", "disks": [theirs["disks"]]}}),
        ("POST", "/vms", {"name": "x", "spec": {"image": "own", "nics": [{"nic": theirs["nics"]}]}}),
        ("POST", "/vms", {"name": "x", "spec": {"image": "own", "nics": [{"subnet": theirs["subnets"]}]}}),
        ("POST", "/vms", {"name": "x", "spec": {"image": "own", "placement_group": theirs["placement-groups"]}}),
        ("POST", "/vms/own/actions/rebuild", {"image": theirs["images"]}),
        (
            "POST",
            "/security-groups/own/rules",
            {"direction": "inbound", "group": theirs["security-groups"]},
        ),
        ("POST", "/network/trace", {"from": theirs["vms"], "to": "10.0.0.3", "protocol": "icmp"}),
        ("POST", "/network/trace", {"from": "own", "to": theirs["nics"], "protocol": "icmp"}),
    ):
        problem = await bob.fail(method, path, body, status=422, code="invalid")
        assert problem["fields"], path
    for path, params in (
        ("/nics", {"vm": theirs["vms"]}),
        ("/nics", {"subnet": theirs["subnets"]}),
        ("/nics", {"vpc": theirs["vpcs"]}),
        ("/disks", {"vm": theirs["vms"]}),
        ("/snapshots", {"disk": theirs["disks"]}),
        ("/subnets", {"vpc": theirs["vpcs"]}),
    ):
        await bob.fail("GET", path, params=params, status=404, code="not_found")
    assert await bob.list("/operations", resource=theirs["vms"]) == []
    assert await bob.list("/events", resource=theirs["vms"]) == []
    assert cloud.dump() == before


async def test_lists_show_the_callers_own_and_the_public_images(cloud: Cloud) -> None:
    await cloud.node()
    await cloud.image("public")
    await of_every_kind(cloud, cloud.alice, "theirs")
    bob = await cloud.account("bob")
    for method, path in await routes(cloud):
        if (
            method != "GET"
            or "{" in path
            or path.split("/")[1]
            in (*ADMIN, *FOR_ALL, "whoami", "status", "audit", "usage", "tokens", "managers", "ha")
        ):
            continue
        names = [row.get("name") for row in await bob.list(path)]
        assert names == {"/images": ["public"], "/security-groups": ["default"]}.get(path, []), path
        await bob.fail("GET", path, params={"all_accounts": "true"}, status=403, code="forbidden")
        assert any(row.get("account") == cloud.alice.account for row in await cloud.admin.list(path, all_accounts=True))


async def test_a_public_image_is_for_all_to_use_and_for_administrators_to_change(cloud: Cloud) -> None:
    await cloud.image("public")
    body = {"name": "x", "spec": {"source": "upload", "format": "raw", "public": True}}
    await cloud.alice.fail("POST", "/images", body, status=403, code="forbidden")
    await cloud.alice.fail("PATCH", "/images/public", {"name": "x"}, status=403, code="forbidden")
    await cloud.alice.fail("DELETE", "/images/public", status=403, code="forbidden")
    source = {"name": "x", "spec": {"source": "file:///etc/shadow", "format": "raw"}}
    await cloud.alice.fail("POST", "/images", source, status=403, code="forbidden")
    mine = await cloud.image("public", account=cloud.alice.account)
    assert (await cloud.alice.get("/images/public"))["id"] == mine
    await cloud.admin.end("PATCH", "/images/public", {"name": "x"})


async def test_administrators_routes_refuse_everybody_else(cloud: Cloud) -> None:
    node = await cloud.node()
    before = cloud.dump()
    refused = set()
    bodies = {"POST": {"name": "x"}, "PATCH": {"name": "x"}}
    for method, path in await routes(cloud):
        if path.split("/")[1] not in (*ADMIN, "audit", "usage") or path == "/usage/storage":
            continue  # everybody is told of the disks of their own account
        for ref in (node.id, "n1", "default", cloud.admin.account):
            await cloud.alice.fail(
                method, re.sub(r"\{ref\}", ref, path), bodies.get(method), status=403, code="forbidden"
            )
        refused.add(path)
    assert len(refused) >= 24
    for method in ("POST", "PATCH", "DELETE"):
        where = "/disk-types" if method == "POST" else "/disk-types/x"
        await cloud.alice.fail(method, where, bodies.get(method), status=403, code="forbidden")
    await cloud.alice.fail("POST", "/tokens", {"account": "boss"}, status=403, code="forbidden")
    assert (await cloud.alice.http.get("/metrics")).status_code == 403
    assert cloud.dump() == before


async def test_every_route_needs_a_token(cloud: Cloud) -> None:
    for secret in (None, "wrong", "secret-of-alice-not"):
        stranger = cloud.client(secret)
        for method, path in await routes(cloud):
            answer = await stranger.ask(method, path.replace("{ref}", "x").replace("{rule}", "y"))
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
    assert (await cloud.client(None).http.get("/healthz")).json() == {"ok": True}
    assert (await cloud.client(None).http.get("/metrics")).status_code == 401


async def test_an_administrator_reaches_any_account_by_id(cloud: Cloud) -> None:
    await cloud.node()
    theirs = await of_every_kind(cloud, cloud.alice, "theirs")
    for kind, row in theirs.items():
        assert (await cloud.admin.get(f"/{kind}/{row['id']}"))["account"] == cloud.alice.account
    await cloud.admin.fail("GET", "/vms/theirs", status=404, code="not_found")
    await cloud.admin.end("DELETE", f"/vms/{theirs['vms']['id']}")
    await cloud.alice.fail("GET", "/vms/theirs", status=404, code="not_found")


async def test_tokens_are_kept_as_digests(cloud: Cloud) -> None:
    made = await cloud.alice.do("POST", "/tokens", {"name": "laptop"})
    secret = made["secret"]
    for table in ("token", "idempotency", "event", "operation", "resource"):
        assert secret not in repr(cloud.rows(table))
    assert cloud.rows("token", id=made["token"]["id"])[0]["digest"] == digest(secret)
    assert "digest" not in made["token"]
    shown = await cloud.alice.list("/tokens")
    assert [row["name"] for row in shown] == ["test", "laptop"]
    assert secret not in repr(shown)
    assert (await cloud.client(secret).get("/whoami"))["account"] == {"id": cloud.alice.account, "name": "alice"}


async def test_a_revoked_token_ends_at_once(cloud: Cloud) -> None:
    made = await cloud.alice.do("POST", "/tokens", {"name": "laptop"})
    laptop = cloud.client(made["secret"])
    await laptop.get("/whoami")
    answer = await cloud.alice.ask("DELETE", f"/tokens/{made['token']['id']}")
    assert answer.status_code == 204
    await laptop.fail("GET", "/whoami", status=401, code="unauthenticated")
    await cloud.alice.fail("DELETE", f"/tokens/{made['token']['id']}", status=404, code="not_found")


async def test_a_token_ends_with_its_time(cloud: Cloud) -> None:
    laptop = cloud.client((await cloud.alice.do("POST", "/tokens", {"ttl_s": 60}))["secret"])
    await laptop.get("/whoami")
    cloud.clock.advance(61)
    await laptop.fail("GET", "/whoami", status=401, code="unauthenticated")


async def test_an_administrator_makes_tokens_for_others(cloud: Cloud) -> None:
    made = await cloud.admin.do("POST", "/tokens", {"account": "alice"})
    assert (await cloud.client(made["secret"]).get("/whoami")) == {
        "account": {"id": cloud.alice.account, "name": "alice"},
        "admin": False,
    }
    await cloud.admin.fail("POST", "/tokens", {"account": "nobody"}, status=422, code="invalid")


async def test_a_cookie_is_as_good_as_a_header(cloud: Cloud) -> None:
    visitor = cloud.client(None)
    visitor.http.cookies.set("scloud_token", cloud.alice.secret)
    assert (await visitor.get("/whoami"))["account"]["name"] == "alice"


async def test_status_shows_an_account_its_own_only(cloud: Cloud) -> None:
    await cloud.node()
    await cloud.alice.create("vpcs", "net")
    bob = await cloud.account("bob")
    assert (await bob.get("/status"))["counts"] == {"security-group": {"ready": 1}}
    whole = await cloud.admin.get("/status")
    assert whole["counts"]["vpc"] == {"ready": 1} and whole["nodes"] == {"ready": 1} and whole["healthy"]
