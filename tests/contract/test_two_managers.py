"""Two managers, each a process of its own, on one real PostgreSQL; nodes are real agents on fake drivers."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.figures import Figures
from support.postgres import Server, running

pytestmark = pytest.mark.engine
TAKEOVER_S = 30.0
"""Far more than the aim of 10 s, which is measured and told: this machine may be busy."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def until(true: Callable[[], Any], what: str, seconds: float = TAKEOVER_S) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


class ManagerProcess:
    def __init__(self, root: Path, database: str) -> None:
        self.root = root
        self.api, self.link = free_port(), free_port()
        self._database = database
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        addresses = ("--api", f"127.0.0.1:{self.api}", "--link", f"127.0.0.1:{self.link}")
        (self.root / "url").write_text(self._database)
        database = ("--database", f"@{self.root / 'url'}")
        argv = (sys.executable, "-m", "scloud.manager", "--root", str(self.root), *addresses, *database)
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stderr=log)

    def role(self) -> str | None:
        try:
            return str(json.loads((self.root / "ready").read_text())["role"])
        except (OSError, ValueError):
            return None

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> int:
        assert self.process is not None
        return self.process.wait(30)


class Pair:
    """Two managers and two nodes."""

    def __init__(self, folder: Path, database: str) -> None:
        self.one, self.other = (ManagerProcess(folder / name, database) for name in ("m1", "m2"))
        self._folder = folder
        self.nodes: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.one.start()
        until(lambda: self.one.role() == "leader", "the first leads")
        self.token = (self.one.root / "admin.token").read_text().strip()
        self.other.start()
        until(lambda: self.other.role() == "standby", "the second stands by")
        tokens = [self.post("/nodes", {"name": f"n{number}"})["join"]["token"] for number in (1, 2)]
        argv = [sys.executable, "-m", "scloud.sim.nodes"]
        for manager in (self.one, self.other):
            argv += ["--manager", f"127.0.0.1:{manager.link}"]
        with (self._folder / "nodes.log").open("a") as log:
            self.nodes = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=log, text=True)
        assert self.nodes.stdin is not None
        self.nodes.stdin.write("\n".join(tokens) + "\n\n")
        self.nodes.stdin.close()
        until(lambda: self.get("/status")["nodes"].get("ready") == 2, "both nodes are ready")

    def stop(self) -> None:
        for process in (self.nodes, self.one.process, self.other.process):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def request(self, method: str, path: str, body: Any = None, via: ManagerProcess | None = None) -> httpx.Response:
        url = f"http://127.0.0.1:{(via or self.one).api}/api/v1{path}"
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.request(method, url, json=body, headers=headers, timeout=20.0, trust_env=False)

    def get(self, path: str, via: ManagerProcess | None = None) -> Any:
        return self.request("GET", path, via=via).raise_for_status().json()

    def post(self, path: str, body: Any, via: ManagerProcess | None = None) -> Any:
        return self.request("POST", path, body, via).raise_for_status().json()

    def answers(self, via: ManagerProcess) -> bool:
        try:
            return self.request("GET", "/vms", via=via).is_success
        except httpx.TransportError:
            return False

    def vms(self, via: ManagerProcess) -> list[Any]:
        return list(self.get("/vms", via)["items"])

    def runs(self, name: str, via: ManagerProcess) -> bool:
        return bool(self.get(f"/vms/{name}", via)["status"]["state"] == "running")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture
def pair(server: Server, tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path, server.database())
    try:
        made.start()
        yield made
    finally:
        made.stop()


def make_vm(pair: Pair, name: str, via: ManagerProcess) -> str:
    """Its operation's id."""
    spec = {"image": "micro", "cpus": 1, "memory_mib": 64, "nics": [{"subnet": "s"}]}
    return str(pair.post("/vms", {"name": name, "spec": spec}, via)["operation"]["id"])


