"""The `scloud` script on machines that lack something, played by programs of the same names."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


class Machine:
    """A copy of the script beside a folder of stand-ins for the system's tools."""

    def __init__(self, folder: Path) -> None:
        self.repo = folder / "repo"
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.calls.touch()
        for path in (self.repo / "install", self.repo / "requirements", self.repo / "src", self.bin):
            path.mkdir(parents=True)
        shutil.copy(REPOSITORY / "scloud", self.repo / "scloud")
        (self.repo / "install/debian-packages.txt").write_text("# engines\nqemu-one\nlibvirt-two\n\n")
        (self.repo / "install/debian-packages-test.txt").write_text("browser-three\n")
        for kind in ("runtime", "dev"):
            (self.repo / f"requirements/{kind}.lock").write_text(f"# {kind}\n")
        self.tool("id", "echo ${FAKE_UID:-0}")
        self.tool("apt-get", '[ -z "$FAKE_APT_FAILS" ] || { echo no such package; exit 100; }')
        self.tool("dpkg-query", "for p in $FAKE_INSTALLED; do echo $p installed; done; echo gone not-installed")
        # Stands for the venv's interpreter: `-m venv` has been done, `-m pip` is noted, the command line is echoed.
        (self.repo / ".venv/bin").mkdir(parents=True)
        (self.repo / ".venv/lib/python3.11/site-packages").mkdir(parents=True)
        self.write(self.repo / ".venv/bin/python", 'case "$2" in scloud.cli.main) echo "runs: $*"; esac')

    def tool(self, name: str, body: str) -> None:
        self.write(self.bin / name, body)

    def write(self, path: Path, body: str) -> None:
        path.write_text(f'#!/bin/sh\necho "{path.name} $*" >> {self.calls}\n{body}\n')
        path.chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", **environment}
        return subprocess.run(
            [str(self.repo / "scloud"), *arguments], env=env, capture_output=True, text=True, check=False
        )

    def called(self, tool: str) -> list[str]:
        lines = [line for line in self.calls.read_text().splitlines() if line.split()[0] == tool]
        self.calls.write_text("")
        return lines


ALL = "qemu-one libvirt-two"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_it_makes_ready_once_and_then_only_runs(machine: Machine) -> None:
    first = machine.run("lab", "up", FAKE_INSTALLED=ALL)
    assert first.returncode == 0 and "runs: -m scloud.cli.main lab up" in first.stdout
    assert "--require-hashes" in " ".join(machine.called("python"))
    assert (machine.repo / ".venv/lib/python3.11/site-packages/scloud.pth").read_text() == f"{machine.repo}/src\n"
    again = machine.run("lab", "up", FAKE_INSTALLED="")
    assert again.stdout == "runs: -m scloud.cli.main lab up\n", "nothing has changed, so nothing is asked"
    calls = machine.calls.read_text()
    assert "dpkg-query" not in calls and "pip" not in calls and "apt-get" not in calls


def test_another_lock_is_installed(machine: Machine) -> None:
    machine.run("up", FAKE_INSTALLED=ALL)
    machine.called("python")
    (machine.repo / "requirements/runtime.lock").write_text("# newer\n")
    machine.run("up", FAKE_INSTALLED=ALL)
    assert [line for line in machine.called("python") if "pip" in line]
    marks = list((machine.repo / ".venv").glob(".scloud-runtime-*"))
    assert len(marks) == 1


def test_tests_need_more(machine: Machine) -> None:
    done = machine.run("test", "-k", "x", FAKE_INSTALLED=f"{ALL} browser-three")
    assert "runs: -m scloud.cli.main test -k x" in done.stdout
    assert any("dev.lock" in line for line in machine.called("python"))


def test_commands_that_only_talk_to_a_cloud_need_nothing(machine: Machine) -> None:
    done = machine.run("vm", "list", FAKE_UID="1000")
    assert done.stdout == "runs: -m scloud.cli.main vm list\n"
    assert machine.called("dpkg-query") == []


def test_without_root_it_says_what_to_do(machine: Machine) -> None:
    done = machine.run("up", FAKE_UID="1000")
    assert done.returncode == 1 and "has to be run as root" in done.stderr and "sudo" in done.stderr


def test_before_the_first_start_it_says_what_to_do(machine: Machine) -> None:
    shutil.rmtree(machine.repo / ".venv")
    done = machine.run("vm", "list", FAKE_UID="1000")
    assert done.returncode == 1 and "as root once" in done.stderr


def test_help_is_had_without_installing(machine: Machine) -> None:
    assert machine.run("up", "--help").stdout == "runs: -m scloud.cli.main up --help\n"


@pytest.mark.engine
def test_missing_packages_are_installed_without_their_daemons(machine: Machine) -> None:
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        before = policy.read_text()
    else:
        before = None
        machine.tool("apt-get", f'test -x {policy} && echo "policy in place" >> {machine.calls}')
    done = machine.run("up", FAKE_INSTALLED="qemu-one")
    assert "Installing Debian packages: libvirt-two" in done.stdout
    calls = machine.calls.read_text()
    assert "apt-get install -y --no-install-recommends libvirt-two" in calls
    assert before is not None or "policy in place" in calls
    assert (policy.read_text() if policy.exists() else None) == before


@pytest.mark.engine
def test_what_apt_says_is_shown_when_it_fails(machine: Machine) -> None:
    done = machine.run("up", FAKE_INSTALLED="qemu-one", FAKE_APT_FAILS="yes")
    assert done.returncode == 1
    assert "no such package" in done.stderr and "could not install: libvirt-two" in done.stderr
    assert "runs:" not in done.stdout
