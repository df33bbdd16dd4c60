"""A node is lost, or cut off, while a guest that writes migrates from or to it: `scloud test --long`."""

from __future__ import annotations

import pytest

from lab.cloud import Lab, until
from lab_ceph.protected import Protected


@pytest.mark.long
@pytest.mark.parametrize("how", ["kill", "partition"])
@pytest.mark.parametrize("end", ["target", "source"])
def test_a_node_is_lost_in_the_middle(lab: Lab, protected: Protected, end: str, how: str) -> None:
    """The memory takes some seconds at this pace. Without its target a guest runs on; without its source it is
    recovered like any other of a lost node."""
    guest, source = protected.guest, protected.node
    target, witness = protected.others()
    lost = source if end == "source" else target
    boot = guest.boot_id()
    with protected.watched(f"{end} lost by {how} during a migration", witness) as (_watch, heard):
        with lab.own_client() as client:
            ask = {"node": target, "bandwidth_mib_s": 8}
            operation = client.post(f"/vms/{guest.name}/actions/migrate", ask)["operation"]["id"]
            until(lambda: "MiB left" in client.get(f"/operations/{operation}")["message"], "memory is copied", 60.0)
        print(lab.ok("lab", "fail", lost, "--how", how))
        guest.forget()
        try:
            with lab.own_client() as client:
                ended = until(
                    lambda: (found := client.get(f"/operations/{operation}"))["state"] != "running" and found,
                    "it has ended", 180.0,
                )  # fmt: skip
            if end == "source":
                until(lambda: protected.home() not in (source, None), "it is given to another node", 120.0)
                lab.wait_state(guest.name, "running")
        finally:
            lab.ok("lab", "heal", lost)
        if end == "source":
            protected.back_with_its_writes(heard.last)
        else:
            protected.writer.go_on(64)
            assert protected.node == source and guest.boot_id() == boot
        until(lambda: not lab.json("ha", "status")["incidents"], f"{lost} is let in", 90.0)
        protected.storage.healthy()
        lab.converged()
    print(f"{ended['state']}: {ended['message']}")
    assert ended["state"] == "failed"
    until(lambda: not lab.vm(guest.name)["status"]["leaving"], "nothing is left anywhere", 60.0)
    assert lab.guests_running()[guest.id] == [protected.node]
    assert lab.audit()["clean"]
