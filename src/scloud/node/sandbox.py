"""The namespaces a node lives in: always a mount namespace of its own; in the lab a network and a UTS one, too.

They are pinned by bind mounts in NODE_ROOT/ns, so they outlive every process in them and are entered by path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from scloud.drivers.supervisor.identity import boot_id
from scloud.model.base import Value
from scloud.model.errors import CloudError
from scloud.node import mounts
from scloud.node.command import run

_PINS = {"mnt": "--mount", "net": "--net", "uts": "--uts"}


class Sandbox(Value):
    """`root` is the node's folder. An `isolated` one has its own network and hostname; else it shares the host's.

    `cache` is what libvirt has learnt of this machine's QEMU (seconds of work); the nodes of a lab share it.
    """

    name: str
    root: Path
    isolated: bool
    cache: Path | None = None

    @property
    def pins(self) -> Path:
        return self.root / "ns"

    def namespaces(self) -> tuple[Path, ...]:
        """The files that pin the node's namespaces, the mount namespace first."""
        kinds = ("mnt", "net", "uts") if self.isolated else ("mnt",)
        return tuple(self.pins / kind for kind in kinds)

    def exists(self) -> bool:
        return all(mounts.mounted_at(pin) == "nsfs" for pin in self.namespaces())

    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` inside, in the folder /."""
        return ["nsenter", *_options(self.namespaces()), "--", *argv]

    def run(self, *argv: str, timeout_s: float = 60.0) -> str:
        """Run a tool inside; its output, or CloudError."""
        return run(self.enter(argv), timeout_s=timeout_s)

    def call(self, argv: Sequence[str]) -> int:
        """Run a command inside with our own terminal; its exit status."""
        return subprocess.run(self.enter(argv), check=False).returncode

    def mount_namespace(self) -> int | None:
        """The inode that identifies the mount namespace of the node's processes."""
        return (self.pins / "mnt").stat().st_ino if mounts.mounted_at(self.pins / "mnt") == "nsfs" else None

    def create(self) -> bool:
        """Make the namespaces with all their mounts; False if they are there."""
        if self.exists():
            return False
        self._unpin()
        self._after_boot()
        mounts.claim(self.root)
        for folder in (*self._covers().values(), self.pins):
            folder.mkdir(parents=True, exist_ok=True)
        for private in ("agent", "disks", "images", "log"):
            (self.root / private).mkdir(exist_ok=True)
            (self.root / private).chmod(0o700)
        # A mount namespace can be pinned only on a mount that does not propagate into it.
        run(["mount", "--bind", str(self.pins), str(self.pins)])
        run(["mount", "--make-private", str(self.pins)])
        # Mounts that the host makes or undoes later do reach the node (slave); its own stay its own.
        argv = [
            "unshare",
            *_options(self.namespaces()),
            "--propagation",
            "slave",
            "--",
            "sh",
            "-e",
            "-c",
            self._script(),
        ]
        for cpu in sorted(os.sched_getaffinity(0)):
            for pin in self.namespaces():
                _release(pin)
                pin.touch()
            try:
                run(["taskset", "--cpu-list", str(cpu), *argv])
                return True
            except CloudError as error:
                # A mount namespace is pinned only where an older one sees it, and since Linux 6.18 age is a number that
                # every processor counts by itself: inside a container it may take another one.
                failed = error
        raise failed

    def _covers(self) -> dict[str, Path]:
        """Where the node sees a folder of its own -> that folder."""
        covers = {target: self.root / source for source, target in mounts.COVERED.items()}
        return {**covers, "/var/cache/libvirt": self.cache} if self.cache is not None else covers

    def _script(self) -> str:
        lines = [f'mount --bind "{source}" "{target}"' for target, source in self._covers().items()]
        if self.isolated:
            # A new sysfs shows the devices of the network namespace that mounts it.
            lines += [f"hostname {self.name}", "mount -t sysfs sysfs /sys", "ip link set lo up"]
        return "\n".join(lines)

    def _after_boot(self) -> None:
        """What is under run/ describes processes; after a boot there are none of them."""
        mark = self.root / "boot"
        if not mark.exists() or mark.read_text() != boot_id():
            shutil.rmtree(self.root / "run", ignore_errors=True)
            self.root.mkdir(parents=True, exist_ok=True)
            mark.write_text(boot_id())

    def destroy(self) -> None:
        """Let the namespaces go; they vanish with their last process. The node's data stay where they are."""
        self._unpin()
        mounts.release(self.root)

    def _unpin(self) -> None:
        for pin in [*self.namespaces(), self.pins / "net", self.pins / "uts"]:
            _release(pin)
        while mounts.mounted_at(self.pins) is not None:
            run(["umount", "--lazy", str(self.pins)])


def _release(pin: Path) -> None:
    if mounts.mounted_at(pin) is not None:
        run(["umount", "--lazy", str(pin)])
    # Unlinked, not only unmounted: that also takes away the copies in other nodes' mount namespaces.
    pin.unlink(missing_ok=True)


def _options(pins: Sequence[Path]) -> list[str]:
    return [f"{_PINS[pin.name]}={pin}" for pin in pins]
