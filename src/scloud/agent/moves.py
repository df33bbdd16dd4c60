"""VMs on their way from one node to another: what the agent at either end does, and what it says of it.

Neither agent decides who has the VM. The source's tries each migration once and then says what is there; the target's
says what has come; the manager, which hears both, decides (`reconcile.migration`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from scloud.agent.deadlines import within
from scloud.agent.journal import Journal
from scloud.agent.passages import Connections, Passages, Way
from scloud.drivers.hypervisor.protocol import DomainFacts, Hypervisor, MoveOptions
from scloud.model.desired import DesiredVm, MoveOut
from scloud.model.errors import CloudError
from scloud.model.migrations import MoveProgress, MoveSeen

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
"""How often a migration under way is looked at."""
POSTCOPY_AFTER = 3
"""Rounds over the memory after which a guest that may be switched to post-copy is."""
GIVE_UP_AFTER = 6
"""Rounds over the memory after which one that is still not to be paused within its limit is given up, if so asked."""
INTERRUPTED = "the node's agent was restarted meanwhile; migrate it again"


class Departures:
    """At the source. `changed` is called with the key of a VM whose migration has ended; `connections` tells those of
    nics."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        journal: Journal,
        passages: Passages,
        changed: Callable[[str], None],
        connections: Callable[[Iterable[str]], Awaitable[Connections]],
    ) -> None:
        self._connections = connections
        self._hypervisor = hypervisor
        self._journal = journal
        self._passages = passages
        self._changed = changed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._errors: dict[str, str] = {}
        self._postcopied: set[str] = set()

    async def look(self, vm: DesiredVm, move: MoveOut, facts: DomainFacts | None) -> MoveSeen:
        """Begin it, go on with it, or say how it ended."""
        task = self._tasks.get(vm.id)
        if task is None and self._journal.memory(vm.id).migration < move.number:
            memory = self._journal.memory(vm.id).model_copy(update={"migration": move.number})
            await self._journal.remember(vm.id, memory)
            self._errors.pop(vm.id, None)
            if move.cancel:
                self._errors[vm.id] = "cancelled"
            elif facts is None or not facts.running or facts.paused:
                self._errors[vm.id] = "it was not running any more"
            else:
                task = asyncio.get_running_loop().create_task(self._go(vm, move), name=f"move {vm.id}")
                self._tasks[vm.id] = task
        if task is not None and not task.done():
            return await self._under_way(vm, move)
        self._tasks.pop(vm.id, None)
        self._postcopied.discard(vm.id)
        return await self._ended(vm, move, await self._hypervisor.show(vm.id))

    async def _go(self, vm: DesiredVm, move: MoveOut) -> None:
        options = MoveOptions(
            copies=frozenset(move.copies),
            bandwidth_mib_s=move.bandwidth_mib_s,
            downtime_ms=move.downtime_ms,
            stuck=move.stuck,
        )
        try:
            async with self._passages.route(vm.id, move.target, move.address) as way:

                async def gone() -> None:
                    self._errors[vm.id] = ""
                    try:
                        await way.release()
                    except OSError as error:  # the manager lets it run there
                        log.warning("telling node %s that %s may run: %s", move.target, vm.id, error)
                        return
                    await self._hand_on(vm, way)

                await self._hypervisor.move(vm.id, way.spec, way.route, options, gone)
        except (CloudError, OSError) as error:
            log.warning("moving %s to node %s: %s", vm.id, move.target, error)
            self._errors.setdefault(vm.id, str(error) or type(error).__name__)
        finally:
            self._changed(f"vm/{vm.id}")

    async def _hand_on(self, vm: DesiredVm, way: Way) -> None:
        """It runs at the target by now. Without this, a connection in which it is silent may stand still there."""
        try:
            await way.hand_on(await self._connections(vm.nics))
        except (OSError, CloudError) as error:
            log.warning("the connections of %s are not handed on: %s", vm.id, error)

    async def _under_way(self, vm: DesiredVm, move: MoveOut) -> MoveSeen:
        if move.cancel:
            await within("query", f"stopping the migration of {vm.id}", self._hypervisor.cancel_move(vm.id))
        try:
            progress = await within("query", f"asking how far {vm.id} is", self._hypervisor.move_progress(vm.id))
        except CloudError:
            progress = None  # it may be gone by now: its task knows
        rounds = progress.iteration if progress is not None else 0
        if move.stuck == "post-copy" and rounds > POSTCOPY_AFTER and vm.id not in self._postcopied:
            self._postcopied.add(vm.id)
            await within("query", f"switching {vm.id} to post-copy", self._hypervisor.switch_to_postcopy(vm.id))
        if progress is not None and (why := hopeless(move, progress)):
            self._errors.setdefault(vm.id, why)
            await within("query", f"giving up the migration of {vm.id}", self._hypervisor.cancel_move(vm.id))
        return MoveSeen(number=move.number, state="copying", progress=progress)

    async def _ended(self, vm: DesiredVm, move: MoveOut, facts: DomainFacts | None) -> MoveSeen:
        """What is here now; why it did not leave is what the engine said, if this agent was there to hear it."""
        reason = self._errors.get(vm.id, INTERRUPTED)
        if facts is not None and facts.halved:
            # The engine's job goes on, and gets nowhere without this agent's sockets.
            return MoveSeen(number=move.number, state="held", reason=reason)
        if facts is not None and facts.running:
            busy = await within("query", f"asking how far {vm.id} is", self._hypervisor.move_progress(vm.id))
            if busy is not None:  # begun by an agent that is no more: its sockets went with it
                await within("query", f"stopping the migration of {vm.id}", self._hypervisor.cancel_move(vm.id))
                return MoveSeen(number=move.number, state="copying", progress=busy)
            if facts.moving:
                return MoveSeen(number=move.number, state="held", reason=reason)
            return MoveSeen(number=move.number, state="stays", reason=reason)
        if facts is not None and facts.off_reason in ("guest", "crashed", "requested"):
            return MoveSeen(number=move.number, state="stays", reason=reason or "the guest is switched off")
        return MoveSeen(number=move.number, state="gone" if reason else "left", reason=reason)

    async def drop(self, vm: str) -> None:
        """The manager has decided: whatever is still under way is ended."""
        task = self._tasks.pop(vm, None)
        self._errors.pop(vm, None)
        if task is not None and not task.done():
            await within("query", f"stopping the migration of {vm}", self._hypervisor.cancel_move(vm))
            await asyncio.wait([task], timeout=10)
            task.cancel()

    async def close(self) -> None:
        """The engine is left alone; the sockets go with this agent, and the migration breaks off by itself."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def hopeless(move: MoveOut, at: MoveProgress) -> str:
    """Why a migration that is to be given up does not end; "" if it may yet, or is to go on."""
    pause = at.downtime_ms
    if move.stuck != "give-up" or at.iteration <= GIVE_UP_AFTER or pause is None or pause <= move.downtime_ms:
        return ""
    return (
        f"the guest writes faster than is copied: after {at.iteration - 1} rounds {at.remaining_mib} of {at.total_mib} "
        f"MiB are left, at {at.rate_mib_s} MiB/s copied and {at.dirty_mib_s} MiB/s written; it would pause {pause} ms, "
        f"and may {move.downtime_ms} ms. Give it more bandwidth or a longer pause (`--downtime`), or choose "
        "`--stuck auto-converge` or `post-copy`"
    )


def arrival(number: int, facts: DomainFacts | None) -> MoveSeen | None:
    """At the target: what has come, if anything has. A domain that is off here has run here: it is defined last."""
    if facts is None:
        return None
    if facts.running and facts.moving:
        return MoveSeen(number=number, state="arriving")
    return MoveSeen(number=number, state="complete" if facts.running and facts.complete else "arrived")
