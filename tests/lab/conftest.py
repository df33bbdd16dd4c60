"""One lab of three nodes for all tests of this folder, gone after the last, and the guests that they share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.cloud import Guest, Lab
from lab.shared import HIGHEST_VNI, Twins, Wide


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)
            item.add_marker(pytest.mark.timeout(900))


@contextmanager
def _folder() -> Iterator[Path]:
    """A new one; or the one that SCLAB_KEEP names, whose lab is kept and used again by whoever works at these tests."""
    if kept := os.environ.get("SCLAB_KEEP"):
        Path(kept).mkdir(exist_ok=True)
        yield Path(kept)
    else:
        with tempfile.TemporaryDirectory(prefix="sclab-") as name:
            yield Path(name)


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    with _folder() as folder:
        # dnsmasq has a user of its own, which must get through to its files.
        folder.chmod(0o711)
        made = Lab(folder)
        try:
            made.up(3)
            # Guests that sleep cost nothing: many fit on two processors.
            made.ok("cluster", "set", "default", "--cpu-overcommit", "16")
            with made.own_client() as made.client:
                yield made
        finally:
            for guest in made.guests:
                guest.forget()
            if not os.environ.get("SCLAB_KEEP"):
                made.scloud("lab", "down", "--purge", timeout=300.0)


@pytest.fixture(scope="package")
def networks(lab: Lab) -> None:
    if lab.has("vpcs", "twin-r"):
        return
    lab.ok("vpc", "create", "wide", "--vni", str(HIGHEST_VNI))
    lab.ok("subnet", "create", "wide", "--vpc", "wide", "--cidr", "10.50.0.0/24")
    lab.ok("subnet", "create", "wide-2", "--vpc", "wide", "--cidr", "10.50.1.0/24")
    for group in ("left", "right", "twins-l", "twins-r"):
        lab.ok("security-group", "create", group)
    for vpc in ("twin-l", "twin-r"):
        lab.ok("vpc", "create", vpc)
        lab.ok("subnet", "create", vpc, "--vpc", vpc, "--cidr", "10.60.0.0/24")


@pytest.fixture(scope="package")
def guests(lab: Lab, networks: None) -> dict[str, Guest]:
    """All that are shared, booted at the same time."""
    if lab.has("vms", "r2"):
        return {name: Guest(lab, name) for name in ("a1", "a2", "a3", "l1", "l2", "r1", "r2")}
    wide = "--subnet wide --security-group"
    return lab.create_all(
        a1=f"--node n1 {wide} left",
        a2=f"--node n2 {wide} left",
        a3=f"--node n1 {wide} right",
        l1="--node n1 --subnet twin-l --ip 10.60.0.10 --security-group twins-l",
        l2="--node n2 --subnet twin-l --ip 10.60.0.11 --security-group twins-l",
        r1="--node n1 --subnet twin-r --ip 10.60.0.10 --security-group twins-r",
        r2="--node n2 --subnet twin-r --ip 10.60.0.11 --security-group twins-r",
    )


@pytest.fixture(scope="package")
def wide(guests: dict[str, Guest]) -> Wide:
    return Wide(guests["a1"], guests["a2"], guests["a3"])


@pytest.fixture(scope="package")
def twins(guests: dict[str, Guest]) -> Twins:
    return Twins(guests["l1"], guests["l2"], guests["r1"], guests["r2"])


@pytest.fixture(scope="package")
def micro(lab: Lab) -> Path:
    """The file of the image `micro`."""
    return next((lab.root / "cache").glob("**/micro-*.raw"))


@pytest.fixture(scope="package")
def blank(lab: Lab) -> str:
    """An image with nothing in it: its guests run, use no processor, and obey no power button."""
    if lab.has("images", "blank"):
        return "blank"
    file = lab.folder / "blank.raw"
    with file.open("wb") as stream:
        stream.truncate(4 << 20)
    lab.ok("image", "import", "blank", str(file), "--format", "raw")
    return "blank"
