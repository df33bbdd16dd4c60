"""The work items `drain/NODE` and `rebalance/CLUSTER`: each look is planned from a reading, and carried out in one
transaction that checks again. What is to be looked at again says so with a new work item."""

from __future__ import annotations

from collections.abc import Callable

from scloud.controllers.placement import Loads
from scloud.controllers.rebalancing import Rebalancing, rebalancing
from scloud.controllers.relocation import drain, rebalance
from scloud.model.specs import ClusterSpec
from scloud.store import operations, relocations
from scloud.store.database import Store, Tx
from scloud.store.resources import find

CALM = 10


class Relocator:
    """`look_s` is the time between two looks while there is something to do; ten times that while there is not."""

    def __init__(self, store: Store, loads: Callable[[], Loads], look_s: float) -> None:
        self._look_s = look_s
        self._store = store
        self._loads = loads

    async def drain(self, node: str) -> None:
        loads = self._loads()
        seen = await self._store.read(lambda tx: drain.look(tx, node, loads))
        if seen is None:
            return

        def write(tx: Tx) -> None:
            after = drain.carry_out(tx, node, seen, loads)
            if after is not None:
                calm = after.state != "moving"
                operations.enqueue(tx, f"drain/{node}", delay=CALM * self._look_s if calm else self._look_s)

        await self._store.write(write)

    async def rebalance(self, cluster: str) -> None:
        loads = self._loads()
        if await self._store.read(lambda tx: _is_due(tx, cluster)):
            found = await self._store.read(lambda tx: _proposal(tx, cluster, loads))

            def begin(tx: Tx) -> None:
                row = find(tx, cluster)
                if row is not None and found is not None and _is_due(tx, cluster):
                    rebalance.begin(tx, row, found, rebalance.SCHEDULE)

            await self._store.write(begin)
        await self._store.write(lambda tx: self._carry_on(tx, cluster, loads))

    def _carry_on(self, tx: Tx, cluster: str, loads: Loads) -> None:
        run = rebalance.carry_on(tx, cluster, loads)
        at = tx.now + self._look_s if run is not None and run.open else rebalance.next_due(tx, cluster)
        if at is not None:
            operations.enqueue(tx, f"rebalance/{cluster}", delay=max(self._look_s, at - tx.now))


def _is_due(tx: Tx, cluster: str) -> bool:
    at = rebalance.next_due(tx, cluster)
    return at is not None and at <= tx.now and relocations.open_of(tx, "rebalance", cluster) is None


def _proposal(tx: Tx, cluster: str, loads: Loads) -> Rebalancing | None:
    row = find(tx, cluster)
    return rebalancing(tx, row, loads, row.spec_as(ClusterSpec).relocation.rebalance_moves) if row is not None else None
