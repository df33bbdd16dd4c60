"""Supervision without an init system: detached processes, found again by pidfile.

A started process is a child of init, in a session of its own, its output in a log file. It writes its pidfile itself,
before it becomes the daemon, so that no crash of ours can lose it. Nothing of a supervisor's state is in memory: a new
one on the same folder goes on where the last was.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import defaultdict
from pathlib import Path

import orjson

from scloud.drivers.supervisor.identity import Identity
from scloud.drivers.supervisor.protocol import ProcessFacts, ProcessSpec
from scloud.drivers.supervisor.ready import wait_ready
from scloud.model.errors import CloudError, ErrorKind

LOG_LIMIT = 8 * 2**20
"""Bytes after which a log is put aside at the next start or look; one older one is kept."""
_TAIL = 600

# $1 log, $2 pidfile, rest: the daemon. Field 22 of stat is the start time; exec keeps pid and start time.
_LAUNCH = """
log=$1 pidfile=$2; shift 2
ident=$(set -- $(cat /proc/$$/stat); echo "$1 ${22}")
echo "$ident $(cat /proc/sys/kernel/random/boot_id)" > "$pidfile.new" && mv "$pidfile.new" "$pidfile" || exit 1
exec "$@" </dev/null >>"$log" 2>&1
"""


def digest(spec: ProcessSpec) -> str:
    """What a running process is compared by: all that it was started with."""
    parts = [spec.argv, sorted(spec.env.items()), spec.netns]
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()


def in_netns(spec: ProcessSpec) -> tuple[str, ...]:
    """The command with its network namespace. Not `ip netns exec`, which would leave the node's mount namespace."""
    if spec.netns is None:
        return spec.argv
    return ("nsenter", f"--net=/run/netns/{spec.netns}", "--", *spec.argv)


class ProcessSupervisor:
    """`run` holds NAME.pid and NAME.json, `log` NAME.log. Processes inherit the environment, with the spec's on top."""

    def __init__(self, run: Path, log: Path) -> None:
        self._run = run
        self._log = log
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def ensure(self, spec: ProcessSpec) -> bool:
        async with self._locks[spec.name]:
            trim_log(self._log_file(spec.name))
            known = self._record(spec.name)
            process = Identity.read(self._pidfile(spec.name))
            restarts = 0
            started = process is None or not process.alive()
            if process is not None and not started and known.get("digest") != digest(spec):
                await process.end(5.0)
                started = True
            elif started and known:
                restarts = int(known["restarts"]) + 1
            if started:
                process = await self._start(spec, restarts)
            await self._until_ready(spec, process)
            return started

    async def _start(self, spec: ProcessSpec, restarts: int) -> Identity | None:
        for folder in (self._run, self._log):
            folder.mkdir(parents=True, exist_ok=True)
        if spec.ready is not None:
            # One left by a dead process would look like readiness.
            spec.ready.unlink(missing_ok=True)
        pidfile = self._pidfile(spec.name)
        pidfile.unlink(missing_ok=True)
        _write(self._record_file(spec.name), {"digest": digest(spec), "restarts": restarts})
        helper = await asyncio.create_subprocess_exec(
            *("setsid", "--fork", "sh", "-c", _LAUNCH, "launch"),
            *(str(self._log_file(spec.name)), str(pidfile)),
            *in_netns(spec),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd="/",
            env={**os.environ, **spec.env},
        )
        # The pipe closes when the launched shell becomes the daemon, or fails.
        complaint, _ = await helper.communicate()
        process = Identity.read(pidfile)
        if process is None:
            raise CloudError(
                ErrorKind.ENGINE, f"{spec.name} could not be started: {complaint.decode(errors='replace').strip()}"
            )
        return process

    async def _until_ready(self, spec: ProcessSpec, process: Identity | None) -> None:
        if spec.ready is None:
            return
        outcome = await wait_ready(spec.ready, process, spec.ready_timeout_s)
        if outcome == "ready":
            return
        if outcome == "late" and process is not None:
            await process.end(1.0)
        what = "ended at once" if outcome == "died" else f"was not ready within {spec.ready_timeout_s:g} s"
        log = self._log_file(spec.name)
        raise CloudError(ErrorKind.ENGINE, f"{spec.name} {what}; its log {log} ends: {tail(log)}")

    async def stop(self, name: str, grace_s: float = 5.0) -> None:
        async with self._locks[name]:
            process = Identity.read(self._pidfile(name))
            if process is not None:
                await process.end(grace_s)
            self._pidfile(name).unlink(missing_ok=True)
            self._record_file(name).unlink(missing_ok=True)

    async def died(self, name: str) -> None:
        process = Identity.read(self._pidfile(name))
        if process is not None:
            await process.ended()

    async def processes(self) -> list[ProcessFacts]:
        facts = []
        for file in sorted(self._run.glob("*.json")):
            name = file.stem
            process = Identity.read(self._pidfile(name))
            running = process is not None and process.alive()
            restarts = int(self._record(name).get("restarts", 0))
            pid = process.pid if process is not None and running else None
            facts.append(ProcessFacts(name=name, pid=pid, running=running, restarts=restarts))
        return facts

    def _pidfile(self, name: str) -> Path:
        return self._run / f"{name}.pid"

    def _record_file(self, name: str) -> Path:
        return self._run / f"{name}.json"

    def _log_file(self, name: str) -> Path:
        return self._log / f"{name}.log"

    def _record(self, name: str) -> dict[str, str | int]:
        try:
            record: dict[str, str | int] = orjson.loads(self._record_file(name).read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return {}
        return record


def _write(path: Path, record: dict[str, str | int]) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_bytes(orjson.dumps(record))
    fresh.replace(path)


def trim_log(path: Path) -> None:
    """Put a log that has grown too large aside, keeping the file: a running daemon appends to it."""
    try:
        if path.stat().st_size <= LOG_LIMIT:
            return
    except FileNotFoundError:
        return
    with path.open("rb") as source:
        source.seek(-LOG_LIMIT, os.SEEK_END)
        path.with_suffix(".log.1").write_bytes(source.read())
    os.truncate(path, 0)


def tail(path: Path) -> str:
    """The last lines of a log, on one line."""
    try:
        text = path.read_bytes()[-_TAIL:].decode(errors="replace")
    except OSError:
        return "(empty)"
    return " | ".join(line.strip() for line in text.splitlines()[-4:] if line.strip()) or "(empty)"
