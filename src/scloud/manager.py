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
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import OperationalError

from scloud import garbage
from scloud.api.app import make_app
from scloud.api.context import Context
from scloud.api.routes.accounts import make_account
from scloud.authority import Authority, ca_in_database, ca_in_folder, make_ca_in_database, write_private
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
from scloud.standby.aside import HEARD_S
from scloud.standby.copies import keep_copies
from scloud.standby.leadership import Leadership
from scloud.standby.lobby import Lobby
from scloud.standby.relay import Relay, apologise
from scloud.store import tokens
from scloud.store.database import Store, Tx, open_postgres, open_sqlite
from scloud.store.lease import Holder, LeaseLost, take_lease
from scloud.store.resources import SYSTEM, all_of, create, find
from scloud.store.schema import migrate

log = logging.getLogger("scloud.manager")
SWITCH_S = 0.0005
"""How long one thread may hold up another. The writer gives way at each statement, and with Python's usual 5 ms it
would wait as long for the event loop before it went on, tens of times for one VM."""
ADMIN = "admin"
LEASE_S = 10.0
DATABASE_AGAIN_S = 1.0
LEADS_NO_MORE = 3
"""The exit status of a manager whose lease was lost."""
LAST_WRITES_S = 3.0
"""How long a manager that is told to end waits for a database that others may lead with."""


async def prepare(store: Store, token_file: Path) -> None:
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

    secret = await store.write(first)
    if secret is not None:
        write_private(token_file, secret + "\n")


