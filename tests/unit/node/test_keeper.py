"""The keeper: keeps units running, does as their files say, and loses nothing when it dies itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scloud.drivers.supervisor.identity import Identity
from scloud.model.errors import CloudError, ErrorKind
from scloud.node import keeping, processes
from scloud.node.keep import ask, read_units
from scloud.node.keeping import kill_unit, set_units, start_keeper, stop_keeper
from scloud.node.layout import Layout, Unit


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    # A root so long that its sockets' paths do not fit into a socket's address.
    made = Layout(root=tmp_path / ("deep" * 20))
    yield made
    stop_keeper(made)
    processes.signal_all(processes.of_cloud(made.root, ()), signal.SIGKILL)


def sleeper(name: str, seconds: int = 1000) -> Unit:
    return Unit(name=name, role="agent", node=name, argv=("sleep", str(seconds)))


def pid_of(status: dict[str, Any], name: str) -> int:
    pid = status["units"][name]["pid"]
    assert isinstance(pid, int)
    return pid


def await_end(pid: int) -> None:
    fd = os.pidfd_open(pid)
    try:
        assert processes.wait_ended(fd, 5.0)
    finally:
        os.close(fd)


def await_other(layout: Layout, name: str, old: int) -> int:
    """The next process of a unit: the keeper answers `sync` when it has tried to start everything."""
    for _ in range(100):
        pid = ask(layout, "sync")["units"][name]["pid"]
        if pid not in (None, old):
            return int(pid)
        # It waits a moment before it starts a unit again; `sync` does not wait for that.
        subprocess.run(["sleep", "0.05"], check=True)
    raise AssertionError(f"{name} was not started again")


def test_units_run_and_are_started_again(layout: Layout) -> None:
    assert start_keeper(layout) and not start_keeper(layout)
    first = set_units(layout, sleeper("one"), sleeper("two"))
    assert set(first["units"]) == {"one", "two"}
    pid = pid_of(first, "one")
    os.kill(pid, signal.SIGKILL)
    assert await_other(layout, "one", pid) != pid
    assert pid_of(ask(layout, "status"), "two") == pid_of(first, "two")
    assert ask(layout, "status")["units"]["one"]["restarts"] == 1


def test_a_dead_keeper_takes_nothing_with_it(layout: Layout) -> None:
    start_keeper(layout)
    before = set_units(layout, sleeper("one"))
    keeper = int(before["pid"])
    os.kill(keeper, signal.SIGKILL)
    await_end(keeper) if Identity.of(keeper) else None
    with pytest.raises(CloudError, match="does not answer") as caught:
        ask(layout, "status")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert start_keeper(layout)
    after = ask(layout, "sync")
    assert after["pid"] != keeper and pid_of(after, "one") == pid_of(before, "one")


def test_a_unit_is_left_stopped_or_replaced_as_its_file_says(layout: Layout) -> None:
    start_keeper(layout)
    one = sleeper("one")
    pid = pid_of(set_units(layout, one), "one")
    left = set_units(layout, one.model_copy(update={"wanted": "leave"}))
    assert pid_of(left, "one") == pid, "it goes on as it is"
    assert kill_unit(layout, "one") == pid
    assert ask(layout, "sync")["units"]["one"]["pid"] is None and kill_unit(layout, "one") is None
    again = pid_of(set_units(layout, one), "one")
    other = pid_of(set_units(layout, sleeper("one", 2000)), "one")
    assert other != again and Identity.of(again) is None, "other arguments, another process"
    stopped = set_units(layout, sleeper("one", 2000).model_copy(update={"wanted": "stop"}))
    assert stopped["units"]["one"]["pid"] is None and Identity.of(other) is None
    set_units(layout, one, sleeper("two"))
    two = pid_of(ask(layout, "status"), "two")
    (layout.units / "two.json").unlink()
    assert set(ask(layout, "sync")["units"]) == {"one"} and Identity.of(two) is None


def test_what_is_no_unit_does_not_stop_the_others(layout: Layout) -> None:
    layout.units.mkdir(parents=True)
    (layout.units / "bad.json").write_text('{"name": "bad"}')
    start_keeper(layout)
    assert set(set_units(layout, sleeper("one"))["units"]) == {"one"}
    assert set(read_units(layout)) == {"one"}


def test_processes_of_a_cloud_are_known_by_their_stamps(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    start_keeper(layout)
    pid = pid_of(set_units(layout, sleeper("one")), "one")
    # A person's own setting, which all that they run inherits.
    monkeypatch.setenv("SCLOUD_ROOT", str(layout.root))
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        mine = {process.pid for process in processes.scan() if processes.of_cloud(layout.root, ())(process)}
        assert mine == {pid, ask(layout, "status")["pid"]}
        node = {p.pid for p in processes.scan() if processes.of_node(layout.root, "one", None)(p)}
        assert node == {pid}
    finally:
        bystander.kill()
        bystander.wait()


def test_the_systemd_service_runs_the_keeper_and_spares_what_it_keeps(layout: Layout) -> None:
    text = keeping.service_text(layout)
    assert f"ExecStart={sys.executable} -m scloud.node.keep --root {layout.root}\n" in text
    assert "KillMode=process\n" in text and "WantedBy=multi-user.target" in text
    assert f'Environment="SCLOUD_ROOT={layout.root}"' in text
