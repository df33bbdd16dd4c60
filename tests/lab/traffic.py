"""Traffic between guests that goes on while something happens; afterwards one knows what was missing."""

from __future__ import annotations

import itertools
import re

from lab.cloud import Guest, until


class Pinging:
    """A guest pings an address five times a second from inside; afterwards one knows which answers were missing."""

    EVERY_S = 0.2
    _numbers = itertools.count()

    def __init__(self, guest: Guest, address: str) -> None:
        self.guest, self.address = guest, address
        self.file = f"/tmp/ping.{next(self._numbers)}"
        guest.run("for pid in $(cat /tmp/ping.*.pid 2>/dev/null); do kill $pid 2>/dev/null; done; rm -f /tmp/ping.*")
        guest.background(f"echo $$ > {self.file}.pid; exec ping -i {self.EVERY_S} {address} > {self.file} 2>&1")
        until(lambda: guest.succeeds(f"grep -q seq=2 {self.file}"), f"{guest.name} pings {address}", 15.0)

    def stop(self) -> tuple[int, float]:
        """(answers, the longest time without any in seconds)."""
        self.guest.run(
            f"kill -INT $(cat {self.file}.pid); until grep -q transmitted {self.file}; do usleep 50000; done"
        )
        text = self.guest.run(f"cat {self.file}; rm {self.file}*")
        answered = sorted({int(number) for number in re.findall(r"seq=(\d+)", text)})
        match = re.search(r"(\d+) packets transmitted", text)
        assert match is not None and answered, text[-300:]
        # The last one may still have been on its way.
        edges = [*answered, max(int(match[1]) - 1, answered[-1] + 1)]
        longest = max(after - before for before, after in itertools.pairwise(edges)) - 1
        return len(answered), longest * self.EVERY_S


class Talking:
    """One TCP connection on which a guest says a number ten times a second, and another notes when it heard it."""

    EVERY_S = 0.1
    _ports = itertools.count(9099)

    def __init__(self, speaker: Guest, listener: Guest) -> None:
        self.listener = listener
        self.port = next(self._ports)
        self.file = f"/tmp/heard.{self.port}"
        speaker.run(f"echo 'n=0; while echo $n; do n=$((n+1)); usleep {self.EVERY_S * 1e6:.0f}; done' > /tmp/count")
        speaker.background(f"exec nc -l -p {self.port} -e sh /tmp/count")
        heard = f'while read -r n; do read -r up idle < /proc/uptime; echo "$n $up"; done > {self.file}'
        speaker.run(f"until netstat -lnt | grep -q :{self.port}; do usleep 50000; done")
        listener.background(f"echo $$ > {self.file}.group; tail -f /dev/null | nc {speaker.ip} {self.port} | {heard}")
        self.goes_on()

    def goes_on(self) -> None:
        """Until ten more numbers have been heard."""
        count = f"wc -l < {self.file}"
        self.listener.run(
            f"end=$(($({count}) + 10)); until [ $({count}) -ge $end ]; do usleep 50000; done 2> /dev/null"
        )

    def stop(self) -> tuple[int, float]:
        """(numbers heard without one missing, the longest time without any in seconds); the connection ends."""
        self.goes_on()
        ended = f"cat {self.file}; kill -- -$(cat {self.file}.group); rm {self.file}*"
        lines = [line.split() for line in self.listener.run(ended).splitlines()]
        assert [int(line[0]) for line in lines] == list(range(len(lines))), "another connection, or something was lost"
        return len(lines), max(float(after[1]) - float(before[1]) for before, after in itertools.pairwise(lines))


class Silent:
    """A TCP connection on which nothing is said until its server is told to speak."""

    def __init__(self, server: Guest, client: Guest, port: int) -> None:
        self.server, self.client, self.port = server, client, port
        server.run(f"echo 'until [ -e /tmp/go.{port} ]; do usleep 50000; done; echo spoken' > /tmp/say.{port}")
        server.background(f"exec nc -l -p {port} -e sh /tmp/say.{port}")
        server.run(f"until netstat -lnt | grep -q :{port}; do usleep 50000; done")
        client.background(f"tail -f /dev/null | nc {server.ip} {port} > /tmp/said.{port}")
        client.run(f"until netstat -nt | grep :{port} | grep -q ESTABLISHED; do usleep 50000; done")

    def speak(self) -> None:
        """The server does, and its client hears it; else AssertionError."""
        self.server.run(f"touch /tmp/go.{self.port}")
        heard = f"grep -q spoken /tmp/said.{self.port}"
        until(lambda: self.client.succeeds(heard), f"{self.client.name} hears {self.server.name}", 20.0)
