"""From asking for a VM to its first answer to ping, against the same domain started by hand in the same run.

    sudo .venv/bin/python bench/create_to_ping.py [--runs 5]

By hand means: `qemu-img convert` of the same image, a tap and a bridge port, one flow, `virsh define` and `virsh start`
of the same domain XML, in the same node, with a dnsmasq that answers already. Both are measured to the first echo reply
at 20 Hz. A lab of one node is started for it and removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
NODE = "n1"
HAND_NS, HAND_BRIDGE, HAND_NET = "by-hand", "br-hand", "10.77.0"


class Bench:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = os.environ | {"SCLOUD_LAB_ROOT": str(root / "lab"), "SCLOUD_CONFIG": str(root / "config")}

    def scloud(self, *words: str) -> str:
        done = subprocess.run(
            [str(REPO / "scloud"), *words], env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise SystemExit(f"scloud {' '.join(words)}: {done.stderr or done.stdout}")
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.scloud(*words, "-o", "json"))

    def node(self, *words: str) -> str:
        return self.scloud("lab", "exec", NODE, "--", *words)

    def until_answer(self, namespace: str, address: str) -> subprocess.Popen[str]:
        """A ping that ends at its first answer; started before there is anybody to answer."""
        command = f"ping -n -i 0.05 -c 1 -W 1 {address}"
        loop = f"until {command} >/dev/null 2>&1; do :; done"
        # One long-lived process: only the pings themselves are started again and again.
        return subprocess.Popen(
            [str(REPO / "scloud"), "lab", "exec", NODE, "--", "ip", "netns", "exec", namespace, "sh", "-c", loop],
            env=self.env,
            text=True,
        )

    # --- by scloud

    def by_scloud(self, run: int) -> float:
        name, address = f"ping-{run}", f"10.10.0.{100 + run}"
        namespace = next(
            line.split()[0] for line in self.node("ip", "netns", "list").splitlines() if line.startswith("sc-")
        )
        begun = time.perf_counter()
        self.scloud("vm", "create", name, "--ip", address, "--no-wait")
        ping = self.until_answer(namespace, address)
        ping.wait(120)
        seconds = time.perf_counter() - begun
        self.scloud("vm", "delete", name)
        return seconds

    # --- by hand

    def prepare_hand(self) -> None:
        """A bridge, a namespace and a DHCP server; and the XML and seed of a VM that scloud made."""
        self.scloud("vm", "create", "model")
        model = self.json("vm", "show", "model")["id"]
        names = self.node("virsh", "list", "--name").split()
        domains = {name: self.node("virsh", "dumpxml", "--inactive", name) for name in names}
        self.xml = next(xml for xml in domains.values() if model in xml)
        self.model_disk, self.seed = re.findall(r"<source file='([^']+)'", self.xml)[:2]
        self.mac = re.findall(r"<mac address='([^']+)'", self.xml)[0]
        self.work = self.root / "hand"
        self.work.mkdir()
        shutil.copy(self.seed, self.work / "seed.iso")
        self.image = self.work / "image.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", self._cached_image(), str(self.image)], check=True)
        self.scloud("vm", "delete", "model")
        for command in (
            f"ovs-vsctl add-br {HAND_BRIDGE} -- set bridge {HAND_BRIDGE} datapath_type=netdev fail_mode=secure",
            f"ip netns add {HAND_NS}",
            f"ip link add hand0 type veth peer name hand1 netns {HAND_NS}",
            "ip link set hand0 up",
            f"ip -n {HAND_NS} addr add {HAND_NET}.1/24 dev hand1",
            f"ip -n {HAND_NS} link set hand1 up",
            f"ip -n {HAND_NS} link set lo up",
            f"ip netns exec {HAND_NS} ethtool -K hand1 tx off",
            f"ovs-vsctl add-port {HAND_BRIDGE} hand0",
        ):
            self.node(*command.split())
        self.node(
            *f"ip netns exec {HAND_NS} dnsmasq --no-hosts --no-resolv --port=0 --interface=hand1 --bind-interfaces "
            f"--dhcp-range={HAND_NET}.0,static,255.255.255.0,3600 --dhcp-host={self.mac},{HAND_NET}.50 --no-ping "
            f"--dhcp-option=26,1450 --pid-file={self.work}/dnsmasq.pid --dhcp-leasefile={self.work}/leases "
            "--user=root".split()
        )

    def _cached_image(self) -> str:
        images = Path(self.root / "lab" / "nodes" / NODE / "images")
        return str(max((path for path in images.iterdir() if path.is_file()), key=lambda path: path.stat().st_size))

    def by_hand(self, run: int) -> float:
        name, disk = f"hand-{run}", self.work / f"disk-{run}.raw"
        # every command in one shell, as a script of somebody's own would have it
        xml = self.xml.replace(self.model_disk, str(disk)).replace(self.seed, str(self.work / "seed.iso"))
        xml = re.sub(r"<name>[^<]*</name>", f"<name>{name}</name>", xml)
        xml = re.sub(r"<uuid>[^<]*</uuid>", "", xml)
        xml = re.sub(r"<metadata>.*?</metadata>", "", xml, flags=re.S)
        tap = re.findall(r"<target dev='([^']+)' managed='no'/>", xml)[0]
        xml = xml.replace(f"dev='{tap}'", "dev='handtap'")
        xml = re.sub(r"path='[^']*\.sock'", f"path='{self.work}/{name}.sock'", xml)
        file = self.work / f"{name}.xml"
        file.write_text(xml)
        script = (
            f"qemu-img convert -O raw {self.image} {disk} && ip tuntap add dev handtap mode tap && "
            f"ip link set handtap mtu 1450 up && ovs-vsctl add-port {HAND_BRIDGE} handtap && "
            f"ovs-ofctl add-flow {HAND_BRIDGE} actions=NORMAL && virsh -q define {file} && virsh -q start {name}"
        )
        begun = time.perf_counter()
        self.node("sh", "-c", script)
        ping = self.until_answer(HAND_NS, f"{HAND_NET}.50")
        ping.wait(120)
        seconds = time.perf_counter() - begun
        clean = (
            f"virsh -q destroy {name}; virsh -q undefine {name}; ovs-vsctl del-port handtap; "
            f"ip link del handtap; rm -f {disk}"
        )
        self.node("sh", "-c", clean)
        return seconds

    def clean_hand(self) -> None:
        pid = int((self.work / "dnsmasq.pid").read_text())
        self.node("sh", "-c", f"kill {pid}; ovs-vsctl del-br {HAND_BRIDGE}; ip netns del {HAND_NS}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    root = Path(tempfile.mkdtemp(prefix="scloud-ping-"))
    root.chmod(0o711)  # dnsmasq reads its files as another user
    bench = Bench(root)
    try:
        bench.scloud("lab", "up", "--nodes", "1")
        bench.prepare_hand()
        bench.scloud("vm", "stop", "hello", "--force")
        pairs = [(bench.by_hand(run), bench.by_scloud(run)) for run in range(runs)]
        bench.clean_hand()
    finally:
        bench.scloud("lab", "down")
        shutil.rmtree(root)
    print(f"create to first echo reply, {runs} runs: median (min - max), seconds")
    for name, values in (("by hand", [pair[0] for pair in pairs]), ("scloud", [pair[1] for pair in pairs])):
        print(f"{name:10} {statistics.median(values):6.2f}  ({min(values):.2f} - {max(values):.2f})")
    ratios = [pair[1] / pair[0] for pair in pairs]
    print(f"{'ratio':10} {statistics.median(ratios):6.2f}  ({min(ratios):.2f} - {max(ratios):.2f})")


if __name__ == "__main__":
    main()
