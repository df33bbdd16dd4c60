"""Looks at disk images that nobody vouches for.

The header is read here, byte by byte, before any tool opens the file: a qcow2 file can name other files (a backing
file, a data file) which a tool would open and mix into the disk. The format is the one the user states, never guessed.
"""

from __future__ import annotations

import asyncio
import json
import struct
from pathlib import Path
from typing import Literal

from scloud.images.process import run_limited
from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind, invalid

Format = Literal["raw", "qcow2"]

MIB = 1024 * 1024
_SECTOR = 512
_QCOW2_MAGIC = b"QFI\xfb"
_OTHER_FORMATS: tuple[tuple[int, bytes, str], ...] = (
    (0, _QCOW2_MAGIC, "a qcow2 image"),
    (0, b"QED\0", "a QED image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "a VMDK image"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD image"),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
    (0, b"LUKS\xba\xbe", "an encrypted (LUKS) image"),
    (0, b"\x1f\x8b\x08", "a gzip file: unpack it first"),
    (0, b"BZh", "a bzip2 file: unpack it first"),
    (0, b"\xfd7zXZ\0", "an xz file: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file: unpack it first"),
    (0, b"PK\x03\x04", "a ZIP file: unpack it first"),
    (0, b"\x7fELF", "a program"),
    (0, b"<!DOCTYPE", "a web page: is the address right?"),
    (0, b"<!doctype", "a web page: is the address right?"),
    (0, b"<html", "a web page: is the address right?"),
)
_HEAD_BYTES = 64 * 1024
# QEMU docs/interop/qcow2.txt.
_V3_HEADER = 104
_INCOMPATIBLE = {0: "dirty", 1: "corrupt", 2: "external data file", 3: "compression type", 4: "extended L2 entries"}
_HARMLESS_FEATURES = frozenset({0, 3, 4})
_EXTENSION_END = 0x00000000
_EXTENSION_BACKING_FORMAT = 0xE2792ACA
_EXTENSION_DATA_FILE = 0x44415441
_EXTENSION_ENCRYPTION = 0x0537BE77


