"""`scloud test`: what CI runs, from the sources that this program was started from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from scloud.setup.steps import Steps

REPOSITORY = Path(__file__).resolve().parents[3]
_BIN = Path(sys.executable).parent
SOME_FAILED = 1
"""pytest's exit status when all went well but tests failed."""
CI_SEEDS = "1000"
"""Seeds of the simulation in a full run."""
TOO_MANY = 12
"""Failures of tests with engines after which the rest is not run: a broken engine fails each of them by its time limit.
pytest says so with a status of its own, and nothing is run again."""
NEEDS_NO_ENGINE = "not engine and not lab and not browser"
LONG = "long"
"""What takes longer than CI has room for."""


def run_tests(*, fast: bool, arguments: list[str], long: bool = False) -> int:
    """The exit status; `long` is only what CI leaves out. The first check that fails ends it; the summary is last."""
    checks: dict[str, list[str]] = {
        "ruff check": [str(_BIN / "ruff"), "check", "."],
        "ruff format": [str(_BIN / "ruff"), "format", "--check", "--quiet", "."],
        "mypy": [str(_BIN / "mypy"), "--no-error-summary"],
        "import-linter": [str(_BIN / "lint-imports"), "--no-logo"],
    }
    steps = Steps(Console(highlight=False, soft_wrap=True))
    for title, argv in checks.items():
        with steps.step(title) as step:
            done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
            step.say("" if done.returncode == 0 else "FAILED")
        if done.returncode != 0:
            print(done.stdout + done.stderr, flush=True)
            return 1
    pytest = [str(_BIN / "python"), "-m", "pytest", "-q"]
    environment = os.environ | ({} if fast else {"SCLOUD_SIM_SEEDS": os.environ.get("SCLOUD_SIM_SEEDS", CI_SEEDS)})
    # What needs no engine keeps all processors busy; what has real engines mostly waits for them, so two run at a time.
    lanes = ["-n", "2", "--dist", "loadscope", "--maxfail", str(TOO_MANY)]
    with_engines = f"not ({NEEDS_NO_ENGINE}) and not {LONG}"
    runs = [[*pytest, "-n", "auto", "-m", NEEDS_NO_ENGINE], [*pytest, *lanes, "-m", with_engines]]
    if arguments:
        runs = [[*pytest, *(["-m", NEEDS_NO_ENGINE] if fast else []), *arguments]]
    elif long:
        runs = [[*pytest, *lanes, "-m", LONG]]
    elif fast:
        runs = runs[:1]
    for argv in runs:
        status = subprocess.run(argv, cwd=REPOSITORY, env=environment, check=False).returncode
        if status == SOME_FAILED and argv is not runs[0]:
            # Real engines under emulation, on a machine shared with others: what fails twice is broken.
            print(
                "\nThe tests named above FAILED. They are run once more; a pass now means a flaky test.\n", flush=True
            )
            again = [*argv, "--last-failed", "--last-failed-no-failures", "none"]
            status = subprocess.run(again, cwd=REPOSITORY, env=environment, check=False).returncode
        if status != 0:
            return status
    return 0
