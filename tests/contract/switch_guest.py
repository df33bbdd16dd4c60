"""Runs inside a guest's network namespace: real sockets, told by lines of JSON on stdin, answering on stdout."""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import threading
from typing import Any


class Guest:
    def __init__(self) -> None:
        self.connections: dict[int, socket.socket] = {}
        self.keep: list[socket.socket] = []
        self.accepted: dict[int, socket.socket] = {}

    def listen(self, port: int) -> bool:
        """Echoes TCP and UDP on a port."""
        server = socket.create_server(("0.0.0.0", port))
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("0.0.0.0", port))
        self.keep += [server, datagrams]
        threading.Thread(target=self._serve, args=(server, port), daemon=True).start()
        threading.Thread(target=self._echo_datagrams, args=(datagrams,), daemon=True).start()
        return True

    def _serve(self, server: socket.socket, port: int) -> None:
        while True:
            peer, _ = server.accept()
            self.accepted[port] = peer
            threading.Thread(target=self._echo, args=(peer,), daemon=True).start()

    def _echo(self, peer: socket.socket) -> None:
        try:
            while data := peer.recv(65536):
                peer.sendall(data)
        except OSError:
            peer.close()

    def _echo_datagrams(self, datagrams: socket.socket) -> None:
        while True:
            data, sender = datagrams.recvfrom(65536)
            datagrams.sendto(data, sender)

    def connect(self, number: int, ip: str, port: int, wait: float) -> bool:
        try:
            self.connections[number] = socket.create_connection((ip, port), timeout=wait)
        except OSError:
            return False
        return True

    def echo(self, number: int, size: int, wait: float) -> bool:
        """Whether `size` bytes sent on a connection come back."""
        connection = self.connections[number]
        connection.settimeout(wait)
        data = os.urandom(size)
        try:
            connection.sendall(data)
            got = b""
            while len(got) < size:
                piece = connection.recv(65536)
                if not piece:
                    return False
                got += piece
        except OSError:
            return False
        return got == data

    def push(self, port: int) -> bool:
        """Send a byte, unasked, to who connected to a port last."""
        self.accepted[port].sendall(b"p")
        return True

    def hear(self, number: int, wait: float) -> bool:
        """Whether a byte comes on a connection."""
        connection = self.connections[number]
        connection.settimeout(wait)
        try:
            return connection.recv(1) == b"p"
        except OSError:
            return False

    def udp(self, ip: str, port: int, sizes: list[int], wait: float) -> str:
        """Datagrams from one port, each answered: `echoed`, else `refused` (by an ICMP error), `silent` or `cut`."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.settimeout(wait)
            datagrams.connect((ip, port))
            try:
                for size in sizes:
                    datagrams.send(bytes(size))
                    if len(datagrams.recv(65536)) != size:
                        return "cut"
                return "echoed"
            except ConnectionRefusedError:
                return "refused"
            except TimeoutError:
                return "silent"

    def ping(self, ip: str, source: str | None, wait: float) -> bool:
        extra = ["-I", source] if source is not None else []
        command = ["ping", "-n", "-c", "1", "-W", str(wait), *extra, ip]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def tap(name: str, frame: bytes, wait: float) -> bytes:
    """Send a frame into a tap again and again, as a virtual machine's ARP would; the first answer that comes back."""
    iff_tap, iff_no_pi, tunsetiff, tries = 0x0002, 0x1000, 0x400454CA, 5
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, tunsetiff, struct.pack("16sH22x", name.encode(), iff_tap | iff_no_pi))
    with selectors.DefaultSelector() as ready:
        ready.register(device, selectors.EVENT_READ)
        for _ in range(tries):
            os.write(device, frame)
            while ready.select(wait / tries):
                got = os.read(device, 65536)
                if got[12:14] == frame[12:14]:
                    return got
    return b""


def main() -> None:
    if sys.argv[1:2] == ["tap"]:
        print(tap(sys.argv[2], bytes.fromhex(sys.argv[3]), float(sys.argv[4])).hex())
        return
    guest = Guest()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        print(json.dumps(getattr(guest, request.pop("op"))(**request)), flush=True)


if __name__ == "__main__":
    main()
