"""Simulated nodes: the real agent on fake drivers, over the real link. For measuring the manager."""
