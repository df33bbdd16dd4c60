"""The manager's image files: streamed in, checked, kept as raw, given out in either format.

The format is what the owner states. Nothing is ever opened by guess, and a qcow2 that refers to other files is refused:
with one, whoever uploads it could read the manager's disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import httpx

from scloud.controllers.disk_reader import DiskReader
from scloud.controllers.image_import import SNAPSHOT, ImportedImage, Progress
from scloud.images.convert import convert, sha256
from scloud.images.inspection import inspect
from scloud.link.backup import Decoder
from scloud.link.channel import Channel
from scloud.link.images import send_image
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.specs import ImageFormat, ImageSpec

UPLOAD = "upload"
MIB = 1024 * 1024
CHUNK = MIB
FREE_MIB = 256
"""Left free on the manager's disk: the database lives there too."""
READ_TIMEOUT_S = 60.0


class ImageFiles:
    """`ID.raw` is a whole image; `ID.part`, `ID.upload` and `ID.new` are on their way to be one."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.disks: DiskReader | None = None
        """Reads disks for images that are made from them; given by whoever has the link to the nodes."""
        root.mkdir(parents=True, exist_ok=True)
        for pattern in ("*.part", "*.new", "*.export-*"):
            for leftover in root.glob(pattern):
                leftover.unlink()

    def path(self, image: str) -> Path:
        return self._root / f"{image}.raw"

    async def receive(self, image: str, stream: AsyncIterator[bytes]) -> None:
        """Keep the bytes of an upload until it is imported."""
        # Each upload has a file of its own: two at once must not write into each other's.
        part = self._root / f"{image}.{os.urandom(4).hex()}.part"
        try:
            with part.open("wb") as file:
                async for chunk in stream:
                    await self._write(file, chunk)
                await asyncio.to_thread(_sync, file)
            part.rename(self._root / f"{image}.{UPLOAD}")
        finally:
            part.unlink(missing_ok=True)

    async def bring_in(self, image: str, spec: ImageSpec, progress: Progress) -> ImportedImage:
        """See ImageStore."""
        source = self._root / f"{image}.part"
        made = self._root / f"{image}.new"
        upload = self._root / f"{image}.{UPLOAD}"
        try:
            if spec.source == UPLOAD:
                if not upload.exists():
                    raise CloudError(ErrorKind.CONFLICT, "the upload is gone; delete the image and begin anew")
                source = upload
                digest = await sha256(upload)
            elif spec.source.startswith("file://"):
                digest = await self._copy(Path(spec.source.removeprefix("file://")), source, progress)
            elif spec.source.startswith(SNAPSHOT):
                digest = await self._read_disk(spec.source.removeprefix(SNAPSHOT), source, progress)
            else:
                digest = await self._download(spec.source, source, progress)
            if spec.sha256 is not None and digest != spec.sha256:
                raise CloudError(
                    ErrorKind.INVALID, f"spec.sha256: the source's bytes have the checksum {digest}, not the one given"
                )
            progress(60, "checking")
            facts = await inspect(source, spec.format.value)
            if spec.format is ImageFormat.RAW:
                source.rename(made)
            else:
                self._check_room(facts.virtual_bytes)
                told = lambda done: progress(65 + int(done * 25), "converting")  # noqa: E731
                await convert(source, "qcow2", made, "raw", progress=told)
            await asyncio.to_thread(_round_up, made)
            progress(90, "checksumming")
            digest = await sha256(made)
            await asyncio.to_thread(_sync_path, made)
            made.rename(self.path(image))
            size = self.path(image).stat()
            return ImportedImage(sha256=digest, size_mib=size.st_size // MIB, file_mib=-(-size.st_blocks * 512 // MIB))
        except OSError as error:
            raise CloudError(ErrorKind.ENGINE, f"the image cannot be stored: {error.strerror or error}") from error
        finally:
            if source != upload or self.path(image).exists():
                source.unlink(missing_ok=True)
            made.unlink(missing_ok=True)

    async def delete(self, image: str) -> None:
        for suffix in ("raw", "part", UPLOAD, "new"):
            (self._root / f"{image}.{suffix}").unlink(missing_ok=True)

    async def send(self, channel: Channel, image: str, sha256: str) -> None:
        """To a node, as sparse extents."""
        path = self.path(image)
        if not path.exists():
            raise CloudError(ErrorKind.NOT_FOUND, "the manager has no such image file")
        await send_image(channel, path, sha256)

    async def export(self, image: str, format: ImageFormat) -> tuple[int, AsyncIterator[bytes]]:
        """(size in bytes, the bytes)."""
        path = self.path(image)
        temporary: Path | None = None
        if format is ImageFormat.QCOW2:
            temporary = self._root / f"{image}.export-{os.urandom(4).hex()}"
            try:
                await convert(path, "raw", temporary, "qcow2")
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            path = temporary
        file = await asyncio.to_thread(path.open, "rb")
        if temporary is not None:
            temporary.unlink()  # the open file keeps the bytes until they are sent
        return os.fstat(file.fileno()).st_size, _chunks(file)

    # --- sources

    async def _download(self, url: str, into: Path, progress: Progress) -> str:
        digest = hashlib.sha256()
        done = 0
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=15.0)
        try:
            async with (
                httpx.AsyncClient(timeout=timeout, follow_redirects=True, max_redirects=5) as client,
                client.stream("GET", url) as response,
            ):
                if response.status_code != 200:
                    raise CloudError(ErrorKind.ENGINE, f"the source answered with HTTP {response.status_code}: {url}")
                total = int(response.headers.get("content-length", 0))
                self._check_room(total)
                with into.open("wb") as file:
                    async for chunk in response.aiter_bytes(CHUNK):
                        await self._write(file, chunk)
                        digest.update(chunk)
                        done += len(chunk)
                        progress(int(55 * done / total) if total else 0, f"downloaded {done // MIB} MiB")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CloudError(
                ErrorKind.ENGINE, f"the source cannot be read: {error or type(error).__name__}: {url}"
            ) from error
        return digest.hexdigest()

    async def _read_disk(self, snapshot: str, into: Path, progress: Progress) -> str:
        """Returns nothing to compare: a backup carries its own checksums."""
        if self.disks is None:
            raise CloudError(ErrorKind.UNAVAILABLE, "this manager reads no disks")
        async with self.disks.open(snapshot) as read:
            decoder = Decoder(read)
            size = (await decoder.header()).size_mib * MIB
            with into.open("wb") as file:
                file.truncate(size)
                async for offset, piece in decoder.extents(size):
                    if isinstance(piece, bytes):
                        self._check_room(len(piece))
                        await asyncio.to_thread(os.pwrite, file.fileno(), piece, offset)
                    progress(int(55 * offset / size), f"read {offset // MIB} MiB")
        return ""

    async def _copy(self, path: Path, into: Path, progress: Progress) -> str:
        if not path.is_file():
            raise CloudError(ErrorKind.INVALID, f"spec.source: there is no file {path} on the manager's host")
        digest = hashlib.sha256()
        total = max(path.stat().st_size, 1)
        done = 0
        with path.open("rb") as source, into.open("wb") as file:
            while chunk := await asyncio.to_thread(source.read, CHUNK):
                await self._write(file, chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(int(55 * done / total), f"copied {done // MIB} MiB")
        return digest.hexdigest()

    async def _write(self, file: BinaryIO, chunk: bytes) -> None:
        """Leaves holes where the source has zeros, and stops before the disk is full."""
        self._check_room(len(chunk))
        if chunk.count(0) == len(chunk):
            file.seek(len(chunk), os.SEEK_CUR)
            file.truncate()
        else:
            await asyncio.to_thread(file.write, chunk)

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._root).free - needed
        if free < FREE_MIB * MIB:
            raise CloudError(
                ErrorKind.NO_CAPACITY,
                f"the manager's disk has {max(free + needed, 0) // MIB} MiB free, too little for this image; "
                f"make room under {self._root}",
            )


def _round_up(path: Path) -> None:
    """Disks are whole MiB."""
    size = path.stat().st_size
    os.truncate(path, -(-size // MIB) * MIB)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_path(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    with contextlib.closing(file):
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk
