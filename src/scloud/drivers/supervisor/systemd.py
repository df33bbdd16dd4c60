"""Supervision by systemd: each process is a transient unit, started with `systemd-run` inside the node's namespaces.

Units are not restarted by systemd: whoever supervises sees the death and decides, as everywhere else.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from scloud.drivers.supervisor.identity import Identity
from scloud.drivers.supervisor.process import digest, in_netns, tail, trim_log
from scloud.drivers.supervisor.protocol import ProcessFacts, ProcessSpec
from scloud.drivers.supervisor.ready import wait_ready
from scloud.model.errors import CloudError, ErrorKind


def systemd_runs() -> bool:
    """The documented test for a machine whose init is systemd (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def _description(spec: ProcessSpec) -> str:
    return f"SCloudStack {spec.name} {digest(spec)[:16]}"


def run_argv(
    spec: ProcessSpec, unit: str, enter: Sequence[str], log: Path, stamps: Mapping[str, str] | None = None
) -> list[str]:
    """The `systemd-run` command. The description carries the digest by which a changed spec is noticed.

    `stamps` are variables that every process of the node has, such as SCLOUD_NODE: a unit inherits nothing from us.
    """
    env = {**(stamps or {}), **spec.env}
    return [
        *("systemd-run", "--quiet", "--collect", f"--unit={unit}", f"--description={_description(spec)}"),
        *("--property=Type=exec", "--property=KillMode=process", "--property=Delegate=yes"),
        *(f"--property=StandardOutput=append:{log}", f"--property=StandardError=append:{log}"),
        *(f"--setenv={key}={value}" for key, value in sorted(env.items())),
        "--",
        *enter,
        *in_netns(spec),
    ]


class SystemdSupervisor:
    """`prefix` begins the names of its units; `enter` is the command that enters the node's namespaces."""

    def __init__(self, prefix: str, enter: Sequence[str], log: Path) -> None:
        self._prefix = prefix.rstrip("-")
        self._enter = tuple(enter)
        self._log = log

    async def ensure(self, spec: ProcessSpec) -> bool:
        log = self._log / f"{spec.name}.log"
        self._log.mkdir(parents=True, exist_ok=True)
        trim_log(log)
        pid, description = await self._show(spec.name)
        started = pid is None or description != _description(spec)
        if started:
            if pid is not None:
                await self.stop(spec.name)
            if spec.ready is not None:
                spec.ready.unlink(missing_ok=True)
            stamps = {key: value for key, value in os.environ.items() if key.startswith("SCLOUD_")}
            await _run(*run_argv(spec, self._unit(spec.name), self._enter, log, stamps))
            pid, _ = await self._show(spec.name)
        if spec.ready is not None:
            process = Identity.of(pid) if pid is not None else None
            outcome = await wait_ready(spec.ready, process, spec.ready_timeout_s) if process else "died"
            if outcome != "ready":
                what = "ended at once" if outcome == "died" else f"was not ready within {spec.ready_timeout_s:g} s"
                raise CloudError(ErrorKind.ENGINE, f"{spec.name} {what}; its log {log} ends: {tail(log)}")
        return started

    async def stop(self, name: str, grace_s: float = 5.0) -> None:
        pid, _ = await self._show(name)
        if pid is not None and (process := Identity.of(pid)) is not None:
            await process.end(grace_s)
        # 5: the unit is not loaded, for `--collect` has already taken it away.
        await _run("systemctl", "stop", self._unit(name), allowed=(0, 5))

    async def died(self, name: str) -> None:
        pid, _ = await self._show(name)
        if pid is not None and (process := Identity.of(pid)) is not None:
            await process.ended()

    async def processes(self) -> list[ProcessFacts]:
        listing = await _run(
            *("systemctl", "list-units", "--plain", "--no-legend", "--all", "--type=service", f"{self._prefix}-*")
        )
        facts = []
        for line in listing.splitlines():
            name = line.split()[0].removeprefix(f"{self._prefix}-").removesuffix(".service")
            pid, _ = await self._show(name)
            facts.append(ProcessFacts(name=name, pid=pid, running=pid is not None))
        return facts

    def _unit(self, name: str) -> str:
        return f"{self._prefix}-{name}.service"

    async def _show(self, name: str) -> tuple[int | None, str]:
        text = await _run("systemctl", "show", "--property=MainPID,Description", self._unit(name))
        values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        pid = int(values.get("MainPID", "0"))
        return (pid or None), values.get("Description", "")


async def _run(*argv: str, allowed: Sequence[int] = (0,)) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, complaint = await process.communicate()
    if process.returncode not in allowed:
        raise CloudError(ErrorKind.ENGINE, f"{argv[0]}: {complaint.decode(errors='replace').strip()}")
    return out.decode()
