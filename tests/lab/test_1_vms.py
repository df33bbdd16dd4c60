"""Virtual machines: every verb, on real guests."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from lab.cloud import Guest, Lab, until
from scloud.client.streams import console_path, open_stream


@pytest.fixture(scope="module")
def vm(lab: Lab) -> Guest:
    """A guest of this module, which its tests switch as they need."""
    return lab.create("lively", "--keypair", "default")


@pytest.fixture(scope="module")
def deaf(lab: Lab, blank: str) -> str:
    """A VM whose guest ignores the power button, being stopped; the operation's id. It takes a minute: begun early."""
    lab.ok("vm", "create", "deaf", "--image", blank, "--memory", "128M")
    return str(lab.json("vm", "stop", "deaf", "--no-wait")["id"])


@pytest.mark.usefixtures("deaf")
def test_the_first_vm_answers(lab: Lab) -> None:
    assert lab.ok("vm", "ssh", "hello", "--", "uname", "-s").strip() == "Linux"
    assert lab.scloud("vm", "ssh", "hello", "--", "exit 7").code == 7
    shown = lab.json("vm", "show", "hello")
    assert {"id", "name", "account", "spec", "status", "created_at"} <= shown.keys()
    assert shown["status"]["state"] == "running"
    assert shown["status"]["node"] in ("n1", "n2", "n3") and shown["status"]["addresses"]
    assert [item["name"] for item in lab.json("vm", "list") if item["name"] == "hello"] == ["hello"]
    assert lab.scloud("vm", "show", "nobody").code == 3
    assert lab.scloud("vm", "create").code == 2


def test_what_is_wrong_is_named_and_changes_nothing(lab: Lab) -> None:
    before = lab.json("vm", "list")
    for options, field in (
        (("--cpus", "1000"), "spec.cpus"),
        (("--memory", "1M"), "spec.memory_mib"),
        (("--image", "none-such"), "spec.image"),
        (("--subnet", "none-such"), "spec.nics"),
        (("--ip", "10.10.0.1"), "ip"),
        (("--node", "n9"), "spec.node"),
    ):
        problem = lab.refused("vm", "create", "wrong", *options)
        assert problem["status"] == 422, problem
        assert any(field in item["field"] for item in problem["fields"]) or field in problem["detail"], problem
    assert lab.refused("vm", "create", "hello")["code"] == "conflict"
    assert [item["id"] for item in lab.json("vm", "list")] == [item["id"] for item in before]


def test_several_at_once(lab: Lab, blank: str) -> None:
    made = lab.json("vm", "create", "crowd", "--image", blank, "--memory", "128M", "--count", "3")
    assert sorted(item["name"] for item in made) == ["crowd-1", "crowd-2", "crowd-3"]
    assert len({item["status"]["addresses"][0] for item in made}) == 3
    assert len({item["status"]["node"] for item in made}) > 1, "an account's VMs are scattered"
    lab.ok("vm", "delete", "crowd-1", "crowd-2", "crowd-3")
    assert lab.scloud("vm", "show", "crowd-1").code == 3


def test_asked_not_to_wait_it_returns_the_operation(lab: Lab, blank: str) -> None:
    operation = lab.json("vm", "create", "later", "--image", blank, "--memory", "128M", "--no-wait")
    assert operation["action"] == "vm.create" and operation["state"] in ("queued", "running", "done")
    assert lab.json("operation", "wait", operation["id"])["state"] == "done"
    assert lab.json("operation", "show", operation["id"])["progress"] == 100
    assert lab.vm("later")["status"]["state"] == "running"
    lab.ok("vm", "delete", "later")


def test_stop_asks_the_guest_and_start_brings_it_back(lab: Lab, vm: Guest) -> None:
    vm.run("echo kept > /root/file; sync")
    vm.forget()
    lab.ok("vm", "stop", vm.name)
    assert vm.resource["status"]["state"] == "stopped"
    assert vm.id not in lab.guests_running()
    # The guest's own words: it went down in order, it was not switched off.
    assert "micro: going down" in lab.ok("vm", "log", vm.name)
    assert "vm start" in lab.scloud("vm", "ssh", vm.name, "--", "true").err
    lab.ok("vm", "start", vm.name)
    assert vm.run("cat /root/file") == "kept"


def test_reboot(lab: Lab, vm: Guest) -> None:
    vm.run("echo kept > /root/file; sync")
    before, qemu = vm.boot_id(), lab.qemu(vm.name)
    lab.ok("vm", "reboot", vm.name)
    vm.wait_reboot(before)
    assert lab.qemu(vm.name) == qemu, "the same QEMU: nothing but the guest has restarted"
    assert vm.run("cat /root/file") == "kept"


