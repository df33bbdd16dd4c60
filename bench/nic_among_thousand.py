"""One more nic in a VPC of 1,000 across three nodes: from asking for it to flows in place everywhere, beside OVN.

    apt-get install ovn-central ovn-host        # for the comparison only
    sudo .venv/bin/python bench/nic_among_thousand.py [--ports 1000] [--runs 10]

Here: a lab of three nodes with real Open vSwitch; the nics belong to VMs that are off, whose taps and flows are there
all the same. Measured from POST /nics to the end of its operation, which waits for the switch of every node of the VPC.
OVN: three chassis in namespaces on the same machine, VXLAN, one logical switch, all ports in one port group with the
same two rules as a default security group; measured from `ovn-nbctl lsp-add` with the port's interface added on its
chassis, until `ovn-nbctl --wait=hv sync` returns and the port is up.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "src"))

from scloud.client.contexts import Context  # noqa: E402
from scloud.client.http import Client  # noqa: E402

NICS_TO_A_VM = 8
NODES = 3


def run(*argv: str, env: dict[str, str] | None = None, quiet: bool = False) -> str:
    done = subprocess.run(argv, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    if done.returncode and not quiet:
        raise SystemExit(f"{' '.join(argv[:8])}: {done.stderr or done.stdout}")
    return done.stdout


# --- scloud


def scloud(root: Path, ports: int, runs: int) -> tuple[list[float], int]:
    """(seconds of each added nic, flows on one node)."""
    env = {"SCLOUD_LAB_ROOT": str(root / "lab"), "SCLOUD_CONFIG": str(root / "config")}
    command = str(REPO / "scloud")
    run(command, "lab", "up", "--nodes", str(NODES), env=env)
    try:
        contexts = json.loads((root / "config" / "contexts.json").read_text())
        current = contexts["contexts"][contexts["current"]]
        with Client(Context(name="bench", url=current["url"], token=current["token"])) as client:
            seconds = _add_nics(client, root, ports, runs)
        flows = run(
            command, "lab", "exec", "n1", "--", "ovs-ofctl", "-O", "OpenFlow15", "dump-aggregate", "br-int", env=env
        )
        return seconds, int(flows.rpartition("flow_count=")[2])
    finally:
        run(command, "lab", "down", "--purge", env=env)


def _add_nics(client: Client, root: Path, ports: int, runs: int) -> list[float]:
    image = root / "tiny.raw"
    image.write_bytes(bytes(1024 * 1024))
    client.request("DELETE", "/vms/hello")
    made = client.request("POST", "/images", {"name": "tiny", "spec": {"source": f"file://{image}", "format": "raw"}})
    client.wait(made["operation"]["id"])
    client.request("PATCH", "/clusters/default", {"spec": {"cpu_overcommit": 16}})
    client.request("POST", "/vpcs", {"name": "big"})
    client.request("POST", "/subnets", {"name": "big", "spec": {"vpc": "big", "cidr": "10.64.0.0/16"}})
    spec = {"image": "tiny", "cpus": 1, "memory_mib": 64, "power": "off"}
    full = {**spec, "nics": [{"subnet": "big"}] * NICS_TO_A_VM}
    vms = ports // NICS_TO_A_VM
    names = [f"holder-{number}" for number in range(vms)]
    operations = [client.request("POST", "/vms", {"name": name, "spec": full}) for name in names]
    spare = [f"spare-{number}" for number in range(runs)]
    operations += [client.request("POST", "/vms", {"name": name, "spec": spec}) for name in spare]
    for answer in operations:
        client.wait(answer["operation"]["id"])
    seconds = []
    for number, name in enumerate(spare):
        ask = {"name": f"one-more-{number}", "spec": {"subnet": "big", "vm": name}}
        begun = time.perf_counter()
        answer = client.request("POST", "/nics", ask)
        client.wait(answer["operation"]["id"])
        seconds.append(time.perf_counter() - begun)
    return seconds


# --- OVN


class Ovn:
    """Northbound and southbound databases, northd, and a chassis in each of three namespaces."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pids: list[Path] = []
        self.spaces = [f"ovnb{number}" for number in range(NODES)]

    def start(self) -> None:
        central = self.root / "central"
        central.mkdir()
        self.central = {"OVN_RUNDIR": str(central), "OVS_RUNDIR": str(central), "OVN_LOGDIR": str(central)}
        run("ip", "netns", "add", "ovnbu")
        run("ip", "-n", "ovnbu", "link", "add", "name", "obr", "type", "bridge")
        run("ip", "-n", "ovnbu", "addr", "add", "172.30.9.1/24", "dev", "obr")
        run("ip", "-n", "ovnbu", "link", "set", "obr", "up")
        for name in ("nb", "sb"):
            database = central / f"{name}.db"
            run("ovsdb-tool", "create", str(database), f"/usr/share/ovn/ovn-{name}.ovsschema")
            # UNIX sockets cross network namespaces: every chassis finds the southbound database there.
            self._daemon(
                central / f"{name}.pid",
                "ovsdb-server",
                str(database),
                f"--remote=punix:{central}/{name}.sock",
                f"--pidfile={central}/{name}.pid",
                f"--unixctl={central}/{name}.ctl",
                "--detach",
                f"--log-file={central}/{name}.log",
                env=self.central,
            )
        self._daemon(
            central / "northd.pid",
            "ovn-northd",
            f"--ovnnb-db=unix:{central}/nb.sock",
            f"--ovnsb-db=unix:{central}/sb.sock",
            f"--pidfile={central}/northd.pid",
            f"--unixctl={central}/northd.ctl",
            "--detach",
            f"--log-file={central}/northd.log",
            env=self.central,
        )
        for number, space in enumerate(self.spaces):
            self._chassis(number, space)

    def _daemon(self, pid: Path, *argv: str, env: dict[str, str]) -> None:
        run(*argv, env=env)
        self.pids.append(pid)

    def _chassis(self, number: int, space: str) -> None:
        folder, address = self.root / space, f"172.30.9.{11 + number}"
        folder.mkdir()
        keys = ("OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR", "OVN_RUNDIR", "OVN_LOGDIR")
        env = {key: str(folder) for key in keys}
        enter = ("ip", "netns", "exec", space)
        run("ip", "netns", "add", space)
        run("ip", "-n", space, "link", "set", "lo", "up")
        run("ip", "-n", "ovnbu", "link", "add", f"u{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", "ovnbu", "link", "set", f"u{number}", "master", "obr", "up")
        run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ovsdb-tool", "create", str(folder / "conf.db"), "/usr/share/openvswitch/vswitch.ovsschema")
        self._daemon(
            folder / "db.pid",
            *enter,
            "ovsdb-server",
            str(folder / "conf.db"),
            f"--remote=punix:{folder}/db.sock",
            f"--pidfile={folder}/db.pid",
            f"--unixctl={folder}/db.ctl",
            "--detach",
            f"--log-file={folder}/db.log",
            env=env,
        )
        self.vs(space, "--no-wait", "init")
        self._daemon(
            folder / "vs.pid",
            *enter,
            "ovs-vswitchd",
            f"unix:{folder}/db.sock",
            f"--pidfile={folder}/vs.pid",
            f"--unixctl={folder}/vs.ctl",
            "--detach",
            "--disable-system",
            f"--log-file={folder}/vs.log",
            env=env,
        )
        self.vs(
            space,
            "set",
            "Open_vSwitch",
            ".",
            f"external_ids:system-id={space}",
            "external_ids:ovn-encap-type=vxlan",
            f"external_ids:ovn-encap-ip={address}",
            f"external_ids:ovn-remote=unix:{self.root}/central/sb.sock",
            "external_ids:ovn-bridge-datapath-type=netdev",
            "--",
            "add-br",
            "br-int",
            "--",
            "set",
            "bridge",
            "br-int",
            "datapath_type=netdev",
            "fail_mode=secure",
        )
        self._daemon(
            folder / "oc.pid",
            *enter,
            "ovn-controller",
            f"unix:{folder}/db.sock",
            f"--pidfile={folder}/oc.pid",
            "--detach",
            f"--log-file={folder}/oc.log",
            env=env,
        )

    def vs(self, space: str, *words: str) -> str:
        return run("ip", "netns", "exec", space, "ovs-vsctl", f"--db=unix:{self.root}/{space}/db.sock", *words)

    def nb(self, *words: str) -> str:
        return run("ovn-nbctl", f"--db=unix:{self.root}/central/nb.sock", *words)

    def fill(self, ports: int) -> None:
        self.nb("ls-add", "big", "--", "pg-add", "members")
        self.nb(
            "--type=port-group",
            "acl-add",
            "members",
            "from-lport",
            "1000",
            "inport == @members && ip4",
            "allow-related",
        )
        inbound = "outport == @members && ip4.src == $members_ip4"
        self.nb("--type=port-group", "acl-add", "members", "to-lport", "1000", inbound, "allow-related")
        self.nb("--type=port-group", "acl-add", "members", "to-lport", "900", "outport == @members && ip", "drop")
        for start in range(0, ports, 200):
            words: list[str] = []
            for number in range(start, min(start + 200, ports)):
                words += [
                    "--",
                    "lsp-add",
                    "big",
                    f"p{number}",
                    "--",
                    "lsp-set-addresses",
                    f"p{number}",
                    _address(number),
                ]
            self.nb(*words[1:])
        self.nb("pg-set-ports", "members", *(f"p{number}" for number in range(ports)))
        for index, space in enumerate(self.spaces):
            mine = range(index, ports, NODES)
            for start in range(0, len(mine), 100):
                words = []
                for number in mine[start : start + 100]:
                    words += ["--", *_interface(number)]
                self.vs(space, *words[1:])
        self.nb("--wait=hv", "--timeout=600", "sync")

    def add(self, number: int, ports: int) -> float:
        """Seconds until one more port is in every chassis's flows and up."""
        space = self.spaces[number % NODES]
        begun = time.perf_counter()
        port = f"p{number}"
        self.nb("lsp-add", "big", port, "--", "lsp-set-addresses", port, _address(number))
        uuid = self.nb("get", "logical_switch_port", port, "_uuid").strip()
        self.nb("add", "port_group", "members", "ports", uuid)
        self.vs(space, *_interface(number))
        self.nb("--timeout=60", "wait-until", "logical_switch_port", f"p{number}", "up=true")
        self.nb("--wait=hv", "--timeout=60", "sync")
        return time.perf_counter() - begun

    def flows(self) -> int:
        env = {"OVS_RUNDIR": f"{self.root}/{self.spaces[0]}"}
        said = run("ovs-ofctl", "-O", "OpenFlow15", "dump-aggregate", "br-int", env=env)
        return int(said.rpartition("flow_count=")[2])

    def stop(self) -> None:
        for pid in reversed(self.pids):
            if pid.exists():
                run("kill", pid.read_text().strip(), quiet=True)
        for space in (*self.spaces, "ovnbu"):
            run("ip", "netns", "del", space, quiet=True)


