"""`scloud storage-cluster`, `pool`, `disk-type`: what is asked of the API, and what a cluster looks like."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Cli
from fake_cloud import FakeCloud
from rich.console import Console

from scloud.cli.follow import _farewell
from scloud.cli.storage_cluster import parse_device
from scloud.cli.storage_view import bar, rendered


def osd(number: int, node: str, **more: Any) -> dict[str, Any]:
    place = {"datacenter": "d1", "rack": f"r{number % 2}", "host": node}
    return {
        **{"osd": number, "uuid": f"u{number}", "node": node, "path": f"/dev/disk/by-id/scsi-{number:030d}"},
        **{"media": "ssd", "up": True, "taken_in": True, "used_mib": 3 * 1024, "total_mib": 10 * 1024},
        **{"commit_ms": 2.4, "pgs": 33, "place": place},
        **more,
    }


STATUS = {
    "state": "ready",
    "reason": "",
    "version": "16.2.15",
    "monitors_up": ["n1", "n2"],
    "leader": "n1",
    "conditions": [
        {"name": "osd-down", "level": "warning", "message": "1 osds down: start it " + "and so on " * 20, "since": 1.0}
    ],
    "capacity": {"total_mib": 40960, "used_mib": 10240, "provisioned_mib": 2048, "full_in_days": 12.5},
    "osds": [osd(0, "n1"), osd(1, "n2"), osd(2, "n1", up=False, taken_in=False), osd(3, "n2")],
    "placement_groups": {"active+clean": 30, "active+undersized+degraded": 3},
    "inconsistent": ["2.1"],
    "inconsistent_objects": {"2.1": ["rbd_data.1.0"]},
    "recovery": {"degraded": 12, "misplaced": 30, "unfound": 0, "objects_per_s": 5.0, "seconds_left": 8.0},
    "removing": {"osd.2 (n1:/dev/x)": "42 objects left, 5 a second, 8 s to go"},
    "observed_at": time.time(),
}
SPEC = {
    **{"mode": "deployed", "nodes": ["nod-1", "nod-2"], "monitors": ["a", "b", "c"], "fsid": "f" * 36},
    **{"recovery_profile": "client", "scrub_begin_hour": 22, "scrub_end_hour": 6, "deep_scrub_days": 7},
    "maintenance": ["nod-2"],
}


def test_a_cluster_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scloud.cli.output.PIPE_WIDTH", 80)
    screen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    screen.print(rendered({"name": "c1", "spec": SPEC, "status": STATUS}, {"nod-1": "n1", "nod-2": "n2"}))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line) for line in text.splitlines()) <= 80
    for part in (
        "2 of 3: n1 (leads), n2",
        "10 GiB of 40 GiB used (25 %)",
        "in 12.5 days",
        "30 active+clean, 3 active+undersized+degraded",
        "12 objects degraded, 30 objects misplaced, 5 objects a second, 8s to go",
        "2.1: rbd_data.1.0",
        "osd.2 (n1:/dev/x): 42 objects left",
        "from 22 to 6 o'clock",
        "Maintenance",
    ):
        assert part in text, text
    tree = [
        line.rstrip() for line in text.splitlines() if line.lstrip().startswith(("datacenter", "rack", "host", "osd."))
    ]
    assert [line.split("  up")[0].split("  down")[0].rstrip() for line in tree if "objects" not in line][:5] == [
        "datacenter d1",
        "  rack r0",
        "    host n1",
        "      osd.0",
        "      osd.2",
    ]
    assert "down, out" in text


@pytest.mark.parametrize(("part", "drawn"), [(0.0, "······   0 %"), (0.314, "██····  31 %"), (1.0, "██████ 100 %")])
def test_a_bar_is_as_long_as_it_says(part: float, drawn: str) -> None:
    assert bar(part) == drawn


def test_devices_are_read() -> None:
    assert parse_device("n1:/dev/sdb", "ssd") == {"node": "n1", "path": "/dev/sdb", "media": "ssd"}
    assert parse_device("n1:/a.img:10G:hdd", "ssd") == {
        "node": "n1",
        "path": "/a.img",
        "size_mib": 10240,
        "media": "hdd",
    }
    assert parse_device("n1:/dev/sdb:hdd", "ssd")["media"] == "hdd"
    for wrong in ("n1", "/dev/sdb", "n1:dev", "n1:/a:10X", ":/a"):
        with pytest.raises(ValueError):
            parse_device(wrong, "ssd")


@pytest.mark.parametrize(
    ("arguments", "method", "path", "body"),
    [
        (
            ["storage-cluster", "create", "a", "--nodes", "n1,n2", "--device", "n1:/dev/sdb", "--media", "hdd"],
            "POST",
            "/storage-clusters",
            {
                "name": "a",
                "spec": {"nodes": ["n1", "n2"], "devices": [{"node": "n1", "path": "/dev/sdb", "media": "hdd"}]},
            },
        ),
        (
            ["pool", "create", "p", "--cluster", "c", "--redundancy", "ec:4+2", "--fault-domain", "rack"],
            "POST",
            "/pools",
            {
                "name": "p",
                "spec": {"backend": "ceph", "cluster": "c", "redundancy": "ec:4+2", "fault_domain": "rack"},
            },
        ),
        (["disk-type", "create", "t", "--pool", "p"], "POST", "/disk-types", {"name": "t", "spec": {"pool": "p"}}),
        (
            ["storage-cluster", "device", "add", "c", "n1:/x.img", "--size", "10G"],
            "POST",
            "/storage-clusters/c/actions/device-add",
            {"node": "n1", "path": "/x.img", "size_mib": 10240, "media": "ssd"},
        ),
        (
            ["storage-cluster", "device", "remove", "c", "osd.3"],
            "POST",
            "/storage-clusters/c/actions/device-remove",
            {"device": "osd.3"},
        ),
        (
            ["storage-cluster", "device", "replace", "c", "osd.3", "--path", "/dev/sdc"],
            "POST",
            "/storage-clusters/c/actions/device-replace",
            {"device": "osd.3", "path": "/dev/sdc"},
        ),
        (
            ["storage-cluster", "node", "remove", "c", "n2"],
            "POST",
            "/storage-clusters/c/actions/node-remove",
            {"node": "n2"},
        ),
        (
            ["storage-cluster", "maintenance", "on", "c", "n2"],
            "POST",
            "/storage-clusters/c/actions/maintenance",
            {"node": "n2", "on": True},
        ),
        (
            ["storage-cluster", "set", "c", "--scrub-hours", "22-6", "--recovery-profile", "recovery"],
            "PATCH",
            "/storage-clusters/c",
            {"spec": {"recovery_profile": "recovery", "scrub_begin_hour": 22, "scrub_end_hour": 6}},
        ),
        (
            ["storage-cluster", "repair", "c", "2.1"],
            "POST",
            "/storage-clusters/c/actions/repair",
            {"placement_groups": ["2.1"]},
        ),
        (["storage-cluster", "deep-scrub", "c"], "POST", "/storage-clusters/c/actions/deep-scrub", {}),
    ],
)
def test_what_is_asked(cli: Cli, cloud: FakeCloud, arguments: list[str], method: str, path: str, body: Any) -> None:
    cloud.make("storage-clusters", "c", SPEC)
    cloud.make("pools", "x", {})
    cli.ok(*arguments)
    assert cloud.asked(method, path) == [body]


def test_labels_are_merged(cli: Cli, cloud: FakeCloud) -> None:
    cloud.find("nodes", "n1")["spec"]["labels"] = {"rack": "r1", "colour": "red"}
    cli.ok("node", "label", "n1", "rack=r2", "datacenter=d1", "colour=")
    assert cloud.asked("PATCH", "/nodes/n1") == [{"spec": {"labels": {"rack": "r2", "datacenter": "d1"}}}]
    assert cli.run("node", "label", "n1", "rack").exit_code == 2


def test_adopting_sends_the_files(cli: Cli, cloud: FakeCloud, tmp_path: Path) -> None:
    conf, keyring = tmp_path / "ceph.conf", tmp_path / "keyring"
    conf.write_text("[global]\nfsid = x\n")
    keyring.write_text("[client.admin]\nkey = y\n")
    cli.ok("storage-cluster", "adopt", "old", "--conf", str(conf), "--keyring", str(keyring))
    (body,) = cloud.asked("POST", "/storage-clusters")
    assert body["spec"] == {"mode": "adopted", "conf": conf.read_text(), "keyring": keyring.read_text()}
    wrong = cli.run("storage-cluster", "adopt", "old", "--conf", str(tmp_path / "none"), "--keyring", str(keyring))
    assert wrong.exit_code == 2


def test_show_prints_for_people_and_programs(cli: Cli, cloud: FakeCloud) -> None:
    made = cloud.make("storage-clusters", "c", SPEC)
    made["status"] = STATUS
    assert "host n1" in cli.ok("storage-cluster", "show", "c")
    assert cli.json("storage-cluster", "show", "c")["status"]["leader"] == "n1"
    assert "2.1" in cli.ok("storage-cluster", "show", "c")
    table = cli.ok("storage-cluster", "list")
    assert "3/4" in table and "warning" in table


def use(account: str, pool: str | None, type_: str | None, *figures: int) -> dict[str, Any]:
    names = ("disks", "provisioned_mib", "used_mib", "trashed", "trashed_mib")
    return {
        **{"account": f"acc-{account}", "account_name": account, "type": type_, "pool": pool},
        **dict(zip(names, figures, strict=True)),
    }


def test_what_accounts_have_is_shown_of_everything_a_pool_and_a_cluster(cli: Cli, cloud: FakeCloud) -> None:
    cluster = cloud.make("storage-clusters", "c", SPEC)
    cluster["status"] = STATUS
    pool = cloud.make("pools", "p", {"cluster": cluster["id"], "redundancy": "replica:3", "fault_domain": "host"})
    pool["status"] |= {
        "capacity": {"total_mib": 4096, "used_mib": 1024, "available_mib": 3072, "provisioned_mib": 8192}
        | {"refused_in_days": 2.5, "full_in_days": 3.5},
        "accepts_new": True,
    }
    other = use("carol", "another pool", "x", 1, 7 * 1024, 5, 0, 0)
    items = [
        use("alice", pool["id"], "standard", 2, 2048, 100, 0, 0),
        use("alice", pool["id"], "fast", 1, 1024, 50, 1, 50),
        use("bob", pool["id"], "standard", 1, 4096, 700, 0, 0),
        use("bob", None, None, 1, 10, 3, 0, 0),
        other,
    ]
    cloud.answers["usage/storage"] = items
    assert "new disks refused in 2.5 days, full in 3.5 days" in " ".join(cli.ok("pool", "show", "p").split())
    for command in (["pool", "show", "p"], ["storage-cluster", "show", "c"]):
        text = cli.ok(*command)
        lines = [line.split() for line in text.splitlines()]
        assert ["bob", "1", "4", "GiB", "700", "MiB"] in lines, text
        assert ["alice", "3", "3", "GiB", "150", "MiB", "1", "(50", "MiB)"] in lines, text
        assert "3.5 days" in text and "carol" not in text
    assert "8 GiB promised to disks (200 %)" in cli.ok("pool", "show", "p")
    assert cli.json("pool", "show", "p")["name"] == "p"
    table = cli.ok("account", "usage", "--all-accounts")
    assert "local" in table and "carol" in table
    assert table.splitlines()[-1].split() == ["all", "6", "14", "GiB", "858", "MiB", "1", "(50", "MiB)"]
    assert cli.json("account", "usage") == items
    cloud.answers["usage/storage"] = []
    assert "no disks" in cli.ok("account", "usage")


@pytest.mark.parametrize(
    "arguments",
    [
        ["storage-cluster", "set", "c"],
        ["storage-cluster", "set", "c", "--scrub-hours", "24-6"],
        ["storage-cluster", "device", "add", "c", "n1"],
        ["storage-cluster", "create", "a", "--device", "n1"],
        ["pool", "create", "p"],
        ["pool", "create", "p", "--cluster", "c", "--media", "tape"],
    ],
)
def test_wrong_usage(cli: Cli, cloud: FakeCloud, arguments: list[str]) -> None:
    assert cli.run(*arguments).exit_code == 2
    assert all(method == "GET" for method, *_ in cloud.requests)


@pytest.mark.parametrize(
    ("former", "state", "text"),
    [
        (None, "deleting", "dsk-1 deleted"),
        ("data", "deleting", "data deleted"),
        ("data", "trashed", "data deleted: it is in the trash, `scloud disk restore data` brings it back"),
    ],
)
def test_a_disk_that_is_deleted_is_called_by_the_name_it_had(former: str | None, state: str, text: str) -> None:
    resource = {"name": "dsk-1", "spec": {"former_name": former}, "status": {"state": state}}
    assert _farewell(resource, "deleted") == text
