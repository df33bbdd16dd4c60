"""Runs qemu-img: under memory limits, with a deadline, and never left behind."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from scloud.images.guestkernel import missing
from scloud.model.errors import CloudError, ErrorKind

MEMORY_LIMIT = 2 * 1024 * 1024 * 1024
"""Bytes of address space. An image made to exhaust the memory of whoever opens it ends its reader only."""
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_PROGRESS = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")


async def run_limited(*argv: str, timeout_s: float, progress: Callable[[float], None] | None = None) -> str:
    """Its output. `progress` is told 0..1 as qemu-img's `-p` prints it.

    `CloudError(TIMED_OUT)` past the deadline, `CloudError(NO_CAPACITY)` if the disk is full, `CloudError(ENGINE)` with
    the program's words otherwise. However this ends, the process has ended too.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *("prlimit", f"--as={MEMORY_LIMIT}", "--core=0", "--"),
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_ENVIRONMENT,
        )
    except FileNotFoundError as error:
        raise missing("util-linux", "the program prlimit") from error
    try:
        async with asyncio.timeout(timeout_s):
            assert process.stdout is not None and process.stderr is not None
            output, errors = await asyncio.gather(_read(process.stdout, progress), process.stderr.read())
            code = await process.wait()
    except TimeoutError:
        raise CloudError(ErrorKind.TIMED_OUT, f"{argv[0]} {argv[1]} did not finish within {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    if code:
        words = errors.decode(errors="replace").strip()[-500:]
        if "No such file or directory" in words and words.startswith("prlimit"):
            raise missing("qemu-utils", f"the program {argv[0]}")
        kind = ErrorKind.NO_CAPACITY if "No space left" in words else ErrorKind.ENGINE
        raise CloudError(kind, f"{argv[0]} {argv[1]} failed: {words or f'exit status {code}'}")
    return output.decode(errors="replace")


async def _read(stream: asyncio.StreamReader, progress: Callable[[float], None] | None) -> bytes:
    output = b""
    tail = b""
    while chunk := await stream.read(65536):
        if progress is None:
            output += chunk
            continue
        tail = (tail + chunk)[-256:]
        if found := _PROGRESS.findall(tail):
            progress(float(found[-1]) / 100)
    return output
