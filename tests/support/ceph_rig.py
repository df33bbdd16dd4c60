"""A private Ceph cluster for tests: one monitor, one manager and three OSDs in sparse files, on loopback, in ~9 s.

`places` puts each OSD somewhere in the CRUSH tree, so that one machine has many hosts and racks."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rados

from scloud.reconcile.ceph.view import laggy

_CONF = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}]
public network = 127.0.0.0/8
ms bind msgr1 = false
ms bind port min = {first}
ms bind port max = {last}
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = {root}/$name.keyring
run dir = {root}/run
pid file =
admin socket = {root}/run/$name.asok
log file = {root}/log/$name.log
crash dir = {root}/crash
log to stderr = false
err to stderr = false
log flush on exit = false
mon allow pool size one = true
osd pool default pg autoscale mode = off
osd heartbeat interval = 1
osd heartbeat grace = 6
osd crush chooseleaf type = 0
[client]
log file =
admin socket =
[mon]
mon data = {root}/mon
keyring = {root}/mon/keyring
mon allow pool delete = true
mon cluster log file = {root}/log/cluster.log
mon data avail warn = 2
mon data avail crit = 1
mon osd min down reporters = 1
mon election timeout = 1
mon probe timeout = 1
ms initial backoff = 0.05
ms max backoff = 0.5
paxos propose interval = 0.25
mon warn on pool no redundancy = false
mgr initial modules =
[mgr]
mgr data = {root}/mgr
mgr module path = /usr/share/ceph/mgr
mgr disabled modules = zabbix influx telegraf insights localpool selftest test_orchestrator k8sevents \
diskprediction_local prometheus restful
mgr stats period = 1
mgr tick period = 1
[osd]
osd data = {root}/osd/$id
bluestore block create = true
bluestore block size = {osd_bytes}
bluestore block path =
bluestore fsck on mount = false
bluestore rocksdb options annex = write_buffer_size=16777216,max_write_buffer_number=4
bluestore cache autotune = false
bluestore cache size = 50331648
osd scrub backoff ratio = 0
osd max scrubs = 3
osd op num shards = 2
osd op num threads per shard = 1
osd heartbeat min size = 0
osd fast shutdown = true
bdev flock retry = 20
"""
_LIMITS = {"client_mount_timeout": "30", "rados_mon_op_timeout": "30", "rados_osd_op_timeout": "120"}
"""Seconds after which a call fails rather than wait for a dead cluster for ever, and a test run with it."""
MON_CAPS = "profile rbd"
"""What a node's client may ask of monitors."""


