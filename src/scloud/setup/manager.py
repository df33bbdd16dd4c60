"""Starting the manager and getting to speak with it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import orjson
from pydantic import ValidationError

from scloud.client.contexts import Context, read_contexts, save_context, write_private
from scloud.drivers.supervisor.identity import Identity
from scloud.drivers.supervisor.process import tail
from scloud.drivers.supervisor.ready import wait_ready
from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind
from scloud.node.keep import ask
from scloud.node.keeping import set_units
from scloud.node.layout import Layout, Unit, tag
from scloud.setup.postgres import Postgres

READY_TIMEOUT_S = 60.0
_LOOK_S = 5.0
_TRIES = 3


class Endpoints(Value):
    """Where a cloud's manager listens: HOST:PORT of the REST API and of the agents' link. Kept in endpoints.json."""

    api: str
    link: str

    @property
    def url(self) -> str:
        return f"http://{self.api}"


def read_endpoints(layout: Layout) -> Endpoints | None:
    """As they were chosen when the cloud was first started."""
    try:
        return Endpoints.model_validate_json((layout.root / "endpoints.json").read_bytes())
    except (OSError, ValidationError):
        return None


def write_endpoints(layout: Layout, endpoints: Endpoints) -> None:
    layout.root.mkdir(parents=True, exist_ok=True)
    (layout.root / "endpoints.json").write_text(endpoints.model_dump_json(indent=2) + "\n")


def free_port(host: str, first: int) -> int:
    """The first port from `first` on that nobody listens on."""
    for port in range(first, first + 1000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise CloudError(ErrorKind.UNAVAILABLE, f"no port from {first} to {first + 999} is free on {host}")


def own_port(root: Path) -> int:
    """Where to begin to look for a port of a cloud that has not the usual root."""
    return 20000 + int(tag(root), 16) % 10000


def start_manager(layout: Layout, endpoints: Endpoints, *, number: int = 1) -> bool:
    """Have it running and answering; False if it was. The second manager, the third, ... are standbys at first."""
    unit = layout.manager_unit(endpoints.api, endpoints.link, number=number)
    folder = layout.manager if number == 1 else layout.standby(number)
    pidfile = layout.keeper / "run" / f"{unit.name}.pid"
    before = Identity.read(pidfile)
    if before is None or not before.alive():
        # Of a manager that is gone; the new one says itself when it is ready.
        (folder / "ready").unlink(missing_ok=True)
        before = None
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    set_units(layout, unit)
    # One that hung and goes on may end first, because another leads: then it is what is started in its place.
    if not any(_gets_ready(layout, unit.name, folder) and _healthy(endpoints) for _ in range(_TRIES)):
        log = layout.keeper / "log" / f"{unit.name}.log"
        raise CloudError(ErrorKind.ENGINE, f"the manager does not get ready; its log {log} ends: {tail(log)}")
    return before is None or Identity.read(pidfile) != before


def _gets_ready(layout: Layout, unit: str, folder: Path) -> bool:
    """Whether it says that it is ready in time; one that dies again and again is not waited for."""
    for _ in range(int(READY_TIMEOUT_S / _LOOK_S)):
        if asyncio.run(wait_ready(folder / "ready", None, _LOOK_S)) == "ready":
            return True
        if ask(layout, "status")["units"].get(unit, {}).get("restarts", 0) >= _TRIES:
            return False
    return False


def _healthy(endpoints: Endpoints) -> bool:
    transport = httpx.HTTPTransport(retries=5)
    with httpx.Client(transport=transport, trust_env=False, timeout=20.0) as client:
        try:
            return client.get(f"{endpoints.url}/healthz").is_success
        except httpx.TransportError:
            return False


def start_database(layout: Layout, postgres: Postgres, addresses: Sequence[str]) -> bool:
    """Have a PostgreSQL server of our own running, and its URL where each manager finds it, by these addresses of it;
    False if it was."""
    before = Identity.read(layout.keeper / "run" / "postgres.pid")
    made = postgres.initialise()
    unit = Unit(name="postgres", role="database", argv=tuple(postgres.argv()))
    set_units(layout, unit)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not postgres.answers():
        if time.monotonic() > deadline:
            log = layout.keeper / "log" / "postgres.log"
            raise CloudError(ErrorKind.ENGINE, f"PostgreSQL does not get ready; its log {log} ends: {tail(log)}")
        time.sleep(0.1)
    for number, address in enumerate(addresses, 1):
        write_private(layout.database_file(number), postgres.url_at(address) + "\n")
    return made or before is None or Identity.read(layout.keeper / "run" / "postgres.pid") != before


def link_of(layout: Layout) -> str:
    """HOST:PORT of the link, as the running manager says."""
    ready = orjson.loads((layout.manager / "ready").read_bytes())
    return str(ready["link"])


def admin_context(layout: Layout, name: str, endpoints: Endpoints) -> Context:
    """The administrator's way to this cloud."""
    token_file = layout.manager / "admin.token"
    try:
        return Context(name, endpoints.url, token_file.read_text().strip())
    except OSError as error:
        raise CloudError(ErrorKind.UNAVAILABLE, f"the manager has left no token in {token_file}: {error}") from error


def save_admin_context(context: Context, *, make_current: bool) -> bool:
    """Keep it for the command line; False if it was kept already."""
    contents = read_contexts()
    if contents.contexts.get(context.name) == context and (contents.current == context.name or not make_current):
        return False
    save_context(context, make_current=make_current)
    return True
