"""OSDs: a number from the cluster, a device made ready, and wiped when it is given back.

A device is ours if it bears our OSD's uuid (BlueStore's label begins with it) or nothing at all; anything else on it is
somebody's, and is never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import orjson

from scloud.drivers.ceph.layout import DaemonFolder, write
from scloud.drivers.ceph.run import run
from scloud.model.desired import OsdDaemon
from scloud.model.errors import CloudError, ErrorKind

log = logging.getLogger(__name__)

LABEL = re.compile(rb"bluestore block device\n([0-9a-f-]{36})\n")
"""At the beginning of every BlueStore device, with the OSD's uuid."""
_HEAD = 16 * 2**20
"""Bytes at both ends that are overwritten: the label, and what other tools would know a device by."""
_PROBED = 1 << 20
_MIB = 2**20
_DEAD = frozenset({errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM, errno.EREMOTEIO})
"""What a device that has died, or was pulled out, answers."""


class Occupied(CloudError):
    """Somebody else's device."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(
            ErrorKind.CONFLICT, f"{path} holds {what}: choose another device, or clear this one with `wipefs -a {path}`"
        )


@contextlib.contextmanager
def held(folder: DaemonFolder) -> Iterator[int]:
    """Nobody else makes this OSD meanwhile, not even a tool that a dead agent has left: it inherits the descriptor."""
    folder.path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CloudError(
                ErrorKind.UNAVAILABLE, f"waiting for an earlier attempt to make {folder.name} to end"
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


async def make_osd(osd: OsdDaemon, fsid: str, number: int, folder: DaemonFolder) -> None:
    """Its device prepared and its data made; what is half made is made anew. Its configuration is there already.

    A device that holds this very OSD, whole, is taken as it is: the node's own files about it may have been lost.

    `CloudError`: NOT_FOUND without the device, CONFLICT for one that holds something else.
    """
    with held(folder) as lock:
        if folder.made.exists() and folder.osd_number() == number:
            return
        folder.made.unlink(missing_ok=True)
        whole = await _is_whole(osd, fsid, number)
        await asyncio.to_thread(_prepare, osd, folder, whole)
        write(folder.number, f"{number}\n")
        write(folder.keyring, f"[osd.{number}]\n\tkey = {osd.key}\n")
        if whole:
            await run(
                "ceph-bluestore-tool", "prime-osd-dir", "--dev", osd.path, "--path", str(folder.data), hold=[lock]
            )
            (folder.data / "block").symlink_to(osd.path)
        else:
            write(folder.data / "crush_device_class", f"{osd.media}\n")
            making = ("ceph-osd", "-c", str(folder.conf), "-i", str(number), "--mkfs", "--osd-uuid", osd.uuid)
            try:
                await run(*making, hold=[lock])
            except CloudError as error:
                raise CloudError(error.kind, f"no OSD can be made on {osd.path}: {error.message}") from error
        write(folder.made, "")


async def _is_whole(osd: OsdDaemon, fsid: str, number: int) -> bool:
    """Whether the device holds this OSD of this cluster, made to its end (BlueStore then says `ready`)."""
    if await asyncio.to_thread(owner, Path(osd.path)) != osd.uuid:
        return False
    labels = orjson.loads(await run("ceph-bluestore-tool", "show-label", "--dev", osd.path))
    label = labels.get(osd.path, {})
    found = (label.get("ready"), label.get("ceph_fsid"), label.get("whoami"))
    return bool(found == ("ready", fsid, str(number)))


def _prepare(osd: OsdDaemon, folder: DaemonFolder, whole: bool) -> None:
    """An empty data folder, and, unless the device is kept as it is, an empty device."""
    if folder.data.exists():
        for entry in folder.data.iterdir():
            entry.unlink()
    folder.data.mkdir(exist_ok=True)
    write(folder.device, orjson.dumps({"path": osd.path, "file": osd.size_mib is not None}).decode())
    if not whole:
        try:
            _empty(osd, Path(osd.path))
        except OSError as error:
            raise CloudError(
                ErrorKind.ENGINE, f"the device {osd.path} cannot be written: {error.strerror or error}"
            ) from error


def _empty(osd: OsdDaemon, path: Path) -> None:
    if osd.size_mib is not None:
        holder = owner(path)
        if holder not in (None, osd.uuid):
            raise Occupied(osd.path, f"another OSD, {holder}")
        if holder is None and path.exists() and _written(path):
            raise Occupied(osd.path, "data")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with path.open("xb") as file:
            file.truncate(osd.size_mib * _MIB)
            os.fsync(file.fileno())
        path.chmod(0o600)
    else:
        try:
            mode = path.stat().st_mode
        except FileNotFoundError as error:
            raise CloudError(ErrorKind.NOT_FOUND, f"there is no device {osd.path} on this node") from error
        if not stat.S_ISBLK(mode):
            raise CloudError(ErrorKind.INVALID, f"{osd.path} is no block device; a file needs a size")
        _check_free(path, osd.uuid)
        wipe(path)


def owner(path: Path) -> str | None:
    """The uuid of the OSD that lives on a device or file; None without one, or without a device."""
    try:
        return _label(path)
    except OSError as error:
        raise CloudError(ErrorKind.ENGINE, f"{path} cannot be read: {error.strerror}") from error


def _label(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            found = LABEL.match(file.read(4096))
    except FileNotFoundError:
        return None
    return found[1].decode() if found else None


def check_present(osd: OsdDaemon, name: str) -> None:
    """`CloudError(NOT_FOUND)` if the device of an OSD that was made is not there any more, or is not its any more."""
    path = Path(osd.path)
    found = owner(path)
    if found != osd.uuid:
        what = f"holds another OSD, {found}" if found else "holds no OSD any more" if path.exists() else "is gone"
        raise CloudError(
            ErrorKind.NOT_FOUND,
            f"the device {path} of {name} {what}: bring it back, or forget it with `scloud storage-cluster device "
            f"remove CLUSTER {name}` (or `device replace`)",
        )


def _written(path: Path) -> bool:
    """Whether a file has anything but zeros in its first MiB."""
    with path.open("rb") as file:
        return any(file.read(_PROBED))


def _check_free(path: Path, uuid: str) -> None:
    holder = owner(path)
    if holder == uuid:
        return
    if holder is not None:
        raise Occupied(str(path), f"another OSD, {holder}")
    if _written(path):
        raise Occupied(str(path), "data")
    try:
        # Fails while a file system on it is mounted, or somebody else has it.
        os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        raise Occupied(str(path), f"something that is in use ({error.strerror})") from error


def wipe(path: Path) -> None:
    """Zeros at both ends of a block device, and whatever of it can be discarded."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        zeros = bytes(min(_HEAD, size))
        for offset in {0, max(0, size - len(zeros))}:
            os.pwrite(descriptor, zeros, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_back(folder: DaemonFolder) -> None:
    """Wipe the device of an OSD that has been stopped, and forget the OSD. One that is gone or dead needs no wiping."""
    with held(folder):
        try:
            known = orjson.loads(folder.device.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            known = None
        if known is not None:
            path = Path(known["path"])
            try:
                _give_back(path, folder.name.partition(".")[2], known["file"])
            except OSError as error:
                if error.errno not in _DEAD:
                    message = f"the device {path} of {folder.name} cannot be wiped: {error.strerror or error}"
                    raise CloudError(ErrorKind.ENGINE, message) from error
                log.warning("%s of %s is dead, and was not wiped: %s", path, folder.name, error)
        folder.delete()


def _give_back(path: Path, uuid: str, file: bool) -> None:
    if file:
        if _label(path) in (None, uuid):
            path.unlink(missing_ok=True)
    elif _label(path) == uuid:
        wipe(path)
