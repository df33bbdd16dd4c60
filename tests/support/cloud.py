"""The manager in a test: `async with Cloud(tmp_path) as cloud`."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import select

from scloud.api.app import PREFIX, make_app
from scloud.api.context import Context
from scloud.api.routes.accounts import make_account
from scloud.controllers.disk_reader import DiskReader
from scloud.controllers.image_files import ImageFiles
from scloud.controllers.link_server import LinkServer
from scloud.controllers.manager import Manager
from scloud.controllers.settings import Settings
from scloud.link.channel import Channel
from scloud.link.memory import MemoryListener
from scloud.model.kinds import Kind, State
from scloud.model.specs import AccountSpec, ClusterSpec, ImageFormat, ImageSpec
from scloud.model.statuses import ImageStatus, Status
from scloud.store import tables, tokens
from scloud.store.database import Store, Tx, open_sqlite
from scloud.store.lease import Holder, take_lease
from scloud.store.resources import SYSTEM, create
from scloud.store.schema import migrate
from support.clock import Clock
from support.node import ScriptedNode

QUICK = Settings(node_grace_s=0.15, tick_s=0.02, network_settle_s=1.0, relocation_look_s=0.03)
DUMPED = ("resource", "reference", "claim", "node_usage", "operation", "work", "token", "event", "relocation")


class Authority:
    """Signs nothing: the in-memory link has no certificates."""

    ca = "test ca"

    def issue(self, node: str, csr: str) -> str:
        return f"certificate of {node} for {csr}"


_APPS: list[FastAPI] = []


def _app(context: Context) -> FastAPI:
    """The one application of the process, on this cloud: building its routes takes longer than most tests."""
    if not _APPS:
        _APPS.append(make_app(context))
    _APPS[0].state.context = context
    return _APPS[0]


class Api:
    """One account's client. Paths are below /api/v1."""

    def __init__(self, cloud: Cloud, secret: str | None, account: str = "") -> None:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        transport = httpx.ASGITransport(app=cloud.app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://cloud", headers=headers, timeout=20.0)
        self.secret = secret or ""
        self.account = account

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return await self.http.request(method, PREFIX + path, **more)

    async def get(self, path: str, **params: Any) -> Any:
        answer = await self.ask("GET", path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def list(self, path: str, **params: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await self.get(path, **params))["items"]
        return items

    async def do(self, method: str, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
        """A write that must be accepted; its answer."""
        answer = await self.ask(method, path, **({"json": body} if body is not None else {}), **more)
        assert answer.status_code in (201, 202), answer.text
        result: dict[str, Any] = answer.json()
        return result

    async def create(self, kind: str, name: str, **spec: Any) -> dict[str, Any]:
        """Create and wait for the end; the resource as it then is."""
        made = await self.do("POST", f"/{kind}", {"name": name, "spec": spec})
        await self.wait(made)
        result: dict[str, Any] = await self.get(f"/{kind}/{made['resource']['id']}")
        return result

    async def wait(self, answer: dict[str, Any], state: str = "done", seconds: float = 30.0) -> dict[str, Any]:
        """Until the operation of a write's answer has ended, which must be in `state`."""
        id = answer.get("operation", answer)["id"]
        op: dict[str, Any] = await self.get(f"/operations/{id}", wait=seconds)
        assert op["state"] == state, op
        return op

    async def end(self, method: str, path: str, body: Any = None, *, state: str = "done") -> dict[str, Any]:
        """A write, and its operation once it has ended."""
        return await self.wait(await self.do(method, path, body), state)

    async def fail(self, method: str, path: str, body: Any = None, *, status: int, code: str, **more: Any) -> Any:
        """A request that must be refused with a problem document; the document."""
        answer = await self.ask(method, path, **({"json": body} if body is not None else {}), **more)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["code"] == code and problem["status"] == status, problem
        assert problem["detail"] and problem["title"]
        return problem


class Cloud:
    """`admin` and `alice` are clients of two accounts. Nodes are added with `node()`, images with `image()`."""

    def __init__(self, folder: Path, *, database: Path | None = None, settings: Settings = QUICK) -> None:
        self.folder = folder
        self.clock = Clock()
        self._database = database
        self._settings = settings
        self.listener = MemoryListener()
        self.nodes: dict[str, ScriptedNode] = {}
        self._clients: list[Api] = []
        self._running: asyncio.Task[None] | None = None
        self.epoch = 0

    async def __aenter__(self) -> Cloud:
        self.store = self.open_store()
        await self.start()
        self.admin = await self.account("boss", admin=True)
        self.alice = await self.account("alice")
        return self

    def open_store(self) -> Store:
        if self._database is not None:
            store = open_sqlite(self._database, clock=self.clock)
            migrate(store)
        else:
            store = Store("sqlite://", clock=self.clock, rng=random.Random(7), inline=True)
            tables.metadata.create_all(store.engine)
        store.write_now(
            lambda tx: create(tx, Kind.CLUSTER, SYSTEM, "default", ClusterSpec(), Status(state=State.READY))
        )
        return store

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.http.aclose()
        for node in self.nodes.values():
            await node.stop()
        await self.stop()
        self.store.close()

    # --- the manager's life

    async def start(self) -> None:
        epoch = self.store.write_now(
            lambda tx: take_lease(tx, Holder(id=str(self.clock()), api="", link=""), 10.0, alone=True)
        )
        assert epoch is not None and epoch > self.epoch
        self.epoch = epoch
        self.files = ImageFiles(self.folder / "images")
        self.manager = Manager(self.store, self.files, epoch=epoch, settings=self._settings)
        self.link = LinkServer(self.manager, Authority(), self._send_image)
        self.files.disks = self.manager.mover.disks = DiskReader(self.store, self.link)
        self.context = Context(self.manager, self.link, join_address="cloud:7781", ca_pin="f" * 64)
        self.app = _app(self.context)
        self._running = asyncio.get_running_loop().create_task(self.manager.run())
        await self.manager.ready.wait()
        self.listener.handler = self.link.handle

    async def _send_image(self, channel: Channel, image: str) -> None:
        row = self.store.read_now(lambda tx: tx.conn.execute(select(tables.resource.c.status)).first())
        assert row is not None
        await self.files.send(channel, image, ImageStatus.model_validate_json(row.status).sha256)

    async def stop(self) -> None:
        """Killed: connections are cut, nothing is said to anybody."""
        await self.listener.stop()
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
            self._running = None

    async def restart_manager(self) -> None:
        """Another manager on the same database; its nodes have lost their connection."""
        await self.stop()
        await self.start()

    async def restart(self) -> None:
        """Another manager on the same database; nodes dial in again."""
        await self.restart_manager()
        for node in self.nodes.values():
            await node.stop()
            await node.start()

    # --- what tests need

    def client(self, secret: str | None, account: str = "") -> Api:
        made = Api(self, secret, account)
        self._clients.append(made)
        return made

    async def account(self, name: str, *, admin: bool = False) -> Api:
        """A client of a new account."""
        secret = f"secret-of-{name}"

        def make(tx: Tx) -> str:
            row = make_account(tx, name, AccountSpec(admin=admin))
            tokens.add(tx, row.id, "test", secret)
            return row.id

        return self.client(secret, await self.store.write(make))

    async def node(self, name: str = "n1", *, connect: bool = True, **capacity: Any) -> ScriptedNode:
        """Added by the API, and connected; returns once it is ready."""
        made = await self.admin.do("POST", "/nodes", {"name": name})
        number = len(self.nodes) + 1
        node = ScriptedNode(made["resource"]["id"], name, self.listener, tunnel_ip=f"192.0.2.{number}", **capacity)
        self.nodes[name] = node
        if connect:
            await node.start()
            await self.admin.wait(made)
        return node

    async def lose(self, node: ScriptedNode) -> None:
        """The node dies, and the manager has noticed that its connection is gone."""
        await node.stop()

        async def noticed() -> bool:
            return node.id not in self.manager.sessions

        await self.eventually(noticed)

    async def image(self, name: str = "micro", *, account: str | None = None, size_mib: int = 10, **spec: Any) -> str:
        """An image that is ready, without bytes; public unless of an account. Its id."""
        status = ImageStatus(state=State.READY, size_mib=size_mib, sha256="0" * 64, file_mib=1)
        wanted = ImageSpec(source="upload", format=ImageFormat.RAW, public=account is None, **spec)
        owner = SYSTEM if account is None else account
        return (await self.store.write(lambda tx: create(tx, Kind.IMAGE, owner, name, wanted, status))).id

    async def until(self, api: Api, path: str, state: str, seconds: float = 5.0) -> dict[str, Any]:
        """The resource once it is in a state."""
        seen: dict[str, Any] = {}

        async def reached() -> bool:
            nonlocal seen
            seen = await api.get(path)
            return bool(seen["status"]["state"] == state)

        try:
            await self.eventually(reached, seconds)
        except TimeoutError:
            raise AssertionError(f"{path} is not {state} after {seconds} s: {seen}") from None
        return seen

    async def until_gone(self, id: str, seconds: float = 5.0) -> None:
        """Until the row itself is removed."""

        async def gone() -> bool:
            return not self.rows("resource", id=id)

        await self.eventually(gone, seconds)

    async def eventually(self, true: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
        """Ask again after every commit, and every tick, until it is so; TimeoutError if it never is."""
        commit = asyncio.Event()
        listener = lambda _keys: commit.set()  # noqa: E731
        self.store.listeners.append(listener)
        try:
            async with asyncio.timeout(seconds):
                while not await true():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(commit.wait(), self._settings.tick_s)
                    commit.clear()
        finally:
            self.store.listeners.remove(listener)

    def rows(self, table: str, **where: Any) -> list[dict[str, Any]]:
        """Rows of a table, for looking behind the API."""
        source = tables.metadata.tables[table]
        query = select(source)
        for column, value in where.items():
            query = query.where(source.c[column] == value)
        return self.store.read_now(lambda tx: [dict(row._mapping) for row in tx.conn.execute(query)])

    def dump(self) -> dict[str, list[dict[str, Any]]]:
        """Everything that a refused request must leave as it was."""
        return {table: sorted(self.rows(table), key=repr) for table in DUMPED}
