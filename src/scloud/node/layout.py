"""Where a cloud's files are under its root folder, and how its own processes are started."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Literal

from scloud.drivers.supervisor.identity import Identity
from scloud.model.base import Value
from scloud.node.sandbox import Sandbox

DEFAULT_ROOT = Path("/var/lib/scloud")
DEFAULT_LAB_ROOT = Path("/var/lib/scloud-lab")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def cloud_root() -> Path:
    """The root of `scloud up`: SCLOUD_ROOT, or the default."""
    return Path(os.environ.get("SCLOUD_ROOT") or DEFAULT_ROOT).absolute()


def lab_root() -> Path:
    """The root of `scloud lab`: SCLOUD_LAB_ROOT, or the default."""
    return Path(os.environ.get("SCLOUD_LAB_ROOT") or DEFAULT_LAB_ROOT).absolute()


def tag(root: Path) -> str:
    """Six hexadecimal digits that tell the clouds of one machine apart."""
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:6]


class Unit(Value):
    """A process that the keeper looks after: the manager, or a node's agent inside its sandbox.

    `wanted`: `run` it; `stop` it; or `leave` it as it is and start it no more (a lab's broken node).
    """

    name: str
    role: Literal["manager", "agent", "database"]
    node: str = ""
    argv: tuple[str, ...]
    sandbox: Sandbox | None = None
    wanted: Literal["run", "stop", "leave"] = "run"


class Layout(Value):
    """The folders of one cloud."""

    root: Path

    @property
    def manager(self) -> Path:
        return self.root / "manager"

    @property
    def cache(self) -> Path:
        """What is dear to make and can be made again: images, what libvirt has learnt of QEMU."""
        return self.root / "cache"

    @property
    def keeper(self) -> Path:
        return self.root / "keeper"

    @property
    def units(self) -> Path:
        return self.keeper / "units"

    @property
    def control(self) -> Path:
        return self.keeper / "control.sock"

    @property
    def nodes(self) -> Path:
        return self.root / "nodes"

    def pid_of(self, unit: str) -> int | None:
        """The process of a unit, or of the keeper itself, if it runs."""
        known = Identity.read(self.keeper / "run" / f"{unit}.pid")
        return known.pid if known is not None and known.alive() else None

    def sandbox(self, node: str, *, isolated: bool) -> Sandbox:
        return Sandbox(name=node, root=self.nodes / node, isolated=isolated, cache=self.cache / "libvirt")

    def sandboxes(self, *, isolated: bool) -> list[Sandbox]:
        """One for every node folder there is."""
        if not self.nodes.is_dir():
            return []
        return [self.sandbox(path.name, isolated=isolated) for path in sorted(self.nodes.iterdir()) if path.is_dir()]

    def stamps(self, role: str, node: str = "") -> dict[str, str]:
        """The environment by which a process of this cloud is known."""
        return {
            **{"SCLOUD_ROOT": str(self.root), "SCLOUD_ROLE": role, "SCLOUD_NODE": node},
            # `su` leaves root without the folders that hold ovs-vswitchd and libvirtd.
            **{"PATH": _PATH, "PYTHONUNBUFFERED": "1"},
        }

    def manager_unit(self, api: str, link: str, *, number: int = 1) -> Unit:
        """`api` and `link` are the HOST:PORT that it listens on; managers are counted from 1.

        They share a database where there are files that name one.
        """
        name, folder = ("manager", self.manager) if number == 1 else (f"manager-{number}", self.standby(number))
        argv = (*python("scloud.manager"), "--root", str(folder), "--api", api, "--link", link)
        database = self.database_file(number)
        shared = ("--database", f"@{database}") if database.exists() else ()
        return Unit(name=name, role="manager", argv=(*argv, *shared))

    def standby(self, number: int) -> Path:
        """The folder of the second manager, the third, ..."""
        return self.root / f"manager-{number}"

    def database_file(self, number: int) -> Path:
        """Says the URL by which a manager reaches the database that several share; one alone has its own, and none."""
        return self.root / ("database.url" if number == 1 else f"database-{number}.url")

    def agent_unit(self, sandbox: Sandbox) -> Unit:
        argv = (*python("scloud.agent"), "--config", str(sandbox.root / "agent.json"))
        return Unit(name=f"agent-{sandbox.name}", role="agent", node=sandbox.name, argv=argv, sandbox=sandbox)


def python(module: str) -> tuple[str, ...]:
    """How a module of ours is run: by the interpreter of the virtual environment that runs us."""
    return (sys.executable, "-m", module)
