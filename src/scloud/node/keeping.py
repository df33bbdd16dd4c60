"""Using the keeper from commands: start it, change its units, stop it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

from scloud.drivers.supervisor.identity import Identity
from scloud.drivers.supervisor.process import ProcessSupervisor
from scloud.drivers.supervisor.protocol import ProcessSpec
from scloud.drivers.supervisor.ready import wait_ready
from scloud.drivers.supervisor.systemd import systemd_runs
from scloud.model.errors import CloudError
from scloud.node.command import run
from scloud.node.keep import ask
from scloud.node.layout import Layout, Unit, python
from scloud.node.processes import wait_ended

SYSTEMD_UNIT = Path("/etc/systemd/system/scloud.service")


def keeper_spec(layout: Layout) -> ProcessSpec:
    argv = (*python("scloud.node.keep"), "--root", str(layout.root))
    return ProcessSpec(name="keeper", argv=argv, env=layout.stamps("keeper"), ready=layout.control)


def keeper_pid(layout: Layout) -> int | None:
    """The keeper that runs, however it was started."""
    try:
        return int(ask(layout, "status", timeout_s=5.0)["pid"])
    except CloudError:
        return None


def start_keeper(layout: Layout, *, as_service: bool = False) -> bool:
    """Have a keeper running; False if one was. As a service it is systemd's, and comes back after a boot."""
    if keeper_pid(layout) is not None:
        return False
    layout.units.mkdir(parents=True, exist_ok=True)
    if as_service and systemd_runs():
        SYSTEMD_UNIT.write_text(service_text(layout))
        run(["systemctl", "daemon-reload"])
        run(["systemctl", "enable", "--now", SYSTEMD_UNIT.name])
        asyncio.run(_until_listening(layout))
    else:
        asyncio.run(_supervisor(layout).ensure(keeper_spec(layout)))
    return True


async def _until_listening(layout: Layout) -> None:
    await wait_ready(layout.control, None, 15.0)


def service_text(layout: Layout) -> str:
    """The systemd unit. Only the keeper itself is stopped with it: what it keeps outlives its restarts."""
    spec = keeper_spec(layout)
    environment = "\n".join(f'Environment="{key}={value}"' for key, value in sorted(spec.env.items()))
    return (
        f"[Unit]\nDescription=SCloudStack keeper\nAfter=network-online.target\nWants=network-online.target\n\n"
        f"[Service]\nExecStart={' '.join(spec.argv)}\n{environment}\nKillMode=process\nRestart=always\n"
        f"RestartSec=1\nDelegate=yes\nTasksMax=infinity\nLimitNOFILE=1048576\n\n[Install]\nWantedBy=multi-user.target\n"
    )


def write_units(layout: Layout, *units: Unit) -> None:
    """Write these units (others stay as they are) for a keeper that is still to be started."""
    layout.units.mkdir(parents=True, exist_ok=True)
    for unit in units:
        path = layout.units / f"{unit.name}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(unit.model_dump_json(indent=2))
        fresh.replace(path)


def set_units(layout: Layout, *units: Unit) -> dict[str, Any]:
    """Write these units and return the keeper's status when it has carried them out."""
    write_units(layout, *units)
    return ask(layout, "sync")


def stop_keeper(layout: Layout) -> None:
    """The keeper goes; its units go on."""
    if SYSTEMD_UNIT.exists() and systemd_runs() and str(layout.root) in SYSTEMD_UNIT.read_text():
        run(["systemctl", "disable", "--now", SYSTEMD_UNIT.name])
        SYSTEMD_UNIT.unlink()
        run(["systemctl", "daemon-reload"])
    asyncio.run(_supervisor(layout).stop("keeper"))


def kill_unit(layout: Layout, name: str, number: signal.Signals = signal.SIGKILL) -> int | None:
    """Signal a unit's process, exactly it; its pid, or None if it does not run. A killed one is gone on return."""
    known = Identity.read(layout.keeper / "run" / f"{name}.pid")
    if known is None:
        return None
    with known.opened() as fd:
        if fd is None:
            return None
        signal.pidfd_send_signal(fd, number)
        if number is signal.SIGKILL:
            wait_ended(fd, 5.0)
    return known.pid


def _supervisor(layout: Layout) -> ProcessSupervisor:
    return ProcessSupervisor(layout.keeper / "run", layout.keeper / "log")
