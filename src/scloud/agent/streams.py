"""Byte streams that the manager asks for: a VM's console, or a TCP port of a VM reached from inside its VPC."""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import Coroutine

from scloud.agent.console import HISTORY, Consoles, read_log
from scloud.agent.deadlines import DEADLINES_S, within
from scloud.agent.journal import Journal
from scloud.agent.splice import splice
from scloud.agent.vms import VmSettings
from scloud.drivers.netfunc.protocol import NetworkFunctions
from scloud.link.channel import Channel, Dialer
from scloud.model.desired import DesiredPort, DesiredVm
from scloud.model.errors import CloudError, ErrorKind, invalid, not_found
from scloud.model.wire import StreamHello

MAX_STREAMS = 256
PIECE = 64 * 1024
TRY_S = 1.0


class Streams:
    """`open` connects to the target first, so that its failure is the answer; then the link is dialled and joined."""

    def __init__(
        self, dial: Dialer, functions: NetworkFunctions, journal: Journal, consoles: Consoles, settings: VmSettings
    ) -> None:
        self._dial = dial
        self._functions = functions
        self._journal = journal
        self._consoles = consoles
        self._settings = settings
        self._tasks: set[asyncio.Task[None]] = set()
        self._ports: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)
        """By VM: the streams to its TCP ports."""

    async def open(self, stream: str, kind: str, vm: str, port: int | None) -> None:
        """Return when bytes flow. `CloudError` says why they cannot."""
        desired = self._journal.desired.get(f"vm/{vm}")
        if not isinstance(desired, DesiredVm):
            raise not_found("vm", vm)
        if len(self._tasks) >= MAX_STREAMS:
            raise CloudError(ErrorKind.UNAVAILABLE, f"the node has {MAX_STREAMS} streams open already; close some")
        if kind == "console":
            await self._consoles.open(vm, self._settings.socket_of(vm))
            history = await asyncio.to_thread(read_log, self._settings.log_of(vm), HISTORY)
            channel = await self._call_back(stream)
            self._keep(self._show(vm, history, channel))
        elif kind == "tcp":
            if port is None or not 1 <= port <= 65535:
                raise invalid("port", "must be between 1 and 65535")
            connection = await self._connect(desired, port)
            try:
                channel = await self._call_back(stream)
                reader, writer = await asyncio.open_connection(sock=connection)
            except BaseException:
                connection.close()
                raise
            task = self._keep(splice(channel, reader, writer, PIECE))
            self._ports[vm].add(task)
            task.add_done_callback(self._ports[vm].discard)
        else:
            raise invalid("kind", "must be console or tcp")

    def guest_gone(self, vm: str) -> None:
        """The VM does not run here any more. It said no goodbye, so whoever waits for its bytes would wait for ever."""
        for task in self._ports.pop(vm, ()):
            asyncio.get_running_loop().call_soon(task.cancel)  # not before it has begun: it closes its ends itself

    async def close(self) -> None:
        """End every stream."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._consoles.close()

    async def _call_back(self, stream: str) -> Channel:
        try:
            channel = await within("connect", "dialling the manager", self._dial())
            await channel.send(StreamHello(stream=stream))
        except OSError as error:
            raise CloudError(ErrorKind.UNAVAILABLE, f"the manager cannot be dialled for a stream: {error}") from error
        return channel

    async def _connect(self, vm: DesiredVm, port: int) -> socket.socket:
        """To the first of the VM's nics that answers.

        Tried anew each second: the kernel itself would wait longer and longer with a guest that is just booting.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DEADLINES_S["connect"]
        while True:
            try:
                return await self._try(vm, port)
            except CloudError as error:
                if error.kind != ErrorKind.TIMED_OUT or loop.time() >= deadline:
                    raise

    async def _try(self, vm: DesiredVm, port: int) -> socket.socket:
        problem = CloudError(ErrorKind.CONFLICT, f"vm '{vm.name}' has no nic; attach one")
        for nic in vm.nics:
            item = self._journal.desired.get(f"port/{nic}")
            if not isinstance(item, DesiredPort) or item.absent:
                continue
            try:
                return await self._functions.connect(item.vpc, item.ip, port, TRY_S)
            except CloudError as error:
                problem = error
        raise problem

    async def _show(self, vm: str, history: bytes, channel: Channel) -> None:
        try:
            await self._consoles.view(vm, history, channel)
        finally:
            await channel.close()

    def _keep(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