def lead_alone(store: Store, folder: Path, me: Holder) -> tuple[int, int]:
    """(epoch, descriptor that holds the lock). The lock proves that no other manager uses this database."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"another manager is running with {folder}; stop it first") from None
    epoch = store.write_now(lambda tx: take_lease(tx, me, LEASE_S, alone=True))
    if epoch is None:
        raise SystemExit("the leader's lease could not be taken")
    return epoch, descriptor


@dataclass(frozen=True)
class Place:
    """Where a manager keeps its files, where it listens, and its database if that is not a file of its own."""

    root: Path
    api: tuple[str, int]
    link: tuple[str, int]
    advertise: str | None
    database: str | None

    @property
    def pki(self) -> Path:
        return self.root / "pki"


class Process:
    """One manager: it may be a standby first, then leads until it is told to end or another leads."""

    def __init__(self, place: Place) -> None:
        self._place = place
        place.root.mkdir(parents=True, exist_ok=True)
        self._ready_file = place.root / "ready"
        self._ready_file.unlink(missing_ok=True)
        self._api = channel.listen(*place.api)
        self._link = channel.listen(*place.link)
        self._tls = place.api[0] not in ("127.0.0.1", "localhost")
        port = self._api.getsockname()[1]
        self._url = f"{'https' if self._tls else 'http'}://{place.api[0]}:{port}"
        self._link_address = place.advertise or f"{place.link[0]}:{self._link.getsockname()[1]}"
        name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._me = Holder(id=name, api=f"{place.api[0]}:{port}", link=self._link_address)
        self._files = ImageFiles(place.root / "images")

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. LeaseLost when another leads: whoever keeps this process starts it anew."""
        told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        if self._place.database is None:
            store = open_sqlite(self._place.root / "scloud.db", clock=time.time)
            migrate(store)
            epoch, lock = lead_alone(store, self._place.root, self._me)
            try:
                await self._lead(Manager(store, self._files, epoch=epoch), told)
            finally:
                store.close()
                os.close(lock)
            return
        store = open_postgres(self._place.database, clock=time.time)
        # Whoever has lost the lease does not come to the end of this: nothing waits for a database that may be away.
        await self._share(store, told)
        store.close(LAST_WRITES_S)

    async def _share(self, store: Store, told: asyncio.Event) -> None:
        """Stand by, then lead, until told to end."""
        leadership = Leadership(store, self._me)
        stand_by = asyncio.ensure_future(self._stand_by(store, leadership))
        stopping = asyncio.ensure_future(told.wait())
        await asyncio.wait([stand_by, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not stand_by.done():
            stand_by.cancel()
            await asyncio.gather(stand_by, return_exceptions=True)
            return
        manager = Manager(store, self._files, epoch=stand_by.result())
        keeping = asyncio.ensure_future(leadership.keep(lambda: manager.sessions.heard(HEARD_S)))
        leading = asyncio.ensure_future(self._lead(manager, told))
        await asyncio.wait([keeping, leading], return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            # Nothing of what it would do in order may be done by one that leads no more.
            self._ready_file.unlink(missing_ok=True)
            raise keeping.exception() or LeaseLost(manager.epoch, None)
        keeping.cancel()
        leading.result()
        await leadership.give_up()

    async def _stand_by(self, store: Store, leadership: Leadership) -> int:
        """The epoch in which this manager leads, once it does."""
        lobby = Lobby(leadership.link, asyncio.get_running_loop().time)
        relays = [
            asyncio.ensure_future(part)
            for part in (
                Relay(self._api, leadership.api, apologise).run(),
                Relay(self._link, lobby.target, lobby.turn_away).run(),
            )
        ]
        try:
            await self._until_migrated(store)
            relays.append(asyncio.ensure_future(self._with_ca(store, leadership, lobby)))
            self._say_ready("standby", 0, "")
            return await leadership.gain(lobby.stranded)
        finally:
            self._ready_file.unlink(missing_ok=True)
            for relay in relays:
                relay.cancel()
            await asyncio.gather(*relays, return_exceptions=True)

    async def _until_migrated(self, store: Store) -> None:
        while True:
            try:
                await asyncio.to_thread(migrate, store)
                return
            except OperationalError as error:
                log.warning("the database does not answer, and is asked again: %s", error.orig)
                await asyncio.sleep(DATABASE_AGAIN_S)

    async def _with_ca(self, store: Store, leadership: Leadership, lobby: Lobby) -> None:
        """What begins as soon as there is a CA that both this and the leader have."""
        while (ca := await self._shared_ca(store)) is None:
            await asyncio.sleep(DATABASE_AGAIN_S)
        authority = Authority(ca, self._place.pki, [])
        async with asyncio.TaskGroup() as group:
            group.create_task(keep_copies(store, self._files.path, leadership.link, authority.as_client))
            group.create_task(lobby.watch(authority))

    @staticmethod
    async def _shared_ca(store: Store) -> pki.Credentials | None:
        try:
            return await store.read(ca_in_database)
        except OperationalError:
            return None

    def _say_ready(self, role: str, epoch: int, ca_pin: str) -> None:
        """For whoever waits for this process: how it is reached."""
        told = {"api": self._url, "link": self._link_address, "ca_sha256": ca_pin, "role": role}
        write_private(self._ready_file, json.dumps(told | {"pid": os.getpid(), "epoch": epoch}))
        log.info("manager ready as %s, epoch %d, API at %s", role, epoch, self._url)

    async def _lead(self, manager: Manager, told: asyncio.Event) -> None:
        """Until told to end."""
        garbage.begin()
        store = manager.store
        shared = self._place.database is not None
        ca = await store.write(make_ca_in_database) if shared else ca_in_folder(self._place.pki)
        await prepare(store, self._place.root / "admin.token")
        authority = Authority(ca, self._place.pki, [self._place.link[0], self._place.api[0]])

        async def send_image(connection: Channel, image: str) -> None:
            row = await store.read(lambda tx: find(tx, image))
            if row is None or row.kind != Kind.IMAGE or row.state != State.READY:
                raise not_found("image", image)
            await self._files.send(connection, image, row.status_as(ImageStatus).sha256)

        server = LinkServer(manager, authority, send_image)
        self._files.disks = manager.mover.disks = DiskReader(store, server)
        context = Context(manager, server, join_address=self._link_address, ca_pin=pki.pin_of(authority.ca))
        app = make_app(context)
        streams = mount(app)
        web = uvicorn.Server(self._web_config(app, authority))
        loop = asyncio.get_running_loop()
        working = loop.create_task(manager.run())
        ready = loop.create_task(manager.ready.wait())
        await asyncio.wait([working, ready], return_when=asyncio.FIRST_COMPLETED)
        tls_link = pki.server_context(authority.certificate, authority.key, authority.ca_path)
        accepting = await channel.serve(server.handle, self._link, tls_link)
        serving = loop.create_task(web._serve([self._api]))  # serve() would take the signals for itself
        self._say_ready("leader", manager.epoch, context.ca_pin)
        collecting = loop.create_task(garbage.collect_when_idle())
        stopping = loop.create_task(told.wait())
        await asyncio.wait([working, serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        self._ready_file.unlink(missing_ok=True)
        web.should_exit = True
        streams.close()
        accepting.close()
        await asyncio.gather(*(session.hang_up() for session in manager.sessions))
        for task in (collecting, stopping, working):
            task.cancel()
        results = await asyncio.gather(serving, working, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _web_config(self, app: FastAPI, authority: Authority) -> uvicorn.Config:
        return uvicorn.Config(
            app,
            loop="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=3,
            ws_max_size=1024 * 1024,
            ssl_certfile=str(authority.certificate) if self._tls else None,
            ssl_keyfile=str(authority.key) if self._tls else None,
        )


def _database(text: str) -> str:
    """The URL as it is, or as the file after the @ says: arguments can be seen by every user of the machine."""
    return Path(text[1:]).read_text().strip() if text.startswith("@") else text


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host or "127.0.0.1", int(port)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scloud.manager", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the database, images and certificates")
    parser.add_argument("--api", default="127.0.0.1:7780", help="ADDRESS:PORT of the REST API and console")
    parser.add_argument("--link", default="127.0.0.1:7781", help="ADDRESS:PORT where nodes connect")
    parser.add_argument("--advertise", help="HOST:PORT under which nodes reach the link, if another")
    parser.add_argument(
        "--database",
        metavar="postgresql://...|@FILE",
        type=_database,
        help="a PostgreSQL database that several managers share, or a file that says its URL; else the folder has one",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import uvloop

    sys.setswitchinterval(SWITCH_S)
    # A file for each node's connection: the usual 1,024 would end it at a thousand nodes.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    place = Place(
        options.root.resolve(), _address(options.api), _address(options.link), options.advertise, options.database
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(Process(place).run())
        except LeaseLost as error:
            log.error("%s", error)
            _end_now(LEADS_NO_MORE)
        except Exception:
            if place.database is None:
                raise
            log.exception("this manager ends")
            _end_now(1)
        if place.database is not None:
            _end_now(0)
    return 0


def _end_now(status: int) -> NoReturn:
    """Nothing waits for threads that wait for a database which may never answer. What is committed, is there."""
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    raise SystemExit(main())
