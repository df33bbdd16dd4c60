"""Full disks, and nodes that hang, are cut off or die."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.cloud import Guest, Lab, Refused, concurrently, until
from lab.shared import Twins, Wide
from lab.traffic import Pinging
from support.figures import Figures


@contextmanager
def small_disk(run: Callable[..., object], folder: Path, mib: int) -> Iterator[None]:
    """`folder` is meanwhile a file system of its own, and small. `run` runs a command where it is mounted."""
    run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder))
    try:
        yield
    finally:
        run("umount", str(folder))


def here(*argv: str) -> None:
    subprocess.run(argv, check=True)


def test_the_managers_disk_is_full_while_importing(lab: Lab, micro: Path) -> None:
    images = lab.root / "manager" / "images"
    assert (images / f"{lab.show('images', 'micro')['id']}.raw").exists()
    file = lab.folder / "large.raw"
    with file.open("wb") as stream:
        for _ in range(200):
            stream.write(b"x" * (1 << 20))
    with small_disk(here, images, 320):
        for source in (str(file), f"file://{file}"):
            problem = lab.refused("image", "import", "too-large", source, "--format", "raw")
            assert "free" in problem["detail"] and "make room" in problem["detail"], problem
        # An upload that is refused leaves no image; an import that fails leaves one that says why.
        assert lab.json("image", "show", "too-large")["status"]["state"] == "error"
        lab.ok("image", "delete", "too-large")
        assert list(images.iterdir()) == [], "nothing is left of it"
        # The rest of the cloud goes on.
        lab.ok("vpc", "create", "meanwhile")
        lab.ok("vpc", "delete", "meanwhile")
        small = lab.folder / "little.raw"
        small.write_bytes(b"y" * (1 << 20))
        lab.ok("image", "import", "little", str(small), "--format", "raw")
        lab.ok("image", "delete", "little")
    lab.ok("image", "import", "fits-now", str(file), "--format", "raw")
    lab.ok("image", "delete", "fits-now")
    lab.converged(30.0)


def test_a_nodes_disk_is_full(lab: Lab, wide: Wide) -> None:
    """First a system disk does not fit; then a guest writes more than there is room for."""
    on_n3 = [vm["name"] for vm in lab.items("/vms", node="n3")]
    if on_n3:
        lab.ok("vm", "delete", *on_n3)

    def on_node(*argv: str) -> None:
        lab.ok("lab", "exec", "n3", "--", *argv)

    disks = lab.node_root("n3") / "disks"
    options = ["--node", "n3", "--subnet", "wide", "--security-group", "left", "--memory", "128M"]
    with small_disk(on_node, disks, 12):
        problem = lab.refused("vm", "create", "cramped", *options)
        assert "free" in problem["detail"] and "disks" in problem["detail"], problem
        status = lab.vm("cramped")["status"]
        assert status["state"] == "error" and "are free in" in status["reason"], status
        assert lab.json("vm", "create", "roomy", "--memory", "128M", "--node", "n2")["status"]["state"] == "running"
        on_node("mount", "-o", "remount,size=80m", str(disks))
        lab.ok("vm", "start", "cramped")
        guest = Guest(lab, "cramped")
        guest.wait_boot()
        disk = lab.json("disk", "create", "filler", "--size", "200M")
        lab.ok("disk", "attach", "filler", "cramped")
        device = guest.device_of(disk["id"])
        guest.background(f"yes | dd of=/dev/{device} bs=1M conv=fsync")
        status = lab.wait_state("cramped", "error", seconds=60.0)["status"]
        assert "paused" in status["reason"] and "free space" in status["reason"], status
        on_node("mount", "-o", "remount,size=600m", str(disks))
        guest.forget()
        lab.ok("vm", "stop", "cramped", "--force")
        lab.ok("vm", "start", "cramped")
        guest.wait_boot()
        guest.forget()
        lab.ok("vm", "delete", "cramped", "roomy")
        lab.ok("disk", "delete", "filler")
        lab.converged(60.0)
    lab.converged(60.0)


def test_a_node_that_hangs_hurts_only_itself(lab: Lab, wide: Wide, blank: str, figures: Figures) -> None:
    small = ("--image", blank, "--memory", "128M")
    concurrently(
        [
            lambda: lab.ok("vm", "create", "stuck", *small, "--node", "n3"),
            lambda: lab.ok("vm", "create", "doomed", *small, "--node", "n3"),
            lambda: lab.ok("vm", "create", "waits", *small, "--node", "n3"),
        ]
    )
    ids = {name: lab.vm(name)["id"] for name in ("stuck", "doomed", "waits")}
    pinging = Pinging(wide.a1, wide.a2.ip)
    lab.ok("lab", "fail", "n3", "--how", "hang")
    began = time.monotonic()
    try:
        reboot = lab.json("vm", "reboot", "stuck", "--no-wait")
        deletion = lab.json("vm", "delete", "doomed", "--no-wait")
        assert lab.status()["nodes"][2]["state"] == "hung"
        # Others are served as ever, from the first moment.
        elsewhere = lab.json("vm", "create", "unhurt", *small, "--node", "n2", timeout=60.0)
        assert elsewhere["status"]["state"] == "running"
        lab.ok("disk", "create", "quick", "--size", "16M", timeout=60.0)
        lab.ok("disk", "attach", "quick", "a1", timeout=60.0)
        lab.ok("disk", "detach", "quick", timeout=60.0)
        lab.ok("disk", "delete", "quick", timeout=60.0)
        lab.ok("security-group", "rule", "list", "left")
        asked = time.monotonic()
        problem = lab.refused("vm", "figures", "waits")
        assert time.monotonic() - asked < 30.0 and problem["code"] in ("timed_out", "unavailable"), problem
        reason = until(lambda: _down(lab, "n3"), "n3 is known to be down", 30.0)
        figures.note(f"a hung node is known to be down {time.monotonic() - began:.1f} s after")
        assert "has not answered" in reason
        assert lab.vm("waits")["status"]["state"] == "unknown"
        # New VMs go elsewhere; one that may go nowhere else is told why.
        assert {lab.json("vm", "create", f"new-{n}", *small)["status"]["node"] for n in (1, 2)} <= {"n1", "n2"}
        problem = lab.refused("vm", "create", "nowhere", *small, "--node", "n3")
        assert problem["code"] == "no_capacity" and "is down" in problem["detail"], problem
        audit = lab.scloud("audit", "-o", "json")
        assert audit.code == 1 and "did not answer" in audit.out
        # What was asked of it ends in time, with the reason.
        ended = lab.client.wait(reboot["id"], timeout=90.0)
        assert ended["state"] == "failed" and "n3 does not answer" in ended["error"]["message"], ended
        gone = lab.client.wait(deletion["id"], timeout=90.0)
        assert gone["state"] == "done" and "does not answer" in gone["message"], gone
        assert lab.scloud("vm", "show", "doomed").code == 3
        figures.note(f"operations on a hung node ended {time.monotonic() - began:.0f} s after it hung")
        assert ids["doomed"] in lab.guests_running(), "it hangs, so nothing could be done there"
    finally:
        lab.ok("lab", "heal", "n3")
    lab.ok("vm", "delete", "nowhere")
    took = lab.converged(90.0)
    figures.note(f"a hung node healed: whole again in {took:.1f} s")
    running = lab.guests_running()
    assert ids["doomed"] not in running and running[ids["waits"]] == ["n3"] and running[ids["stuck"]] == ["n3"]
    answers, gap = pinging.stop()
    assert answers and gap <= 0.6, f"traffic of other nodes stood still for {gap} s"
    lab.ok("vm", "delete", "stuck", "waits", "unhurt", "new-1", "new-2")


def _down(lab: Lab, node: str) -> str:
    """The reason, if the node is known to be down."""
    status = lab.show("nodes", node)["status"]
    return str(status["reason"]) if status["state"] == "down" else ""


def test_a_node_that_is_cut_off_goes_on_and_comes_back(
    lab: Lab, wide: Wide, twins: Twins, blank: str, figures: Figures
) -> None:
    lab.ok("vm", "create", "parted", "--image", blank, "--memory", "128M", "--node", "n2")
    lab.ok("vm", "create", "doomed", "--image", blank, "--memory", "128M", "--node", "n2")
    doomed = lab.vm("doomed")["id"]
    qemu = {name: lab.qemu(name) for name in ("a2", "l2", "r2", "parted")}
    boot = wide.a2.boot_id()
    wide.a2.forget()
    lab.ok("lab", "fail", "n2", "--how", "partition")
    try:
        assert lab.status()["nodes"][1]["state"] == "partitioned"
        until(lambda: _down(lab, "n2"), "n2 is known to be down", 30.0)
        assert not wide.a1.pings(wide.a2.ip, 1)
        assert lab.vm("a2")["status"]["state"] == "unknown"
        assert {name: lab.qemu(name) for name in qemu} == qemu, "what runs there goes on"
        # Asked meanwhile: followed when it is back.
        deletion = lab.json("vm", "delete", "doomed", "--no-wait")
        stop = lab.json("vm", "stop", "parted", "--force", "--no-wait")
        lab.ok(
            "security-group",
            "rule",
            "add",
            "left",
            *["--direction", "inbound", "--protocol", "icmp", "--group", "right"],
        )
    finally:
        lab.ok("lab", "heal", "n2")
    began = time.monotonic()
    until(lambda: wide.a1.pings(wide.a2.ip, 1), "packets get through again", 60.0)
    figures.note(f"a cut-off node is joined again: packets get through {time.monotonic() - began:.1f} s after")
    lab.converged(60.0)
    assert lab.client.wait(deletion["id"], timeout=10.0)["state"] == "done"
    assert lab.client.wait(stop["id"], timeout=10.0)["state"] == "done"
    assert {name: lab.qemu(name) for name in ("a2", "l2", "r2")} == {name: qemu[name] for name in ("a2", "l2", "r2")}
    assert wide.a2.boot_id() == boot
    assert doomed not in lab.guests_running() and lab.vm("parted")["status"]["state"] == "stopped"
    assert wide.a3.pings(wide.a2.ip, 1), "the rule that was added meanwhile is there"
    for rule in lab.json("security-group", "rule", "list", "left"):
        if rule["protocol"] == "icmp":
            lab.ok("security-group", "rule", "delete", "left", rule["id"])
    lab.ok("vm", "delete", "parted")


def test_a_node_that_dies_starts_its_vms_again(
    lab: Lab, wide: Wide, twins: Twins, blank: str, figures: Figures
) -> None:
    before = {guest.name: guest.boot_id() for guest in (wide.a1, wide.a3, twins.l1, twins.r1)}
    wide.a1.run("echo on-disk > /root/kept; sync")
    lab.ok("vm", "create", "off", "--memory", "128M", "--node", "n1", "--image", blank)
    lab.ok("vm", "stop", "off", "--force")
    lab.ok("lab", "fail", "n1", "--how", "kill")
    for guest in (wide.a1, wide.a3, twins.l1, twins.r1):
        guest.forget()
    try:
        assert lab.status()["nodes"][0]["state"] == "killed"
        until(lambda: _down(lab, "n1"), "n1 is known to be down", 30.0)
        assert wide.a1.resource["status"]["state"] == "unknown"
    finally:
        lab.ok("lab", "heal", "n1")
    began = time.monotonic()
    took = lab.converged(120.0)
    running = lab.guests_running()
    assert all(running[lab.vm(name)["id"]] == ["n1"] for name in before)
    assert lab.vm("off")["status"]["state"] == "stopped" and lab.vm("off")["id"] not in running

    def answers(guest: Guest) -> bool:
        try:
            return guest.boot_id() != before[guest.name]
        except Refused:
            return False

    concurrently(
        [
            lambda g=g: until(lambda: answers(g), f"{g.name} is back", 150.0)
            for g in (wide.a1, wide.a3, twins.l1, twins.r1)
        ]
    )
    figures.note(
        f"a node killed whole and healed: its VMs run {took:.1f} s after, its four guests answer "
        f"{time.monotonic() - began:.1f} s after"
    )
    assert wide.a1.run("cat /root/kept") == "on-disk"
    assert wide.a1.pings(wide.a2.ip) and twins.l1.pings(twins.l2.ip)
    lab.ok("vm", "delete", "off")
    lab.converged(60.0)
