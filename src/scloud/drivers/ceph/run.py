"""Running Ceph's own tools."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from scloud.model.errors import CloudError, ErrorKind

TIMEOUT_S = 120.0
_TAIL = 400


async def run(*argv: str, hold: Sequence[int] = (), timeout_s: float = TIMEOUT_S) -> str:
    """The tool's output. `CloudError(ENGINE)` with its last words if it fails.

    `hold` are descriptors that it keeps open as long as it lives, even when we are gone. Cancelled, it is killed.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
            pass_fds=tuple(hold),
        )
    except FileNotFoundError as error:
        raise CloudError(ErrorKind.ENGINE, f"{argv[0]} is not installed on this node") from error
    try:
        async with asyncio.timeout(timeout_s):
            out, complaint = await process.communicate()
    except TimeoutError as error:
        raise CloudError(ErrorKind.TIMED_OUT, f"{argv[0]} was not done after {timeout_s:g} s") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        words = " | ".join(line.strip() for line in complaint.decode(errors="replace")[-_TAIL:].splitlines()[-3:])
        raise CloudError(ErrorKind.ENGINE, f"{argv[0]} failed ({process.returncode}): {words}")
    return out.decode(errors="replace")
