"""The way that a VM takes between two nodes: their agents speak mutual TLS, and hand its bytes on.

At the target one port is open while a VM is expected. Whoever connects shows a node's certificate of this cloud, says
which VM it brings, and is sent away unless the manager told this node that the VM comes from that very node. At the
source the other end is UNIX sockets, which the local hypervisor uses as if they were the target's.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scloud.agent.enroll import address_of
from scloud.agent.splice import splice
from scloud.drivers.hypervisor.protocol import DomainSpec, MoveRoute
from scloud.link import channel
from scloud.link.channel import Channel
from scloud.model.connections import Connection
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.wire import (
    MoveConnections,
    MoveHello,
    MoveSpec,
    Refused,
    move_answer,
    move_connections,
    move_hello,
)

log = logging.getLogger(__name__)

FOLDER = Path("/run/libvirt/scloud")
"""On both nodes the same, and each node's own."""
LIBVIRT = Path("/run/libvirt/libvirt-sock")
WAYS = ("control", "memory", "disks")
"""What the hypervisor speaks over: fields of `MoveRoute`."""
FIRST_FRAME_S = 10.0
CHUNK = 256 * 1024


Connections = Mapping[str, Sequence[Connection]]
"""By nic."""


@dataclass(frozen=True)
class Way:
    """What a VM is to be at its target, and the sockets that lead there. `release` lets it run there: it is gone here.
    OSError if that is not heard; then the manager sees to it. After that `hand_on` tells of its nics' connections."""

    spec: DomainSpec
    route: MoveRoute
    release: Callable[[], Awaitable[None]]
    hand_on: Callable[[Connections], Awaitable[None]]


class Passages(Protocol):
    """`expect` at the target, `route` at the source. `released` is called at the target with a VM that may run, then
    `brought` with its nics' connections."""

    released: Callable[[str], Awaitable[None]]
    brought: Callable[[str, Connections], Awaitable[None]]

    async def expect(self, vm: str, source: str, spec: DomainSpec) -> str:
        """From now on the node `source` may bring this VM; IP:PORT at which. OSError."""
        ...

    async def forget(self, vm: str) -> None:
        """It is here, or will not come: what is still on its way is cut off. Nothing happens if it was not expected."""
        ...

    def route(self, vm: str, target: str, address: str) -> AbstractAsyncContextManager[Way]:
        """It leads there until the context ends. OSError, `CloudError`."""
        ...

    async def close(self) -> None: ...


async def nobody(vm: str) -> None:
    """Until an agent listens."""


async def nothing(vm: str, connections: Connections) -> None:
    """Until an agent listens."""


class NoPassages:
    """Of an agent that has none."""

    released: Callable[[str], Awaitable[None]] = staticmethod(nobody)
    brought: Callable[[str, Connections], Awaitable[None]] = staticmethod(nothing)

    async def expect(self, vm: str, source: str, spec: DomainSpec) -> str:
        raise CloudError(ErrorKind.UNAVAILABLE, "this agent takes no VMs from other nodes")

    async def forget(self, vm: str) -> None:
        return

    @asynccontextmanager
    async def route(self, vm: str, target: str, address: str) -> AsyncIterator[Way]:
        raise CloudError(ErrorKind.UNAVAILABLE, "this agent sends no VMs to other nodes")
        yield

    async def close(self) -> None:
        return


