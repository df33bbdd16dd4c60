"""What the agent knows when it starts: desired objects, what it remembers of VMs, port numbers, what nics have brought,
the highest epoch.

The file is an append-only log of JSON lines, flushed to disk once for all that came together, and rewritten when most
of it is out of date. A process killed in the middle of a write leaves a torn last line, which is cut off when it is
read.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import orjson
from pydantic import TypeAdapter, ValidationError

from scloud.model.connections import Brought
from scloud.model.desired import (
    DesiredDisk,
    DesiredGroup,
    DesiredObject,
    DesiredPort,
    DesiredStore,
    DesiredVm,
    DesiredVpc,
    key_of,
)
from scloud.model.errors import CloudError, ErrorKind
from scloud.reconcile.memory import FRESH, VmMemory

log = logging.getLogger(__name__)

AnyDesired = DesiredVpc | DesiredGroup | DesiredPort | DesiredDisk | DesiredVm | DesiredStore
desired_object: TypeAdapter[AnyDesired] = TypeAdapter(DesiredObject)

FIRST_OFPORT = 10
"""Lower numbers are the switch's own: 1 is the tunnel."""
LAST_OFPORT = 0xFEFF
"""OpenFlow reserves the numbers above. The number is the nic's conntrack zone too, which has 16 bits."""


class Journal(Protocol):
    """Reads are at once, from memory. Writes return when what they wrote survives a crash, or raise `CloudError`."""

    @property
    def desired(self) -> Mapping[str, AnyDesired]: ...

    @property
    def epoch(self) -> int:
        """Highest epoch of a manager ever seen."""
        ...

    @property
    def ofports(self) -> Mapping[str, int]:
        """Switch port numbers by owner's key."""
        ...

    def memory(self, vm: str) -> VmMemory: ...

    async def apply(self, items: Iterable[AnyDesired], drop: Iterable[str]) -> None:
        """Set and forget desired objects, all together. What is remembered of a dropped VM goes with it."""
        ...

    async def remember(self, vm: str, memory: VmMemory) -> None: ...

    def brought(self, nic: str) -> Brought | None:
        """The connections that a nic came with; forgotten when its port number is free."""
        ...

    async def bring(self, nic: str, brought: Brought) -> None: ...

    async def see_epoch(self, epoch: int) -> None: ...

    async def allocate(self, owner: str, wanted: int | None = None) -> int:
        """The owner's port number: what it has, or `wanted` where nobody has it, or the next free one.

        Numbers are given out in turn, so that one is not used again while the switch still tracks the last
        connections of its former owner. `CloudError(NO_CAPACITY)` when none is left.
        """
        ...

    async def free(self, owner: str) -> None: ...

    async def close(self) -> None: ...


class MemoryJournal:
    """A journal that lives as long as the object: for the simulator, where it outlives the agents that use it."""

    def __init__(self) -> None:
        self._desired: dict[str, AnyDesired] = {}
        self._shown = MappingProxyType(self._desired)
        self._memories: dict[str, VmMemory] = {}
        self._brought: dict[str, Brought] = {}
        self._ofports: dict[str, int] = {}
        self._reserved: dict[str, int] = {}
        self._last_ofport = FIRST_OFPORT - 1
        self._epoch = 0

    @property
    def desired(self) -> Mapping[str, AnyDesired]:
        return self._shown

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def ofports(self) -> Mapping[str, int]:
        return MappingProxyType(self._ofports)

    def memory(self, vm: str) -> VmMemory:
        return self._memories.get(vm, FRESH)

    async def apply(self, items: Iterable[AnyDesired], drop: Iterable[str]) -> None:
        records: list[dict[str, Any]] = [{"set": item} for item in items]
        records += [{"drop": key} for key in drop]
        if records:
            await self._persist(records)

    async def remember(self, vm: str, memory: VmMemory) -> None:
        if self.memory(vm) != memory:
            await self._persist([{"vm": vm, "memory": memory}])

    def brought(self, nic: str) -> Brought | None:
        return self._brought.get(f"port/{nic}")

    async def bring(self, nic: str, brought: Brought) -> None:
        await self._persist([{"brought": brought, "by": f"port/{nic}"}])

    async def see_epoch(self, epoch: int) -> None:
        if epoch > self._epoch:
            await self._persist([{"epoch": epoch}])

    async def allocate(self, owner: str, wanted: int | None = None) -> int:
        known = self._ofports.get(owner, self._reserved.get(owner))
        if known is not None:
            return known
        number = self._choose(wanted)
        self._reserved[owner] = number
        try:
            await self._persist([{"port": owner, "number": number}])
        finally:
            self._reserved.pop(owner, None)
        return number

    def _choose(self, wanted: int | None) -> int:
        taken = {*self._ofports.values(), *self._reserved.values()}
        if wanted is not None and FIRST_OFPORT <= wanted <= LAST_OFPORT and wanted not in taken:
            return wanted
        span = LAST_OFPORT - FIRST_OFPORT + 1
        if len(taken) >= span:
            raise CloudError(ErrorKind.NO_CAPACITY, f"all {span} port numbers of the node's switch are in use")
        number = self._last_ofport
        while True:
            number = number + 1 if number < LAST_OFPORT else FIRST_OFPORT
            if number not in taken:
                self._last_ofport = number
                return number

    async def free(self, owner: str) -> None:
        if owner in self._ofports:
            await self._persist([{"port": owner, "number": None}])

    async def close(self) -> None:
        """Nothing is held."""

    async def _persist(self, records: list[dict[str, Any]]) -> None:
        """Make the records durable, then take them. Here: one point where the agent may be killed before they count."""
        await asyncio.sleep(0)
        self._take_all(records)

    def _take_all(self, records: Iterable[dict[str, Any]]) -> None:
        for record in records:
            self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        match record:
            case {"set": item}:
                self._desired[key_of(item)] = item
            case {"drop": key}:
                self._desired.pop(key, None)
                if key.startswith("vm/"):
                    self._memories.pop(key.removeprefix("vm/"), None)
            case {"vm": vm, "memory": memory}:
                self._memories[vm] = memory
            case {"brought": brought, "by": owner}:
                self._brought[owner] = brought
            case {"port": owner, "number": None}:
                self._ofports.pop(owner, None)
                self._brought.pop(owner, None)
            case {"port": owner, "number": int() as number}:
                self._ofports[owner] = number
                self._last_ofport = number
            case {"last_port": int() as number}:
                self._last_ofport = number
            case {"epoch": int() as epoch}:
                self._epoch = max(self._epoch, epoch)

    def _snapshot(self) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = [{"epoch": self._epoch}]
        records += [{"set": item} for item in self._desired.values()]
        records += [{"vm": vm, "memory": memory} for vm, memory in self._memories.items()]
        records += [{"port": owner, "number": number} for owner, number in self._ofports.items()]
        records += [{"brought": brought, "by": owner} for owner, brought in self._brought.items()]
        records.append({"last_port": self._last_ofport})
        return records