def test_a_guest_that_reboots_itself_goes_on(lab: Lab, vm: Guest) -> None:
    before = vm.boot_id()
    vm.background("reboot")
    vm.wait_reboot(before)
    assert vm.resource["status"]["state"] == "running" and vm.resource["status"]["restarts"] == 0


def test_more_cpus_and_memory_at_once_less_at_the_next_start(lab: Lab, vm: Guest) -> None:
    before = vm.boot_id()
    assert vm.run("nproc") == "1"
    memory = int(vm.run("awk '/MemTotal/ {print $2}' /proc/meminfo"))
    lab.ok("vm", "resize", vm.name, "--cpus", "2", "--memory", "256M")
    until(lambda: vm.run("nproc") == "2", "the guest has two CPUs", 30.0)
    more = until(
        lambda: int(vm.run("awk '/MemTotal/ {print $2}' /proc/meminfo")) - memory > 100_000, "more memory", 30.0
    )
    assert more and vm.boot_id() == before, "without a reboot"
    assert vm.resource["status"]["cpus"] == 2 and vm.resource["status"]["memory_mib"] == 256

    said = lab.scloud("vm", "resize", vm.name, "--cpus", "1", "--memory", "128M")
    assert said.code == 0
    reason = vm.resource["status"]["reason"]
    assert "next start" in reason and ("CPU" in reason or "memory" in reason), reason
    assert "next start" in said.out + said.err, "it is said to who asked"
    vm.forget()
    lab.ok("vm", "stop", vm.name)
    lab.ok("vm", "start", vm.name)
    assert vm.run("nproc") == "1"
    assert vm.resource["status"]["memory_mib"] == 128 and vm.resource["status"]["reason"] == ""


def test_rebuild_makes_the_system_disk_anew_and_keeps_data_disks(lab: Lab, vm: Guest) -> None:
    lab.ok("disk", "create", "treasure", "--size", "16M")
    lab.ok("disk", "attach", "treasure", vm.name)
    device = vm.device_of("treasure")
    vm.run(f"echo gold | dd of=/dev/{device} conv=fsync 2>/dev/null && echo lost > /root/file && sync")
    address, mac = vm.ip, vm.nic["spec"]["mac"]
    vm.forget()
    lab.ok("vm", "rebuild", vm.name)
    vm.wait_boot()
    assert not vm.succeeds("ls /root/file")
    device = vm.device_of("treasure")
    assert vm.run(f"head -c 4 /dev/{device}") == "gold"
    assert vm.ip == address and vm.nic["spec"]["mac"] == mac
    lab.ok("disk", "detach", "treasure")
    lab.ok("disk", "delete", "treasure")


def test_rename(lab: Lab, vm: Guest) -> None:
    id = vm.id
    lab.ok("vm", "rename", vm.name, "merry")
    assert lab.json("vm", "show", "merry")["id"] == id
    assert lab.scloud("vm", "show", vm.name).code == 3
    lab.ok("vm", "rename", "merry", vm.name)


def test_the_console_log_and_the_console(lab: Lab, vm: Guest) -> None:
    log = lab.ok("vm", "log", vm.name)
    assert "cloud: instance" in log and "hostname lively" in log
    # As a person without a terminal would use it: what is piped in is typed.
    typed = lab.ok("vm", "console", vm.name, "--linger", "3", stdin="echo typed-$((6*7))\n", timeout=60.0)
    assert "typed-42" in typed

    async def two_at_once() -> str:
        """Two look at the same console over WebSockets; both see what one of them types."""
        async with (
            open_stream(lab.context, console_path(vm.id)) as first,
            open_stream(lab.context, console_path(vm.id)) as second,
        ):
            await first.send(b"echo both-$((1000+1))\n")
            seen = b""
            async with asyncio.timeout(20):
                while b"both-1001" not in seen:
                    message = await second.recv()
                    seen += message if isinstance(message, bytes) else message.encode()
        return seen.decode(errors="replace")

    assert "both-1001" in asyncio.run(two_at_once())


def test_figures(lab: Lab, vm: Guest) -> None:
    first = lab.json("vm", "figures", vm.name)
    vm.run("n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done")
    second = lab.json("vm", "figures", vm.name)
    assert second["cpu_seconds"] > first["cpu_seconds"] > 0
    assert second["memory_mib"] == 128
    assert second["resident_mib"] and 20 < second["resident_mib"] < 600


