"""Random faults while users and a writing guest go on: what `python -m lab_ceph` and the short run in CI share."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from lab.cloud import Guest, Lab, until
from lab_ceph.chaos import NODES, Faults, Tended
from lab_ceph.copies import Watch
from lab_ceph.storage import Storage
from lab_ceph.users import User
from lab_ceph.writer import Writer
from scloud.model.errors import CloudError

USERS = 3
SETTLE_S = 300.0
Words = list[str]


def _heal(lab: Lab) -> None:
    for victim in ("manager", *NODES):
        lab.ok("lab", "heal", victim)


def _promises(lab: Lab, users: list[User]) -> Words:
    """What is not as users were told."""
    there = {vm["id"]: vm for vm in lab.items("/vms")}
    wrong = [word for user in users for word in user.wrong]
    for user in users:
        wrong += [
            f"VM {name} ({id}) is gone, and nobody deleted it" for id, name in user.alive.items() if id not in there
        ]
        wrong += [f"VM {id} was deleted, and is there" for id in user.dead if id in there]
    return wrong


def chaos(lab: Lab, seconds: float, seed: int, guest: Guest, writer: Writer) -> Words:
    """What is wrong; nothing if all is well. The guest writes, and is migrated now and then."""
    began = time.monotonic()

    def say(words: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {words}", flush=True)

    blank = lab.folder / "blank.raw"
    with blank.open("wb") as stream:
        stream.truncate(4 << 20)
    lab.ok("image", "import", "blank", str(blank), "--format", "raw")
    lab.ok("cluster", "set", "default", "--cpu-overcommit", "16")
    tended = Tended(lab, guest, writer, random.Random(f"{seed}.writer"), say)
    faults = Faults(lab, random.Random(seed), say)
    users = [User(lab, f"user{number}", f"{seed}.{number}") for number in range(1, USERS + 1)]
    over = threading.Event()
    say(f"begins; seed {seed}")
    with Watch(lab, Storage(lab).pool("standard"), *NODES) as watch, ThreadPoolExecutor() as pool:
        parts = [pool.submit(run, over) for run in (faults.run, tended.run, *(user.run for user in users))]
        until(
            lambda: time.monotonic() - began > seconds or any(part.done() for part in parts) or watch.twice(),
            "the end", seconds + 60.0, 0.5,
        )  # fmt: skip
        over.set()
        wrong = [repr(error) for part in parts if (error := part.exception()) is not None]
        say("faults end; everything is healed")
        try:
            _heal(lab)
            Storage(lab).healthy(SETTLE_S)
            took = lab.converged(SETTLE_S)
            say(f"whole again {took:.0f} s after")
            guest.forget()
            guest.wait_boot()
            tended.look()
        except (AssertionError, CloudError) as error:
            wrong.append(f"it does not come to rest: {error}; audit: {lab.scloud('audit').out}")
    wrong += [f"at {at} s {id} was on {', '.join(nodes)}" for at, id, nodes in watch.twice()]
    wrong += _promises(lab, users)
    _tell(lab, faults, users, watch, tended)
    return wrong


def _tell(lab: Lab, faults: Faults, users: list[User], watch: Watch, tended: Tended) -> None:
    def counted(what: Counter[str]) -> str:
        return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in what.most_common()) or "none"

    incidents = lab.json("ha", "log", "--limit", "1000")
    recovered = sum(vm["state"] == "running" for incident in incidents for vm in incident["vms"])
    print(f"faults: {sum(faults.counts.values())} ({counted(faults.counts)})")
    print(f"done: {counted(sum((user.done for user in users), Counter()))}")
    print(f"refused or failed with a reason: {counted(sum((user.refused for user in users), Counter()))}")
    print(f"nodes taken for dead: {len(incidents)}; VMs that were started elsewhere: {recovered}")
    looks = sum(seen.looks for seen in watch.opens.values())
    print(f"looks at QEMU processes: {watch.running.looks}, at RBD watchers: {looks}")
    print(f"the writing guest was sent to other nodes {tended.sent} times, and died {tended.deaths} times")
    print(f"its last acknowledged block: {tended.acknowledged}")