COMPACT_SLACK = 2000
"""Lines beyond twice what is alive, after which the file is rewritten."""


class FileJournal(MemoryJournal):
    """A journal on disk. One process at a time may have it open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._lines = 0
        self._size = 0
        self._queue: list[tuple[list[dict[str, Any]], bytes, asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._load()

    def _load(self) -> None:
        """Read the log, and cut off what a crash left of a last line."""
        with self._path.open("rb") as file:
            for line in file:
                try:
                    record = orjson.loads(line) if line.endswith(b"\n") else None
                except orjson.JSONDecodeError:
                    record = None
                if not isinstance(record, dict):
                    log.warning("the journal ends with a torn line at byte %d, which is cut off", self._size)
                    break
                self._size += len(line)
                self._lines += 1
                self._replay(record)
        os.ftruncate(self._descriptor, self._size)
        os.lseek(self._descriptor, self._size, os.SEEK_SET)

    def _replay(self, record: dict[str, Any]) -> None:
        try:
            if "set" in record:
                record["set"] = desired_object.validate_python(record["set"])
            elif "memory" in record:
                record["memory"] = VmMemory.model_validate(record["memory"])
            elif "brought" in record:
                record["brought"] = Brought.model_validate(record["brought"])
        except ValidationError as error:
            # Written by another version. The manager sends again what is not reported as held.
            log.warning("an object in the journal cannot be read and is left out: %s", error)
            return
        self._take(record)

    async def _persist(self, records: list[dict[str, Any]]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((records, b"".join(_line(record) for record in records), done))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.get_running_loop().create_task(self._flush())
        await done

    async def _flush(self) -> None:
        while self._queue:
            batch, self._queue = self._queue, []
            try:
                await asyncio.to_thread(self._append, b"".join(data for _, data, _ in batch))
            except OSError as error:
                kind = ErrorKind.NO_CAPACITY if error.errno in (errno.ENOSPC, errno.EDQUOT) else ErrorKind.ENGINE
                for _, _, done in batch:
                    if not done.done():
                        done.set_exception(
                            CloudError(kind, f"the node's journal {self._path} cannot be written: {error}")
                        )
                continue
            for records, _, done in batch:
                self._lines += len(records)
                self._take_all(records)
                if not done.done():
                    done.set_result(None)
            alive = len(self._desired) + len(self._memories) + len(self._ofports) + len(self._brought)
            if self._lines > 2 * alive + COMPACT_SLACK:
                await self._compact()

    def _append(self, data: bytes) -> None:
        try:
            rest = data
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fdatasync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
            raise
        self._size += len(data)

    async def _compact(self) -> None:
        records = self._snapshot()
        data = b"".join(_line(record) for record in records)
        try:
            await asyncio.to_thread(self._rewrite, data)
        except OSError as error:
            log.warning("the journal could not be rewritten, and is kept as it is: %s", error)
        self._lines = len(records)

    def _rewrite(self, data: bytes) -> None:
        fresh = self._path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            rest = data
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
            fresh.rename(self._path)
        except OSError:
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor, self._size = descriptor, len(data)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    async def close(self) -> None:
        """Finish what is queued and let go of the file."""
        while self._flusher is not None and not self._flusher.done():
            await asyncio.wait([self._flusher])
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _line(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record, default=_plain) + b"\n"


def _plain(item: Any) -> Any:
    """Values inside a record, as orjson asks for them."""
    if isinstance(item, AnyDesired | VmMemory | Brought):
        return orjson.Fragment(item.__pydantic_serializer__.to_json(item))
    raise TypeError(f"{type(item).__name__} does not belong in the journal")
