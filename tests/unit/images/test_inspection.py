"""Images that nobody vouches for: what is taken, and what is refused before any tool opens it."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scloud.images.inspection import ImageLimits, inspect, read_header
from scloud.model.errors import CloudError, ErrorKind

MIB = 1024 * 1024


def make(path: Path, *argv: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", *argv[:-1], str(path), argv[-1]], check=True)
    return path


def patched(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    return path


async def refused(path: Path, format: str, limits: ImageLimits | None = None) -> CloudError:
    with pytest.raises(CloudError) as failed:
        await inspect(path, format, limits)  # type: ignore[arg-type]
    return failed.value


@pytest.mark.parametrize("options", [(), ("-o", "compat=0.10"), ("-o", "compression_type=zstd,extended_l2=on")])
async def test_plain_qcow2(tmp_path: Path, options: tuple[str, ...]) -> None:
    info = await inspect(make(tmp_path / "a", "-f", "qcow2", *options, "5M"), "qcow2")
    assert (info.format, info.virtual_bytes, info.virtual_mib) == ("qcow2", 5 * MIB, 5)


async def test_raw_sizes_are_whole_sectors_and_round_up_to_mib(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\0" * (MIB + 1))
    info = await inspect(path, "raw")
    assert (info.virtual_bytes, info.virtual_mib, info.file_bytes) == (MIB + 512, 2, MIB + 1)


async def test_files_that_name_other_files(tmp_path: Path) -> None:
    base = make(tmp_path / "base", "-f", "raw", "1M")
    backed = make(tmp_path / "backed", "-f", "qcow2", "-F", "raw", "-b", str(base), "1M")
    assert "backing file" in (await refused(backed, "qcow2")).message
    data = make(tmp_path / "outside", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", "1M")
    assert "external data file" in (await refused(data, "qcow2")).message


async def test_a_hidden_data_file_extension_is_seen(tmp_path: Path) -> None:
    image = make(tmp_path / "a", "-f", "qcow2", "1M")
    (length,) = struct.unpack(">I", image.read_bytes()[100:104])
    patched(image, length, struct.pack(">II16sII", 0x44415441, 11, b"/etc/passwd", 0, 0))
    assert "external data file" in (await refused(image, "qcow2")).message


async def test_encryption(tmp_path: Path) -> None:
    image = patched(make(tmp_path / "a", "-f", "qcow2", "1M"), 32, struct.pack(">I", 2))
    assert "encrypted" in (await refused(image, "qcow2")).message


@pytest.mark.parametrize(("bit", "word"), [(1, "corrupt"), (2, "data file"), (5, "not known"), (63, "not known")])
async def test_features_that_are_not_understood(tmp_path: Path, bit: int, word: str) -> None:
    image = patched(make(tmp_path / "a", "-f", "qcow2", "1M"), 72, struct.pack(">Q", 1 << bit))
    assert word in (await refused(image, "qcow2")).message


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (4, struct.pack(">I", 4)),
        (20, struct.pack(">I", 8)),
        (20, struct.pack(">I", 22)),
        (24, struct.pack(">Q", 0)),
        (36, struct.pack(">I", 2**31)),
        (40, struct.pack(">Q", 77)),
        (100, struct.pack(">I", 0)),
        (100, struct.pack(">I", 2**31)),
        (112, struct.pack(">II", 0x12345678, 2**31)),
    ],
)
async def test_damaged_headers(tmp_path: Path, offset: int, data: bytes) -> None:
    image = patched(make(tmp_path / "a", "-f", "qcow2", "1M"), offset, data)
    error = await refused(image, "qcow2")
    assert error.kind is ErrorKind.INVALID
    assert error.fields


@pytest.mark.parametrize(
    ("format", "head", "word"),
    [
        ("raw", b"QFI\xfb", "qcow2"),
        ("raw", b"KDMV", "VMDK"),
        ("raw", b"\x1f\x8b\x08\0", "gzip"),
        ("raw", b"<!DOCTYPE html>", "web page"),
        ("raw", b"", "empty"),
        ("qcow2", b"QFI\xfb\0\0\0\3", "cut off"),
        ("qcow2", b"MZ not an image" * 20, "qcow2 header"),
    ],
)
async def test_the_stated_format_must_be_true(tmp_path: Path, format: str, head: bytes, word: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(head)
    error = await refused(path, format)
    assert error.kind is ErrorKind.INVALID
    assert word in error.message


async def test_limits(tmp_path: Path) -> None:
    limits = ImageLimits(max_virtual_mib=10, max_file_mib=2)
    assert (await refused(make(tmp_path / "a", "-f", "qcow2", "11M"), "qcow2", limits)).kind is ErrorKind.TOO_LARGE
    assert (await refused(make(tmp_path / "b", "-f", "raw", "3M"), "raw", limits)).kind is ErrorKind.TOO_LARGE
    assert (await inspect(make(tmp_path / "c", "-f", "qcow2", "10M"), "qcow2", limits)).virtual_mib == 10


async def test_a_missing_file(tmp_path: Path) -> None:
    assert "cannot be read" in (await refused(tmp_path / "none", "raw")).message


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_get_an_answer(tmp_path_factory: pytest.TempPathFactory, data: bytes, magic: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(b"QFI\xfb\0\0\0\3" + data if magic else data)
    for format in ("raw", "qcow2"):
        try:
            info = read_header(path, format, ImageLimits())  # type: ignore[arg-type]
        except CloudError as error:
            assert error.kind in (ErrorKind.INVALID, ErrorKind.TOO_LARGE)
        else:
            assert info.virtual_bytes > 0
