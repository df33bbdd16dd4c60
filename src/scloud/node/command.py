"""Running the host's tools."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from scloud.model.errors import CloudError, ErrorKind

TIMEOUT_S = 60.0


def run(argv: Sequence[str], *, timeout_s: float = TIMEOUT_S, stdin: str | None = None) -> str:
    """The command's output. `CloudError(ENGINE)` has its own words when it fails, is missing or takes too long."""
    # Of a command in a node, what matters is the command, and not how the node was entered.
    shown = argv[argv.index("--") + 1 :] if argv[0] == "nsenter" and "--" in argv else argv
    name = " ".join(shown[:4])
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError as error:
        raise CloudError(ErrorKind.ENGINE, f"{argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise CloudError(ErrorKind.TIMED_OUT, f"{name}: not done after {timeout_s:g} s") from error
    if done.returncode != 0:
        raise CloudError(ErrorKind.ENGINE, f"{name}: {(done.stderr or done.stdout).strip() or done.returncode}")
    return done.stdout


def succeeds(argv: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether it could be run and said 0."""
    try:
        run(argv, timeout_s=timeout_s)
    except CloudError:
        return False
    return True
