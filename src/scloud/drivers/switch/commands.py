"""Runs Open vSwitch's and iproute2's tools, each with a time limit; a failure names the command and what it said."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from scloud.model.errors import CloudError, ErrorKind


@dataclass(frozen=True)
class Commands:
    """`prefix` goes before every command, for a switch in other namespaces than the caller's (`nsenter ...`)."""

    prefix: tuple[str, ...] = ()
    timeout_s: float = 20.0

    async def attempt(self, *argv: str, stdin: str = "", timeout_s: float | None = None) -> tuple[int, str, str]:
        """(exit status, output, errors). CloudError(ENGINE) if it can't be run, CloudError(TIMED_OUT) if it hangs."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        try:
            process = await asyncio.create_subprocess_exec(
                *self.prefix,
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise CloudError(ErrorKind.ENGINE, f"{argv[0]} cannot be run: {error}") from error
        try:
            output, errors = await asyncio.wait_for(process.communicate(stdin.encode()), limit)
        except TimeoutError:
            raise CloudError(
                ErrorKind.TIMED_OUT, f"`{_short(argv)}` gave no answer in {limit:g} s: is the switch's daemon running?"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, output.decode(errors="replace"), errors.decode(errors="replace")

    async def run(self, *argv: str, stdin: str = "", timeout_s: float | None = None) -> str:
        """The output. Raises CloudError(ENGINE) with what the command said if it fails."""
        status, output, errors = await self.attempt(*argv, stdin=stdin, timeout_s=timeout_s)
        if status != 0:
            said = (errors.strip() or output.strip() or f"exit status {status}")[-600:]
            raise CloudError(ErrorKind.ENGINE, f"`{_short(argv)}` failed: {said}")
        return output


def _short(argv: tuple[str, ...]) -> str:
    text = " ".join(argv)
    return text if len(text) <= 160 else f"{text[:157]}..."
