"""A disk from a 10 GiB image in a storage cluster's pool, beside the bare librbd clone call of the same parent.

    sudo .venv/bin/python bench/storage_clones.py [--runs 20] [--at-once 100] [--rounds 3]

In a lab of three nodes with a real cluster (three monitors, six OSDs), all in one run and in turn:

- `librbd`: `rbd.RBD().clone`, with a node's own key and options, nothing else;
- `driver`: the agent's storage driver, called in this process;
- `product`: `POST /disks` until its operation is done: manager, agent, driver and back.

One after the other: seconds for one. At once: so many asked for together, rate from the first request to the last end.
"""

from __future__ import annotations

import argparse
import asyncio
import configparser
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import rados
import rbd

from scloud.client.http import Client
from scloud.drivers.storage.protocol import FromImage
from scloud.drivers.storage.rbd import RadosPool, RbdStorage
from scloud.drivers.storage.rbd_cluster import Cluster, ClusterAccess
from scloud.drivers.storage.rbd_images import FEATURES
from scloud.sim.pipelined import Connection
from storage_lab import DISK_TYPE, StorageLab, finished, storage_lab

NODE = "n1"
IMAGE_GIB = 10
DATA_MIB = 8
"""Of the image that are not zeros."""
CONNECTIONS = 8
WARM = 2
"""Runs before those that count: connections are made, caches filled."""


class Bare:
    """librbd alone."""

    def __init__(self, cluster: rados.Rados, pool: str, image: str) -> None:
        self._context = cluster.open_ioctx(pool)
        self._image = f"image-{image}"

    def one(self, name: str) -> None:
        rbd.RBD().clone(self._context, self._image, "base", self._context, name, FEATURES)

    async def several(self, names: list[str]) -> None:
        """As many threads as there are clones: none waits for another."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(len(names)) as threads:
            await asyncio.gather(*(loop.run_in_executor(threads, self.one, name) for name in names))


class Product:
    """Through the API."""

    def __init__(self, client: Client, image: str) -> None:
        url = urlsplit(client.context.url)
        self._access = (url.hostname or "", url.port or 80, client.context.token)
        self._spec = {"image": image, "type": DISK_TYPE}

    async def several(self, names: list[str]) -> None:
        shares = (names[number::CONNECTIONS] for number in range(CONNECTIONS))
        await asyncio.gather(*(self._share(share) for share in shares if share))

    async def _share(self, names: list[str]) -> None:
        connection = Connection(*self._access)
        asked = []
        for name in names:
            answer = await connection.json("POST", "/disks", {"name": name, "spec": self._spec})
            asked.append(answer["operation"])
        for operation in asked:
            while operation["state"] in ("queued", "running"):
                seen = f"wait=20&seen={operation['progress']}"
                operation = await connection.json("GET", f"/operations/{operation['id']}?{seen}")
            if operation["state"] != "done":
                raise SystemExit(f"{operation['action']}: {operation['message']}")


def driver(lab: StorageLab, pool: str) -> RbdStorage:
    conf = configparser.ConfigParser()
    conf.read(lab.ceph_folder(NODE) / "ceph.conf")
    name, keyring = lab.user(NODE)
    secret = configparser.ConfigParser()
    secret.read_string("\n".join(line.strip() for line in keyring.read_text().splitlines()))
    user = name.removeprefix("client.")
    access = ClusterAccess(NODE, "bench", conf["global"]["mon host"], user, secret[name]["key"])
    return RbdStorage(Cluster(access), RadosPool(pool), Path("/dev/null"))


def image(lab: StorageLab, client: Client) -> str:
    """The id of an imported image."""
    file = lab.root / "big.raw"
    with file.open("wb") as out:
        out.write(os.urandom(DATA_MIB * 2**20))
        out.truncate(IMAGE_GIB * 2**30)
    finished(client, client.post("/images", {"name": "big", "spec": {"source": f"file://{file}", "format": "raw"}}))
    return str(client.get("/images/big")["id"])


Maker = Callable[[list[str]], Awaitable[None]]


async def seconds(make: Maker, names: list[str]) -> float:
    begun = time.perf_counter()
    await make(names)
    return time.perf_counter() - begun


async def measure(makers: dict[str, Maker], count: int, times: int) -> dict[str, list[float]]:
    """Seconds for `count` at once, by maker, in turn."""
    found: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(times):
        for name, make in makers.items():
            disks = [f"{name}-{count}-{turn}-{number}" for number in range(count)]
            found[name].append(await seconds(make, disks))
    return found


def show(title: str, found: dict[str, list[float]], figure: Callable[[float], float], unit: str) -> None:
    print(f"{title}, median (min - max), {unit}; ratio of seconds to librbd's, each time in turn: median")
    for name, values in found.items():
        figures = sorted(figure(value) for value in values)
        ratios = [value / bare for value, bare in zip(values, found["librbd"], strict=True)]
        low, middle, high = figures[0], statistics.median(figures), figures[-1]
        print(f"  {name:8} {middle:7.1f}  ({low:.1f} - {high:.1f})   {statistics.median(ratios):.2f}", flush=True)


async def run(lab: StorageLab, options: argparse.Namespace) -> None:
    with lab.client() as client, lab.cluster(NODE) as cluster:
        pool: str = client.get(f"/pools/{DISK_TYPE}")["spec"]["rados_name"]
        big = image(lab, client)
        product, bare, own = Product(client, "big"), Bare(cluster, pool, big), driver(lab, pool)
        first = await seconds(product.several, ["first"])
        print(f"first disk of the image in the pool, its bytes copied there: {first:.1f} s")

        async def by_driver(names: list[str]) -> None:
            await asyncio.gather(*(own.create(f"dsk-{name}", IMAGE_GIB * 1024, FromImage(big, None)) for name in names))

        makers: dict[str, Maker] = {"librbd": bare.several, "driver": by_driver, "product": product.several}
        alone = await measure(makers, 1, options.runs + WARM)
        alone = {name: values[WARM:] for name, values in alone.items()}
        show(f"one disk of {IMAGE_GIB} GiB, {options.runs} runs", alone, lambda value: 1e3 * value, "ms")
        together = await measure(makers, options.at_once, options.rounds)
        await own.close()
    many = options.at_once
    show(f"{many} disks at once, {options.rounds} rounds", together, lambda value: many / value, "disks a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options: Any = parser.parse_args()
    with storage_lab() as lab:
        asyncio.run(run(lab, options))


if __name__ == "__main__":
    main()
