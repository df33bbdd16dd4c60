"""What is the same for all routes: problems, methods, documents, words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from scloud.api.app import PREFIX
from scloud.api.words import rule_of
from scloud.model.fields import NAME_RULE, PATTERN_RULES
from support.cloud import Cloud

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"name": ' + b"9" * 5000 + b"}",
        b'{"name": "a", "spec": {"vni": ' + b"9" * 5000 + b"}}",
        b'{"name": "a", "spec": {"vni": 1e999}}',
        b'{"name": "a", "spec": {"vni": NaN}}',
        b'{"name": "a", "spec": {"vni": -Infinity}}',
        b'{"name": "\\ud800"}',
        b'{"name": "a\\u0000"}',
        b'{"name": "a", "\\ud800": 1}',
        b'{"name": "a", "spec": {"vni": true}}',
        b'{"name": "a", "spec": {"vni": 1.5}}',
        b'{"name": "a", "spec": null}',
        b'{"name": null}',
        b'"name"',
        b"[]",
        b"null",
        b'{"name": "a", "name2": "b"}',
    ],
)
async def test_rubbish_gets_a_problem_and_changes_nothing(cloud: Cloud, content: bytes) -> None:
    before = cloud.dump()
    problem = await cloud.alice.fail("POST", "/vpcs", status=422, code="invalid", content=content, headers=JSON)
    assert problem["fields"] and all(item["field"] and item["rule"] for item in problem["fields"])
    assert problem["detail"].startswith(f"{problem['fields'][0]['field']}: {problem['fields'][0]['rule']}")
    assert cloud.dump() == before


@pytest.mark.parametrize(
    ("body", "field", "rule"),
    [
        ({"name": "A"}, "name", f"must be {NAME_RULE}"),
        ({"name": "a" * 64}, "name", "must have at most 63 characters"),
        ({"name": "a", "spec": {"vni": "5"}}, "spec.vni", "must be a whole number"),
        ({}, "name", "is required"),
        ({"name": "a", "x": 1}, "x", "is not a field of this request"),
        ({"name": "a", "spec": {"vni": 0}}, "spec.vni", "must be at least 1"),
        ({"name": "a", "spec": {"vni": 2**24}}, "spec.vni", "must be at most 16777215"),
        ({"name": "a", "spec": {"vni": "x"}}, "spec.vni", "must be a whole number"),
        ({"name": "a", "spec": []}, "spec", "must be an object: {...}"),
        ({"name": 1}, "name", "must be a text"),
    ],
)
async def test_rules_are_words_for_people(cloud: Cloud, body: Any, field: str, rule: str) -> None:
    problem = await cloud.alice.fail("POST", "/vpcs", body, status=422, code="invalid")
    assert problem["fields"][0] == {"field": field, "rule": rule}


async def test_parameters_have_rules_too(cloud: Cloud) -> None:
    for path, field in (
        ("/vpcs?limit=0", "limit"),
        ("/vpcs?limit=1001", "limit"),
        ("/vpcs?limit=" + "9" * 5000, "limit"),
        ("/vpcs?cursor=%ff", "cursor"),
        ("/vpcs?all_accounts=perhaps", "all_accounts"),
        ("/vpcs/%00", "ref"),
        ("/vpcs/%ED%A0%80", "ref"),
        ("/vpcs/A", "ref"),
        ("/operations/op-1?wait=nan", "wait"),
        ("/operations/op-1?wait=61", "wait"),
        ("/operations?state=odd", "state"),
        ("/events?level=odd", "level"),
    ):
        problem = await cloud.alice.fail("GET", path, status=422, code="invalid")
        assert problem["fields"][0]["field"] == field
        assert "String" not in problem["detail"] and "Input" not in problem["detail"] and "^" not in problem["detail"]


async def test_every_published_pattern_has_words(cloud: Cloud) -> None:
    document = (await cloud.alice.http.get("/openapi.json")).text
    patterns = {
        match.encode().decode("unicode_escape") for match in re.findall(r'"pattern":"((?:[^"\\]|\\.)*)"', document)
    }
    explained = {pattern.replace("\\\\", "\\") for pattern in PATTERN_RULES}
    addresses = {pattern for pattern in patterns if "25[0-5]" in pattern}  # for readers; a validator speaks for them
    assert {pattern.replace("\\\\", "\\") for pattern in patterns - addresses} <= explained


def test_an_error_nobody_thought_of_keeps_pydantics_words() -> None:
    assert rule_of({"type": "value_error", "msg": "Value error, must be odd", "loc": ()}) == "must be odd"
    assert rule_of({"type": "new_kind", "msg": "Something else", "loc": ()}) == "Something else"


async def test_methods_that_a_path_does_not_take(cloud: Cloud) -> None:
    for method in ("PUT", "TRACE", "DELETE", "OPTIONS", "PROPFIND"):
        problem = await cloud.alice.fail(method, "/vpcs", status=405, code="invalid")
        assert "GET, POST" in problem["detail"]
    answer = await cloud.alice.ask("TRACE", "/vpcs/x")
    assert answer.headers["allow"] == "DELETE, GET, PATCH"
    await cloud.alice.fail("GET", "/nothing", status=404, code="not_found")


async def test_the_document_and_its_page_need_nothing_from_elsewhere(cloud: Cloud) -> None:
    visitor = cloud.client(None).http
    document = (await visitor.get("/openapi.json")).json()
    assert all(path.startswith(PREFIX) for path in document["paths"])
    ids = [op["operationId"] for methods in document["paths"].values() for op in methods.values()]
    assert len(ids) == len(set(ids))
    page = (await visitor.get("/docs")).text
    assert "http://" not in page and "https://" not in page
    for asset in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        assert (await visitor.get(asset)).status_code == 200


async def test_a_defect_is_a_problem_and_tells_nothing(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_fn: Any) -> Any:
        raise RuntimeError("secret detail")

    await cloud.alice.get("/whoami")
    monkeypatch.setattr(cloud.store, "read", broken)
    answer = await cloud.alice.ask("GET", "/vpcs")
    monkeypatch.undo()
    assert answer.status_code == 500 and answer.json()["code"] == "internal"
    assert "secret" not in answer.text


async def test_metrics_count_what_there_is(cloud: Cloud) -> None:
    await cloud.node()
    await cloud.alice.create("vpcs", "net")
    text = (await cloud.admin.http.get("/metrics")).text
    assert 'scloud_resources{kind="vpc",state="ready"} 1.0' in text
    assert "scloud_nodes_connected 1.0" in text
    assert f"scloud_leader_epoch {float(cloud.epoch)}" in text
