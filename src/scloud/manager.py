"""The manager process: `python -m scloud.manager --root DIR --api ADDR:PORT --link ADDR:PORT`."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import time
from pathlib import Path

import uvicorn

from scloud import garbage
from scloud.api.app import make_app
from scloud.api.context import Context
from scloud.api.routes.accounts import make_account
from scloud.console.app import mount
from scloud.controllers.disk_reader import DiskReader
from scloud.controllers.image_files import ImageFiles
from scloud.controllers.link_server import LinkServer
from scloud.controllers.manager import Manager
from scloud.link import channel, pki
from scloud.link.channel import Channel
from scloud.model.errors import not_found
from scloud.model.kinds import Kind, State
from scloud.model.specs import AccountSpec, ClusterSpec
from scloud.model.statuses import ImageStatus, Status
from scloud.store import tokens
from scloud.store.database import Store, Tx, open_sqlite
from scloud.store.lease import Holder, take_lease
from scloud.store.resources import SYSTEM, all_of, create, find
from scloud.store.schema import migrate

log = logging.getLogger("scloud.manager")
SWITCH_S = 0.0005
"""How long one thread may hold up another. The writer gives way at each statement, and with Python's usual 5 ms it
would wait as long for the event loop before it went on, tens of times for one VM."""
ADMIN = "admin"
LEASE_S = 10.0


class FileAuthority:
    """The CA in the manager's folder, made at first start."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.ca_path, self._ca_key = folder / "ca.pem", folder / "ca.key"
        self.certificate, self.key = folder / "manager.pem", folder / "manager.key"
        if not self._ca_key.exists():
            made = pki.create_ca(time.time())
            _write_private(self.ca_path, made.certificate)
            _write_private(self._ca_key, made.key)
        self._authority = pki.Credentials(self.ca_path.read_text(), self._ca_key.read_text())
        server = pki.issue_server(self._authority, time.time(), names)
        _write_private(self.certificate, server.certificate)
        _write_private(self.key, server.key)

    @property
    def ca(self) -> str:
        return self._authority.certificate

    def issue(self, node: str, csr: str) -> str:
        return pki.issue_node(self._authority, node, csr, time.time())


def _write_private(path: Path, text: str) -> None:
    """Whole or not at all, readable by its owner alone."""
    fresh = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def prepare(store: Store, token_file: Path) -> None:
    """The first account, cluster and token; nothing if they are there."""

    def first(tx: Tx) -> str | None:
        if not all_of(tx, Kind.CLUSTER):
            create(tx, Kind.CLUSTER, SYSTEM, "default", ClusterSpec(), Status(state=State.READY))
        accounts = all_of(tx, Kind.ACCOUNT)
        if accounts and token_file.exists():
            return None
        account = accounts[0] if accounts else make_account(tx, ADMIN, AccountSpec(admin=True))
        secret = f"sct-{secrets.token_urlsafe(32)}"
        tokens.add(tx, account.id, "first", secret)
        return secret

    secret = store.write_now(first)
    if secret is not None:
        _write_private(token_file, secret + "\n")


def lead(store: Store, folder: Path) -> tuple[int, int]:
    """(epoch, descriptor that holds the lock). The lock proves that no other manager uses this database."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"another manager is running with {folder}; stop it first") from None
    holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    epoch = store.write_now(lambda tx: take_lease(tx, Holder(id=holder, api="", link=""), LEASE_S, alone=True))
    if epoch is None:
        raise SystemExit("the leader's lease could not be taken")
    return epoch, descriptor


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host or "127.0.0.1", int(port)


def _listener(address: tuple[str, int]) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(1024)
    listener.setblocking(False)
    return listener


async def run(root: Path, api: tuple[str, int], link: tuple[str, int], advertise: str | None) -> None:
    """Until SIGTERM or SIGINT."""
    root.mkdir(parents=True, exist_ok=True)
    ready_file = root / "ready"
    ready_file.unlink(missing_ok=True)
    store = open_sqlite(root / "scloud.db", clock=time.time)
    migrate(store)
    epoch, lock = lead(store, root)
    prepare(store, root / "admin.token")
    files = ImageFiles(root / "images")
    manager = Manager(store, files, epoch=epoch)
    authority = FileAuthority(root / "pki", [link[0], api[0]])

    async def send_image(connection: Channel, image: str) -> None:
        row = await store.read(lambda tx: find(tx, image))
        if row is None or row.kind != Kind.IMAGE or row.state != State.READY:
            raise not_found("image", image)
        await files.send(connection, image, row.status_as(ImageStatus).sha256)

    server = LinkServer(manager, authority, send_image)
    files.disks = manager.mover.disks = DiskReader(store, server)
    join_address = advertise or f"{link[0]}:{link[1]}"
    context = Context(manager, server, join_address=join_address, ca_pin=pki.pin_of(authority.ca))
    listener = _listener(api)
    tls = api[0] not in ("127.0.0.1", "localhost")
    app = make_app(context)
    streams = mount(app)
    config = uvicorn.Config(
        app,
        loop="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
        ws_max_size=1024 * 1024,
        ssl_certfile=str(authority.certificate) if tls else None,
        ssl_keyfile=str(authority.key) if tls else None,
    )
    web = uvicorn.Server(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    working = loop.create_task(manager.run())
    ready = loop.create_task(manager.ready.wait())
    await asyncio.wait([working, ready], return_when=asyncio.FIRST_COMPLETED)
    tls_link = pki.server_context(authority.certificate, authority.key, authority.ca_path)
    accepting = await channel.serve(server.handle, link[0], link[1], tls_link)
    serving = loop.create_task(web._serve([listener]))  # serve() would take the signals for itself
    scheme = "https" if tls else "http"
    told = {
        "api": f"{scheme}://{api[0]}:{listener.getsockname()[1]}",
        "link": join_address,
        "ca_sha256": context.ca_pin,
    }
    _write_private(ready_file, json.dumps(told | {"pid": os.getpid(), "epoch": epoch}))
    log.info("manager ready, epoch %d, API at %s", epoch, told["api"])
    garbage.begin()
    collecting = loop.create_task(garbage.collect_when_idle())
    stopping = loop.create_task(stop.wait())
    await asyncio.wait([working, serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    ready_file.unlink(missing_ok=True)
    web.should_exit = True
    streams.close()
    accepting.close()
    for session in manager.sessions:
        await session.hang_up()
    collecting.cancel()
    working.cancel()
    results = await asyncio.gather(working, serving, return_exceptions=True)
    store.close()
    os.close(lock)
    for result in results:
        if isinstance(result, Exception):
            raise result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scloud.manager", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the database, images and certificates")
    parser.add_argument("--api", default="127.0.0.1:7780", help="ADDRESS:PORT of the REST API and console")
    parser.add_argument("--link", default="127.0.0.1:7781", help="ADDRESS:PORT where nodes connect")
    parser.add_argument("--advertise", help="HOST:PORT under which nodes reach the link, if another")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import uvloop

    sys.setswitchinterval(SWITCH_S)
    # A file for each node's connection: the usual 1,024 would end it at a thousand nodes.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(options.root.resolve(), _address(options.api), _address(options.link), options.advertise))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
