"""`vm ssh`, `vm console` and `vm port-forward` as real processes: pipes, terminals, exit statuses, start-up time."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Cli
from fake_cloud import FakeCloud

from scloud.client.keys import ensure_key

SCLOUD = [sys.executable, "-m", "scloud.cli.main"]
FAKE_SSH = """#!/usr/bin/env python3
import json, subprocess, sys
arguments = sys.argv[1:]
proxy = next(item for item in arguments if item.startswith("ProxyCommand="))[len("ProxyCommand="):].replace("%%", "%")
with subprocess.Popen(proxy, shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    process.stdin.write(b"SSH-2.0-client\\n")
    process.stdin.flush()
    print(json.dumps({"arguments": arguments, "heard": process.stdout.readline().decode()}))
    process.stdin.close()
sys.exit(7)
"""


@contextmanager
def guest(cloud: FakeCloud) -> Iterator[None]:
    """A port of the guest: greets when it is spoken to, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        cloud.guest_port = server.getsockname()[1]

        def serve() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    with connection:
                        line = connection.makefile("rb").readline()
                        connection.sendall(b"guest heard " + line)
            except OSError:
                return

        threading.Thread(target=serve, daemon=True).start()
        yield


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(FAKE_SSH)
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*SCLOUD, *arguments], input=stdin, capture_output=True, timeout=60, check=False)


