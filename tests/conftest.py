"""What holds for all tests: which of those with real engines may run beside one another, and what they measured."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from support.figures import Figures, noted

SHARED = ("browser", "lab", "lab_ceph")
"""Folders whose tests share a browser or a lab."""
ON_CEPH = ("test_ceph", "test_rbd", "test_hypervisor_rbd", "test_storage")
"""Beginnings of the contract suites that use clusters on loopback, with the same ports."""


class Lanes(LoadScopeScheduling):
    """The tests of a shared lab stay with one worker, in their order; other files are handed out one by one.

    The biggest lane is begun first. Every lab has a root and namespaces of its own, so two can be up at the same time.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::")[0]
        folder, name = path.split("/")[1], path.split("/")[-1]
        if folder == "contract" and name.startswith(ON_CEPH):
            return "ceph"
        return folder if folder in SHARED else path


def pytest_configure() -> None:
    # Begun in the background by a shell, a run ignores interrupts, and so would every process that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes | None:
    return Lanes(config, log) if config.getoption("dist") == "loadscope" else None


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Figures:
    return Figures(record_property)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats
    if lines := noted([*stats.get("passed", []), *stats.get("failed", [])]):
        terminalreporter.section("what was measured")
        for line in lines:
            terminalreporter.write_line(line)
