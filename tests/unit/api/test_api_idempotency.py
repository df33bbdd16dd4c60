"""A request that is repeated with its key is carried out once."""

from __future__ import annotations

import asyncio

from scloud.api.app import MAX_BODY
from support.cloud import Cloud

KEY = {"Idempotency-Key": "one-request"}


async def test_a_repeated_request_is_answered_and_not_done_again(cloud: Cloud) -> None:
    body = {"name": "net"}
    first = await cloud.alice.do("POST", "/vpcs", body, headers=KEY)
    assert await cloud.alice.do("POST", "/vpcs", body, headers=KEY) == first
    assert len(await cloud.alice.list("/vpcs")) == 1
    await cloud.alice.end("DELETE", "/vpcs/net")
    assert await cloud.alice.do("POST", "/vpcs", body, headers=KEY) == first
    assert await cloud.alice.list("/vpcs") == []


async def test_verbs_count_once_too(cloud: Cloud) -> None:
    await cloud.node()
    await cloud.image()
    await cloud.alice.create("vms", "a", image="micro")
    for _ in range(3):
        await cloud.alice.wait(await cloud.alice.do("POST", "/vms/a/actions/reboot", headers=KEY))
    assert (await cloud.alice.get("/vms/a"))["spec"]["reboots"] == 1


async def test_changes_and_deletions_count_once_too(cloud: Cloud) -> None:
    await cloud.alice.create("vpcs", "net")
    renamed = await cloud.alice.do("PATCH", "/vpcs/net", {"name": "lan"}, headers={"Idempotency-Key": "rename"})
    again = await cloud.alice.do("PATCH", "/vpcs/net", {"name": "lan"}, headers={"Idempotency-Key": "rename"})
    assert again == renamed
    deleted = await cloud.alice.do("DELETE", "/vpcs/lan", headers=KEY)
    assert await cloud.alice.do("DELETE", "/vpcs/lan", headers=KEY) == deleted
    await cloud.alice.fail("DELETE", "/vpcs/lan", status=404, code="not_found")


async def test_another_request_with_the_same_key_is_a_conflict(cloud: Cloud) -> None:
    await cloud.alice.do("POST", "/vpcs", {"name": "net"}, headers=KEY)
    await cloud.alice.fail("POST", "/vpcs", {"name": "other"}, headers=KEY, status=409, code="conflict")
    await cloud.alice.fail(
        "POST", "/disks", {"name": "net", "spec": {"size_mib": 1}}, headers=KEY, status=409, code="conflict"
    )
    assert len(await cloud.alice.list("/vpcs")) == 1


async def test_keys_are_each_accounts_own(cloud: Cloud) -> None:
    await cloud.alice.do("POST", "/vpcs", {"name": "net"}, headers=KEY)
    await cloud.admin.do("POST", "/vpcs", {"name": "net"}, headers=KEY)
    assert len(await cloud.admin.list("/vpcs", all_accounts=True)) == 2


async def test_many_at_the_same_time_are_one(cloud: Cloud) -> None:
    answers = await asyncio.gather(*(cloud.alice.do("POST", "/vpcs", {"name": "net"}, headers=KEY) for _ in range(20)))
    assert all(answer == answers[0] for answer in answers)
    assert len(await cloud.alice.list("/vpcs")) == 1


async def test_a_refused_request_may_be_tried_again_with_its_key(cloud: Cloud) -> None:
    body = {"name": "lan", "spec": {"vpc": "net", "cidr": "10.0.0.0/24"}}
    await cloud.alice.fail("POST", "/subnets", body, headers=KEY, status=422, code="invalid")
    await cloud.alice.create("vpcs", "net")
    await cloud.alice.do("POST", "/subnets", body, headers=KEY)


async def test_a_key_is_forgotten_after_a_day(cloud: Cloud) -> None:
    await cloud.alice.do("POST", "/vpcs", {"name": "net"}, headers=KEY)
    cloud.clock.advance(25 * 3600)

    async def forgotten() -> bool:
        return cloud.rows("idempotency") == []

    await cloud.alice.do("POST", "/vpcs", {"name": "other"})
    await cloud.eventually(forgotten)


async def test_a_join_secret_is_not_kept_with_the_answer(cloud: Cloud) -> None:
    first = await cloud.admin.do("POST", "/nodes", {"name": "n"}, headers=KEY)
    again = await cloud.admin.do("POST", "/nodes", {"name": "n"}, headers=KEY)
    assert again["resource"] == first["resource"] and again["operation"] == first["operation"]
    assert again["join"] != first["join"]
    for join in (first["join"], again["join"]):
        assert join["token"].split(".")[1] not in repr(cloud.rows("idempotency"))
    assert len(cloud.rows("token", purpose="join")) == 1


async def test_keys_have_rules(cloud: Cloud) -> None:
    for key in ("", "a b", "x" * 129, "\x7f"):
        problem = await cloud.alice.fail(
            "POST", "/vpcs", {"name": "net"}, headers={"Idempotency-Key": key}, status=422, code="invalid"
        )
        assert problem["fields"][0]["field"] == "Idempotency-Key"
    assert await cloud.alice.list("/vpcs") == []


async def test_a_body_has_a_limit_however_it_comes(cloud: Cloud) -> None:
    big = b'{"name": "' + b"x" * MAX_BODY + b'"}'

    async def chunks():  # type: ignore[no-untyped-def]
        for start in range(0, len(big), 65536):
            yield big[start : start + 65536]

    for content in (big, chunks()):
        answer = await cloud.alice.ask("POST", "/vpcs", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and answer.json()["code"] == "too_large"