def _address(number: int) -> str:
    return f"06:00:00:00:{number >> 8:02x}:{number & 255:02x} 10.64.{number >> 8}.{number & 255}"


def _interface(number: int) -> list[str]:
    name = f"i{number}"
    return [
        "add-port",
        "br-int",
        name,
        "--",
        "set",
        "interface",
        name,
        "type=internal",
        f"external_ids:iface-id=p{number}",
    ]


def ovn(root: Path, ports: int, runs: int) -> tuple[list[float], int]:
    cloud = Ovn(root)
    try:
        cloud.start()
        cloud.fill(ports)
        return [cloud.add(ports + number, ports) for number in range(runs)], cloud.flows()
    finally:
        cloud.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ports", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    rows = []
    for name, measure in (("OVN", ovn), ("scloud", scloud)):
        root = Path(tempfile.mkdtemp(prefix="scloud-nic-"))
        root.chmod(0o711)  # dnsmasq reads its files as another user
        try:
            rows.append((name, *measure(root, options.ports, options.runs)))
        finally:
            shutil.rmtree(root, ignore_errors=True)
    print(f"one more nic among {options.ports}, {NODES} nodes, {options.runs} runs: median (min - max), milliseconds")
    for name, seconds, flows in rows:
        low, mid, high = (1e3 * value for value in (min(seconds), statistics.median(seconds), max(seconds)))
        print(f"{name:8} {mid:8.0f}  ({low:.0f} - {high:.0f})   {flows} flows on a node")
    print(f"ratio    {statistics.median(rows[1][1]) / statistics.median(rows[0][1]):8.2f}")


if __name__ == "__main__":
    main()
