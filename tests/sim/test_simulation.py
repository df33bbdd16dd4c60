"""Whole clouds from seeds. `SCLOUD_SIM_SEEDS` says how many (1,000 in CI: four minutes on two CPUs)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .mutations import MUTATIONS

ROOT = Path(__file__).parents[2]
SEEDS = int(os.environ.get("SCLOUD_SIM_SEEDS", "24"))
FIRST = int(os.environ.get("SCLOUD_SIM_FIRST", "1"))
WITHIN = 300
"""Seeds among which each defect put in on purpose must be found."""
RARE = {"runs-at-once": 1500}
"""What comes once in about 130 seeds needs more."""

LIMIT_S = 1200
pytestmark = pytest.mark.timeout(LIMIT_S)


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the order of sets is part of a run, and the dead must never be collected."""
    return subprocess.run(
        [sys.executable, "-m", "tests.sim", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def test_no_seed_breaks_a_promise() -> None:
    done = simulate("--first", str(FIRST), "--count", str(SEEDS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SEEDS} seeds, 0 failed" in done.stdout, done.stdout


@pytest.mark.parametrize("defect", sorted(MUTATIONS))
def test_a_defect_put_in_on_purpose_is_found(defect: str) -> None:
    done = simulate("--first", "1", "--count", str(RARE.get(defect, WITHIN)), "--mutation", defect)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED" in done.stdout and "again: python -m tests.sim --seed" in done.stdout


def test_a_seed_is_the_same_story_every_time() -> None:
    first, again = (simulate("--seed", "7").stdout for _ in range(2))
    assert "faults end" in first
    assert story(first) == story(again)


def story(text: str) -> list[str]:
    """Without what was measured in real time."""
    return [line for line in text.splitlines() if "of CPU" not in line]
