"""Fixtures that several contract suites share: one real cluster for all of a run."""

from rbd_bench import ceph

__all__ = ["ceph"]
