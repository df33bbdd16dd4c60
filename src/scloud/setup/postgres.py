"""A PostgreSQL server of our own: for a lab with several managers, and for tests. Operators bring theirs."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psycopg

from scloud.model.errors import CloudError, ErrorKind

USER = "postgres"
"""Made by Debian's package; the server refuses to run as root."""
DATABASE = "scloud"


@dataclass(frozen=True)
class Postgres:
    """A server's folder and where it listens. The folder's parents must let its user through."""

    folder: Path
    port: int
    address: str = "127.0.0.1"
    more: tuple[str, ...] = ()
    """Further addresses on which it listens."""

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def _password(self) -> Path:
        return self.folder / "password"

    @property
    def url(self) -> str:
        return self.url_at(self.address)

    def url_at(self, address: str) -> str:
        """By another of its addresses."""
        return f"postgresql://{USER}:{self._password.read_text().strip()}@{address}:{self.port}/{DATABASE}"

    def argv(self) -> list[str]:
        """What runs the server in the foreground; SIGINT ends it quickly and cleanly."""
        account = _account()
        drop = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        listen = ["-c", f"listen_addresses={','.join((self.address, *self.more))}"]
        return [*drop, str(_binary("postgres")), "-D", str(self.data), *listen]

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def initialise(self) -> bool:
        """Make its folder and database; False if they are there. Whole or not at all."""
        if self.data.exists():
            return False
        account = _account()
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._password.touch(mode=0o600)
        self._password.write_text(secrets.token_urlsafe(24))
        os.chown(unfinished, account.pw_uid, account.pw_gid)
        os.chown(self._password, account.pw_uid, account.pw_gid)
        # The C locale: ids and names sort as bytes, here as in Python.
        locale = ("--locale=C", "--encoding=UTF8")
        access = ("--auth=scram-sha-256", f"--pwfile={self._password}")
        _run(_binary("initdb"), "-D", str(unfinished), "-U", USER, *locale, *access, "--no-instructions")
        with (unfinished / "postgresql.conf").open("a") as file:
            file.write(f"port = {self.port}\n")
            file.write("unix_socket_directories = ''\nmax_connections = 100\n")
        single = ("--single", "-D", str(unfinished), "postgres")
        _run(_binary("postgres"), *single, text=f"CREATE DATABASE {DATABASE}\n")
        unfinished.rename(self.data)
        return True


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        raise _missing() from None


def _binary(name: str) -> Path:
    """Of the newest version that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    if not found:
        raise _missing()
    return found[-1]


def _missing() -> CloudError:
    return CloudError(
        ErrorKind.UNAVAILABLE, "PostgreSQL is not installed here: `apt-get install postgresql`, then try again"
    )


def _run(binary: Path, *arguments: str, text: str = "") -> None:
    """As the server's user."""
    account = _account()
    done = subprocess.run(
        [str(binary), *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        cwd="/",
    )
    if done.returncode != 0:
        raise CloudError(ErrorKind.ENGINE, f"{binary.name} failed: {(done.stderr or done.stdout).strip()[-500:]}")
