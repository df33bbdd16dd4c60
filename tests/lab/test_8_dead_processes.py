"""Processes killed with SIGKILL while guests talk and users create and delete.

After each fault: nothing runs twice, no address is had twice, no operation hangs, and the audit is clean.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.cloud import Lab, until
from lab.shared import Wide
from lab.traffic import Pinging
from scloud.model.errors import CloudError
from support.figures import Figures

CROWD = 20
OUTAGE_S = 8.0
NOTHING_S = 1.5
"""Pings that go unanswered for so long, of five a second, are a busy machine; how long it was is in the figures."""


def _create_and_perhaps_delete(lab: Lab, name: str, stays: bool) -> str:
    """One user's work, who is patient: a client of their own. The VM's id."""
    spec = {"image": "blank", "memory_mib": 128, "nics": [{"subnet": "default"}]}
    with lab.own_client() as client:
        client.get("/status")  # a manager that is dead already at the first connection would be nobody's to ask again
        answer = client.post("/vms", {"name": name, "spec": spec})
        if stays:
            client.finish(answer["operation"]["id"], timeout=150.0)
        else:
            deletion = _patiently(lambda: client.delete(f"/vms/{answer['resource']['id']}"))
            if deletion is not None:
                client.finish(deletion["operation"]["id"], timeout=150.0)
        return str(answer["resource"]["id"])


def _patiently(delete: Callable[[], dict[str, dict[str, str]]]) -> dict[str, dict[str, str]] | None:
    """A DELETE whose connection was lost is asked again; None if the first was carried out after all."""
    deadline = time.monotonic() + 60.0
    while True:
        try:
            return delete()
        except CloudError as error:
            if error.kind.value == "not_found":
                return None
            assert error.kind.value == "unavailable" and time.monotonic() < deadline, error


def _clear(lab: Lab, prefix: str) -> None:
    names = [vm["name"] for vm in lab.items("/vms") if vm["name"].startswith(prefix)]
    if names:
        lab.ok("vm", "delete", *names)


@pytest.mark.parametrize("victim", ["manager", "agents", "both"])
def test_killed_again_and_again_while_twenty_create_and_delete(
    lab: Lab, wide: Wide, blank: str, victim: str, figures: Figures
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    fates = [index % 2 == 0 for index in range(CROWD)]
    before = {vm["id"] for vm in lab.items("/vms")}
    guests = lab.guests_running()
    pinging = Pinging(wide.a1, wide.a2.ip)
    kills = 0
    with ThreadPoolExecutor(CROWD) as pool:
        work = [
            pool.submit(_create_and_perhaps_delete, lab, f"crowd-{victim}-{index}", stays)
            for index, stays in enumerate(fates)
        ]
        while kills < 6 and not all(item.done() for item in work):
            # A moment is chosen, not waited for: that is the fault.
            time.sleep(chance.uniform(0.02, 0.6))
            role = victim if victim != "both" else chance.choice(["manager", "agents"])
            pid = lab.unit_pid("manager" if role == "manager" else f"agent-n{chance.randint(1, 3)}")
            if pid is not None:
                lab.kill(pid)
                kills += 1
        ids = [item.result() for item in work]
    assert kills >= 3, f"only {kills} kills: the work was done too soon"
    took = lab.converged(150.0)
    now = {vm["id"]: vm for vm in lab.items("/vms")}
    staying = {id for id, stays in zip(ids, fates, strict=True) if stays}
    assert set(now) - before == staying, "each exactly once, and the deleted ones gone"
    assert all(now[id]["status"]["state"] == "running" for id in staying)
    running = lab.guests_running()
    assert set(running) == set(guests) | staying and all(len(nodes) == 1 for nodes in running.values())
    answers, gap = pinging.stop()
    figures.note(
        f"{kills} kills ({victim}) in {CROWD} creates and deletes: whole again {took:.1f} s after, ping gap {gap:.1f} s"
    )
    assert answers > 10 and gap <= 1.0, f"guests' traffic stood still for {gap} s"
    _clear(lab, f"crowd-{victim}-")
    lab.converged(60.0)


def test_guests_go_on_while_manager_and_agents_are_dead(lab: Lab, wide: Wide, figures: Figures) -> None:
    qemu = sorted(lab.pids("qemu"))
    boots = {guest.name: guest.boot_id() for guest in (wide.a1, wide.a2, wide.a3)}
    pinging = Pinging(wide.a1, wide.a2.ip)
    wide.a2.background(
        "while [ ! -e /tmp/dns.stop ]; do nslookup a1 > /tmp/dns.one 2>&1; grep -q 10.50.0 /tmp/dns.one && echo ok || "
        "echo failed; sleep 1; done > /tmp/dns"
    )
    lab.ok("lab", "fail", "manager", "--how", "kill")
    for node in ("n1", "n2", "n3"):
        lab.ok("lab", "fail", node, "--how", "kill", "--only-agent")
    dead = time.monotonic()
    assert not lab.pids("manager") and not lab.pids("agent")
    until(lambda: time.monotonic() - dead > OUTAGE_S, "the outage has its length", OUTAGE_S + 5)
    assert sorted(lab.pids("qemu")) == qemu
    assert lab.scloud("vm", "list").code == 1, "nobody is there to be asked"
    for node in ("n1", "n2", "n3", "manager"):
        lab.ok("lab", "heal", node)
    began = time.monotonic()
    lab.converged(60.0)
    back = time.monotonic() - began
    answers, gap = pinging.stop()
    names = wide.a2.run(
        "touch /tmp/dns.stop; until [ $(tail -n 1 /tmp/dns) ]; do usleep 100000; done; cat /tmp/dns; rm /tmp/dns*"
    ).split()
    figures.note(
        f"manager and all agents dead for {OUTAGE_S:g} s: ping gap {gap:.1f} s, whole again {back:.1f} s after"
    )
    assert answers * Pinging.EVERY_S >= OUTAGE_S and gap <= NOTHING_S
    assert names.count("ok") >= OUTAGE_S / 2 and "failed" not in names, names
    assert sorted(lab.pids("qemu")) == qemu, "a restarted agent restarts nothing"
    assert {guest.name: guest.boot_id() for guest in (wide.a1, wide.a2, wide.a3)} == boots


@pytest.mark.parametrize(
    ("engine", "most_s"),
    [("libvirtd", NOTHING_S), ("ovs-vswitchd", 12.0), ("ovsdb-server", NOTHING_S), ("dnsmasq", NOTHING_S)],
)
def test_an_engine_that_is_killed_comes_back(
    lab: Lab, wide: Wide, engine: str, most_s: float, figures: Figures
) -> None:
    boots = {guest.name: guest.boot_id() for guest in (wide.a1, wide.a3)}
    restarts = wide.a1.resource["status"]["restarts"]
    pinging = Pinging(wide.a1, wide.a2.ip)
    old = lab.pids(engine, "n1")
    assert old
    began = time.monotonic()
    for pid in old:
        lab.kill(pid)
    until(
        lambda: len(now := lab.pids(engine, "n1")) == len(old) and not set(now) & set(old), f"{engine} runs again", 30.0
    )
    back = time.monotonic() - began
    _works(lab, wide, engine)
    answers, gap = pinging.stop()
    figures.note(f"{engine} killed: back in {back:.1f} s, ping gap {gap:.1f} s")
    assert answers and gap <= most_s
    assert {guest.name: guest.boot_id() for guest in (wide.a1, wide.a3)} == boots
    assert wide.a1.resource["status"]["restarts"] == restarts
    lab.converged(60.0)


def _works(lab: Lab, wide: Wide, engine: str) -> None:
    """What the engine is for works again."""
    if engine == "libvirtd":
        assert lab.json("vm", "figures", "a1")["cpu_seconds"] > 0
        lab.ok("disk", "create", "after", "--size", "16M")
        lab.ok("disk", "attach", "after", "a1")
        lab.ok("disk", "detach", "after")
        lab.ok("disk", "delete", "after")
    elif engine == "dnsmasq":
        until(lambda: wide.a2.ip in wide.a1.run("nslookup a2 2>&1 || true"), "names are answered", 20.0)
        assert wide.a1.succeeds("udhcpc -n -q -f -i eth0 -s /bin/true > /dev/null 2>&1"), "and leases given"
    else:
        until(lambda: wide.a1.pings(wide.a2.ip, 1), "packets are forwarded", 20.0)
        lab.ok("nic", "create", "after", "--subnet", "wide-2", "--security-group", "left", "--vm", "a1")
        address = lab.json("nic", "show", "after")["spec"]["ip"]
        until(lambda: wide.a1.succeeds(f"ip -4 addr | grep -q '{address}/24'"), "a new nic has its address", 30.0)
        lab.ok("nic", "detach", "after")
        lab.ok("nic", "delete", "after")
        assert not wide.a1.reaches(wide.a3.ip, 8080), "and groups hold"


def test_all_engines_of_a_node_killed_at_once(lab: Lab, wide: Wide, figures: Figures) -> None:
    boots = {guest.name: guest.boot_id() for guest in (wide.a1, wide.a3)}
    pinging = Pinging(wide.a1, wide.a2.ip)
    for role in ("agent", "libvirtd", "ovs-vswitchd", "ovsdb-server", "dnsmasq"):
        for pid in lab.pids(role, "n1"):
            lab.kill(pid)
    took = lab.converged(90.0)
    until(lambda: wide.a1.pings(wide.a2.ip, 1), "packets are forwarded", 20.0)
    _, gap = pinging.stop()
    figures.note(f"agent and all engines of a node killed: whole again in {took:.1f} s, ping gap {gap:.1f} s")
    assert gap <= 15.0
    assert {guest.name: guest.boot_id() for guest in (wide.a1, wide.a3)} == boots
    for engine in ("libvirtd", "dnsmasq"):
        _works(lab, wide, engine)
