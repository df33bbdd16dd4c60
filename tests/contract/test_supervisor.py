"""What every supervisor does, fake and real alike; then what only the real one can show."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest

from scloud.drivers.supervisor import process as real
from scloud.drivers.supervisor.fake import FakeHost, FakeSupervisor
from scloud.drivers.supervisor.identity import Identity
from scloud.drivers.supervisor.process import ProcessSupervisor
from scloud.drivers.supervisor.protocol import ProcessFacts, ProcessSpec, Supervisor
from scloud.model.errors import CloudError, ErrorKind


class Bench(Protocol):
    """A supervisor and the means to disturb it."""

    supervisor: Supervisor

    def reopen(self) -> Supervisor:
        """A new supervisor over the same processes, as after a crash of the first."""
        ...

    async def kill(self, name: str) -> None: ...

    def broken(self, name: str) -> ProcessSpec:
        """A process that ends as soon as it is started."""
        ...


class FakeBench:
    def __init__(self) -> None:
        self.host = FakeHost()
        self.supervisor: Supervisor = self.reopen()

    def reopen(self) -> Supervisor:
        self.fake = FakeSupervisor(self.host)
        return self.fake

    async def kill(self, name: str) -> None:
        self.fake.kill(name)

    def broken(self, name: str) -> ProcessSpec:
        self.fake.broken.add(name)
        return ProcessSpec(name=name, argv=("false",), ready=Path("/nowhere/it"))


class ProcessBench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.supervisor: Supervisor = self.reopen()

    def reopen(self) -> Supervisor:
        return ProcessSupervisor(self.folder / "run", self.folder / "log")

    async def kill(self, name: str) -> None:
        facts = await find(self.supervisor, name)
        assert facts is not None and facts.pid is not None
        os.kill(facts.pid, signal.SIGKILL)

    def broken(self, name: str) -> ProcessSpec:
        return ProcessSpec(name=name, argv=("sh", "-c", "echo cannot go on; exit 3"), ready=self.folder / "never")


async def find(supervisor: Supervisor, name: str) -> ProcessFacts | None:
    return next((facts for facts in await supervisor.processes() if facts.name == name), None)


@pytest.fixture(params=["fake", "process"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    made: Bench = FakeBench() if request.param == "fake" else ProcessBench(tmp_path)
    yield made
    for facts in await made.supervisor.processes():
        await made.supervisor.stop(facts.name)


DAEMON = ProcessSpec(name="daemon", argv=("sleep", "1000"))


async def test_a_process_is_started_once(bench: Bench) -> None:
    assert await bench.supervisor.ensure(DAEMON)
    first = await find(bench.supervisor, "daemon")
    assert not await bench.supervisor.ensure(DAEMON)
    assert await find(bench.supervisor, "daemon") == first
    assert first is not None and first.running and first.pid is not None and first.restarts == 0


async def test_a_successor_finds_what_runs(bench: Bench) -> None:
    await bench.supervisor.ensure(DAEMON)
    before = await find(bench.supervisor, "daemon")
    bench.supervisor = bench.reopen()
    assert await find(bench.supervisor, "daemon") == before
    assert not await bench.supervisor.ensure(DAEMON)


async def test_one_that_died_is_started_again_and_counted(bench: Bench) -> None:
    await bench.supervisor.ensure(DAEMON)
    for restarts in (1, 2):
        waiting = asyncio.create_task(bench.supervisor.died("daemon"))
        await asyncio.sleep(0)
        assert not waiting.done()
        await bench.kill("daemon")
        async with asyncio.timeout(5):
            await waiting
        dead = await find(bench.supervisor, "daemon")
        assert dead is not None and not dead.running and dead.pid is None
        assert await bench.supervisor.ensure(DAEMON)
        again = await find(bench.supervisor, "daemon")
        assert again is not None and again.running and again.restarts == restarts


async def test_other_arguments_replace_the_process(bench: Bench) -> None:
    await bench.supervisor.ensure(DAEMON)
    before = await find(bench.supervisor, "daemon")
    assert await bench.supervisor.ensure(DAEMON.model_copy(update={"argv": ("sleep", "2000")}))
    after = await find(bench.supervisor, "daemon")
    assert before is not None and after is not None
    assert after.running and after.pid != before.pid and after.restarts == 0


async def test_stop_ends_it_and_may_be_repeated(bench: Bench) -> None:
    await bench.supervisor.ensure(DAEMON)
    waiting = asyncio.create_task(bench.supervisor.died("daemon"))
    await bench.supervisor.stop("daemon")
    async with asyncio.timeout(5):
        await waiting
    assert await bench.supervisor.processes() == []
    await bench.supervisor.stop("daemon")
    await bench.supervisor.stop("never-heard-of")
    async with asyncio.timeout(5):
        await bench.supervisor.died("never-heard-of")


async def test_one_that_cannot_run_is_an_engine_error_naming_the_log(bench: Bench) -> None:
    spec = bench.broken("daemon")
    with pytest.raises(CloudError, match=r"daemon ended at once.*daemon\.log") as caught:
        await bench.supervisor.ensure(spec)
    assert caught.value.kind is ErrorKind.ENGINE
    facts = await find(bench.supervisor, "daemon")
    assert facts is not None and not facts.running


async def test_processes_do_not_disturb_each_other(bench: Bench) -> None:
    names = [f"daemon-{number}" for number in range(4)]
    specs = [DAEMON.model_copy(update={"name": name}) for name in names]
    assert await asyncio.gather(*(bench.supervisor.ensure(spec) for spec in specs)) == [True] * 4
    await bench.supervisor.stop("daemon-2")
    running = [facts.name for facts in await bench.supervisor.processes() if facts.running]
    assert running == ["daemon-0", "daemon-1", "daemon-3"]


# --- only with real processes


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[ProcessBench]:
    made = ProcessBench(tmp_path)
    yield made
    for facts in await made.supervisor.processes():
        await made.supervisor.stop(facts.name)


LISTENER = """
import socket, sys, time
time.sleep(0.2)
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
time.sleep(0.1)
s.listen()
time.sleep(1000)
"""


async def test_readiness_is_a_socket_that_takes_connections(processes: ProcessBench) -> None:
    path = processes.folder / ("long" * 30) / "socket"
    path.parent.mkdir()
    # bind() in the daemon takes a short path only; the supervisor has to look at it by the long one.
    (processes.folder / "s").symlink_to(path.parent)
    assert len(str(path)) > 107
    spec = ProcessSpec(name="listener", argv=(sys.executable, "-c", LISTENER, "s/socket"), ready=path)
    spec = spec.model_copy(update={"argv": ("sh", "-c", f'cd {processes.folder} && exec "$@"', "sh", *spec.argv)})
    await processes.supervisor.ensure(spec)
    assert path.is_socket()
    await processes.kill("listener")
    await processes.supervisor.died("listener")
    # The dead one's socket is still there, and is not taken for readiness: this start takes its 0.3 s again.
    began = asyncio.get_running_loop().time()
    await processes.supervisor.ensure(spec)
    assert asyncio.get_running_loop().time() - began > 0.3


async def test_one_that_never_gets_ready_is_ended(processes: ProcessBench) -> None:
    spec = ProcessSpec(name="slow", argv=("sleep", "1000"), ready=processes.folder / "never", ready_timeout_s=0.2)
    with pytest.raises(CloudError, match=r"slow was not ready within 0\.2 s"):
        await processes.supervisor.ensure(spec)
    facts = await find(processes.supervisor, "slow")
    assert facts is not None and not facts.running


async def test_a_recycled_pid_is_not_taken_for_ours(processes: ProcessBench) -> None:
    await processes.supervisor.ensure(DAEMON)
    facts = await find(processes.supervisor, "daemon")
    assert facts is not None and facts.pid is not None
    pidfile = processes.folder / "run" / "daemon.pid"
    pid, start, boot = pidfile.read_text().split()
    await processes.kill("daemon")
    await processes.supervisor.died("daemon")
    # Our own pid stands for a stranger who has got the number since.
    pidfile.write_text(f"{os.getpid()} {start} {boot}")
    stranger = await find(processes.supervisor, "daemon")
    assert stranger is not None and not stranger.running
    await processes.supervisor.stop("daemon")
    assert Identity.of(os.getpid()) is not None
    pidfile.write_text(f"{pid} {start} another-boot")
    assert not Identity(int(pid), int(start), "another-boot").alive()


async def test_it_is_no_child_of_ours_and_outlives_us(processes: ProcessBench) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path\n"
        "from scloud.drivers.supervisor.process import ProcessSupervisor\n"
        "from scloud.drivers.supervisor.protocol import ProcessSpec\n"
        "s = ProcessSupervisor(Path(sys.argv[1]) / 'run', Path(sys.argv[1]) / 'log')\n"
        "asyncio.run(s.ensure(ProcessSpec(name='daemon', argv=('sleep', '1000'))))\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(processes.folder))
    assert await starter.wait() == -signal.SIGKILL
    facts = await find(processes.supervisor, "daemon")
    assert facts is not None and facts.pid is not None
    stat = Path(f"/proc/{facts.pid}/stat").read_text().split()
    assert int(stat[5]) == facts.pid, "it leads a session of its own"
    assert int(stat[3]) != os.getpid()
    assert not await processes.supervisor.ensure(DAEMON)


async def test_one_that_ignores_sigterm_is_killed_after_the_grace(processes: ProcessBench) -> None:
    ready = processes.folder / "up"
    argv = ("sh", "-c", f"trap '' TERM; : > {ready}; while :; do sleep 1000; done")
    await processes.supervisor.ensure(ProcessSpec(name="stubborn", argv=argv, ready=ready))
    began = asyncio.get_running_loop().time()
    await processes.supervisor.stop("stubborn", grace_s=0.3)
    assert 0.3 <= asyncio.get_running_loop().time() - began < 3
    assert await processes.supervisor.processes() == []


async def test_output_goes_to_a_log_that_cannot_grow_for_ever(
    processes: ProcessBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real, "LOG_LIMIT", 1000)
    ready = processes.folder / "up"
    argv = ("sh", "-c", f"yes | head -c 5000; : > {ready}; exec sleep 1000")
    spec = ProcessSpec(name="noisy", argv=argv, ready=ready)
    await processes.supervisor.ensure(spec)
    log = processes.folder / "log" / "noisy.log"
    assert log.stat().st_size == 5000
    await processes.supervisor.ensure(spec)
    assert log.stat().st_size == 0
    assert log.with_suffix(".log.1").stat().st_size == 1000


async def test_the_environment_is_ours_with_the_specs_on_top(
    processes: ProcessBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCLOUD_NODE", "n7")
    monkeypatch.setenv("SCLOUD_ROLE", "agent")
    await processes.supervisor.ensure(DAEMON.model_copy(update={"env": {"SCLOUD_ROLE": "daemon"}}))
    facts = await find(processes.supervisor, "daemon")
    assert facts is not None and facts.pid is not None
    environ = Path(f"/proc/{facts.pid}/environ").read_bytes().split(b"\0")
    assert b"SCLOUD_NODE=n7" in environ and b"SCLOUD_ROLE=daemon" in environ and b"SCLOUD_ROLE=agent" not in environ
