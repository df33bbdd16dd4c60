"""The keeper: keeps a cloud's manager and agents running on this machine.

`python -m scloud.node.keep --root ROOT`. Its units are files in ROOT/keeper/units. What it starts is detached: a keeper
that dies takes nothing with it, and the next one finds everything by pidfile. Whoever changes a unit tells it on the
control socket (or by SIGHUP): one line of JSON, `{"do": "sync"|"status"|"quit"}`, answered by one line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from scloud.drivers.supervisor.process import ProcessSupervisor
from scloud.drivers.supervisor.protocol import ProcessSpec
from scloud.model.errors import CloudError, ErrorKind
from scloud.node.layout import Layout, Unit

FIRST_RETRY_S = 0.2
LAST_RETRY_S = 10.0
HEALTHY_AFTER_S = 10.0
STOP_GRACE_S = 10.0
LOOK_S = 600.0
"""How often a living unit is looked at, for the size of its log."""


def spec_of(layout: Layout, unit: Unit) -> ProcessSpec:
    """How a unit is started."""
    argv = tuple(unit.sandbox.enter(unit.argv)) if unit.sandbox else unit.argv
    return ProcessSpec(name=unit.name, argv=argv, env=layout.stamps(unit.role, unit.node))


def read_units(layout: Layout) -> dict[str, Unit]:
    """The units on disk, by name. A file that is none is said to the log and left out."""
    units = {}
    for path in sorted(layout.units.glob("*.json")):
        try:
            unit = Unit.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            print(f"{path} is not a unit: {error}", file=sys.stderr)
            continue
        units[unit.name] = unit
    return units


class Keeper:
    """One per root. `serve` returns when it is told to quit; its units go on."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._supervisor = ProcessSupervisor(layout.keeper / "run", layout.keeper / "log")
        self._units: dict[str, Unit] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._errors: dict[str, str] = {}
        self._settled: dict[str, asyncio.Event] = {}
        self._sync_lock = asyncio.Lock()
        self._quit = asyncio.Event()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        hangups: set[asyncio.Task[dict[str, Any]]] = set()

        def hangup() -> None:
            task = loop.create_task(self.sync())
            hangups.add(task)
            task.add_done_callback(hangups.discard)

        loop.add_signal_handler(signal.SIGHUP, hangup)
        loop.add_signal_handler(signal.SIGTERM, self._quit.set)
        # Bound through the folder's descriptor: a socket's address may have 107 bytes only.
        folder = os.open(self._layout.keeper, os.O_PATH | os.O_DIRECTORY)
        self._layout.control.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._converse, f"/proc/self/fd/{folder}/{self._layout.control.name}")
        await self.sync()
        async with server:
            await self._quit.wait()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def sync(self) -> dict[str, Any]:
        """Make what runs what the units say; returns when each has been started (or has failed to) or stopped."""
        async with self._sync_lock:
            units = read_units(self._layout)
            leaving = [name for name in self._tasks if self._units.get(name) != units.get(name)]
            for name in leaving:
                task = self._tasks.pop(name)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            known = {facts.name for facts in await self._supervisor.processes()}
            gone = [name for name in known if name != "keeper" and (name not in units or units[name].wanted == "stop")]
            await asyncio.gather(*(self._supervisor.stop(name, STOP_GRACE_S) for name in gone))
            self._units = units
            for name, unit in units.items():
                if unit.wanted == "run" and name not in self._tasks:
                    self._settled[name] = asyncio.Event()
                    self._tasks[name] = asyncio.create_task(self._keep(unit))
            await asyncio.gather(*(self._settled[name].wait() for name in self._tasks))
            return await self.status()

    async def status(self) -> dict[str, Any]:
        """Each unit's pid, restarts, and why it cannot be started."""
        facts = {item.name: item for item in await self._supervisor.processes()}
        return {
            "pid": os.getpid(),
            "units": {
                name: {
                    **{
                        "role": unit.role,
                        "node": unit.node,
                        "wanted": unit.wanted,
                        "error": self._errors.get(name, ""),
                    },
                    "pid": facts[name].pid if name in facts else None,
                    "restarts": facts[name].restarts if name in facts else 0,
                }
                for name, unit in self._units.items()
            },
        }

    async def _keep(self, unit: Unit) -> None:
        loop = asyncio.get_running_loop()
        delay = 0.0
        while True:
            began = loop.time()
            try:
                if unit.sandbox is not None and not unit.sandbox.isolated:
                    # After a boot the namespaces are gone. A lab's nodes need wiring, too, so the lab makes theirs.
                    await asyncio.to_thread(unit.sandbox.create)
                await self._supervisor.ensure(spec_of(self._layout, unit))
                self._errors.pop(unit.name, None)
                self._settled[unit.name].set()
                while not await self._dies_within(unit.name, LOOK_S):
                    await self._supervisor.ensure(spec_of(self._layout, unit))
                print(f"{unit.name} has ended", file=sys.stderr, flush=True)
            except (CloudError, OSError) as error:
                self._errors[unit.name] = str(error)
                print(error, file=sys.stderr, flush=True)
            self._settled[unit.name].set()
            lived = loop.time() - began
            delay = FIRST_RETRY_S if lived >= HEALTHY_AFTER_S else min(max(2 * delay, FIRST_RETRY_S), LAST_RETRY_S)
            await asyncio.sleep(delay)

    async def _dies_within(self, name: str, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._supervisor.died(name)
        except TimeoutError:
            return False
        return True

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = orjson.loads(await reader.readline())
            what = request.get("do")
            if what == "sync":
                answer = await self.sync()
            elif what in ("status", "quit"):
                answer = await self.status()
            else:
                answer = {"error": f"'{what}' is none of sync, status, quit"}
            writer.write(orjson.dumps(answer) + b"\n")
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            if what == "quit":
                self._quit.set()
        except (orjson.JSONDecodeError, AttributeError):
            writer.write(b'{"error": "one JSON object a line is expected"}\n')
        finally:
            writer.close()


def ask(layout: Layout, what: str, timeout_s: float = 60.0) -> dict[str, Any]:
    """Ask the running keeper. `CloudError(UNAVAILABLE)` if none answers."""
    try:
        folder = os.open(layout.keeper, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise CloudError(ErrorKind.UNAVAILABLE, f"no keeper runs for {layout.root}") from error
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(f"/proc/self/fd/{folder}/{layout.control.name}")
            connection.sendall(orjson.dumps({"do": what}) + b"\n")
            with connection.makefile("rb") as lines:
                answer: dict[str, Any] = orjson.loads(lines.readline())
    except (OSError, orjson.JSONDecodeError) as error:
        raise CloudError(ErrorKind.UNAVAILABLE, f"the keeper of {layout.root} does not answer: {error}") from error
    finally:
        os.close(folder)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scloud.node.keep", description="Keeps manager and agents running.")
    parser.add_argument("--root", type=Path, required=True, help="the cloud's root folder")
    layout = Layout(root=parser.parse_args().root.absolute())
    layout.units.mkdir(parents=True, exist_ok=True)
    asyncio.run(Keeper(layout).serve())


if __name__ == "__main__":
    main()
