"""The mount points that a node covers, and the few of them that have to be made on the host.

A folder such as /run/netns must exist on the host for a node to mount its own over it. Those that are made for that
are noted in /run/scloud, together with who uses them, and go when the last user does: nothing is left on the host.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

COVERED: dict[str, str] = {
    "run/libvirt": "/run/libvirt",
    "etc/libvirt": "/etc/libvirt",
    "lib/libvirt": "/var/lib/libvirt",
    "cache/libvirt": "/var/cache/libvirt",
    "log/libvirt": "/var/log/libvirt",
    "run/openvswitch": "/run/openvswitch",
    "etc/openvswitch": "/etc/openvswitch",
    "log/openvswitch": "/var/log/openvswitch",
    "run/netns": "/run/netns",
}
"""Folder under the node's root -> where its processes see it."""

REGISTRY = Path("/run/scloud")


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    # The lock is on /run itself, which stays: a lock file that gets deleted can be held twice.
    fd = os.open(REGISTRY.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _user(root: Path) -> str:
    return "user-" + hashlib.sha256(os.fsencode(root)).hexdigest()[:16]


def claim(root: Path) -> None:
    """Make the mount points that are missing, on behalf of the node with this root."""
    with _locked():
        REGISTRY.mkdir(exist_ok=True)
        (REGISTRY / _user(root)).write_text(f"{root}\n")
        made = REGISTRY / "made"
        for target in COVERED.values():
            for folder in [*reversed(Path(target).parents), Path(target)]:
                if not folder.exists():
                    with made.open("a") as notes:
                        notes.write(f"{folder}\n")
                    folder.mkdir()


def release(root: Path) -> None:
    """The node with this root is gone; with the last one go the folders that were made, if they are empty."""
    with _locked():
        if not REGISTRY.exists():
            return
        (REGISTRY / _user(root)).unlink(missing_ok=True)
        for user in REGISTRY.glob("user-*"):
            # One whose folder was deleted under it will never release anything.
            if Path(user.read_text().strip()).exists():
                return
            user.unlink()
        made = REGISTRY / "made"
        folders = made.read_text().splitlines() if made.exists() else []
        for folder in reversed(folders):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        made.unlink(missing_ok=True)
        REGISTRY.rmdir()


def mounted_at(target: Path) -> str | None:
    """The file system type of what is mounted exactly there, in our own mount namespace."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if unescape(fields[4]) == str(target):
            found = fields[fields.index("-") + 1]
    return found


def unescape(text: str) -> str:
    """mountinfo writes blanks and backslashes in octal."""
    return text.encode().decode("unicode_escape") if "\\" in text else text
