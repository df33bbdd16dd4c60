"""A scripted node: speaks the link's messages and carries out what it is told at once, or not, as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable
from typing import Any

from scloud.link.channel import Channel
from scloud.link.digest import digest_of
from scloud.link.memory import Conditions, MemoryListener
from scloud.model.desired import DesiredDisk, DesiredObject, DesiredPort, DesiredStore, DesiredVm, key_of
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.gpus import Gpu
from scloud.model.observed import NodeFacts, NodeLoad, Observed, VmFigures
from scloud.model.statuses import Accelerator, Capacity
from scloud.model.wire import (
    Call,
    Desired,
    Heartbeat,
    Hello,
    Refused,
    Removed,
    Reply,
    Report,
    StreamHello,
    Welcome,
    manager_message,
    welcome_answer,
)

Answer = Callable[[dict[str, Any]], Any]


def _no_cluster(params: dict[str, Any]) -> Any:
    raise CloudError(ErrorKind.UNAVAILABLE, f"no quorum of the monitors of {params['cluster']} answers")


class ScriptedNode:
    """`id` is the node resource's. `objects` is its journal, kept over connections as an agent keeps it on its disk.

    `holding` makes it hear and remember but do nothing; `override` maps a key to what it reports instead of success;
    `messages` are all Desired messages heard; `answers` are its methods for calls.
    """

    def __init__(
        self,
        id: str,
        name: str,
        listener: MemoryListener,
        *,
        cpus: int = 8,
        memory_mib: int = 16384,
        disk_mib: int = 102400,
        tunnel_ip: str = "192.0.2.1",
        architecture: str = "x86_64",
        gpus: tuple[Gpu, ...] = (),
    ) -> None:
        self.id, self.name = id, name
        self._listener = listener
        self.conditions = Conditions()
        self.gpus = gpus
        self.capacity = Capacity(cpus=cpus, memory_mib=memory_mib, disk_mib=disk_mib)
        self.tunnel_ip, self.architecture = tunnel_ip, architecture
        self.load = NodeLoad()
        self.epoch = 0
        self.objects: dict[str, DesiredObject] = {}
        self.existing: dict[str, str] = {}
        """What is really there: key to the state last reached."""
        self.in_pools: list[str] = []
        """What it sees in shared pools beside its own."""
        self.pool_left: list[dict[str, Any]] = []
        """What of it is no whole disk."""
        self.holding = False
        self.override: dict[str, Observed] = {}
        self.messages: list[Desired] = []
        self.welcomes: list[Welcome] = []
        self.refusals: list[Refused] = []
        self.removed = False
        """It was told that it is out of the cloud."""
        self.heard = asyncio.Event()
        self.echo_streams = True
        self.stores: Callable[[DesiredStore], Observed | None] = lambda _: None
        """What it says of its part in a storage cluster."""
        self.answers: dict[str, Answer] = {
            "inventory": lambda _: self._inventory(),
            "figures": self._figures,
            "console_log": lambda params: f"log of {params['vm']}\n"[-params["bytes"] :],
            "trace": lambda _: {"forwards": True, "text": ""},
            "ceph_command": _no_cluster,
        }
        self._channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None
        self._streams: set[asyncio.Task[None]] = set()
        self._revision = 0

    # --- life

    async def start(self) -> None:
        """Connect; returns after the manager's welcome. ConnectionError if it cannot be reached or refuses."""
        channel = await self._listener.dial(self.id, self.conditions)
        have = {key: digest_of(item) for key, item in self.objects.items()}
        await channel.send(Hello(facts=self.facts(), epoch=self.epoch, have=have))
        answer = await channel.receive(welcome_answer)
        if isinstance(answer, Removed):
            self.removed = True
            raise ConnectionRefusedError("it was removed from the cloud")
        if isinstance(answer, Refused):
            self.refusals.append(answer)
            raise ConnectionRefusedError(answer.error[1])
        self.welcomes.append(answer)
        self.epoch = answer.epoch
        self._channel = channel
        await self._report(list(self.objects), complete=True)
        self._task = asyncio.get_running_loop().create_task(self._run(channel))

    async def stop(self) -> None:
        """Gone without a word, as when a host dies; its objects stay."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, *self._streams, return_exceptions=True)
            self._task = None
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def release(self) -> None:
        """Stop holding, and do what was held back."""
        self.holding = False
        await self._report(list(self.objects))

    async def until(self, true: Callable[[], bool], seconds: float = 5.0) -> None:
        """Ask again after every message of desired state until it is so; TimeoutError if it never is."""
        async with asyncio.timeout(seconds):
            while not true():
                await self.heard.wait()

    def facts(self) -> NodeFacts:
        return NodeFacts(
            hostname=self.name,
            architecture=self.architecture,
            capacity=self.capacity,
            tunnel_ip=self.tunnel_ip,
            accelerator=Accelerator(kind="fake", reason="scripted"),
            agent_version="test",
            datapath="fake",
            boot_id="boot-1",
            gpus=self.gpus,
        )

    async def _run(self, channel: Channel) -> None:
        beating = asyncio.get_running_loop().create_task(self._beat(channel))
        try:
            while True:
                message = await channel.receive(manager_message)
                self.epoch = max(self.epoch, message.epoch)
                if isinstance(message, Desired):
                    await self._take(message)
                elif isinstance(message, Call):
                    await self._begin(channel, message)
        except OSError:
            pass
        finally:
            beating.cancel()
            await channel.close()

    async def _beat(self, channel: Channel) -> None:
        with contextlib.suppress(OSError):
            while True:
                await channel.send(Heartbeat(load=self.load))
                await asyncio.sleep(1.0)

    # --- desired state

    async def _take(self, message: Desired) -> None:
        self.messages.append(message)
        for item in message.set:
            self.objects[key_of(item)] = item
        for key in message.drop:
            dropped = self.objects.pop(key, None)
            if isinstance(dropped, DesiredDisk) and dropped.pool is not None:
                self.existing.pop(key, None)  # another node sees to it now
        self._revision = message.revision
        if not self.holding:
            await self._report([key_of(item) for item in message.set])
        self.heard.set()
        self.heard = asyncio.Event()

    async def _report(self, keys: list[str], complete: bool = False) -> None:
        if self.holding or self._channel is None:
            return
        items = [found for key in keys if (found := self._do(key)) is not None]
        await self._channel.send(Report(items=tuple(items), network_revision=self._revision, complete=complete))

    async def say(self, *items: Observed) -> None:
        """Report anything at all."""
        assert self._channel is not None
        await self._channel.send(Report(items=items, network_revision=self._revision))

    def _do(self, key: str) -> Observed | None:
        if key in self.override:
            return self.override[key]
        item = self.objects.get(key)
        if isinstance(item, DesiredStore):
            return self.stores(item)
        if isinstance(item, DesiredVm):
            state = {"on": "running", "off": "stopped", "absent": "absent"}[item.power]
            more: dict[str, Any] = {"cpus": item.cpus, "memory_mib": item.memory_mib, "dropped": item.leftovers}
        elif isinstance(item, DesiredDisk):
            taken = tuple((kept.id, item.size_mib) for kept in item.snapshots if not kept.absent)
            state, more = ("absent" if item.absent else "ready"), {"used_mib": 1, "snapshots": taken}
        elif isinstance(item, DesiredPort) and item.node_id == self.id:
            state, more = ("absent" if item.absent else "ready"), {}
        else:
            return None
        if state == "absent":
            self.existing.pop(key, None)
        else:
            self.existing[key] = state
        return Observed(key=key, generation=item.generation, state=state, settled=True, **more)

    # --- calls

    async def _begin(self, channel: Channel, call: Call) -> None:
        """What takes its time does not hold up what comes after it."""
        if not inspect.iscoroutinefunction(self.answers.get(call.method)):
            await self._answer(channel, call)
            return
        task = asyncio.get_running_loop().create_task(self._answer(channel, call))
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)

    async def _answer(self, channel: Channel, call: Call) -> None:
        try:
            if call.method == "open":
                self._open(call.params)
                reply = Reply(call=call.call, result={})
            else:
                if call.method not in self.answers:
                    raise CloudError(ErrorKind.NOT_FOUND, f"this node has no method '{call.method}'")
                result = self.answers[call.method](call.params)
                reply = Reply(call=call.call, result=await result if inspect.isawaitable(result) else result)
        except CloudError as error:
            reply = Reply(call=call.call, error=(error.kind.value, error.message))
        await channel.send(reply)

    def _inventory(self) -> dict[str, Any]:
        by_kind = {kind: tuple(k for k in self.existing if k.startswith(kind)) for kind in ("vm/", "disk/", "port/")}
        running = tuple(key for key in by_kind["vm/"] if self.existing[key] == "running")
        disks = [item for item in self.objects.values() if isinstance(item, DesiredDisk) and item.pool is not None]
        shared = [f"disk/{item.id}" for item in disks if f"disk/{item.id}" in self.existing]
        shared += [f"snapshot/{kept.id}" for item in disks for kept in item.snapshots if not kept.absent]
        local = tuple(key for key in by_kind["disk/"] if key not in shared)
        return {
            "domains": by_kind["vm/"],
            "running": running,
            "disks": local,
            "ports": by_kind["port/"],
            "pool_disks": (*shared, *self.in_pools),
            "pool_left": self.pool_left,
        }

    def _figures(self, params: dict[str, Any]) -> Any:
        if self.existing.get(f"vm/{params['vm']}") != "running":
            return None
        return VmFigures(vm=params["vm"], cpu_seconds=1.5, memory_mib=256).model_dump()

    def _open(self, params: dict[str, Any]) -> None:
        task = asyncio.get_running_loop().create_task(self._stream(params["stream"]))
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)

    async def _stream(self, name: str) -> None:
        """Dials back and echoes in capitals."""
        channel = await self._listener.dial(self.id, self.conditions)
        await channel.send(StreamHello(stream=name))
        try:
            while data := await channel.read():
                await channel.write(data.upper())
        except OSError:
            pass
        finally:
            await channel.close()
