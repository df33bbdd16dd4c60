"""A real PostgreSQL server for tests, gone after the last of them."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from scloud.setup.postgres import Postgres


class Server:
    """Runs; `database` makes an empty one and tells its URL."""

    def __init__(self, postgres: Postgres) -> None:
        self.postgres = postgres
        self._made = 0

    def database(self) -> str:
        self._made += 1
        name = f"test{self._made}"
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.postgres.url.rpartition("/")[0] + f"/{name}"


@contextmanager
def running() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="scloud-pg-") as folder, socket.create_server(("127.0.0.1", 0)) as probe:
        Path(folder).chmod(0o711)
        postgres = Postgres(Path(folder), probe.getsockname()[1])
        probe.close()
        postgres.initialise()
        process = subprocess.Popen(postgres.argv(), stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    psycopg.connect(postgres.url, connect_timeout=2).close()
                    break
                except psycopg.OperationalError:
                    assert process.poll() is None and time.monotonic() < deadline, "PostgreSQL does not start"
                    time.sleep(0.05)
            yield Server(postgres)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