class TlsPassages:
    """`contexts` are `pki.node_contexts`; `address` is this node's, where it listens."""

    def __init__(
        self, contexts: tuple[ssl.SSLContext, ssl.SSLContext], address: Callable[[], str], folder: Path = FOLDER
    ) -> None:
        self._server_context, self._client_context = contexts
        self._address = address
        self.released: Callable[[str], Awaitable[None]] = nobody
        self.brought: Callable[[str, Connections], Awaitable[None]] = nothing
        self._folder = folder
        self._expected: dict[str, tuple[str, DomainSpec]] = {}
        self._arriving: defaultdict[str, set[asyncio.Task[object]]] = defaultdict(set)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._opening = asyncio.Lock()

    async def expect(self, vm: str, source: str, spec: DomainSpec) -> str:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._expected[vm] = (source, spec)
        async with self._opening:
            host = self._address()
            if self._server is None:
                self._server = await channel.serve(self._taken, channel.listen(host, 0), self._server_context)
                self._port = int(self._server.sockets[0].getsockname()[1])
                log.info("VMs are taken at %s:%d", host, self._port)
        return f"{host}:{self._port}"

    async def forget(self, vm: str) -> None:
        self._expected.pop(vm, None)
        under_way = self._arriving.pop(vm, set())
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        async with self._opening:
            if not self._expected and self._server is not None:
                self._server.close()
                self._server = None

    async def close(self) -> None:
        self._expected.clear()
        if self._server is not None:
            self._server.close()

    async def _taken(self, peer: Channel) -> None:
        """At the target: one connection of the source's."""
        try:
            async with asyncio.timeout(FIRST_FRAME_S):
                hello = await peer.receive(move_hello)
        except CloudError as error:
            log.warning("node %s says nothing that can be understood: %s", peer.peer or "without a name", error)
            return
        source, spec = self._expected.get(hello.vm, ("", None))
        if spec is None or peer.peer != source:
            log.warning("node %s brings %s, which is not expected from it", peer.peer or "without a name", hello.vm)
            await peer.send(Refused(error=(ErrorKind.FORBIDDEN, f"{hello.vm} is not expected here")))
            return
        if hello.way == "spec":
            await peer.send(MoveSpec(spec=spec.model_dump(mode="json")))
            return
        if hello.way == "release":
            if await peer.read(1) and hello.vm in self._expected:
                await self.released(hello.vm)
                await self.brought(hello.vm, (await peer.receive(move_connections)).of)
            return
        path = LIBVIRT if hello.way == "control" else self._socket(hello.vm, hello.way)
        # A task of its own: a VM that is not expected any more does not come, though its bytes are on their way.
        task: asyncio.Task[object] = asyncio.ensure_future(self._relay(peer, path))
        self._arriving[hello.vm].add(task)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            self._arriving[hello.vm].discard(task)

    @staticmethod
    async def _relay(peer: Channel, path: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        await splice(peer, reader, writer, CHUNK)

    def _socket(self, vm: str, way: str) -> Path:
        return self._folder / f"{vm}.{way}"

    @asynccontextmanager
    async def route(self, vm: str, target: str, address: str) -> AsyncIterator[Way]:
        peer = await self._dial(target, address)
        try:
            await peer.send(MoveHello(vm=vm, way="spec"))
            async with asyncio.timeout(FIRST_FRAME_S):
                answer = await peer.receive(move_answer)
        finally:
            await peer.close()
        if isinstance(answer, Refused):
            raise CloudError(ErrorKind.CONFLICT, f"node {target}: {answer.error[1]}")
        spec = DomainSpec.model_validate(answer.spec)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sockets = {way: self._socket(vm, way) for way in WAYS}
        tasks: set[asyncio.Task[None]] = set()

        def accept(way: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
            def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = asyncio.get_running_loop().create_task(self._lead(vm, way, target, address, reader, writer))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

            return accepted

        servers = []
        releasing = await self._dial(target, address)  # now, so that it takes no time when the guest waits for it
        try:
            await releasing.send(MoveHello(vm=vm, way="release"))
            for way, path in sockets.items():
                path.unlink(missing_ok=True)
                servers.append(await asyncio.start_unix_server(accept(way), str(path), limit=CHUNK))
            yield Way(
                spec,
                MoveRoute(**sockets),
                release=lambda: releasing.write(b"r"),
                hand_on=lambda found: releasing.send(MoveConnections(of={nic: tuple(found[nic]) for nic in found})),
            )
        finally:
            await releasing.close()
            for server in servers:
                server.close()
            for path in sockets.values():
                path.unlink(missing_ok=True)
            # What was said last is still on its way: the hypervisor has closed its ends by now.
            if tasks:
                await asyncio.wait(tasks, timeout=2)
            for task in list(tasks):
                task.cancel()

    async def _lead(
        self,
        vm: str,
        way: str,
        target: str,
        address: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            peer = await self._dial(target, address)
            try:
                await peer.send(MoveHello.model_validate({"vm": vm, "way": way}))
                await splice(peer, reader, writer, CHUNK)
            finally:
                await peer.close()
        except (OSError, CloudError) as error:
            log.warning("%s's %s connection to node %s: %s", vm, way, target, error)
        finally:
            writer.close()

    async def _dial(self, target: str, address: str) -> Channel:
        host, port = address_of(address)
        peer = await channel.dial(host, port, self._client_context)
        if peer.peer != target:
            await peer.close()
            raise CloudError(ErrorKind.FORBIDDEN, f"at {address} is {peer.peer or 'nobody'}, not node {target}")
        return peer
