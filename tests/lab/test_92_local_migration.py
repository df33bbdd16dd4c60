"""Live migration of a VM whose disks are in its node's own storage: they are copied while it writes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.cloud import Guest, Lab, until

DATA_MIB = 48


@pytest.fixture(scope="module")
def roamer(lab: Lab) -> Iterator[Guest]:
    """With a second disk, full of what it knows the checksum of, and a program that counts onto its first."""
    guest = lab.create("roamer")
    lab.ok("disk", "create", "baggage", "--size", f"{DATA_MIB}M")
    lab.ok("disk", "attach", "baggage", "roamer")
    device = f"/dev/{guest.device_of('baggage')}"
    guest.run(f"dd if=/dev/urandom of={device} bs=1M count={DATA_MIB} 2>/dev/null; sync", timeout=120.0)
    guest.run(f"sha256sum < {device} > /root/sum; echo {device} > /root/device; sync")
    guest.background(
        "n=0; while :; do n=$((n+1)); echo $n > /root/count.new; sync; mv /root/count.new /root/count; done"
    )
    until(lambda: guest.succeeds("test -s /root/count"), "it counts")
    yield guest
    guest.forget()
    lab.ok("disk", "detach", "baggage")
    lab.ok("vm", "delete", "roamer")
    lab.ok("disk", "delete", "baggage")


def files(lab: Lab, guest: Guest) -> dict[str, int]:
    """How many files of its disks there are on each node; nodes with none are left out."""
    disks = [disk["id"] for disk in lab.items("/disks") if disk["spec"]["vm"] == guest.id]
    nodes = (node["name"] for node in lab.items("/nodes"))
    found = {
        node: sum(bool(list((lab.node_root(node) / "disks").glob(f"{disk}.*"))) for disk in disks) for node in nodes
    }
    return {node: count for node, count in found.items() if count}


def counted(guest: Guest) -> int:
    return int(guest.run("cat /root/count"))


def unharmed(guest: Guest, boot: str, before: int) -> None:
    """It ran through, went on counting, and its bytes are right, past its cache."""
    guest.forget()
    assert guest.boot_id() == boot, "it was started anew"
    until(lambda: counted(guest) > before, "it counts on", 30.0)
    guest.run("echo 3 > /proc/sys/vm/drop_caches")
    guest.run('test "$(sha256sum < $(cat /root/device))" = "$(cat /root/sum)"', timeout=120.0)


def test_its_disks_go_with_it_and_nothing_stays(lab: Lab, roamer: Guest) -> None:
    boot, before, source = roamer.boot_id(), counted(roamer), roamer.node
    lab.ok("vm", "migrate", "roamer")
    target = str(lab.vm("roamer")["status"]["node"])
    assert target != source and lab.guests_running()[roamer.id] == [target]
    assert lab.show("disks", "baggage")["status"]["node"] == target
    unharmed(roamer, boot, before)
    until(lambda: not lab.vm("roamer")["status"]["leaving"], f"{source} has cleaned up", 30.0)
    assert files(lab, roamer) == {target: 2}
    assert lab.audit()["clean"]
    # What it has is a disk like any other there.
    lab.ok("disk", "resize", "baggage", "--size", f"{DATA_MIB + 16}M")
    assert int(roamer.run("cat /sys/block/$(basename $(cat /root/device))/size")) == (DATA_MIB + 16) * 2048
    lab.ok("disk", "detach", "baggage")
    lab.ok("disk", "attach", "baggage", "roamer")
    roamer.run(f"dd if=/dev/{roamer.device_of('baggage')} bs=1M count={DATA_MIB} 2>/dev/null"
               " | sha256sum | cmp - /root/sum", timeout=120.0)  # fmt: skip


@pytest.mark.parametrize("end", ["cancelled", "source", "target"])
def test_one_that_breaks_off_stays_with_its_disks(lab: Lab, roamer: Guest, end: str) -> None:
    """At this pace the disks take some seconds: it is ended in the middle of them."""
    boot, before, source = roamer.boot_id(), counted(roamer), roamer.node
    with lab.own_client() as client:
        operation = client.post("/vms/roamer/actions/migrate", {"bandwidth_mib_s": 8})["operation"]["id"]
        until(lambda: "MiB left" in client.get(f"/operations/{operation}")["message"], "it is copied", 60.0)
        target = next(name for name in files(lab, roamer) if name != source)
        if end == "cancelled":
            lab.ok("vm", "migrate", "roamer", "--cancel")
        else:
            pid = lab.unit_pid(f"agent-{source if end == 'source' else target}")
            assert pid is not None
            lab.kill(pid)
        ended = until(
            lambda: (found := client.get(f"/operations/{operation}"))["state"] != "running" and found, "it ends", 60.0
        )
    assert ended["state"] == ("cancelled" if end == "cancelled" else "failed"), ended
    until(lambda: not lab.vm("roamer")["status"]["leaving"], f"{target} has cleaned up", 60.0)
    assert lab.guests_running()[roamer.id] == [source] and files(lab, roamer) == {source: 2}
    roamer.forget()
    assert roamer.boot_id() == boot, "it was started anew"
    until(lambda: counted(roamer) > before, "it counts on", 30.0)
    assert lab.audit()["clean"]
