"""The cloud as a whole: accounts, placement, audit, the lab's own commands."""

from __future__ import annotations

import json

import pytest

from lab.cloud import Lab
from lab.shared import Wide


@pytest.fixture(scope="module")
def tenant(lab: Lab) -> dict[str, str]:
    """The environment of an ordinary account."""
    lab.ok("account", "create", "acme")
    secret = lab.json("token", "create", "acme-laptop", "--account", "acme")["secret"]
    lab.ok("context", "add", "acme", "--url", lab.context.url, "--token", secret, "--no-use")
    return {"SCLOUD_CONTEXT": "acme"}


def test_two_accounts_do_not_see_each_other(lab: Lab, tenant: dict[str, str], wide: Wide, blank: str) -> None:
    def own(*argv: str) -> tuple[int, str]:
        done = lab.scloud(*argv, env=tenant)
        return done.code, done.out + done.err

    for noun in ("vm", "vpc", "subnet", "nic", "disk", "keypair", "security-group"):
        code, out = own(noun, "list", "-o", "json")
        listed = [item["name"] for item in json.loads(out)]
        assert code == 0 and listed in ([], ["default"]), (noun, listed)
    for argv in (
        ("vm", "show", wide.a1.id),
        ("vm", "stop", wide.a1.id),
        ("vm", "delete", wide.a1.id),
        ("vm", "log", wide.a1.id),
        ("nic", "show", wide.a1.nic["id"]),
        ("subnet", "show", "wide"),
        ("image", "show", blank),
    ):
        code, out = own(*argv)
        assert code == 3, (argv, out)
    for argv in (("node", "list"), ("account", "list"), ("node", "cordon", "n1")):
        code, out = own(*argv)
        assert code in (1, 3) and ("administrator" in out or "there is no" in out), (argv, out)
    assert "spec" in own("vm", "create", "thief", "--image", "micro", "--subnet", "wide")[1]
    code, out = own("api", "GET", "/vms?all_accounts=true")
    assert code == 1 and "administrator" in out

    # The same names and addresses as the administrator's; `micro` is everyone's.
    for argv in (
        ("vpc", "create", "wide"),
        ("subnet", "create", "wide", "--vpc", "wide", "--cidr", "10.50.0.0/24"),
        ("vm", "create", "a1", "--image", "micro", "--memory", "128M", "--subnet", "wide", "--ip", wide.a1.ip),
    ):
        code, out = own(*argv)
        assert code == 0, out
    mine = json.loads(own("vm", "show", "a1", "-o", "json")[1])
    assert mine["id"] != wide.a1.id and mine["status"]["addresses"] == [wide.a1.ip]
    assert mine["account"] != wide.a1.resource["account"]
    everybody = lab.json("vm", "list", "--all-accounts")
    assert {mine["id"], wide.a1.id} <= {item["id"] for item in everybody}
    assert own("vm", "delete", "a1")[0] == 0
    assert own("subnet", "delete", "wide")[0] == own("vpc", "delete", "wide")[0] == 0
    assert wide.a1.resource["status"]["state"] == "running"


def test_a_token_that_is_deleted_or_wrong_opens_nothing(lab: Lab) -> None:
    made = lab.json("token", "create", "short-lived")
    environment = {"SCLOUD_TOKEN": made["secret"]}
    assert lab.scloud("vm", "list", env=environment).code == 0
    lab.ok("token", "delete", made["token"]["id"])
    assert lab.scloud("vm", "list", env=environment).code == 1
    assert lab.scloud("vm", "list", env={"SCLOUD_TOKEN": "x" * 40}).code == 1
    database = b"".join(path.read_bytes() for path in (lab.root / "manager").glob("*.db*"))
    assert len(database) > 10_000 and made["secret"].encode() not in database, "only its hash is stored"


