"""Creating, listing, renaming and deleting what lives in the database alone; references and who uses what."""

from __future__ import annotations

import pytest

from support.cloud import Cloud

KEY = "ssh-ed25519 " + "A" * 68
PLAIN = {
    "keypairs": {"public_key": KEY},
    "vpcs": {},
    "security-groups": {},
    "placement-groups": {"policy": "hard"},
    "disks": {"size_mib": 10},
}


@pytest.mark.parametrize("kind", PLAIN)
async def test_a_resource_is_made_shown_renamed_and_deleted(cloud: Cloud, kind: str) -> None:
    made = await cloud.alice.create(kind, "one", **PLAIN[kind])
    assert (made["name"], made["account"], made["status"]["state"]) == ("one", cloud.alice.account, "ready")
    assert made["kind"] == kind.removesuffix("s")
    for ref in ("one", made["id"]):
        assert (await cloud.alice.get(f"/{kind}/{ref}")) == made
    assert made in await cloud.alice.list(f"/{kind}")
    assert await cloud.alice.list(f"/{kind}", name="one") == [made]
    assert await cloud.alice.list(f"/{kind}", name="two") == []
    await cloud.alice.fail("POST", f"/{kind}", {"name": "one", "spec": PLAIN[kind]}, status=409, code="conflict")
    op = await cloud.alice.end("PATCH", f"/{kind}/one", {"name": "two"})
    assert op["resource"]["id"] == made["id"]
    await cloud.alice.fail("GET", f"/{kind}/one", status=404, code="not_found")
    await cloud.alice.end("DELETE", f"/{kind}/two")
    await cloud.alice.fail("GET", f"/{kind}/{made['id']}", status=404, code="not_found")
    await cloud.alice.fail("DELETE", f"/{kind}/two", status=404, code="not_found")
    assert cloud.rows("resource", id=made["id"]) == []


@pytest.mark.parametrize("kind", PLAIN)
async def test_renaming_to_a_name_that_is_taken_changes_nothing(cloud: Cloud, kind: str) -> None:
    await cloud.alice.create(kind, "one", **PLAIN[kind])
    await cloud.alice.create(kind, "two", **PLAIN[kind])
    before = cloud.dump()
    await cloud.alice.fail("PATCH", f"/{kind}/one", {"name": "two"}, status=409, code="conflict")
    assert cloud.dump() == before


async def test_a_generation_grows_with_the_spec_only(cloud: Cloud) -> None:
    group = await cloud.alice.create("security-groups", "web")
    await cloud.alice.end("PATCH", "/security-groups/web", {"name": "www"})
    assert (await cloud.alice.get("/security-groups/www"))["generation"] == group["generation"]
    await cloud.alice.end(
        "POST", "/security-groups/www/rules", {"direction": "inbound", "protocol": "any", "cidr": "0.0.0.0/0"}
    )
    assert (await cloud.alice.get("/security-groups/www"))["generation"] == group["generation"] + 1


async def test_what_is_used_is_not_deleted_and_its_users_are_named(cloud: Cloud) -> None:
    await cloud.node()
    await cloud.image("mine", account=cloud.alice.account)
    await cloud.alice.create("vpcs", "net")
    await cloud.alice.create("subnets", "lan", vpc="net", cidr="10.0.0.0/24")
    await cloud.alice.create("security-groups", "web")
    await cloud.alice.create("placement-groups", "apart")
    await cloud.alice.create(
        "vms", "a", image="mine", placement_group="apart", nics=[{"subnet": "lan", "security_groups": ["web"]}]
    )
    for path, user in (
        ("/images/mine", "vm a"),
        ("/vpcs/net", "subnet lan"),
        ("/subnets/lan", "nic a-nic0"),
        ("/security-groups/web", "nic a-nic0"),
        ("/placement-groups/apart", "vm a"),
        ("/nics/a-nic0", "vm a"),
        ("/disks/a-system", "vm a"),
    ):
        before = cloud.dump()
        problem = await cloud.alice.fail("DELETE", path, status=409, code="in_use")
        assert user in problem["users"], path
        assert user.split()[1] in problem["detail"]
        assert cloud.dump() == before, path
    await cloud.alice.end("DELETE", "/vms/a")
    for path in ("/images/mine", "/subnets/lan", "/vpcs/net", "/security-groups/web", "/placement-groups/apart"):
        await cloud.alice.end("DELETE", path)
    assert cloud.rows("reference", source=cloud.alice.account) == []
    assert cloud.rows("claim") == []


