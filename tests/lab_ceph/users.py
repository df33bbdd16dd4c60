"""Users of a cloud that is being broken: they create, use and delete VMs and disks, and remember what is promised."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from lab.cloud import Lab
from scloud.client.http import Client
from scloud.model.errors import CloudError, ErrorKind

MOST = 3
"""VMs that one user has at a time."""
PATIENCE_S = 120.0
POOL = "standard"


class User:
    """`alive` are VMs by id that are certainly to be there, `dead` those that certainly are not; of others, whose
    request nobody answered, nothing is known."""

    def __init__(self, lab: Lab, name: str, seed: str) -> None:
        self._lab, self._name = lab, name
        self._chance = random.Random(seed)
        self._made = 0
        self.alive: dict[str, str] = {}
        self.dead: set[str] = set()
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self, over: threading.Event) -> None:
        with self._lab.own_client() as client:
            while not over.wait(self._chance.uniform(0.5, 4.0)):
                deed = self._deed(client)
                what = deed.__name__.strip("_")
                try:
                    deed(client)
                    self.done[what] += 1
                except CloudError as error:
                    self.refused[f"{what}: {error.kind.value}"] += 1
                    if error.kind is ErrorKind.INTERNAL:
                        self.wrong.append(f"{what} of {self._name}: {error.message}")

    def _deed(self, client: Client) -> Callable[[Client], None]:
        if not self.alive or (len(self.alive) < MOST and self._chance.random() < 0.5):
            return self._create
        deeds = [self._delete, self._stop_and_start, self._reboot, self._disk, self._migrate]
        return self._chance.choices(deeds, [3, 2, 1, 2, 3])[0]

    def _finish(self, client: Client, answer: dict[str, Any]) -> None:
        client.finish(answer["operation"]["id"], timeout=PATIENCE_S)

    def _create(self, client: Client) -> None:
        self._made += 1
        name = f"{self._name}-{self._made}"
        spec: dict[str, Any] = {"image": "blank", "memory_mib": 128, "nics": [{"subnet": "default"}]}
        if self._chance.random() < 0.7:
            spec["disk_type"] = POOL
        answer = client.post("/vms", {"name": name, "spec": spec})
        id = str(answer["resource"]["id"])
        # The answer is the promise, whatever becomes of its operation.
        self.alive[id] = name
        self._finish(client, answer)

    def _one(self) -> str:
        return self._chance.choice(sorted(self.alive))

    def _delete(self, client: Client) -> None:
        id = self._one()
        name = self.alive.pop(id)  # from here on it may be gone, answered or not
        try:
            answer = client.delete(f"/vms/{id}")
        except CloudError as error:
            if error.kind in (ErrorKind.CONFLICT, ErrorKind.IN_USE):
                self.alive[id] = name  # refused: nothing was done
            raise
        self._finish(client, answer)
        self.dead.add(id)

    def _stop_and_start(self, client: Client) -> None:
        id = self._one()
        self._finish(client, client.post(f"/vms/{id}/actions/stop", {"force": True}))
        self._finish(client, client.post(f"/vms/{id}/actions/start", {}))

    def _reboot(self, client: Client) -> None:
        self._finish(client, client.post(f"/vms/{self._one()}/actions/reboot", {"force": True}))

    def _migrate(self, client: Client) -> None:
        """Those that do not run are refused; those with a disk in their node's own storage take it along."""
        self._finish(client, client.post(f"/vms/{self._one()}/actions/migrate", {}))

    def _disk(self, client: Client) -> None:
        """One that comes to a VM that runs, and goes when it is off: nothing in these guests would let go of it."""
        self._made += 1
        vm = self._one()
        name = f"{self._name}-disk-{self._made}"
        self._finish(client, client.post("/disks", {"name": name, "spec": {"size_mib": 64, "type": POOL}}))
        self._finish(client, client.post(f"/disks/{name}/actions/attach", {"vm": vm}))
        self._finish(client, client.post(f"/vms/{vm}/actions/stop", {"force": True}))
        self._finish(client, client.post(f"/disks/{name}/actions/detach", {}))
        self._finish(client, client.post(f"/vms/{vm}/actions/start", {}))
        self._finish(client, client.delete(f"/disks/{name}", now=True))
