"""A lab of three nodes with a storage cluster for all tests of this folder, gone after the last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cloud import Guest, Lab
from lab.conftest import _folder
from lab_ceph import protected as surviving
from lab_ceph.protected import Protected
from lab_ceph.storage import Storage
from lab_ceph.writer import Writer
from support.figures import Figures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    with _folder() as folder:
        folder.chmod(0o711)
        made = Lab(folder)
        try:
            made.up(3, "--ceph")
            with made.own_client() as made.client:
                yield made
        finally:
            for guest in made.guests:
                guest.forget()
            made.scloud("lab", "down", "--purge", timeout=300.0)


@pytest.fixture
def storage(lab: Lab) -> Iterator[Storage]:
    """The lab's cluster, healthy after each test."""
    found = Storage(lab)
    yield found
    found.healthy()


@pytest.fixture(scope="package")
def survivor(lab: Lab) -> Iterator[tuple[Guest, Writer]]:
    """One guest for all tests of lost nodes."""
    guest, writer = surviving.make(lab)
    yield guest, writer
    surviving.remove(lab, guest)


@pytest.fixture(scope="package")
def neighbours(lab: Lab) -> Iterator[tuple[Guest, Guest]]:
    """Those that talk to the survivor and to one another: one of their own, and hello."""
    found = lab.create("neighbour", "--disk-type", "standard")
    yield found, Guest(lab, "hello")
    found.forget()
    lab.ok("vm", "delete", found.name)


@pytest.fixture
def protected(
    lab: Lab, storage: Storage, figures: Figures, survivor: tuple[Guest, Writer], neighbours: tuple[Guest, Guest]
) -> Protected:
    return Protected(lab, storage, figures, *survivor, neighbours)
