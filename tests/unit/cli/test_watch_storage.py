"""`scloud storage-cluster show --watch`: looks again and again, also past a manager that is away between two looks."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from cli_runner import Cli
from fake_cloud import FakeCloud
from rich.console import Console
from test_cli_storage import SPEC, STATUS
from typer.testing import Result

from scloud.cli import storage_cluster
from scloud.client import http

LOOK = "/storage-clusters/c"


class Clock:
    """Time that only passes in sleep."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Watched:
    """`between` are done one after the other, each between two looks; after the look that follows the last it is
    interrupted, as by Ctrl-C."""

    def __init__(self, cli: Cli, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster = cloud.make("storage-clusters", "c", SPEC)
        self.cluster["status"] = {**STATUS}
        self._cli, self._cloud, self._patch = cli, cloud, monkeypatch
        self.pauses: list[float] = []

    def run(self, *between: Callable[[], None], output: str = "table") -> Result:
        steps = iter(between)

        def sleep(seconds: float) -> None:
            self.pauses.append(seconds)
            step = next(steps, None)
            if step is None:
                raise KeyboardInterrupt
            step()

        self._patch.setattr(storage_cluster, "time", SimpleNamespace(sleep=sleep))
        return self._cli.run("storage-cluster", "show", "c", "--watch", "-o", output)

    def looks(self) -> list[dict[str, Any]]:
        """The queries of each, as the cloud has got them."""
        return [query for method, path, query, *_ in self._cloud.requests if (method, path) == ("GET", LOOK)]

    def changes(self) -> None:
        self.cluster["status"] |= {"leader": "n2", "removing": {}}

    def goes_away(self, refusals: int) -> None:
        """So many connections are refused from now on, before one is taken again."""
        whole, left = httpx.Client.request, [refusals]

        def request(client: httpx.Client, *asked: Any, **more: Any) -> httpx.Response:
            if left[0]:
                left[0] -= 1
                raise httpx.ConnectError("[Errno 111] Connection refused")
            return whole(client, *asked, **more)

        self._patch.setattr(httpx.Client, "request", request)


@pytest.fixture
def watched(cli: Cli, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(cli, cloud, monkeypatch)


def test_the_second_look_shows_what_has_changed(watched: Watched) -> None:
    said = watched.run(watched.changes)
    first, second = said.stdout.split("n1 (leads)")[1:], said.stdout.split("n2 (leads)")[1:]
    assert len(first) == 1 and len(second) == 1, said.output
    assert "42 objects left" in said.stdout and "42 objects left" not in second[0]
    assert watched.pauses == [storage_cluster.WATCH_S] * 2
    assert watched.looks() == [{"fresh": "true"}] * 2, "asked of the cluster itself each time"
    assert said.exit_code != 0, "interrupted"


def test_programs_get_a_document_for_each_look(watched: Watched) -> None:
    text, found = watched.run(watched.changes, output="json").stdout, []
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document["status"]["leader"])
        text = text[end:]
    assert found == ["n1", "n2"]


def test_on_a_terminal_each_look_is_drawn_over_the_one_before(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Console(file=io.StringIO(), width=80, height=60, force_terminal=True, color_system=None)
    monkeypatch.setattr(storage_cluster, "console", lambda: screen)
    watched.run(watched.changes)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    home, whole, usual = "\x1b[H", "\x1b[?1049h", "\x1b[?1049l"
    assert text.startswith(whole) and usual in text, "a screen of its own, and the terminal as it was afterwards"
    assert text.index("n1 (leads)") < text.rindex(home) < text.index("n2 (leads)") < text.index(usual)


def test_a_manager_that_is_away_between_two_looks_is_waited_for(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(http, "time", clock)

    def away() -> None:
        watched.goes_away(6)
        watched.changes()

    said = watched.run(away)
    assert "n1 (leads)" in said.stdout and "n2 (leads)" in said.stdout, said.output
    assert len(watched.looks()) == 2 and len(watched.pauses) == 2
    assert 1.0 < clock.now - 1000.0 < http.PATIENCE_S


def test_one_that_stays_away_ends_it_with_words(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "time", Clock())
    said = watched.run(lambda: watched.goes_away(1000))
    assert "n1 (leads)" in said.stdout and said.exit_code == 1, said.output
    assert "nothing answers at http://127.0.0.1" in said.output and len(watched.looks()) == 1
