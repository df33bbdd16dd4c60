"""`scloud vm`: what is asked of the API, what is printed, what the exit codes are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runner import Cli
from fake_cloud import FakeCloud, Problem


def test_the_defaults_of_create(cli: Cli, cloud: FakeCloud) -> None:
    vm = cli.json("vm", "create", "web")
    assert (vm["kind"], vm["name"], vm["status"]["state"]) == ("vm", "web", "running")
    assert cloud.asked("POST", "/vms") == [
        {
            "name": "web",
            "spec": {"image": "micro", "cpus": 1, "memory_mib": 256, "nics": [{"subnet": "default"}]},
        }
    ]


def test_the_default_keypair_is_used_if_it_exists(cli: Cli, cloud: FakeCloud) -> None:
    key = cloud.make("keypairs", "default", {"public_key": "ssh-ed25519 AAAA"})
    cli.ok("vm", "create", "web")
    assert cloud.asked("POST", "/vms")[0]["spec"]["keypairs"] == [key["id"]]


def test_every_option_of_create(cli: Cli, cloud: FakeCloud, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho hello\n")
    cloud.make("disks", "data", {"size_mib": 100})
    cli.ok(
        *("vm", "create", "web", "--image", "other", "--cpus", "2", "--memory", "1.5G", "--keypair", "k1"),
        *("--keypair", "k2", "--user-data", str(script), "--subnet", "s1", "--subnet", "s2", "--ip", "10.0.0.9"),
        *("--security-group", "g1", "--nic", "mine", "--disk", "data", "--disk", "2G", "--system-disk", "4G"),
        *("--node", "n1", "--placement-group", "apart"),
    )
    made = next(disk for disk in cloud.kinds["disks"].values() if disk["name"] == "web-data-1")
    assert made["spec"] == {"size_mib": 2048}
    assert cloud.asked("POST", "/vms")[0]["spec"] == {
        "image": "other",
        "cpus": 2,
        "memory_mib": 1536,
        "disk_mib": 4096,
        "nics": [
            {"subnet": "s1", "ip": "10.0.0.9", "security_groups": ["g1"]},
            {"subnet": "s2", "security_groups": ["g1"]},
            {"nic": "mine"},
        ],
        "disks": ["data", made["id"]],
        "keypairs": ["k1", "k2"],
        "user_data": "#!/bin/sh\necho hello\n",
        "node": "n1",
        "placement_group": "apart",
    }


def test_user_data_from_stdin(cli: Cli, cloud: FakeCloud) -> None:
    cli.ok("vm", "create", "web", "--user-data", "-", stdin="#cloud-config\n")
    assert cloud.asked("POST", "/vms")[0]["spec"]["user_data"] == "#cloud-config\n"


def test_disks_made_for_a_vm_that_is_refused_are_deleted(cli: Cli, cloud: FakeCloud) -> None:
    cloud.problems["POST /vms"] = Problem(409, "no_capacity", "no node has room")
    result = cli.run("vm", "create", "web", "--disk", "1G")
    assert result.exit_code == 1
    assert len(cloud.asked("POST", "/disks")) == 1
    assert cloud.kinds["disks"] == {}


def test_count_prints_an_array(cli: Cli, cloud: FakeCloud) -> None:
    vms = cli.json("vm", "create", "web", "--count", "3")
    assert [vm["name"] for vm in vms] == ["web-1", "web-2", "web-3"]
    assert {vm["status"]["state"] for vm in vms} == {"running"}
    assert cloud.asked("POST", "/vms")[0]["count"] == 3


def test_no_wait_prints_the_operation(cli: Cli) -> None:
    operation = cli.json("vm", "create", "web", "--no-wait")
    assert (operation["kind"], operation["action"], operation["state"]) == ("operation", "vm.create", "queued")
    assert [item["state"] for item in cli.json("vm", "create", "many", "--count", "2", "--no-wait")] == ["queued"] * 2


def test_progress_goes_to_stderr_as_lines(cli: Cli) -> None:
    result = cli.run("vm", "create", "web", "-o", "json")
    assert json.loads(result.stdout)["name"] == "web"
    assert "vm.create web: 40% making its disk" in result.stderr.splitlines()


def test_a_failed_creation_exits_1_with_its_reason(cli: Cli, cloud: FakeCloud) -> None:
    cloud.outcomes["vm.create"] = ("failed", "no_capacity", "no node has 64 CPUs free")
    result = cli.run("vm", "create", "web", "--cpus", "64")
    assert result.exit_code == 1
    assert "Error: no node has 64 CPUs free." in result.stderr
    assert result.stdout == ""
    cloud.outcomes["vm.create"] = ("failed", "no_capacity", "no node has 64 CPUs free")
    result = cli.run("vm", "create", "web2", "-o", "json")
    assert json.loads("{" + result.stderr.split("{", 1)[1])["code"] == "no_capacity"


def test_of_several_vms_those_that_came_about_are_printed(cli: Cli, cloud: FakeCloud) -> None:
    cloud.outcomes["vm.create"] = ("failed", "no_capacity", "no room")
    result = cli.run("vm", "create", "web", "--count", "3", "-o", "json")
    assert result.exit_code == 1
    assert [vm["name"] for vm in json.loads(result.stdout)] == ["web-2", "web-3"]


def test_a_time_limit_exits_1_and_tells_how_to_go_on(cli: Cli) -> None:
    result = cli.run("vm", "create", "web", "--timeout", "0")
    assert result.exit_code == 1
    assert "scloud operation wait op-" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["vm", "create", "web", "--memory", "12q"],
        ["vm", "create", "web", "--memory", "0"],
        ["vm", "create", "web", "--cpus", "0"],
        ["vm", "create", "web", "--count", "101"],
        ["vm", "create", "web", "--disk", "1q"],
        ["vm", "create", "web", "--count", "2", "--disk", "1G"],
        ["vm", "create", "web", "--count", "2", "--ip", "10.0.0.9"],
        ["vm", "create", "web", "--ip", "10.0.0.9", "--ip", "10.0.0.10"],
        ["vm", "create", "web", "--user-data", "/nowhere/at/all"],
        ["vm", "create"],
        ["vm", "create", "web", "--nonsense"],
        ["vm", "create", "web", "-o", "xml"],
        ["vm", "resize", "web"],
        ["vm", "port-forward", "web", "80:x"],
        ["vm", "show", ".."],
        ["vm", "show", ""],
        ["vm", "dance"],
        ["vmm", "list"],
    ],
)
def test_wrong_usage_exits_2_and_asks_for_nothing(cli: Cli, cloud: FakeCloud, arguments: list[str]) -> None:
    assert cli.run(*arguments).exit_code == 2
    assert [request for request in cloud.requests if request[0] != "GET"] == []


def test_a_value_that_the_api_refuses_exits_2(cli: Cli, cloud: FakeCloud) -> None:
    fields = [{"field": "name", "rule": "must begin with a letter"}, {"field": "spec.cpus", "rule": "at most 256"}]
    cloud.problems["POST /vms"] = Problem(422, "invalid", "name: must begin with a letter (and 1 more)", fields=fields)
    result = cli.run("vm", "create", "9", "--cpus", "999")
    assert result.exit_code == 2
    assert "spec.cpus: at most 256" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["show"], ["start"], ["stop"], ["reboot"], ["rebuild"], ["delete"], ["log"], ["figures"], ["console"], ["ssh"]],
)
def test_what_is_not_there_exits_3(cli: Cli, arguments: list[str]) -> None:
    result = cli.run("vm", *arguments, "nobody")
    assert result.exit_code == 3
    assert "there is no vm 'nobody' in this account" in result.stderr
    assert "scloud vm list" in result.stderr


def test_the_list(cli: Cli, cloud: FakeCloud) -> None:
    assert cli.json("vm", "list") == []
    assert "no vm here" in cli.ok("vm", "list")
    cloud.make("vms", "web", {"cpus": 1, "memory_mib": 512})
    broken = cloud.make("vms", "broken", {"cpus": 2, "memory_mib": 1536})
    broken["status"] |= {"state": "error", "reason": "its node is down: `scloud node show n1`"}
    header, web, other, *rest = cli.ok("vm", "list").splitlines()
    assert header.split() == ["NAME", "STATE", "NODE", "ADDRESSES", "CPUS", "MEMORY", "AGE"]
    assert web.split() == ["web", "running", "n1", "10.0.0.5", "1", "512", "MiB", "0s"]
    assert other.split()[:3] == ["broken", "error", "n1"]
    assert rest == ["broken: its node is down: `scloud node show n1`"]
    assert [vm["name"] for vm in cli.json("vm", "list")] == ["web", "broken"]
    assert "- id: vm-" in cli.ok("vm", "list", "-o", "yaml")


def test_filters_reach_the_api(cli: Cli, cloud: FakeCloud) -> None:
    cli.ok("vm", "list", "--node", "n1", "--state", "running", "--all-accounts", "--limit", "7")
    query = cloud.requests[-1][2]
    assert query == {"node": "n1", "state": "running", "all_accounts": "true", "limit": "7"}


def test_the_card_names_what_ids_refer_to(cli: Cli, cloud: FakeCloud) -> None:
    image = cloud.find("images", "micro")["id"]
    vm = cloud.make("vms", "web", {"cpus": 2, "memory_mib": 1024, "image": image, "keypairs": [], "power": "on"})
    vm["status"] |= {"memory_mib": 512, "reason": "memory changes on the next start"}
    card = cli.ok("vm", "show", "web")
    rows = dict(line.split(maxsplit=1) for line in card.splitlines())
    assert (rows["Name"], rows["Id"], rows["Node"], rows["Image"]) == ("web", vm["id"], "n1", "micro")
    assert rows["Memory"] == "1 GiB (now 512 MiB)"
    assert rows["Reason"] == "memory changes on the next start"


def test_text_of_others_cannot_steer_the_terminal(cli: Cli, cloud: FakeCloud) -> None:
    vm = cloud.make("vms", "web", {"cpus": 1, "memory_mib": 64})
    vm["status"] |= {"state": "error", "reason": "\x1b[2J[bold]gone[/bold]"}
    assert "\x1b[2J" not in cli.ok("vm", "list") + cli.ok("vm", "show", "web")
    assert "[bold]gone[/bold]" in cli.ok("vm", "list")


@pytest.mark.parametrize(
    ("arguments", "path", "body", "said"),
    [
        (["start", "web"], "start", {}, "web started"),
        (["stop", "web"], "stop", {"force": False}, "web stopped"),
        (["stop", "web", "--force"], "stop", {"force": True}, "web stopped"),
        (["reboot", "web"], "reboot", {}, "web rebooted"),
        (["resize", "web", "--memory", "1G"], "resize", {"memory_mib": 1024}, "web resized"),
        (["resize", "web", "--cpus", "4"], "resize", {"cpus": 4}, "web resized"),
        (["rebuild", "web", "--image", "x"], "rebuild", {"image": "x"}, "web rebuilt"),
    ],
)
def test_actions(cli: Cli, cloud: FakeCloud, arguments: list[str], path: str, body: object, said: str) -> None:
    cloud.make("vms", "web", {})
    assert cli.ok("vm", *arguments) == f"{said}\n"
    assert cloud.asked("POST", f"/vms/web/actions/{path}") == [body]


def test_an_action_says_why_it_is_not_in_force_yet(cli: Cli, cloud: FakeCloud) -> None:
    cloud.make("vms", "web", {})["status"]["reason"] = "takes effect on its next start"
    assert cli.ok("vm", "resize", "web", "--cpus", "2") == "web resized: takes effect on its next start\n"


def test_one_missing_name_does_not_keep_the_others_from_being_done(cli: Cli, cloud: FakeCloud) -> None:
    cloud.make("vms", "a", {})
    cloud.make("vms", "b", {})
    result = cli.run("vm", "delete", "a", "nobody", "b")
    assert result.exit_code == 3
    assert result.stdout == "a deleted\nb deleted\n"
    assert cloud.kinds["vms"] == {}


def test_delete_prints_the_operation_for_programs(cli: Cli, cloud: FakeCloud) -> None:
    cloud.make("vms", "a", {})
    operation = cli.json("vm", "delete", "a")
    assert (operation["action"], operation["state"]) == ("vm.delete", "done")


def test_rename(cli: Cli, cloud: FakeCloud) -> None:
    cloud.make("vms", "a", {})
    assert cli.json("vm", "rename", "a", "b")["name"] == "b"


def test_dry_run_tells_of_every_node(cli: Cli, cloud: FakeCloud) -> None:
    cloud.answers["dry_run"] = {
        "node": "n2",
        "candidates": [
            {"node": "n1", "fits": False, "reasons": ["3 of 4 CPUs are promised", "it is cordoned"], "score": 0},
            {
                "node": "n2",
                "fits": True,
                "reasons": [],
                "score": 0.75,
                "parts": {"promised": 0.5, "load": 0.25, "group": 0},
            },
        ],
    }
    text = cli.ok("vm", "create", "web", "--dry-run")
    assert [line.split()[:2] for line in text.splitlines()[1:3]] == [["n2", "yes"], ["n1", "no"]]
    assert "3 of 4 CPUs are promised; it is cordoned" in text
    assert "It would go to n2." in text
    assert "chosen, 0.50 promised to VMs, 0.25 load" in " ".join(text.split()) and "group" not in text
    assert cli.json("vm", "create", "web", "--dry-run") == cloud.answers["dry_run"]
    assert cloud.kinds["vms"] == {}


def test_log_and_figures(cli: Cli, cloud: FakeCloud) -> None:
    cloud.make("vms", "web", {})
    assert cli.ok("vm", "log", "web") == "web login:\n"
    assert "25.0 %" in cli.ok("vm", "figures", "web")
    assert cli.json("vm", "figures", "web")["cpu_seconds"] == 12.5