def test_a_hard_placement_group_spreads_and_then_refuses(lab: Lab, blank: str) -> None:
    lab.ok("placement-group", "create", "apart", "--policy", "hard")
    options = ("--image", blank, "--memory", "128M", "--placement-group", "apart")
    nodes = {lab.json("vm", "create", f"apart-{number}", *options)["status"]["node"] for number in (1, 2, 3)}
    assert nodes == {"n1", "n2", "n3"}
    plan = lab.json("vm", "create", "apart-4", *options, "--dry-run")
    assert plan["node"] is None
    assert all("group" in " ".join(item["reasons"]) for item in plan["candidates"]), plan
    problem = lab.refused("vm", "create", "apart-4", *options)
    assert problem["code"] == "no_capacity" or "no node" in problem["detail"], problem
    assert lab.vm("apart-4")["status"]["state"] == "error", "and it says why"
    assert "group" in lab.vm("apart-4")["status"]["reason"]
    lab.ok("vm", "delete", "apart-1", "apart-2", "apart-3", "apart-4")
    lab.ok("placement-group", "delete", "apart")


def test_cordon_and_dry_run(lab: Lab, blank: str) -> None:
    before = len(lab.json("vm", "list"))
    lab.ok("node", "cordon", "n1", "n2")
    try:
        options = ("--image", blank, "--memory", "128M")
        plan = lab.json("vm", "create", "where", *options, "--dry-run")
        assert plan["node"] == "n3"
        why = {item["node"]: " ".join(item["reasons"]) for item in plan["candidates"]}
        assert "cordon" in why["n1"] and "cordon" in why["n2"] and why["n3"] == ""
        assert lab.json("vm", "create", "where", *options)["status"]["node"] == "n3"
        table = lab.ok("vm", "create", "elsewhere", *options, "--node", "n1", "--dry-run")
        assert "No node can take it" in table and "cordon" in table
        huge = lab.json("vm", "create", "huge", "--memory", "900G", "--dry-run")
        assert huge["node"] is None and "memory" in str(huge["candidates"])
    finally:
        lab.ok("node", "uncordon", "n1", "n2")
    lab.ok("vm", "delete", "where")
    assert len(lab.json("vm", "list")) == before


def test_events_and_operations_tell_what_happened(lab: Lab, wide: Wide) -> None:
    said = [event["message"] for event in lab.json("event", "list", "--resource", wide.a1.id)]
    assert "running" in said
    operations = lab.json("operation", "list", "--resource", wide.a1.id)
    created = next(item for item in operations if item["action"] == "vm.create")
    assert created["state"] == "done" and created["progress"] == 100


def test_status_and_nodes(lab: Lab, wide: Wide) -> None:
    status = lab.json("status")
    assert status["healthy"] and status["nodes"]["ready"] == 3, status
    for node in lab.json("node", "list"):
        shown = node["status"]
        assert shown["state"] == "ready" and shown["capacity"]["cpus"] >= 1 and shown["datapath"] == "netdev"
        assert shown["accelerator"]["kind"] in ("kvm", "tcg") and shown["accelerator"]["reason"]


def test_the_lab_tells_its_processes_and_runs_commands_in_nodes(lab: Lab, wide: Wide) -> None:
    status = lab.status()
    roles = {(process["role"], process["node"]) for process in status["processes"]}
    for node in ("n1", "n2", "n3"):
        assert {(role, node) for role in ("agent", "libvirtd", "ovsdb-server", "ovs-vswitchd", "dnsmasq")} <= roles | {
            ("dnsmasq", "n3")
        }
        assert lab.on(node, "hostname").strip() == node
    assert [node["state"] for node in status["nodes"]] == ["up"] * 3
    assert wide.a1.id in {process["guest"] for process in status["processes"] if process["node"] == "n1"}
    assert lab.scloud("lab", "exec", "n1", "--", "sh", "-c", "exit 9").code == 9
    assert lab.scloud("lab", "exec", "n9", "--", "true").code == 3


def test_the_audit_is_clean_and_finds_what_is_not_ours_to_have(lab: Lab, wide: Wide) -> None:
    assert "clean" in lab.ok("audit")
    lab.converged(60.0)
    # A tap of our stamp that no nic has.
    lab.on(
        "n3", "ovs-vsctl", "add-port", "br-int", "stray", "--", "set", "Interface", "stray", "type=internal", "--",
        "set", "Port", "stray", "external_ids:scloud-owner=port/nic-0000000000000000",
    )  # fmt: skip
    try:
        found = lab.scloud("audit", "-o", "json")
        findings = json.loads(found.out)["findings"]
        assert found.code == 1 and any(item["node"] == "n3" for item in findings), findings
    finally:
        lab.on("n3", "ovs-vsctl", "--if-exists", "del-port", "br-int", "stray")
    assert "clean" in lab.ok("audit")