class ImageInfo(Value):
    """`virtual_bytes` is the size of the disk that a guest sees; `file_bytes` the length of the file."""

    format: Format
    virtual_bytes: int
    file_bytes: int

    @property
    def virtual_mib(self) -> int:
        """Rounded up: the smallest disk that the image fits on."""
        return -(-self.virtual_bytes // MIB)


class ImageLimits(Value):
    """What is refused with `CloudError(TOO_LARGE)`."""

    max_virtual_mib: int = 16 * MIB
    max_file_mib: int = 16 * MIB


def read_header(path: Path, format: Format, limits: ImageLimits) -> ImageInfo:
    """Check the file's first bytes. `CloudError(INVALID)` says what it is instead, or what it may not have."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            length = file.seek(0, 2)
    except OSError as error:
        raise CloudError(ErrorKind.INVALID, f"the image file {path} cannot be read: {error.strerror}") from error
    if length == 0:
        raise invalid("source", "the image is empty")
    _limit("file", length, limits.max_file_mib)
    if format == "qcow2":
        virtual = _qcow2_size(head)
    else:
        for offset, magic, name in _OTHER_FORMATS:
            if head[offset : offset + len(magic)] == magic:
                raise invalid("format", f"'raw' was stated, but the file is {name}")
        virtual = -(-length // _SECTOR) * _SECTOR
    _limit("disk", virtual, limits.max_virtual_mib)
    return ImageInfo(format=format, virtual_bytes=virtual, file_bytes=length)


def _limit(what: str, size: int, limit_mib: int) -> None:
    if size > limit_mib * MIB:
        raise CloudError(ErrorKind.TOO_LARGE, f"the image's {what} has {-(-size // MIB)} MiB, the limit is {limit_mib}")


def _qcow2_size(head: bytes) -> int:
    if head[:4] != _QCOW2_MAGIC:
        raise invalid("format", "'qcow2' was stated, but the file does not begin with a qcow2 header")
    if len(head) < 72:
        raise invalid("source", "the qcow2 header is cut off")
    (version, backing_offset, _, cluster_bits, size, crypt, l1_size, l1_offset) = struct.unpack_from(
        ">IQIIQIIQ", head, 4
    )
    if version not in (2, 3):
        raise invalid("source", f"qcow2 version {version} is not known: convert it with qemu-img first")
    if backing_offset:
        raise invalid("source", "the qcow2 image has a backing file: flatten it first (qemu-img convert -O qcow2)")
    if crypt:
        raise invalid("source", "the qcow2 image is encrypted: decrypt it first (qemu-img convert)")
    if not 9 <= cluster_bits <= 21:
        raise invalid("source", f"the qcow2 image has clusters of 2^{cluster_bits} bytes; 2^9 to 2^21 are allowed")
    if l1_offset % (1 << cluster_bits) or l1_size > 4 * MIB:
        raise invalid("source", "the qcow2 header is damaged: its L1 table is out of place")
    if size == 0:
        raise invalid("source", "the qcow2 image's disk is empty")
    header_length = 72
    if version == 3:
        if len(head) < _V3_HEADER:
            raise invalid("source", "the qcow2 header is cut off")
        (incompatible,) = struct.unpack_from(">Q", head, 72)
        (header_length,) = struct.unpack_from(">I", head, 100)
        for bit in range(64):
            if incompatible >> bit & 1 and bit not in _HARMLESS_FEATURES:
                name = _INCOMPATIBLE.get(bit, f"number {bit}, which is not known")
                raise invalid("source", f"the qcow2 image has the feature '{name}': flatten it with qemu-img convert")
        if header_length < _V3_HEADER or header_length % 8 or header_length > min(len(head), 1 << cluster_bits):
            raise invalid("source", f"the qcow2 header is damaged: it claims {header_length} bytes")
    _check_extensions(head, header_length, 1 << cluster_bits)
    return int(size)


def _check_extensions(head: bytes, offset: int, end: int) -> None:
    """The list after the header, which ends with the first cluster."""
    end = min(end, len(head))
    while offset + 8 <= end:
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == _EXTENSION_END:
            return
        if kind == _EXTENSION_DATA_FILE:
            raise invalid("source", "the qcow2 image has an external data file: flatten it first (qemu-img convert)")
        if kind == _EXTENSION_BACKING_FORMAT:
            raise invalid("source", "the qcow2 image names a backing format: flatten it first (qemu-img convert)")
        if kind == _EXTENSION_ENCRYPTION:
            raise invalid("source", "the qcow2 image is encrypted: decrypt it first (qemu-img convert)")
        if length > end - offset - 8:
            raise invalid("source", "the qcow2 header is damaged: an extension is longer than its cluster")
        offset += 8 + -(-length // 8) * 8


async def inspect(path: Path, format: Format, limits: ImageLimits | None = None) -> ImageInfo:
    """What the image is. qemu-img, with memory and time limits, must agree with the header.

    `CloudError(INVALID)` if it is not a plain image of the stated format, `CloudError(TOO_LARGE)` past the limits.
    """
    info = await asyncio.to_thread(read_header, path, format, limits or ImageLimits())
    output = await run_limited("qemu-img", "info", "--output=json", "-f", format, str(path.absolute()), timeout_s=60)
    try:
        answer = json.loads(output)
        virtual, seen = int(answer["virtual-size"]), answer["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CloudError(ErrorKind.ENGINE, f"qemu-img info gave no usable answer about {path}") from error
    data = answer.get("format-specific", {}).get("data", {})
    named = [key for key in ("backing-filename", "full-backing-filename") if key in answer]
    if named or "data-file" in data or answer.get("encrypted"):
        raise invalid("source", "the image refers to another file or is encrypted: flatten it first (qemu-img convert)")
    if seen != format or virtual != info.virtual_bytes:
        raise invalid("source", f"the image's header says {info.virtual_bytes} bytes, qemu-img {virtual} ({seen})")
    return info