def test_port_forward(lab: Lab, vm: Guest) -> None:
    vm.serve(8000, "through the node")
    process = lab.begin("vm", "port-forward", vm.name, "8000")
    try:
        assert process.stderr is not None
        address = process.stderr.readline().split()[0]
        assert address.startswith("127.0.0.1:")
        import httpx

        assert httpx.get(f"http://{address}/", timeout=20.0, trust_env=False).text.strip() == "through the node"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_qemu_that_dies_is_started_again(lab: Lab, vm: Guest) -> None:
    before, old = vm.boot_id(), lab.qemu(vm.name)
    lab.kill(old)
    until(lambda: vm.resource["status"]["restarts"] == 1, "it is counted", 30.0)
    lab.wait_state(vm.name, "running")
    vm.wait_reboot(before)
    assert lab.qemu(vm.name) != old


def test_qemu_that_dies_again_and_again_is_left_in_error(lab: Lab, blank: str) -> None:
    spec = {"image": blank, "memory_mib": 128, "restart_limit": 2, "node": "n1"}
    made = json.loads(lab.ok("api", "POST", "/vms", json.dumps({"name": "frail", "spec": spec})))
    lab.client.finish(made["operation"]["id"], timeout=60.0)
    for restarts in range(3):
        # Only what has been seen to run can die: a QEMU killed while it starts is a start that failed,
        # and is tried anew.
        until(lambda n=restarts: _restarted(lab, "frail", n), f"it runs, restarted {restarts} times", 60.0)
        lab.kill(_alive(lab, "frail"))
    status = lab.wait_state("frail", "error")["status"]
    assert "QEMU died 3 times" in status["reason"] and "vm start" in status["reason"], status["reason"]
    events = [event["message"] for event in lab.json("event", "list", "--resource", made["resource"]["id"])]
    assert any("QEMU died 3 times" in message for message in events)
    lab.ok("vm", "start", "frail")
    assert lab.vm("frail")["status"]["state"] == "running" and _alive(lab, "frail")
    lab.ok("vm", "delete", "frail")


def _restarted(lab: Lab, vm: str, times: int) -> bool:
    status = lab.vm(vm)["status"]
    return bool(status["state"] == "running" and status["restarts"] == times)


def _alive(lab: Lab, vm: str) -> int:
    """The pid of its QEMU, or 0."""
    id = lab.vm(vm)["id"]
    return next((int(p["pid"]) for p in lab.status()["processes"] if p["guest"] == id), 0)


def test_a_guest_that_powers_off_stays_off(lab: Lab, vm: Guest) -> None:
    vm.background("poweroff")
    vm.forget()
    lab.wait_state(vm.name, "stopped")
    said = [event["message"] for event in lab.json("event", "list", "--resource", vm.id)]
    assert any("powered itself off" in message for message in said), said
    assert vm.resource["spec"]["power"] == "off" and vm.id not in lab.guests_running()
    # An agent that starts anew does not take it for one that has died.
    lab.ok("lab", "fail", vm.node, "--how", "kill", "--only-agent")
    lab.ok("lab", "heal", vm.node)
    lab.wait_manager()
    assert vm.resource["status"]["state"] == "stopped" and vm.id not in lab.guests_running()
    lab.ok("vm", "start", vm.name)
    vm.run("true")


def test_a_guest_that_ignores_the_power_button_is_switched_off(lab: Lab, deaf: str) -> None:
    if lab.json("operation", "show", deaf)["state"] == "running":
        assert "asked to shut down" in lab.vm("deaf")["status"]["reason"]
    ended = lab.json("operation", "wait", deaf)
    assert ended["state"] == "done" and 55 < ended["finished_at"] - ended["created_at"] < 90
    assert lab.vm("deaf")["status"]["state"] == "stopped" and lab.vm("deaf")["id"] not in lab.guests_running()
    lab.ok("vm", "start", "deaf")
    lab.ok("vm", "stop", "deaf", "--force", timeout=20.0)
    assert lab.vm("deaf")["status"]["state"] == "stopped"
    lab.ok("vm", "delete", "deaf")


def test_delete_takes_all_of_its_own_with_it(lab: Lab, vm: Guest) -> None:
    id, node, nic = vm.id, vm.node, vm.nic["id"]
    disks = [disk["id"] for disk in lab.items("/disks", vm=id)]
    vm.forget()
    lab.ok("vm", "delete", vm.name)
    assert lab.scloud("vm", "show", vm.name).code == 3
    assert id not in lab.guests_running()
    left = [str(path) for path in lab.node_root(node).rglob("*") if any(part in path.name for part in (id, *disks))]
    # The kept console log is the only thing that may tell of it.
    assert [path for path in left if "/log/" not in path] == []
    assert nic not in lab.on(node, "ovs-vsctl", "list", "Interface")
    assert all(item["id"] not in (nic, *disks) for item in [*lab.items("/nics"), *lab.items("/disks")])
