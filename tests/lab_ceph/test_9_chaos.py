"""A short run of what `python -m lab_ceph --minutes 20` does for long; the last test of its lab, which it wears out."""

from __future__ import annotations

import os

import pytest

from lab.cloud import Guest, Lab
from lab_ceph.chaos_run import chaos
from lab_ceph.storage import Storage
from lab_ceph.writer import Writer

SECONDS = 90.0
SEED = int(os.environ.get("SCLOUD_CHAOS_SEED", "1"))


@pytest.mark.timeout(900)
def test_nothing_is_lost_in_a_minute_and_a_half_of_chaos(
    lab: Lab, storage: Storage, survivor: tuple[Guest, Writer]
) -> None:
    assert chaos(lab, SECONDS, SEED, *survivor) == []