def furnish(pair: Pair, folder: Path) -> None:
    """An image and a network; asked of the standby, which passes it on."""
    file = folder / "image.raw"
    with file.open("wb") as stream:
        stream.write(b"scloud" * 1000)
        stream.truncate(64 << 20)  # what simulated nodes say that every image has
    via = pair.other
    made = pair.post("/images", {"name": "micro", "spec": {"source": f"file://{file}", "format": "raw"}}, via)
    assert pair.get(f"/operations/{made['operation']['id']}?wait=20", via)["state"] == "done"
    pair.post("/vpcs", {"name": "v"}, via)
    pair.post("/subnets", {"name": "s", "spec": {"vpc": "v", "cidr": "10.0.0.0/24"}}, via)


def test_a_standby_takes_over_from_a_leader_that_dies_and_from_one_that_hangs(
    pair: Pair, tmp_path: Path, figures: Figures
) -> None:
    furnish(pair, tmp_path)
    one, other = pair.one, pair.other
    make_vm(pair, "before", one)
    until(lambda: pair.runs("before", other), "the VM runs, as both managers say")
    until(lambda: list((other.root / "images").glob("*.raw")), "the standby has a copy of the image")
    assert (other.root / "images").glob("*.raw").__next__().read_bytes()[:6] == b"scloud"
    roles = {manager["role"]: manager["api"] for manager in pair.get("/managers")["items"]}
    assert roles == {"leader": f"127.0.0.1:{one.api}", "standby": f"127.0.0.1:{other.api}"}

    # Killed while it has work in hand.
    operation = make_vm(pair, "during", one)
    one.signal(signal.SIGKILL)
    one.end()
    took = until(lambda: pair.answers(other), "the standby answers as leader")
    assert other.role() == "leader"
    until(lambda: pair.runs("during", other), "what was in hand is finished")
    assert pair.get(f"/operations/{operation}", other)["state"] == "done"
    assert pair.runs("before", other)
    figures.note(f"two managers: the leader killed, the other answers {took:.1f} s after")

    # The one that was killed comes back as a standby; then the leader hangs.
    one.start()
    until(lambda: one.role() == "standby", "the first stands by now")
    other.signal(signal.SIGSTOP)
    took = until(lambda: one.role() == "leader" and pair.answers(one), "the first leads again")
    until(lambda: pair.get("/status", one)["connected"] == 2, "both nodes have come over")
    figures.note(f"two managers: the leader hangs, the other answers {took:.1f} s after")
    make_vm(pair, "after", one)
    until(lambda: pair.runs("after", one), "VMs are made as ever")

    # The one that hung goes on where it was: it writes nothing, and ends.
    other.signal(signal.SIGCONT)
    assert other.end() == 3, (other.root / "log").read_text()[-500:]
    # A node that came over later than the new leader's patience was "down" for a moment, and its VMs unknown.
    until(
        lambda: all(pair.runs(name, one) for name in ("before", "during", "after")) and len(pair.vms(one)) == 3,
        "all three VMs run",
    )


def test_while_nobody_leads_a_standby_says_so(pair: Pair) -> None:
    pair.one.signal(signal.SIGSTOP)
    pair.other.signal(signal.SIGSTOP)
    pair.one.signal(signal.SIGKILL)
    pair.one.end()
    pair.other.signal(signal.SIGCONT)
    answers: list[httpx.Response] = []

    def led() -> bool:
        answers.append(pair.request("GET", "/vms", via=pair.other))
        return answers[-1].is_success

    until(led, "the standby leads")
    refused = [answer for answer in answers if not answer.is_success]
    assert refused, "nobody asked while nobody led"
    for answer in refused:
        assert answer.status_code == 503 and answer.json()["code"] == "unavailable"
        assert answer.headers["retry-after"] and "takes over" in answer.json()["detail"]


def test_a_leader_that_is_told_to_end_hands_over_at_once(pair: Pair) -> None:
    pair.one.signal(signal.SIGTERM)
    assert pair.one.end() == 0
    assert until(lambda: pair.other.role() == "leader" and pair.answers(pair.other), "the other leads") < TAKEOVER_S
