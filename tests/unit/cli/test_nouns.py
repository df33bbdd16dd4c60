"""Every other noun: what is asked of the API, and what is printed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Cli
from fake_cloud import SECRET, FakeCloud

from scloud.client.keys import key_path, public_key_of


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (["vpc", "create", "a"], "/vpcs", {"name": "a", "spec": {}}),
        (["vpc", "create", "a", "--vni", "7"], "/vpcs", {"name": "a", "spec": {"vni": 7}}),
        (
            ["subnet", "create", "a", "--vpc", "default", "--cidr", "10.9.0.0/24"],
            "/subnets",
            {"name": "a", "spec": {"vpc": "default", "cidr": "10.9.0.0/24"}},
        ),
        (["security-group", "create", "a"], "/security-groups", {"name": "a", "spec": {}}),
        (
            ["placement-group", "create", "a", "--policy", "hard"],
            "/placement-groups",
            {"name": "a", "spec": {"policy": "hard", "over": "node"}},
        ),
        (["disk", "create", "a", "--size", "10G"], "/disks", {"name": "a", "spec": {"size_mib": 10240}}),
        (
            ["nic", "create", "a", "--subnet", "s", "--ip", "10.0.0.7", "--security-group", "g", "--vm", "web"],
            "/nics",
            {"name": "a", "spec": {"subnet": "s", "ip": "10.0.0.7", "security_groups": ["g"], "vm": "web"}},
        ),
        (["account", "create", "a", "--admin"], "/accounts", {"name": "a", "spec": {"admin": True}}),
        (
            [
                "image",
                "import",
                "a",
                "https://images.example/a",
                "--format",
                "qcow2",
                "--sha256",
                "AB" * 32,
                "--public",
            ],
            "/images",
            {
                "name": "a",
                "spec": {
                    "source": "https://images.example/a",
                    "format": "qcow2",
                    "sha256": "ab" * 32,
                    "public": True,
                },
            },
        ),
    ],
)
def test_create_prints_the_resource(cli: Cli, cloud: FakeCloud, arguments: list[str], path: str, body: Any) -> None:
    made = cli.json(*arguments)
    assert {"id", "name", "account", "spec", "status", "created_at"} <= made.keys()
    assert cloud.asked("POST", path) == [body]
    noun = arguments[0]
    assert [item["id"] for item in cli.json(noun, "list")][-1] == made["id"]
    assert cli.json(noun, "show", "a")["id"] == made["id"]
    assert made["id"] in cli.ok(noun, "show", "a")
    assert "a deleted" in cli.ok(noun, "delete", "a")
    assert cli.run(noun, "show", "a").exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "method", "path", "body"),
    [
        (["disk", "attach", "d", "web"], "POST", "/disks/d/actions/attach", {"vm": "web"}),
        (["disk", "detach", "d"], "POST", "/disks/d/actions/detach", {}),
        (["disk", "resize", "d", "--size", "2G"], "POST", "/disks/d/actions/resize", {"size_mib": 2048}),
        (["disk", "rollback", "d", "s1"], "POST", "/disks/d/actions/rollback", {"snapshot": "s1"}),
        (["disk", "restore", "d", "--as", "e"], "POST", "/disks/d/actions/restore", {"name": "e"}),
        (["disk", "flatten", "d"], "POST", "/disks/d/actions/flatten", {}),
        (["disk", "move", "d", "--type", "fast"], "POST", "/disks/d/actions/move", {"type": "fast"}),
        (
            ["disk", "limit", "d", "--iops", "500", "--bandwidth", "50M"],
            "POST",
            "/disks/d/actions/limit",
            {"iops": 500, "kib_per_s": 51200},
        ),
        (["disk", "limit", "d", "--bandwidth", "0"], "POST", "/disks/d/actions/limit", {"kib_per_s": 0}),
        (
            ["disk", "schedule", "d", "--every", "1h", "--keep", "24"],
            "POST",
            "/disks/d/actions/schedule",
            {"schedule": {"every_s": 3600, "keep": 24}},
        ),
        (["disk", "schedule", "d", "--off"], "POST", "/disks/d/actions/schedule", {"schedule": None}),
        (["nic", "attach", "n", "web"], "POST", "/nics/n/actions/attach", {"vm": "web"}),
        (["nic", "detach", "n"], "POST", "/nics/n/actions/detach", {}),
        (
            ["nic", "set", "n", "--security-group", "a", "--security-group", "b"],
            "PATCH",
            "/nics/n",
            {"spec": {"security_groups": ["a", "b"]}},
        ),
        (["nic", "set", "n", "--no-security-group"], "PATCH", "/nics/n", {"spec": {"security_groups": []}}),
        (["vpc", "rename", "default", "main"], "PATCH", "/vpcs/default", {"name": "main"}),
        (["node", "cordon", "n1"], "POST", "/nodes/n1/actions/cordon", {}),
        (["node", "uncordon", "n1"], "POST", "/nodes/n1/actions/uncordon", {}),
        (["node", "drain", "n1"], "POST", "/nodes/n1/actions/drain", {}),
        (["node", "undrain", "n1", "--cancel"], "POST", "/nodes/n1/actions/undrain", {"cancel": True}),
        (
            ["cluster", "rebalance", "--apply", "--no-wait"],
            "POST",
            "/clusters/default/actions/rebalance",
            {"limit": 20},
        ),
        (
            ["cluster", "set", "default", "--rebalance-every", "6h", "--rebalance-window", "22:00-06:00"],
            "PATCH",
            "/clusters/default",
            {"spec": {"relocation": {"rebalance_every_s": 21600, "rebalance_window": "22:00-06:00"}}},
        ),
        (
            ["cluster", "set", "default", "--cpu-overcommit", "2.5"],
            "PATCH",
            "/clusters/default",
            {"spec": {"cpu_overcommit": 2.5}},
        ),
    ],
)
def test_changes(cli: Cli, cloud: FakeCloud, arguments: list[str], method: str, path: str, body: Any) -> None:
    cloud.make("disks", "d", {"size_mib": 1024})
    cloud.make("nics", "n", {"ip": "10.0.0.4"})
    cli.ok(*arguments)
    assert cloud.asked(method, path) == [body]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nic", "set", "n"],
        ["nic", "set", "n", "--security-group", "a", "--no-security-group"],
        ["disk", "create", "a", "--size", "-1G"],
        ["disk", "create", "a"],
        ["disk", "limit", "a"],
        ["disk", "schedule", "a", "--every", "1h"],
        ["disk", "schedule", "a", "--every", "1h", "--keep", "2", "--off"],
        ["image", "create-from", "a"],
        ["image", "create-from", "a", "--disk", "b", "--vm", "c"],
        ["disk", "import", "a", "/nowhere"],
        ["vpc", "create", "a", "--vni", "16777216"],
        ["placement-group", "create", "a", "--policy", "maybe"],
        ["security-group", "rule", "add", "default", "--direction", "inbound"],
        ["security-group", "rule", "add", "default", "--direction", "inbound", "--cidr", "0.0.0.0/0", "--group", "g"],
        ["security-group", "rule", "add", "default", "--direction", "inbound", "--cidr", "0.0.0.0/0", "--port", "22"],
        ["image", "import", "a", "/nowhere", "--format", "raw"],
        ["token", "create", "t", "--ttl", "soon"],
        ["network", "trace", "a", "b", "--tcp", "22", "--icmp"],
        ["api", "FETCH", "vms"],
        ["api", "POST", "vms", "{"],
        ["keypair", "create", "../x"],
        ["keypair", "create", "x", "--public-key", "/nowhere"],
    ],
)
def test_wrong_usage_exits_2_and_changes_nothing(cli: Cli, cloud: FakeCloud, arguments: list[str]) -> None:
    assert cli.run(*arguments).exit_code == 2
    assert [request for request in cloud.requests if request[0] != "GET"] == []


def test_rules_are_added_listed_and_deleted(cli: Cli, cloud: FakeCloud) -> None:
    cli.ok(
        *("security-group", "rule", "add", "default", "--direction", "inbound", "--protocol", "tcp"),
        *("--port", "8000-8100", "--cidr", "0.0.0.0/0"),
    )
    group = cloud.find("security-groups", "default")["id"]
    cli.ok("security-group", "rule", "add", "default", "--direction", "outbound", "--group", group)
    bodies = cloud.asked("POST", "/security-groups/default/rules")
    assert bodies == [
        {"direction": "inbound", "protocol": "tcp", "port_min": 8000, "port_max": 8100, "cidr": "0.0.0.0/0"},
        {"direction": "outbound", "protocol": "any", "group": group},
    ]
    first, second = cli.json("security-group", "rule", "list", "default")
    lines = cli.ok("security-group", "rule", "list", "default").splitlines()
    assert lines[1].split() == [first["id"], "inbound", "tcp", "8000-8100", "0.0.0.0/0"]
    assert lines[2].split() == [second["id"], "outbound", "any", "any", "group", "default"]
    assert "inbound tcp 8000-8100 from 0.0.0.0/0" in cli.ok("security-group", "show", "default")
    cli.ok("security-group", "rule", "delete", "default", first["id"])
    assert [rule["id"] for rule in cli.json("security-group", "rule", "list", "default")] == [second["id"]]


def test_a_local_image_is_uploaded_and_saved_again(cli: Cli, cloud: FakeCloud, tmp_path: Path) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(os.urandom(2_500_000))
    image = cli.json("image", "import", "mine", str(file), "--format", "raw")
    assert cloud.asked("POST", "/images")[0]["spec"] == {"source": "upload", "format": "raw"}
    assert cloud.uploads["mine"] == file.read_bytes()
    assert image["name"] == "mine"
    target = tmp_path / "out"
    cli.ok("image", "export", "mine", str(target), "--format", "raw")
    assert target.read_bytes() == b"raw" + file.read_bytes()
    assert cli.run("image", "export", "mine", str(target)).exit_code == 2
    assert cli.json("image", "export", "mine", str(target), "--force")["format"] == "qcow2"


def test_an_upload_that_fails_leaves_no_image(cli: Cli, cloud: FakeCloud, tmp_path: Path) -> None:
    from fake_cloud import Problem

    file = tmp_path / "disk.raw"
    file.write_bytes(b"x")
    number = cloud.id("img").removeprefix("img-")
    following = f"img-{int(number) + 1:016d}"
    cloud.problems[f"PUT /images/{following}/data"] = Problem(413, "too_large", "it is larger than the free space")
    result = cli.run("image", "import", "mine", str(file), "--format", "raw")
    assert result.exit_code == 1
    assert "larger than the free space" in result.stderr
    assert [image["name"] for image in cloud.kinds["images"].values()] == ["micro"]


def test_a_keypair_without_a_public_key_is_made_here(cli: Cli, cloud: FakeCloud) -> None:
    cli.ok("keypair", "create", "laptop")
    file = key_path("laptop")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    sent = cloud.asked("POST", "/keypairs")[0]["spec"]["public_key"]
    assert sent.split()[:2] == public_key_of(file).split()[:2]


def test_a_key_made_for_a_refused_keypair_does_not_stay(cli: Cli, cloud: FakeCloud) -> None:
    cloud.make("keypairs", "taken", {"public_key": "ssh-ed25519 AAAA"})
    assert cli.run("keypair", "create", "taken").exit_code == 1
    assert not key_path("taken").exists()


def test_a_public_key_from_a_file(cli: Cli, cloud: FakeCloud, tmp_path: Path) -> None:
    file = tmp_path / "id.pub"
    file.write_text("ssh-ed25519 AAAA me@here\n")
    cli.ok("keypair", "create", "mine", "--public-key", str(file))
    assert cloud.asked("POST", "/keypairs")[0]["spec"] == {"public_key": "ssh-ed25519 AAAA me@here"}
    file.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert cli.run("keypair", "create", "worse", "--public-key", str(file)).exit_code == 2


def test_a_node_is_added_with_the_command_to_run_on_it(cli: Cli) -> None:
    assert "./scloud node join --token nod-" in cli.ok("node", "add", "n2")
    assert cli.json("node", "add", "n3")["join"]["command"].startswith("./scloud node join")
    listed = cli.ok("node", "list")
    assert "16 GiB" in listed and "storage 62%" in listed
    assert "8 CPUs, 16 GiB of memory, 100 GiB of disk" in cli.ok("node", "show", "n1")
    card = " ".join(cli.ok("node", "show", "n1").split())
    assert "2 of 32 CPUs, 512 MiB of 16 GiB of memory" in card
    assert "CPU 12%, memory 50%, disk space 90%, network 25%, storage 62%, 4.5 ms a storage request" in card
    assert cli.json("node", "show", "n1")["usage"]["smoothed"]["cpu"] == 0.125
    assert "not known" in cli.ok("node", "show", "n3")
    assert cli.ok("node", "remove", "n2", "--force") == "n2 removed\n"


@pytest.mark.parametrize(
    ("option", "asked"),
    [("--force", {"force": "true"}), ("--powered-off", {"force": "true", "powered_off": "true"})],
)
def test_a_lost_node_is_removed_with_what_was_promised_of_it(
    cli: Cli, cloud: FakeCloud, option: str, asked: dict[str, str]
) -> None:
    cli.ok("node", "add", "n2")
    cli.ok("node", "remove", "n2", option)
    assert [dict(query) for method, _, query, *_ in cloud.requests if method == "DELETE"] == [asked]


def test_operations(cli: Cli, cloud: FakeCloud) -> None:
    one = cli.json("vm", "create", "a", "--no-wait")["id"]
    assert cli.json("operation", "show", one)["id"] == one
    assert cli.json("operation", "wait", one)["state"] == "done"
    assert one in cli.ok("operation", "list")
    cloud.outcomes["vm.create"] = ("failed", "engine", "QEMU did not start")
    two = cli.json("vm", "create", "b", "--no-wait")["id"]
    result = cli.run("operation", "wait", one, two)
    assert result.exit_code == 1
    assert "QEMU did not start" in result.stderr
    three = cli.json("vm", "create", "c", "--no-wait")["id"]
    assert cli.ok("operation", "cancel", three) == f"{three} is cancelled\n"
    assert cli.run("operation", "wait", three).exit_code == 1
    assert cli.run("operation", "show", "op-none").exit_code == 3


def test_events_come_oldest_first(cli: Cli, cloud: FakeCloud) -> None:
    cloud.event("first")
    cloud.event("second", "error")
    assert [event["message"] for event in cli.json("event", "list")] == ["first", "second"]
    assert [line.split()[-1] for line in cli.ok("event", "list").splitlines()[1:]] == ["first", "second"]


def test_tokens(cli: Cli, cloud: FakeCloud) -> None:
    assert cli.ok("token", "create", "ci", "--account", "acme", "--ttl", "30d") == "sct-new\n"
    assert cloud.asked("POST", "/tokens") == [{"name": "ci", "account": "acme", "ttl_s": 2592000}]
    assert cli.json("token", "create", "ci")["secret"] == "sct-new"
    cloud.answers["tokens"] = [{"id": "tok-1", "name": "ci", "created_at": 1.0, "expires_at": 2.0}]
    assert "expired" in cli.ok("token", "list")
    assert cli.ok("token", "delete", "tok-1") == "tok-1 deleted\n"


def test_audit_exits_1_if_it_is_not_clean(cli: Cli, cloud: FakeCloud) -> None:
    cloud.answers["audit"] = {"clean": True, "findings": [], "nodes_asked": ["n1"], "nodes_silent": []}
    assert "clean: 1 nodes asked" in cli.ok("audit")
    finding = {"severity": "error", "node": "n1", "key": "domain/vm-1", "message": "runs without an owner"}
    cloud.answers["audit"] = {"clean": False, "findings": [finding], "nodes_asked": ["n1"], "nodes_silent": ["n2"]}
    result = cli.run("audit")
    assert result.exit_code == 1
    assert "runs without an owner" in result.stdout
    assert "n2 did not answer" in result.stdout
    result = cli.run("audit", "-o", "json")
    assert (result.exit_code, json.loads(result.stdout)["clean"]) == (1, False)


def test_status_exits_1_if_it_is_not_healthy(cli: Cli, cloud: FakeCloud) -> None:
    found = {
        "healthy": True,
        "version": "9.9",
        "epoch": 3,
        "counts": {"vm": {"running": 1, "error": 1}, "vpc": {"ready": 1}},
        "nodes": {"ready": 1, "down": 0},
    }
    cloud.answers["status"] = {**found, "conditions": []}
    text = cli.ok("status")
    assert "2 vms (1 running, 1 error)" in text
    assert "1 vpc\n" in text
    assert "1 ready\n" in text
    cloud.answers["status"] = {**found, "connected": 0, "conditions": []}
    assert "1 ready; 1 still to be heard by this manager" in cli.ok("status")
    assert "cloud 9.9" in cli.ok("version")
    conditions = [{"severity": "error", "message": "node n1 is down"}]
    cloud.answers["status"] = {**found, "healthy": False, "conditions": conditions}
    result = cli.run("status")
    assert result.exit_code == 1
    assert "✗ node n1 is down" in result.stdout


def test_a_trace_is_told_step_by_step(cli: Cli, cloud: FakeCloud) -> None:
    steps = [
        {"node": "n1", "stage": "port security", "verdict": "pass", "text": "the sender's address is its own"},
        {"node": "n2", "stage": "ingress groups", "verdict": "drop", "text": "no rule of 'default' allows tcp 22"},
    ]
    cloud.answers["trace"] = {"verdict": "dropped", "summary": "by the receiver's security groups", "steps": steps}
    lines = cli.ok("network", "trace", "a", "b", "--tcp", "22").splitlines()
    assert lines == [
        "on n1",
        "  ✓ port security: the sender's address is its own",
        "on n2",
        "  ✗ ingress groups: no rule of 'default' allows tcp 22",
        "dropped: by the receiver's security groups",
    ]
    assert cloud.asked("POST", "/network/trace") == [{"from": "a", "to": "b", "protocol": "tcp", "port": 22}]
    assert cli.json("network", "trace", "a", "b", "--icmp")["verdict"] == "dropped"
    assert cloud.asked("POST", "/network/trace")[1] == {"from": "a", "to": "b", "protocol": "icmp"}


def test_contexts(cli: Cli, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCLOUD_URL")
    monkeypatch.delenv("SCLOUD_TOKEN")
    assert cli.run("vm", "list").exit_code == 1
    cli.ok("context", "add", "one", "--url", cli.url, "--token", SECRET)
    cli.ok("context", "add", "two", "--url", "http://127.0.0.1:1", "--token", "x", "--no-use")
    assert [(item["name"], item["current"]) for item in cli.json("context", "list")] == [("one", True), ("two", False)]
    cloud.answers["whoami"] = {"account": {"id": "acc-1", "name": "admin"}, "admin": True}
    assert cli.json("context", "show")["account"]["name"] == "admin"
    assert SECRET not in cli.ok("context", "show") + cli.ok("context", "list")
    assert cli.json("vm", "list") == []
    assert cli.run("--context", "two", "vm", "list").exit_code == 1
    monkeypatch.delenv("SCLOUD_CONTEXT")
    cli.ok("context", "use", "two")
    assert "unknown: nothing answers" in cli.ok("context", "show")
    assert cli.run("context", "use", "three").exit_code == 3
    cli.ok("context", "delete", "two")
    assert cli.run("context", "delete", "two").exit_code == 3
    assert cli.run("context", "add", "bad", "--url", "nonsense", "--token", "x").exit_code == 2


def test_a_wrong_token_exits_1_and_says_what_to_do(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCLOUD_TOKEN", "wrong")
    result = cli.run("vm", "list")
    assert result.exit_code == 1
    assert "scloud context show" in result.stderr
    result = cli.run("vm", "list", "-o", "json")
    assert (json.loads(result.stderr)["code"], result.stdout) == ("unauthenticated", "")


def test_the_api_directly(cli: Cli) -> None:
    assert json.loads(cli.ok("api", "get", "vpcs/default"))["name"] == "default"
    assert json.loads(cli.ok("api", "POST", "/vpcs", '{"name": "a", "spec": {}}'))["resource"]["name"] == "a"
    assert json.loads(cli.ok("api", "POST", "/api/v1/vpcs", "-", stdin='{"name": "b", "spec": {}}'))["operation"]
    assert cli.run("api", "GET", "nothing").exit_code == 3


ROOT = (
    *("up", "down", "lab", "test", "status", "vm", "keypair", "placement-group", "vpc", "subnet", "security-group"),
    *("nic", "network", "image", "disk", "node", "cluster", "account", "audit", "token", "operation", "event"),
    *("context", "api", "version"),
)


def test_help_names_every_noun_once(cli: Cli) -> None:
    lines = [line.removeprefix("│").split() for line in cli.ok("--help").splitlines()]
    first = [words[0] for words in lines if words]
    assert [noun for noun in ROOT if first.count(noun) != 1] == []


@pytest.mark.parametrize("noun", [noun for noun in ROOT if noun not in ("up", "down", "lab", "test")])
def test_every_noun_has_help(cli: Cli, noun: str) -> None:
    assert "Usage: scloud" in cli.ok(noun, "--help")


def test_a_misspelt_noun_or_verb_is_corrected(cli: Cli) -> None:
    assert "Did you mean 'subnet'?" in cli.run("subnt", "list").stderr
    assert "'list'" in cli.run("vm", "lst").stderr