class CephRig:
    """`with CephRig(first_port) as rig:`. The ports are `first_port` and the 200 after it."""

    def __init__(self, first_port: int, osds: int = 3, osd_gib: int = 4, places: Sequence[str] = ()) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
        self.fsid = str(uuid.uuid4())
        self.mon_host = f"[v2:127.0.0.1:{first_port}]"
        self.conf = self.root / "ceph.conf"
        self._first_port = first_port
        self._osds = len(places) or osds
        self._places = places
        self._osd_gib = osd_gib
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.admin: Any = None

    def __enter__(self) -> CephRig:
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.admin is not None:
            self.admin.shutdown()
        for process in reversed(self._processes.values()):
            process.kill()
        for process in self._processes.values():
            process.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def _begin(self) -> None:
        for name in ("run", "log", "mgr", "osd"):
            (self.root / name).mkdir()
        self.conf.write_text(
            _CONF.format(
                fsid=self.fsid,
                port=self._first_port,
                first=self._first_port + 1,
                last=self._first_port + 200,
                root=self.root,
                osd_bytes=self._osd_gib * 2**30,
            )
            + "".join(_located(number, place) for number, place in enumerate(self._places))
        )
        keys, monmap = self.root / "mon.keyring", self.root / "monmap"
        admin = self.root / "client.admin.keyring"
        self._tool("ceph-authtool", "--create-keyring", keys, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        caps = [part for service in ("mon", "osd", "mds", "mgr") for part in ("--cap", service, "allow *")]
        self._tool("ceph-authtool", "--create-keyring", admin, "--gen-key", "-n", "client.admin", *caps)
        self._tool("ceph-authtool", keys, "--import-keyring", admin)
        where = f"[v2:127.0.0.1:{self._first_port}]"
        self._tool("monmaptool", "--create", "--fsid", self.fsid, "--addv", "a", where, monmap)
        (self.root / "mon").mkdir()
        self._tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keys)
        shutil.copy(keys, self.root / "mon/keyring")
        self._spawn("ceph-mon", "a")
        self.admin = rados.Rados(conffile=str(self.conf), conf=_LIMITS)
        self.admin.connect()
        mgr = self.mon("auth get-or-create", entity="mgr.x", caps=["mon", "allow profile mgr", "osd", "allow *"])
        self._keyring("mgr.x", mgr[0]["key"])
        self._spawn("ceph-mgr", "x")
        makings = [self._make_osd(number) for number in range(self._osds)]
        for making in makings:
            assert making.wait() == 0, "an OSD could not be made"
        for number in range(self._osds):
            self._spawn("ceph-osd", str(number))
        self.until(lambda: self._up() == self._osds, "all OSDs to be up")

    def _make_osd(self, number: int) -> subprocess.Popen[bytes]:
        key = base64.b64encode(struct.pack("<hiih", 1, int(time.time()), 0, 16) + os.urandom(16)).decode()
        device = str(uuid.uuid4())
        assert self.mon("osd new", json.dumps({"cephx_secret": key}).encode(), uuid=device)["osdid"] == number
        (self.root / f"osd/{number}").mkdir()
        self._keyring(f"osd.{number}", key)
        argv = ["ceph-osd", "-i", str(number), "--mkfs", "--osd-uuid", device]
        with (self.root / "log/mkfs.out").open("ab") as log:
            return subprocess.Popen(argv, env=self.env, stdout=log, stderr=log)

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self.conf)}

    def _tool(self, *argv: object) -> None:
        subprocess.run([str(part) for part in argv], check=True, env=self.env, capture_output=True)

    def _keyring(self, name: str, key: str) -> None:
        path = self.root / f"{name}.keyring"
        path.touch(0o600)
        path.write_text(f"[{name}]\n key = {key}\n")

    def _spawn(self, program: str, id: str) -> None:
        with (self.root / f"log/{program}.{id}.out").open("ab") as log:
            process = subprocess.Popen(
                [program, "-f", "-i", id], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._processes[f"{program}.{id}"] = process

    def _up(self) -> int:
        return int(self.mon("status")["osdmap"]["num_up_osds"])

    def mon(self, prefix: str, data: bytes = b"", **fields: Any) -> Any:
        """A monitor's answer; AssertionError with its words."""
        code, answer, words = self.admin.mon_command(json.dumps({"prefix": prefix, "format": "json", **fields}), data)
        assert code == 0, f"{prefix}: {words}"
        with contextlib.suppress(ValueError):
            return json.loads(answer)
        return answer.decode()

    def until(self, done: Any, what: str, timeout_s: float = 60) -> None:
        end = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
            time.sleep(0.05)

    def make_pool(self, name: str, kind: str = "replica") -> None:
        """Three copies would only cost time: one; or erasure-coded, 2+1."""
        if kind == "replica":
            self.mon("osd pool create", pool=name, pg_num=8)
            self.mon("osd pool set", pool=name, var="size", val="1", yes_i_really_mean_it=True)
            self.mon("osd pool set", pool=name, var="min_size", val="1")
        else:
            profile = ["k=2", "m=1", "crush-failure-domain=osd"]
            self.mon("osd erasure-code-profile set", name=f"p-{name}", profile=profile, force=True)
            self.mon("osd pool create", pool=name, pg_num=8, pool_type="erasure", erasure_code_profile=f"p-{name}")
            self.mon("osd pool set", pool=name, var="allow_ec_overwrites", val="true")
        self.mon("osd pool application enable", pool=name, app="rbd")

    def delete_pool(self, name: str) -> None:
        self.mon("osd pool delete", pool=name, pool2=name, yes_i_really_really_mean_it=True)

    def make_client(self, name: str, *pools: str) -> str:
        """The key of a client that reaches these pools alone."""
        osd = ", ".join(f"profile rbd pool={pool}" for pool in pools)
        self.mon("auth get-or-create", entity=f"client.{name}", caps=["mon", MON_CAPS, "osd", osd])
        return str(self.mon("auth get-key", entity=f"client.{name}")["key"])

    def freeze(self, *osds: int) -> None:
        """The whole cluster stops answering, or these OSDs."""
        for name in [f"ceph-osd.{number}" for number in osds] or self._processes:
            pid = self._processes[name].pid
            os.kill(pid, signal.SIGSTOP)
            self.until(lambda pid=pid: _state(pid) == "T", "a daemon to stand still")

    def thaw(self) -> None:
        """It goes on; on return every placement group has taken a write.

        One in some dozen times Ceph 16 leaves a placement group without a lease for ever, and whoever uses the rig next
        would wait for it: its OSD is marked down, as the product does (`scloud.reconcile.ceph.laggy`).
        """
        for process in self._processes.values():
            os.kill(process.pid, signal.SIGCONT)
        with contextlib.ExitStack() as stack:
            pools = [stack.enter_context(self.admin.open_ioctx(name)) for name in self.admin.list_pools()]
            names = [f"thaw.{number}" for number in range(64)]
            asked = time.monotonic()
            writes = [pool.aio_write_full(name, b"") for pool in pools for name in names]

            def written() -> bool:
                nonlocal asked
                if all(write.is_complete() for write in writes):
                    return True
                if time.monotonic() - asked > 5:
                    asked = time.monotonic()
                    for number in sorted(set(self._laggy().values())):
                        self.mon("osd down", ids=[str(number)])
                return False

            self.until(written, "every placement group to take a write")
            for pool in pools:
                for name in names:
                    pool.remove_object(name)

    def _laggy(self) -> dict[str, int]:
        question = json.dumps({"prefix": "pg ls", "states": ["laggy"], "format": "json"})
        code, answer, _ = self.admin.mgr_command(question, b"")
        return laggy(json.loads(answer)) if code == 0 and answer else {}

    def kill_osd(self, number: int) -> None:
        process = self._processes[f"ceph-osd.{number}"]
        process.kill()
        process.wait()

    def start_osd(self, number: int) -> None:
        self._spawn("ceph-osd", str(number))
        self.until(lambda: self.is_up(number), f"osd.{number} to be up")

    def add_osd(self, place: str, device_class: str) -> int:
        """One more, such as at `rack=r1 host=h9`; its number."""
        number = len(self.mon("osd ls"))
        with self.conf.open("a") as conf:
            conf.write(_located(number, place))
        assert self._make_osd(number).wait() == 0, "an OSD could not be made"
        # In its place and of its class before it is up: data that began to move would be moved again.
        self.mon("osd crush set-device-class", ids=[str(number)], **{"class": device_class})
        self.start_osd(number)
        return number

    def is_up(self, number: int) -> bool:
        return any(osd["osd"] == number and osd["up"] for osd in self.mon("osd dump")["osds"])

    def block(self, number: int) -> Path:
        """The file an OSD has its bytes in."""
        return self.root / f"osd/{number}/block"


def _located(number: int, place: str) -> str:
    return f"[osd.{number}]\ncrush location = root=default {place}\n"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
