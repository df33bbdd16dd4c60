"""Many seeds, each in a process of its own, forked from one that has everything imported."""

from __future__ import annotations

import gc
import os
import pickle
import select
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import delete

from scloud.store.database import Store
from scloud.store.tables import metadata

from .run import Result, run_seed
from .world import empty_database

WARM_SEEDS = (1, 2)


@dataclass
class _Child:
    seed: int
    pid: int
    data: bytes = b""


def run_many(seeds: Iterable[int], *, jobs: int, mutation: str = "") -> Iterator[Result]:
    """Results as they come; what still runs when the caller has heard enough is ended."""
    waiting, base = iter(seeds), _warm()
    children: dict[int, _Child] = {}
    try:
        while True:
            while len(children) < jobs and (seed := next(waiting, None)) is not None:
                descriptor, pid = _fork(seed, mutation, base)
                children[descriptor] = _Child(seed, pid)
            if not children:
                return
            ready, _, _ = select.select(list(children), [], [])
            for descriptor in ready:
                data = os.read(descriptor, 1 << 20)
                children[descriptor].data += data
                if not data:
                    child = children.pop(descriptor)
                    os.close(descriptor)
                    os.waitpid(child.pid, 0)
                    yield pickle.loads(child.data) if child.data else Result(child.seed, ["its process died"])
    finally:
        for descriptor, child in children.items():
            os.close(descriptor)
            os.kill(child.pid, 9)
            os.waitpid(child.pid, 0)


def _warm() -> Store:
    """A database for the children: what SQLAlchemy works out once for every statement is worked out already."""
    base = empty_database()
    for seed in WARM_SEEDS:
        run_seed(seed, base=base)
        with base.engine.begin() as connection:
            for table in metadata.tables.values():
                connection.execute(delete(table))
    gc.freeze()
    return base


def _fork(seed: int, mutation: str, base: Store) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return reading, pid
    try:
        os.close(reading)
        data = pickle.dumps(run_seed(seed, mutation=mutation, base=base))
        while data:
            data = data[os.write(writing, data) :]
    finally:
        os._exit(0)
