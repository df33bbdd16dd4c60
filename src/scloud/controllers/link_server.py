"""The manager's end of the link: takes connections, decides by the first frame what each is for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from pydantic import TypeAdapter

from scloud.controllers import node_removal
from scloud.controllers.manager import Manager
from scloud.controllers.sessions import Session
from scloud.link.channel import Channel
from scloud.link.pki import MANAGER_NAME
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind
from scloud.model.wire import (
    WAS_REMOVED,
    Beat,
    CaAnswer,
    CaRequest,
    Enroll,
    Enrolled,
    FetchHello,
    FirstMessage,
    Heartbeat,
    Hello,
    Refused,
    Removed,
    Reply,
    Report,
    StreamHello,
    Welcome,
    agent_message,
)
from scloud.store import tokens
from scloud.store.database import Tx
from scloud.store.lease import managers
from scloud.store.resources import find

log = logging.getLogger(__name__)
first_message: TypeAdapter[Hello | StreamHello | FetchHello | Enroll | CaRequest] = TypeAdapter(FirstMessage)
FIRST_FRAME_S = 15.0
BEAT_S = 2.0
STREAM_S = 15.0
MAX_WAITING = 64
"""Messages of one node that wait to be taken in; then no more are read."""


class Authority(Protocol):
    """Issues node certificates."""

    @property
    def ca(self) -> str: ...

    def issue(self, node: str, csr: str) -> str: ...


Inbox = asyncio.Queue[Report | Reply]
ImageSender = Callable[[Channel, str], Awaitable[None]]
"""Sends one image over a channel, or raises CloudError before the first byte."""


def _was_removed(tx: Tx, peer: str) -> bool:
    """FORBIDDEN if it is no node, and nobody is known to have said that it is to be one no more."""
    node = find(tx, peer)
    if node is not None and node.kind == Kind.NODE:
        return False
    if node_removal.was_removed(tx, peer):
        return True
    raise CloudError(ErrorKind.FORBIDDEN, "this cloud does not know this node; join it anew")


class LinkServer:
    """`handle` serves one accepted channel until it ends."""

    def __init__(self, manager: Manager, authority: Authority, send_image: ImageSender) -> None:
        self._manager = manager
        self._authority = authority
        self._send_image = send_image
        self._streams: dict[str, asyncio.Future[tuple[Channel, asyncio.Event]]] = {}

    async def handle(self, channel: Channel) -> None:
        try:
            async with asyncio.timeout(FIRST_FRAME_S):
                first = await channel.receive(first_message)
            await self._serve(channel, first)
        except CloudError as error:
            log.info("a connection of %s was refused: %s", channel.peer or "somebody unknown", error.message)
            await channel.send(Refused(error=(error.kind, error.message)))
        except TimeoutError:
            log.info("a connection said nothing for %.0f s", FIRST_FRAME_S)

    async def _serve(self, channel: Channel, first: Hello | StreamHello | FetchHello | Enroll | CaRequest) -> None:
        if isinstance(first, CaRequest):
            await channel.send(CaAnswer(ca=self._authority.ca))
            async with asyncio.timeout(FIRST_FRAME_S):
                again = await channel.receive(first_message)
            await self._serve(channel, again)
            return
        if isinstance(first, Enroll):
            await self._enroll(channel, first)
            return
        if not channel.peer:
            raise CloudError(ErrorKind.UNAUTHENTICATED, "the link takes only nodes with a certificate; join first")
        if channel.peer == MANAGER_NAME and isinstance(first, FetchHello):
            await self._send_image(channel, first.image)  # a standby keeps copies
            return
        if await self._manager.store.read(lambda tx: _was_removed(tx, channel.peer)):
            if not isinstance(first, Hello):
                raise CloudError(ErrorKind.FORBIDDEN, WAS_REMOVED)
            log.info("node %s was removed from the cloud, and is told so", channel.peer)
            await channel.send(Removed(epoch=self._manager.epoch))
            return
        if isinstance(first, Hello):
            await self._control(channel, first)
        elif isinstance(first, StreamHello):
            await self._stream(channel, first)
        else:
            await self._send_image(channel, first.image)

    async def _enroll(self, channel: Channel, request: Enroll) -> None:
        def check(tx: Tx) -> None:
            token = tokens.find(tx, request.secret, purpose="join")
            node = find(tx, request.node)
            if token is None or node is None or token.account != request.node or node.kind != Kind.NODE:
                raise CloudError(
                    ErrorKind.UNAUTHENTICATED, "this join token is unknown, used or out of date; ask for a new one"
                )
            tokens.revoke(tx, token.id, None)

        # The certificate comes first: a request that cannot be signed does not cost the token.
        certificate = self._authority.issue(request.node, request.csr)
        await self._manager.store.write(check)
        await channel.send(Enrolled(certificate=certificate, ca=self._authority.ca))

    async def _control(self, channel: Channel, hello: Hello) -> None:
        manager = self._manager
        if hello.epoch > manager.epoch:
            raise CloudError(
                ErrorKind.CONFLICT,
                f"the node has heard of a newer leader (epoch {hello.epoch}, mine is {manager.epoch})",
            )
        session = Session(channel.peer, channel, manager.directory, manager.epoch, hello.facts, manager.revisions)
        await channel.send(Welcome(epoch=manager.epoch, node=channel.peer, managers=await self._managers()))
        log.info("node %s connected", channel.peer)
        refused: list[CloudError] = []
        try:
            async with asyncio.TaskGroup() as group:
                inbox: Inbox = asyncio.Queue(MAX_WAITING)
                receiving = group.create_task(self._receive(channel, session, inbox))
                taking = group.create_task(self._take(session, inbox))
                await manager.connected(session, hello.have)
                sending = group.create_task(session.send_forever())
                beating = group.create_task(self._beat(channel))
                await receiving
                for task in (taking, sending, beating):
                    task.cancel()
        except* OSError:
            pass
        except* CloudError as errors:
            refused += [error for error in errors.exceptions if isinstance(error, CloudError)]
        finally:
            manager.disconnected(session)
            log.info("node %s disconnected", channel.peer)
        if refused:
            raise refused[0]

    async def _managers(self) -> tuple[str, ...]:
        """Where the links of all managers are, the leader's first; none where there can be but one."""
        if not self._manager.store.has_rivals:
            return ()
        return tuple(holder.link for _, holder in await self._manager.store.read(managers))

    async def _beat(self, channel: Channel) -> None:
        while True:
            await channel.send(Beat(epoch=self._manager.epoch))
            await asyncio.sleep(BEAT_S)

    async def _receive(self, channel: Channel, session: Session, inbox: Inbox) -> None:
        """A heartbeat is heard at once, all else in its order.

        What is written to the database of a busy manager takes its time, and the node is not silent meanwhile.
        """
        loop = asyncio.get_running_loop()
        try:
            while not session.closed:
                message = await channel.receive(agent_message)
                session.last_heard = loop.time()
                if isinstance(message, Heartbeat):
                    session.hear_load(message.load)
                elif isinstance(message, Report | Reply):
                    await inbox.put(message)
        except OSError:
            await inbox.join()  # what it said before it left counts
            raise

    async def _take(self, session: Session, inbox: Inbox) -> None:
        """For ever. When the node's next connection is there, what is left of this one is old, and counts no more."""
        while True:
            message = await inbox.get()
            if session.closed:
                pass
            elif isinstance(message, Report):
                await self._manager.report(session.node, message.items)
                session.hear(message)
            else:
                session.answer(message)
            inbox.task_done()

    # --- streams

    async def open_stream(self, node: str | None, what: str, **params: object) -> tuple[Channel, asyncio.Event]:
        """Ask a node to dial back with a stream. Set the event when done with the channel."""
        session = self._manager.sessions.need(node, what)
        name = await self._manager.store.read(lambda tx: tx.new_id("str"))
        future: asyncio.Future[tuple[Channel, asyncio.Event]] = asyncio.get_running_loop().create_future()
        self._streams[name] = future
        try:
            await session.call("open", STREAM_S, stream=name, **params)
            async with asyncio.timeout(STREAM_S):
                return await future
        except TimeoutError as error:
            raise CloudError(ErrorKind.TIMED_OUT, f"{what}: the node did not open the stream in time") from error
        finally:
            self._streams.pop(name, None)

    async def _stream(self, channel: Channel, hello: StreamHello) -> None:
        future = self._streams.get(hello.stream)
        if future is None or future.done():
            raise CloudError(ErrorKind.NOT_FOUND, "nobody waits for this stream any more")
        finished = asyncio.Event()
        future.set_result((channel, finished))
        await finished.wait()