async def test_deleting_a_keypair_locks_nobody_out(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    await cloud.alice.create("keypairs", "me", public_key=KEY)
    vm = await cloud.alice.create("vms", "a", image="micro", keypairs=["me"])
    await cloud.alice.end("DELETE", "/keypairs/me")
    assert node.objects[f"vm/{vm['id']}"].keys == (KEY,)


async def test_names_are_each_accounts_own(cloud: Cloud) -> None:
    bob = await cloud.account("bob")
    mine = await cloud.alice.create("vpcs", "net")
    his = await bob.create("vpcs", "net")
    assert mine["id"] != his["id"]
    assert [row["id"] for row in await bob.list("/vpcs")] == [his["id"]]


async def test_a_name_may_not_look_like_an_id(cloud: Cloud) -> None:
    vpc = await cloud.alice.create("vpcs", "net")
    problem = await cloud.alice.fail("POST", "/vpcs", {"name": vpc["id"]}, status=422, code="invalid")
    assert problem["fields"] == [{"field": "name", "rule": "must not look like an id"}]


async def test_pages_follow_each_other_without_gap_or_repeat(cloud: Cloud) -> None:
    made = [(await cloud.alice.create("vpcs", f"net-{number}"))["id"] for number in range(7)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        answer = await cloud.alice.get("/vpcs", limit=3, **cursor)
        seen += [row["id"] for row in answer["items"]]
        assert len(answer["items"]) <= 3
        if answer["next"] is None:
            break
        cursor = {"cursor": answer["next"]}
        await cloud.alice.end("DELETE", f"/vpcs/{seen[0]}") if len(seen) == 3 else None
    assert seen == made


async def test_operations_and_events_have_pages_too(cloud: Cloud) -> None:
    for number in range(5):
        await cloud.alice.create("vpcs", f"net-{number}")
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while cursor is not None:
        answer = await cloud.alice.get("/operations", limit=2, **cursor)
        seen += [op["resource"]["name"] for op in answer["items"]]
        cursor = {"cursor": answer["next"]} if answer["next"] else None  # type: ignore[assignment]
    assert seen == [f"net-{number}" for number in reversed(range(5))]
    assert [op["resource"]["name"] for op in await cloud.alice.list("/operations", resource="net-3")] == ["net-3"]
    assert await cloud.alice.list("/operations", state="failed") == []


async def test_an_account_is_deleted_when_it_is_empty(cloud: Cloud) -> None:
    bob = await cloud.account("bob")
    await bob.create("vpcs", "net")
    problem = await cloud.admin.fail("DELETE", "/accounts/bob", status=409, code="in_use")
    assert problem["users"] == ["vpc net"]
    await bob.end("DELETE", "/vpcs/net")
    await cloud.admin.end("DELETE", "/accounts/bob")
    await bob.fail("GET", "/whoami", status=401, code="unauthenticated")
    assert cloud.rows("resource", account=bob.account) == []
    assert cloud.rows("token", account=bob.account) == []
    await cloud.admin.fail("DELETE", "/accounts/boss", status=409, code="conflict")


async def test_clusters(cloud: Cloud) -> None:
    await cloud.admin.create("clusters", "arm", architecture="aarch64", cpu_overcommit=2)
    await cloud.admin.end("PATCH", "/clusters/arm", {"name": "arms", "spec": {"cpu_overcommit": 3}})
    spec = (await cloud.admin.get("/clusters/arms"))["spec"]
    assert (spec["architecture"], spec["cpu_overcommit"]) == ("aarch64", 3.0)
    await cloud.node()
    problem = await cloud.admin.fail("DELETE", "/clusters/default", status=409, code="in_use")
    assert problem["users"] == ["node n1"]
    await cloud.admin.end("DELETE", "/clusters/arms")
    await cloud.admin.fail("POST", "/nodes", {"name": "n", "spec": {"cluster": "no"}}, status=422, code="invalid")
