"""Many seeds, each in a process of its own, forked from one that has everything imported."""

from __future__ import annotations

import os
import pickle
import select
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .run import Result, run_seed


@dataclass
class _Child:
    seed: int
    pid: int
    data: bytes = b""


def run_many(seeds: Iterable[int], *, jobs: int, mutation: str = "") -> Iterator[Result]:
    """Results as they come; what still runs when the caller has heard enough is ended."""
    waiting = iter(seeds)
    children: dict[int, _Child] = {}
    try:
        while True:
            while len(children) < jobs and (seed := next(waiting, None)) is not None:
                descriptor, pid = _fork(seed, mutation)
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


def _fork(seed: int, mutation: str) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return reading, pid
    try:
        os.close(reading)
        data = pickle.dumps(run_seed(seed, mutation=mutation))
        while data:
            data = data[os.write(writing, data) :]
    finally:
        os._exit(0)
