"""Running one of iproute2's commands."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from scloud.model.errors import CloudError, ErrorKind


async def run(*argv: str, stdin: str = "") -> str:
    """What it printed; `CloudError(ENGINE)` with its own words if it failed."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, complaint = await process.communicate(stdin.encode())
    except asyncio.CancelledError:
        # It is a matter of milliseconds, and half of a batch is mended by the next `ensure`.
        if process.returncode is None:
            process.kill()
        raise
    if process.returncode != 0:
        said = complaint.decode(errors="replace").strip()
        raise CloudError(ErrorKind.ENGINE, f"{' '.join(argv)}: {said}")
    return out.decode()


async def batch(commands: Sequence[str], namespace: str | None = None) -> None:
    """Several `ip` commands in one process, in a namespace or where we are; the first failure ends it."""
    if commands:
        where = () if namespace is None else ("-netns", namespace)
        await run("ip", *where, "-batch", "-", stdin="\n".join(commands) + "\n")
