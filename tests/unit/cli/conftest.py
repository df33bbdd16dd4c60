"""The command line against the fake cloud of the client's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "client"))

from cli_runner import Cli
from fake_cloud import SECRET, FakeCloud, serve


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[FakeCloud, str]]:
    cloud = FakeCloud()
    with serve(cloud) as url:
        yield cloud, url


@pytest.fixture
def cloud(served: tuple[FakeCloud, str]) -> FakeCloud:
    served[0].reset()
    return served[0]


@pytest.fixture
def cli(cloud: FakeCloud, served: tuple[FakeCloud, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("SCLOUD_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("SCLOUD_URL", served[1])
    monkeypatch.setenv("SCLOUD_TOKEN", SECRET)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("SCLOUD_CONTEXT", "SCLOUD_CA"):
        monkeypatch.delenv(name, raising=False)
    return Cli(served[1], tmp_path)