@contextmanager
def started(*arguments: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is killed if the test ends before it does."""
    with subprocess.Popen([*SCLOUD, *arguments], **more) as process:
        try:
            yield process
        finally:
            process.kill()


def option(arguments: list[str], name: str) -> str:
    return next(item for item in arguments if item.startswith(f"{name}=")).partition("=")[2]


@pytest.mark.usefixtures("ssh")
def test_ssh_goes_through_the_cloud_and_leaves_with_the_commands_status(cli: Cli, cloud: FakeCloud) -> None:
    key = ensure_key("laptop")
    keypair = cloud.make("keypairs", "laptop", {"public_key": key.public_key})
    image = cloud.make("images", "debian", {"login_user": "debian"})
    vm = cloud.make("vms", "web", {"image": image["id"], "keypairs": [keypair["id"]], "power": "on"})
    cloud.make("disks", "web-system", {"system": True, "rebuilds": 2, "vm": vm["id"]})
    with guest(cloud):
        done = run("vm", "ssh", "web", "--", "uname", "-a")
    assert done.returncode == 7, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    arguments = found["arguments"]
    assert found["heard"] == "guest heard SSH-2.0-client\n"
    assert arguments[-6:] == ["-l", "debian", "web", "--", "uname", "-a"]
    assert arguments[arguments.index("-i") + 1] == str(key.path)
    assert option(arguments, "StrictHostKeyChecking") == "accept-new"
    assert option(arguments, "UserKnownHostsFile") == f'"{cli.folder}/config/known_hosts/{vm["id"]}-2"'
    assert option(arguments, "HostKeyAlias") == vm["id"]


@pytest.mark.usefixtures("ssh")
def test_ssh_waits_for_a_guest_that_boots(cli: Cli, cloud: FakeCloud) -> None:
    cloud.make("vms", "web", {"image": cloud.find("images", "micro")["id"], "power": "on"})
    cloud.closed_forwards = ["engine: connection refused", "engine: connection refused"]
    with guest(cloud):
        done = run("vm", "ssh", "web", "--user", "me")
    assert done.returncode == 7
    assert b"Port 22 does not answer yet (connection refused)" in done.stderr
    assert json.loads(done.stdout)["heard"] == "guest heard SSH-2.0-client\n"


@pytest.mark.usefixtures("ssh")
def test_ssh_into_a_stopped_vm_says_how_to_start_it(cli: Cli, cloud: FakeCloud) -> None:
    cloud.make("vms", "web", {"power": "off"})["status"]["state"] = "stopped"
    done = run("vm", "ssh", "web")
    assert done.returncode == 1
    assert b"web is stopped: `scloud vm start web`" in done.stderr


def test_ssh_without_ssh_says_what_to_install(
    cli: Cli, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = cli.run("vm", "ssh", "web")
    assert (result.exit_code, "openssh-client" in result.stderr) == (1, True)


def test_console_from_a_pipe(cli: Cli, cloud: FakeCloud) -> None:
    cloud.make("vms", "web", {})
    done = run("vm", "console", "web", "--linger", "0.5", stdin=b"hello\n")
    assert (done.returncode, done.stdout) == (0, b"HELLO\n")


def test_console_from_a_file_and_until_the_guest_closes(cli: Cli, cloud: FakeCloud, tmp_path: Path) -> None:
    cloud.make("vms", "web", {})
    (tmp_path / "in").write_bytes(b"hello\n")
    with (tmp_path / "in").open("rb") as stdin:
        done = subprocess.run(
            [*SCLOUD, "vm", "console", "web", "--linger", "0.5"],
            stdin=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, b"HELLO\n")


def read_until(descriptor: int, wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        assert select.select([descriptor], [], [], 30)[0], f"nothing more after {data!r}"
        data += os.read(descriptor, 4096)
    return data


def test_console_on_a_terminal_is_raw_until_it_is_left(cli: Cli, cloud: FakeCloud) -> None:
    cloud.make("vms", "web", {})
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with started("vm", "console", "web", stdin=theirs, stdout=theirs, stderr=theirs) as process:
        read_until(ours, b"Ctrl-] leaves")
        os.write(ours, b"a\x03b")  # raw: Ctrl-C is the guest's
        assert b"A\x03B" in read_until(ours, b"B")
        os.write(ours, b"\x1d")
        assert b"Left the console of web." in read_until(ours, b"Left the console of web.")
        assert process.wait(30) == 0
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_port_forward_listens_here_and_ends_on_interrupt(cli: Cli, cloud: FakeCloud) -> None:
    cloud.make("vms", "web", {})
    with (
        guest(cloud),
        started("vm", "port-forward", "web", "0:80", "81", stderr=subprocess.PIPE) as process,
    ):
        assert process.stderr is not None
        ports = [int(re.search(rb"127\.0\.0\.1:(\d+) -> web:8", process.stderr.readline())[1]) for _ in range(2)]  # type: ignore[index]
        for port in ports:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.sendall(b"hi\n")
                assert connection.makefile("rb").read() == b"guest heard hi\n"
        cloud.closed_forwards = ["engine: connection refused"]
        with socket.create_connection(("127.0.0.1", ports[0]), timeout=30) as connection:
            assert connection.recv(10) == b""
        assert b"port 80: connection refused" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_a_port_in_use_is_named(cli: Cli, cloud: FakeCloud) -> None:
    cloud.make("vms", "web", {})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = cli.run("vm", "port-forward", "web", f"{taken.getsockname()[1]}:80")
    assert result.exit_code == 1
    assert "cannot be listened on" in result.stderr


def test_events_are_followed_as_they_happen(cli: Cli, cloud: FakeCloud) -> None:
    cloud.event("first")
    with started("event", "list", "--follow", "-o", "json", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        messages = [json.loads(process.stdout.readline())["message"] for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert messages == ["first", "something happened", "something happened"]


def test_a_reader_that_goes_away_is_no_error(cli: Cli, cloud: FakeCloud) -> None:
    for number in range(400):
        cloud.make("vpcs", f"v{number}", {"vni": number + 2})
    process = subprocess.Popen([*SCLOUD, "vpc", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert b"Traceback" not in process.communicate(timeout=60)[1]


def test_on_a_terminal_tables_fit_80_columns(cli: Cli, cloud: FakeCloud) -> None:
    vm = cloud.make("vms", "a-name-that-is-as-long-as-names-may-be-" + "x" * 24, {"cpus": 1, "memory_mib": 512})
    vm["status"]["addresses"] = ["10.0.0.5", "10.200.100.117", "192.168.100.123"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    with started("vm", "list", stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        data = b""
        try:
            while piece := os.read(ours, 4096):
                data += piece
        except OSError:
            pass  # the other end of the terminal is closed
        assert process.wait(30) == 0
    os.close(ours)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", data.decode()).splitlines()
    assert lines[0].split() == ["NAME", "STATE", "NODE", "ADDRESSES", "CPUS", "MEMORY", "AGE"]
    assert max(len(line) for line in lines) <= 80
    assert "running" in lines[1]


def test_a_list_imports_only_what_it_needs(cli: Cli) -> None:
    """The start-up time of every command hangs on this."""
    probe = (
        "import sys; from scloud.cli.main import app\n"
        "try: app(['vm', 'list', '-o', 'json'])\n"
        "except SystemExit: pass\n"
        "heavy = {'pydantic', 'click', 'scloud.model.errors', 'websockets', 'yaml', 'asyncio', 'cryptography', 'rich', "
        "'scloud.cli.disk', 'scloud.setup', 'scloud.lab', 'scloud.cli.pipes', 'fastapi'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
