"""Converts images between raw and qcow2, and sums them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from scloud.images.inspection import Format, ImageInfo, ImageLimits, inspect
from scloud.images.process import run_limited
from scloud.model.errors import CloudError, ErrorKind

_CHUNK = 4 * 1024 * 1024
CONVERT_TIMEOUT_S = 3600.0


async def convert(
    source: Path,
    source_format: Format,
    target: Path,
    target_format: Format,
    *,
    progress: Callable[[float], None] | None = None,
    limits: ImageLimits | None = None,
    timeout_s: float = CONVERT_TIMEOUT_S,
    compress: bool = False,
) -> ImageInfo:
    """Write `target` whole or not at all, sparse where the source is zero, on stable storage when this returns.

    The source is inspected first (see `inspect` for what it refuses). `compress` is for qcow2 targets. Errors as of
    `run_limited`. `progress` is told 0..1.
    """
    info = await inspect(source, source_format, limits)
    target = target.absolute()
    partial = target.with_name(f".{target.name}.partial")
    try:
        await run_limited(
            *("qemu-img", "convert", "-p", "-S", "4k", "-t", "writeback", "-f", source_format, "-O", target_format),
            *(("-c",) if compress and target_format == "qcow2" else ()),
            *(str(source.absolute()), str(partial)),
            timeout_s=timeout_s,
            progress=progress or (lambda _: None),
        )
        await asyncio.to_thread(_finish, partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return ImageInfo(format=target_format, virtual_bytes=info.virtual_bytes, file_bytes=target.stat().st_size)


def _finish(partial: Path, target: Path) -> None:
    _sync(partial)
    partial.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def sha256(path: Path, progress: Callable[[float], None] | None = None) -> str:
    """The hexadecimal SHA-256 of a file, read in a thread; cancelling stops the thread at its next chunk."""
    loop = asyncio.get_running_loop()
    stop = threading.Event()

    def work() -> str:
        digest = hashlib.sha256()
        done = 0
        with path.open("rb") as file:
            total = os.fstat(file.fileno()).st_size or 1
            while not stop.is_set() and (chunk := file.read(_CHUNK)):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    loop.call_soon_threadsafe(progress, min(1.0, done / total))
        return digest.hexdigest()

    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        raise CloudError(ErrorKind.ENGINE, f"reading {path}: {error.strerror}") from error
    finally:
        stop.set()
