"""A node without engines: it speaks the link as an agent does, and says of everything that it is as it should be.

Thousands fit into a process, so that what is measured is the manager. For the agent's own work see `sim.nodes`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import orjson
from pydantic import TypeAdapter

from scloud.link.channel import Channel, Dialer
from scloud.model.errors import CloudError
from scloud.model.observed import NodeFacts, NodeLoad, Observed
from scloud.model.wire import Heartbeat, Hello, Reply, Report, welcome_answer

_message: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
HEARTBEAT_S = 1.0
FIRST_BACKOFF_S = 0.5


class ThinNode:
    """`run` until cancelled; `crash` breaks its connection, and it dials again after so many seconds.

    VMs take `boot_s` (shortest, longest) seconds to start, drawn from `random`, which also spreads the heartbeats.
    """

    def __init__(
        self, node: str, dial: Dialer, facts: NodeFacts, boot_s: tuple[float, float], dice: random.Random
    ) -> None:
        self.node = node
        self.name = facts.hostname
        self._dial = dial
        self._facts = facts
        self._boot_s = boot_s
        self._dice = dice
        self._epoch = 0
        self._desired: dict[str, dict[str, Any]] = {}
        self._observed: dict[str, Observed] = {}
        self._news: dict[str, Observed] = {}
        self._revision = 0
        self._changed = asyncio.Event()
        self._channel: Channel | None = None
        self._away_s = 0.0

    @property
    def running(self) -> set[str]:
        """Ids of the VMs that run here."""
        return {key.partition("/")[2] for key, item in self._observed.items() if item.state == "running"}

    async def run(self) -> None:
        """Connect, serve, and connect again, for ever."""
        while True:
            try:
                await self._once()
            except (OSError, CloudError):
                pass  # dialled again below
            await asyncio.sleep(self._away_s or FIRST_BACKOFF_S * (0.5 + self._dice.random()))
            self._away_s = 0.0

    async def crash(self, away_s: float) -> None:
        """Hang up without a word, and be away for so long. What ran goes on, as on a node whose link is cut."""
        self._away_s = away_s
        if self._channel is not None:
            await self._channel.close()

    async def _once(self) -> None:
        self._channel = channel = await self._dial()
        try:
            have = {key: _digest(item) for key, item in self._desired.items()}
            await channel.send(Hello(facts=self._facts, epoch=self._epoch, have=have))
            welcome = await channel.receive(welcome_answer)
            if welcome.t != "welcome":
                return
            self._epoch = welcome.epoch
            self._news = dict(self._observed)
            self._changed.set()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beat(channel))
                group.create_task(self._tell(channel))
                await self._hear(channel)
        except* (OSError, CloudError):
            pass  # the connection has ended
        finally:
            await channel.close()

    async def _hear(self, channel: Channel) -> None:
        while True:
            message = await channel.receive(_message)
            if message["t"] == "desired":
                self._take(message)
            elif message["t"] == "call":
                await channel.send(Reply(call=message["call"], result={}))

    async def _beat(self, channel: Channel) -> None:
        await asyncio.sleep(self._dice.random() * HEARTBEAT_S)
        while True:
            await channel.send(Heartbeat(load=self._load()))
            await asyncio.sleep(HEARTBEAT_S)

    def _load(self) -> NodeLoad:
        share = min(1.0, len(self._observed) / 200)
        return NodeLoad(cpu=share, memory=share)

    async def _tell(self, channel: Channel) -> None:
        complete = True
        while True:
            await self._changed.wait()
            self._changed.clear()
            items, self._news = tuple(self._news.values()), {}
            await channel.send(Report(items=items, network_revision=self._revision, complete=complete))
            complete = False

    def _take(self, message: dict[str, Any]) -> None:
        self._epoch = message["epoch"]
        self._revision = message["revision"]
        for key in message["drop"]:
            self._desired.pop(key, None)
            self._observed.pop(key, None)
        for item in message["set"]:
            key = f"{item['kind']}/{item['id']}"
            self._desired[key] = item
            if make := _MAKERS.get(item["kind"]):
                self._settle(key, make(item, self.node))
        self._changed.set()

    def _settle(self, key: str, item: Observed | None) -> None:
        if item is None:
            return
        before = self._observed.get(key)
        if item.state == "running" and (before is None or before.state != "running"):
            delay = self._dice.uniform(*self._boot_s)
            asyncio.get_running_loop().call_later(delay, self._started, key, item)
        else:
            self._note(key, item)

    def _started(self, key: str, item: Observed) -> None:
        wanted = self._desired.get(key)
        if wanted is not None and wanted["power"] == "on":
            self._note(key, item)
            self._changed.set()

    def _note(self, key: str, item: Observed) -> None:
        self._observed[key] = self._news[key] = item


def _digest(item: dict[str, Any]) -> str:
    """As `link.digest.digest_of`, of the object as it came."""
    return blake2b(orjson.dumps(item), digest_size=8).hexdigest()


def _vm(item: dict[str, Any], node: str) -> Observed:
    power = item["power"]
    state = "running" if power == "on" else "stopped" if power == "off" else "absent"
    return Observed(
        key=f"vm/{item['id']}",
        generation=item["generation"],
        state=state,
        settled=True,
        cpus=item["cpus"],
        memory_mib=item["memory_mib"],
    )


def _disk(item: dict[str, Any], node: str) -> Observed:
    state = "absent" if item["absent"] else "ready"
    return Observed(
        key=f"disk/{item['id']}",
        generation=item["generation"],
        state=state,
        settled=True,
        used_mib=0 if item["absent"] else 1,
        snapshots=tuple((snapshot["id"], 0) for snapshot in item["snapshots"] if not snapshot["absent"]),
    )


def _port(item: dict[str, Any], node: str) -> Observed | None:
    absent = item["absent"] or item["node_id"] != node
    if absent and not item["absent"]:
        return None
    state = "absent" if absent else "ready"
    return Observed(key=f"port/{item['id']}", generation=item["generation"], state=state, settled=True)


_MAKERS: dict[str, Callable[[dict[str, Any], str], Observed | None]] = {"vm": _vm, "disk": _disk, "port": _port}
