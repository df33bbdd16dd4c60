"""What the manager has a node do about another one, or about itself, when a node is lost or returns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from scloud.agent.deadlines import within
from scloud.agent.stores import Stores
from scloud.drivers.bmc.protocol import Bmc, BmcAccess
from scloud.drivers.probe.protocol import Prober
from scloud.drivers.storage.protocol import Storage
from scloud.model.base import Value
from scloud.model.desired import DesiredStore
from scloud.model.errors import CloudError, ErrorKind, invalid

Params = Mapping[str, Any]
V = TypeVar("V", bound=Value)


class Evicting(Protocol):
    async def evict(self, vms: Iterable[str]) -> list[str]: ...


class ProbeAsk(Value):
    addresses: tuple[str, ...]
    count: int
    interval_s: float


class FenceAsk(Value):
    """`pools` are ids of all pools of one cluster, in which `node` is cut off."""

    node: str
    pools: tuple[str, ...]


class UnfenceAsk(Value):
    """`store` is the cluster with its pools, as whoever administers it reaches it: a node has to be let in although no
    other has a key that is taken."""

    node: str
    store: DesiredStore


class EvictAsk(Value):
    vms: tuple[str, ...]


class HaCalls:
    def __init__(self, prober: Prober, bmc: Bmc, stores: Stores, evicting: Evicting) -> None:
        self._prober = prober
        self._bmc = bmc
        self._stores = stores
        self._evicting = evicting
        self.methods: dict[str, Callable[[Params], Awaitable[Any]]] = {
            "probe": self._probe,
            "fence": self._fence,
            "unfence": self._unfence,
            "evict": self._evict,
            "power": self._power,
        }

    async def _probe(self, params: Params) -> dict[str, int]:
        """How many probes each address answered."""
        ask = _read(ProbeAsk, params)
        return await self._prober.probe(ask.addresses, ask.count, ask.interval_s)

    def _pools(self, ask: FenceAsk) -> list[Storage]:
        """Opened all: a node is cut off from those that its driver knows."""
        return [self._stores.of(pool) for pool in ask.pools]

    async def _fence(self, params: Params) -> Any:
        """Returns when the node writes to none of the pools any more."""
        ask = _read(FenceAsk, params)
        for storage in self._pools(ask)[:1]:
            await within("fence", f"cutting node {ask.node} off", storage.fence(ask.node))
        return {}

    async def _unfence(self, params: Params) -> Any:
        ask = _read(UnfenceAsk, params)
        async with self._stores.beside(ask.store) as pools:
            for storage in pools[:1]:
                await within("fence", f"letting node {ask.node} in", storage.unfence(ask.node))
        return {}

    async def _evict(self, params: Params) -> list[str]:
        """Returns when none of these VMs is left on this node; keys that it has to be told anew to have them back."""
        return await self._evicting.evict(_read(EvictAsk, params).vms)

    async def _power(self, params: Params) -> Any:
        """Switch another machine off by its BMC; returns when the BMC says that it is off."""
        access = _read(BmcAccess, params)
        await within("fence", f"switching the machine at {access.url} off", self._bmc.power_off(access))
        return {}


class NoBmc:
    async def power_off(self, access: BmcAccess) -> None:
        raise CloudError(ErrorKind.UNAVAILABLE, "this node cannot reach BMCs")


def _read(type_: type[V], params: Params) -> V:
    try:
        return type_.model_validate(dict(params))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise invalid(".".join(map(str, first["loc"])) or "params", str(first["msg"])) from None
