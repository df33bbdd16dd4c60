"""The control connection: dial, greet, then take what is desired and tell what is so, until it breaks; and again."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from pydantic_core import to_jsonable_python

from scloud.agent.board import Board
from scloud.agent.deadlines import within
from scloud.agent.journal import Journal
from scloud.link.channel import Channel, Dialer
from scloud.link.digest import digest_of
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import NodeFacts, NodeLoad
from scloud.model.wire import (
    WAS_REMOVED,
    Beat,
    Call,
    Desired,
    Heartbeat,
    Hello,
    Refused,
    Removed,
    Reply,
    Report,
    Welcome,
    manager_message,
    welcome_answer,
)

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 5.0
HEALTHY_AFTER_S = 10.0
"""A connection that lasted this long is dialled anew without delay."""
SILENCE_S = 6.0
"""A manager that beats, and then says nothing for so long, hangs."""
MAX_CALLS = 64
MAX_ITEMS = 5000
"""Observed objects in one report."""


class Taker(Protocol):
    """Who acts on what is desired."""

    async def take(self, message: Desired) -> None: ...

    def new_connection(self) -> None: ...

    def out_of_the_cloud(self) -> None:
        """The node was taken out of it: what runs here is nobody's."""
        ...


class KnowsManagers(Protocol):
    """Who knows where managers are."""

    def learn(self, addresses: tuple[str, ...]) -> None: ...

    def failed(self) -> None: ...


CallHandler = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Answers (method, params) with something JSON can say, or raises CloudError."""


class Session:
    """`run` until cancelled. `connected` is set while the manager has welcomed this node."""

    def __init__(
        self,
        node: str,
        dial: Dialer,
        facts: Callable[[], Awaitable[NodeFacts]],
        load: Callable[[], NodeLoad],
        journal: Journal,
        board: Board,
        taker: Taker,
        calls: CallHandler,
        managers: KnowsManagers | None = None,
    ) -> None:
        self._node = node
        self._dial = dial
        self._facts = facts
        self._load = load
        self._journal = journal
        self._board = board
        self._taker = taker
        self._calls = calls
        self._managers = managers
        self._answering: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """Connect, serve, and connect again, for ever."""
        try:
            await self._run()
        finally:
            await asyncio.gather(*self._closing, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        tries = 0
        while True:
            began = loop.time()
            try:
                await self._once()
            except (OSError, CloudError) as error:
                log.info("no manager: %s", error)
            except Exception:
                log.exception("a defect of the agent ended its connection")
            if self._managers is not None:
                self._managers.failed()
            tries = 0 if loop.time() - began > HEALTHY_AFTER_S else tries + 1
            if tries:
                await asyncio.sleep(self._backoff(tries))

    def _backoff(self, tries: int) -> float:
        """Longer each time, and different for each node, so that a thousand do not come at once."""
        spread = zlib.crc32(f"{self._node} {tries}".encode()) / 2**32
        delay = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(tries - 1, 10))
        return delay * (0.5 + spread)

    async def _once(self) -> None:
        channel = await within("connect", "dialling the manager", self._dial())
        try:
            welcome = await within("connect", "greeting the manager", self._greet(channel))
            self._check_epoch(welcome.epoch)
            await self._journal.see_epoch(welcome.epoch)
            if self._managers is not None:
                self._managers.learn(welcome.managers)
            self._taker.new_connection()
            log.info("connected to the manager, epoch %d", welcome.epoch)
            self.connected.set()
            await self._serve(channel)
        finally:
            self.connected.clear()
            for task in self._answering:
                task.cancel()
            # Beside what comes next: a manager that is gone answers no goodbye, and another may wait to be dialled.
            closing = asyncio.get_running_loop().create_task(channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _greet(self, channel: Channel) -> Welcome:
        have = {key: digest_of(item) for key, item in self._journal.desired.items()}
        await channel.send(Hello(facts=await self._facts(), epoch=self._journal.epoch, have=have))
        answer = await channel.receive(welcome_answer)
        if isinstance(answer, Removed):
            self._check_epoch(answer.epoch)
            self._taker.out_of_the_cloud()
            raise CloudError(ErrorKind.FORBIDDEN, WAS_REMOVED)
        if isinstance(answer, Refused):
            raise CloudError(ErrorKind(answer.error[0]), answer.error[1])
        if answer.node != self._node:
            raise CloudError(ErrorKind.FORBIDDEN, f"the manager takes this node for {answer.node}; enrol it anew")
        return answer

    def _check_epoch(self, epoch: int) -> None:
        if epoch < self._journal.epoch:
            raise CloudError(
                ErrorKind.CONFLICT, f"a manager of epoch {epoch} spoke, and epoch {self._journal.epoch} has been seen"
            )

    async def _serve(self, channel: Channel) -> None:
        tasks = [
            asyncio.ensure_future(part) for part in (self._hear(channel), self._beat(channel), self._tell(channel))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _hear(self, channel: Channel) -> None:
        beats = False
        while True:
            try:
                async with asyncio.timeout(SILENCE_S if beats else None):
                    message = await channel.receive(manager_message)
            except TimeoutError as error:
                raise ConnectionError(f"the manager has said nothing for {SILENCE_S:g} s") from error
            if isinstance(message, Refused):  # welcomed, and then there was something that it cannot be let in with
                raise CloudError(ErrorKind(message.error[0]), message.error[1])
            self._check_epoch(message.epoch)
            beats = beats or isinstance(message, Beat)
            if isinstance(message, Desired):
                await self._journal.see_epoch(message.epoch)
                await self._taker.take(message)
            elif isinstance(message, Call):
                if len(self._answering) >= MAX_CALLS:
                    busy = (ErrorKind.UNAVAILABLE.value, "the node is answering too many questions; try again")
                    await channel.send(Reply(call=message.call, error=busy))
                    continue
                task = asyncio.get_running_loop().create_task(self._answer(channel, message))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)

    async def _answer(self, channel: Channel, call: Call) -> None:
        """Calls never wait for each other, nor does desired state for them."""
        try:
            result = await self._calls(call.method, call.params)
            reply = Reply(call=call.call, result=to_jsonable_python(result))
        except CloudError as error:
            reply = Reply(call=call.call, error=(error.kind.value, error.message))
        except Exception as error:
            log.exception("call %s failed", call.method)
            reply = Reply(call=call.call, error=(ErrorKind.INTERNAL.value, f"{call.method}: {error}"))
        try:
            await channel.send(reply)
        except OSError:
            pass  # the connection's end is seen by whoever reads from it

    async def _beat(self, channel: Channel) -> None:
        while True:
            await channel.send(Heartbeat(load=self._load()))
            await asyncio.sleep(HEARTBEAT_S)

    async def _tell(self, channel: Channel) -> None:
        items, complete = self._board.everything(), True
        while True:
            revision = self._board.network_revision
            for start in range(0, max(1, len(items)), MAX_ITEMS):
                last = start + MAX_ITEMS >= len(items)
                part = items[start : start + MAX_ITEMS]
                await channel.send(Report(items=part, network_revision=revision, complete=complete and last))
            complete = False
            await self._board.changed.wait()
            items = self._board.news()
