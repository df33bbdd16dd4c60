"""Network functions with Linux namespaces and dnsmasq.

Per VPC: the namespace `PREFIX + VPC`, whose name is its stamp; a veth into it; one dnsmasq, kept by the supervisor
under the name `dnsmasq-VPC`; and a folder of files for it. All of it outlives the agent. What is in memory is only what
was last applied: an agent that starts compares everything once and changes what differs.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
import re
import shutil
import signal
import socket
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scloud.drivers.netfunc import dnsmasq, foot, namespace
from scloud.drivers.netfunc.protocol import VpcServiceSpec
from scloud.drivers.supervisor.protocol import ProcessSpec, Supervisor
from scloud.model.errors import CloudError, ErrorKind, invalid

_VPC = re.compile(r"vpc-[a-z0-9]{1,32}\Z")
_DNSMASQ = "/usr/sbin/dnsmasq"
_UNPRIVILEGED = ("dnsmasq", "nobody")
"""Whom dnsmasq becomes once it has its sockets: the first of these users that there is."""
_BACKLOG = 128
_KEEPALIVE_S = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10}
_KEEPALIVE_COUNT = 6
"""A guest that is gone says no goodbye: a connection that waits for its bytes ends after a minute and a half."""


@dataclass(frozen=True)
class _Applied:
    spec: VpcServiceSpec
    namespace: int
    foot: int
    process: ProcessSpec


class LinuxNetworkFunctions:
    """`run_dir` holds a folder per VPC and must be reachable for other users, because dnsmasq is one.

    `prefix` begins the namespaces' names; drivers that share a /run/netns need different ones.
    """

    def __init__(self, run_dir: Path, supervisor: Supervisor, prefix: str = "sc-") -> None:
        self._run = run_dir.absolute()
        self._supervisor = supervisor
        self._prefix = prefix
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._applied: dict[str, _Applied] = {}

    # --- the Protocol

    async def ensure(self, spec: VpcServiceSpec) -> None:
        _check(spec.vpc)
        async with self._locks[spec.vpc]:
            last = self._applied.get(spec.vpc)
            if last is not None and last.spec == spec and self._intact(last):
                await self._supervisor.ensure(last.process)
                return
            # Until all is done, nothing is known: an interruption here makes the next `ensure` compare everything.
            self._applied.pop(spec.vpc, None)
            try:
                self._applied[spec.vpc] = await self._apply(spec, last)
            except OSError as error:
                raise CloudError(ErrorKind.ENGINE, f"network functions of {spec.vpc}: {error}") from error

    async def remove(self, vpc: str) -> None:
        _check(vpc)
        async with self._locks[vpc]:
            self._applied.pop(vpc, None)
            await self._supervisor.stop(_process_name(vpc))
            await foot.remove(self._name(vpc), self._noted_port(vpc))
            await namespace.delete(self._name(vpc))
            shutil.rmtree(self._run / vpc, ignore_errors=True)

    async def vpcs(self) -> list[str]:
        found = [name.removeprefix(self._prefix) for name in namespace.names(self._prefix)]
        return [vpc for vpc in found if _VPC.match(vpc)]

    async def listen(self, vpc: str, address: str, port: int) -> socket.socket:
        """Non-blocking. `CloudError(NOT_FOUND)` without a namespace, `CloudError(ENGINE)` if it is taken."""
        listener = await self._socket(vpc)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise CloudError(ErrorKind.ENGINE, f"cannot listen on {address}:{port} in {vpc}: {error}") from error
        return listener

    async def connect(self, vpc: str, address: str, port: int, timeout_s: float) -> socket.socket:
        """`CloudError(TIMED_OUT)` if nobody answers, `CloudError(UNAVAILABLE)` if the connection is refused."""
        connection = await self._socket(vpc)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(connection, (address, port))
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError):
                message = f"{address}:{port} in {vpc} did not answer within {timeout_s:g} s"
                raise CloudError(ErrorKind.TIMED_OUT, message) from error
            if isinstance(error, OSError):
                reason = os.strerror(error.errno) if error.errno else str(error)
                message = f"{address}:{port} in {vpc} takes no connection: {reason}"
                raise CloudError(ErrorKind.UNAVAILABLE, message) from error
            raise
        return connection

    async def _socket(self, vpc: str) -> socket.socket:
        """A TCP socket belongs for ever to the namespace it was made in, whoever uses it."""
        _check(vpc)

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_COUNT)
            for option, seconds in _KEEPALIVE_S.items():
                made.setsockopt(socket.IPPROTO_TCP, option, seconds)
            return made

        return await namespace.inside(self._name(vpc), make, socket.socket.close)

    # --- making and mending

    def _intact(self, applied: _Applied) -> bool:
        """Namespace and veth are there. The two ends of a veth live and die together."""
        return namespace.identity(self._name(applied.spec.vpc)) == applied.namespace and foot.has(applied.spec.port)

    async def _apply(self, spec: VpcServiceSpec, last: _Applied | None) -> _Applied:
        names, leases = dnsmasq.names(spec), dnsmasq.leases(spec)
        name = self._name(spec.vpc)
        folder = self._run / spec.vpc
        folder.mkdir(parents=True, exist_ok=True)
        _reachable(folder)
        # Noted first, so that `remove` finds the veth even if its other end has gone with a namespace.
        _write(folder / "port", spec.port)
        inode = namespace.identity(name) or await namespace.create(name)
        if last is not None and self._intact(last) and _wiring(last.spec) == _wiring(spec):
            device = last.foot
        else:
            device = await foot.settle(spec, name)
        process = self._process(spec, f"{inode} {device}")
        if _write(folder / "dnsmasq.conf", self._configuration(spec)):
            # While it is down, leases of hosts and subnets that are gone can be taken out of its books.
            await self._supervisor.stop(process.name)
            _write(folder / "leases", dnsmasq.without_stray(_read(folder / "leases"), spec))
        renamed = _write(folder / "names", names)
        readdressed = _write(folder / "hosts", leases)
        started = await self._supervisor.ensure(process)
        if not started and (renamed or readdressed or last is None):
            self._reread(spec.vpc)
        if readdressed or started or last is None:
            await self._take_back(spec)
        return _Applied(spec, inode, device, process)

    def _process(self, spec: VpcServiceSpec, place: str) -> ProcessSpec:
        folder = self._run / spec.vpc
        digest = hashlib.sha256(self._configuration(spec).encode()).hexdigest()[:16]
        return ProcessSpec(
            name=_process_name(spec.vpc),
            argv=(_DNSMASQ, "--keep-in-foreground", f"--conf-file={folder / 'dnsmasq.conf'}"),
            # The supervisor replaces a process whose environment would differ: one that runs with another
            # configuration, or on a namespace or device that is gone, never passes for the right one.
            env={"SCLOUD_CONFIGURATION": digest, "SCLOUD_PLACE": place},
            ready=folder / "dnsmasq.pid",
            netns=self._name(spec.vpc),
        )

    def _configuration(self, spec: VpcServiceSpec) -> str:
        folder = self._run / spec.vpc
        return dnsmasq.configuration(
            spec,
            names=folder / "names",
            leases=folder / "hosts",
            lease_file=folder / "leases",
            pid_file=folder / "dnsmasq.pid",
            user=_service_user(),
        )

    def _reread(self, vpc: str) -> None:
        """SIGHUP, to the very process: a pid is checked again after a handle holds it."""
        folder = self._run / vpc
        with suppress(OSError, ValueError):
            pid = int(_read(folder / "dnsmasq.pid"))
            handle = os.pidfd_open(pid)
            try:
                if os.fsencode(folder / "dnsmasq.conf") in Path(f"/proc/{pid}/cmdline").read_bytes():
                    signal.pidfd_send_signal(handle, signal.SIGHUP)
            finally:
                os.close(handle)

    async def _take_back(self, spec: VpcServiceSpec) -> None:
        """Release the leases of hosts that are gone or have moved, so that their addresses and names are free."""
        strays = dnsmasq.stray(_read(self._run / spec.vpc / "leases"), spec)
        if not strays:
            return

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
                # Seen by dnsmasq as come in on that device, though the kernel delivers it locally.
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, foot.DEVICE.encode())
                for mac, ip in strays:
                    if (server := dnsmasq.server_of(ip, spec)) is not None:
                        handle.sendto(dnsmasq.release(mac, ip, server), (server, 67))

        await namespace.inside(self._name(spec.vpc), send)

    def _name(self, vpc: str) -> str:
        return f"{self._prefix}{vpc}"

    def _noted_port(self, vpc: str) -> str | None:
        return _read(self._run / vpc / "port") or None


def _check(vpc: str) -> None:
    if not _VPC.match(vpc):
        raise invalid("vpc", f"must be the id of a VPC, not {vpc!r}")


def _process_name(vpc: str) -> str:
    return f"dnsmasq-{vpc}"


def _wiring(spec: VpcServiceSpec) -> tuple[object, ...]:
    """What the veth is made from."""
    return spec.port, spec.service_mac, spec.mtu, spec.subnets


def _service_user() -> str:
    for user in _UNPRIVILEGED:
        with suppress(KeyError):
            return pwd.getpwnam(user).pw_name
    raise CloudError(ErrorKind.ENGINE, f"none of the users {', '.join(_UNPRIVILEGED)} exists; install dnsmasq-base")


def _reachable(folder: Path) -> None:
    """dnsmasq reads its files again after it has given up being root."""
    for step in (folder, *folder.parents):
        if not step.stat().st_mode & 0o001:
            message = f"dnsmasq runs as user {_service_user()} and cannot pass {step} to its files: chmod o+x {step}"
            raise CloudError(ErrorKind.ENGINE, message)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _write(path: Path, text: str) -> bool:
    """Whole or not at all; True if it said something else before."""
    if path.exists() and path.read_text() == text:
        return False
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(0o644)
    fresh.replace(path)
    return True
