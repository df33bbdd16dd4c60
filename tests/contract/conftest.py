"""Fixtures that several contract suites share: one real cluster for all of a run, and a larger one for bad luck."""

from bad_luck_rig import adopted, eight_hosts
from rbd_bench import ceph

__all__ = ["adopted", "ceph", "eight_hosts"]
