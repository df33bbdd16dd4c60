"""A fresh fake cloud for each test, and a folder of its own for contexts and keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_cloud import SECRET, FakeCloud, serve

from scloud.client.contexts import Context


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "config"
    monkeypatch.setenv("SCLOUD_CONFIG", str(folder))
    for name in ("SCLOUD_CONTEXT", "SCLOUD_URL", "SCLOUD_TOKEN", "SCLOUD_CA"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[FakeCloud, str]]:
    """One server for all tests, because starting and stopping it takes longer than most of them."""
    cloud = FakeCloud()
    with serve(cloud) as url:
        yield cloud, url


@pytest.fixture
def cloud(served: tuple[FakeCloud, str]) -> FakeCloud:
    served[0].reset()
    return served[0]


@pytest.fixture
def context(cloud: FakeCloud, served: tuple[FakeCloud, str]) -> Context:
    return Context("fake", served[1], SECRET)
