"""Starting the manager and getting to speak with it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx
import orjson
from pydantic import ValidationError

from scloud.client.contexts import Context, read_contexts, save_context
from scloud.drivers.supervisor.identity import Identity
from scloud.drivers.supervisor.process import tail
from scloud.drivers.supervisor.ready import wait_ready
from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind
from scloud.node.keep import ask
from scloud.node.keeping import set_units
from scloud.node.layout import Layout, tag

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


def start_manager(layout: Layout, endpoints: Endpoints) -> bool:
    """Have it running and answering; False if it was."""
    pidfile = layout.keeper / "run" / "manager.pid"
    before = Identity.read(pidfile)
    if before is None or not before.alive():
        # Of a manager that is gone; the new one says itself when it is ready.
        (layout.manager / "ready").unlink(missing_ok=True)
        before = None
    layout.manager.mkdir(parents=True, exist_ok=True, mode=0o700)
    set_units(layout, layout.manager_unit(endpoints.api, endpoints.link))
    if not _gets_ready(layout) or not _healthy(endpoints):
        log = layout.keeper / "log" / "manager.log"
        raise CloudError(ErrorKind.ENGINE, f"the manager does not get ready; its log {log} ends: {tail(log)}")
    return before is None or Identity.read(pidfile) != before


def _gets_ready(layout: Layout) -> bool:
    """Whether it says that it is ready in time; one that dies again and again is not waited for."""
    for _ in range(int(READY_TIMEOUT_S / _LOOK_S)):
        if asyncio.run(wait_ready(layout.manager / "ready", None, _LOOK_S)) == "ready":
            return True
        if ask(layout, "status")["units"].get("manager", {}).get("restarts", 0) >= _TRIES:
            return False
    return False


def _healthy(endpoints: Endpoints) -> bool:
    transport = httpx.HTTPTransport(retries=5)
    with httpx.Client(transport=transport, trust_env=False, timeout=20.0) as client:
        try:
            return client.get(f"{endpoints.url}/healthz").is_success
        except httpx.TransportError:
            return False


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
