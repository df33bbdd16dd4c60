"""Writes cpio archives of the kind the Linux kernel unpacks as its initramfs ("newc"), the same bytes every time."""

from __future__ import annotations

from collections.abc import Mapping

_TRAILER = "TRAILER!!!"
_DIRECTORY = 0o040755
_SYMLINK = 0o120777
_FILE = 0o100000


def _record(number: int, name: str, mode: int, data: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name.encode()) + 1, 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4)


def initramfs(files: Mapping[str, tuple[int, bytes]], links: Mapping[str, str] | None = None) -> bytes:
    """The archive of `files` (path without leading slash -> permission bits and content), symbolic `links` (path ->
    target) and every folder they need. Owner root, times zero."""
    links = links or {}
    folders = {
        "/".join(path.split("/")[:depth]) for path in [*files, *links] for depth in range(1, path.count("/") + 1)
    }
    records: list[bytes] = []
    for folder in sorted(folders):
        records.append(_record(len(records) + 1, folder, _DIRECTORY, b""))
    for path in sorted(files):
        mode, data = files[path]
        records.append(_record(len(records) + 1, path, _FILE | mode, data))
    for path in sorted(links):
        records.append(_record(len(records) + 1, path, _SYMLINK, links[path].encode()))
    records.append(_record(0, _TRAILER, 0, b""))
    return b"".join(records)
